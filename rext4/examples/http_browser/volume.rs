//! Finding and listing files of the volume with the rights of a user.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use rext4::{Access, Credentials, Dir, Error, FileType, Filesystem, Node, Posix};

use crate::http::{self, Response};

/// To read.
pub const READ: Access = Access { read: true, write: false, execute: false };
/// To look up names in a directory.
const SEARCH: Access = Access { read: false, write: false, execute: true };
/// Symbolic links that are followed in one path, as on Linux.
const MAX_SYMLINKS: usize = 40;

/// Why a request cannot be met.
pub enum Failure {
    Forbidden,
    Volume(Error),
    Io(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Volume(error)
    }
}

impl Failure {
    pub fn response(self) -> Response {
        let status = match &self {
            Failure::Forbidden | Failure::Volume(Error::Posix(Posix::Access)) => "403 Forbidden",
            Failure::Volume(Error::Posix(
                Posix::NotFound | Posix::NotDirectory | Posix::NameTooLong | Posix::TooManySymlinks,
            )) => "404 Not Found",
            Failure::Volume(_) | Failure::Io(_) => "500 Internal Server Error",
        };
        match self {
            Failure::Volume(error) if status.starts_with('5') => eprintln!("{error}"),
            Failure::Io(error) => eprintln!("{error}"),
            _ => {}
        }
        Response::text(status)
    }
}

/// The file that a path leads to for `user`. Links are followed inside the volume.
pub fn find(fs: &Arc<Filesystem>, user: &Credentials, path: &[u8]) -> Result<Node, Failure> {
    let mut names = split(path);
    let (mut at, mut links): (Node, _) = (fs.root()?.into(), 0);
    while let Some(name) = names.pop() {
        let dir = at.into_dir()?;
        dir.check_access(user, SEARCH)?;
        let next = dir.lookup(&name)?;
        at = if next.kind() == FileType::Symlink {
            links += 1;
            if links > MAX_SYMLINKS {
                return Err(Error::from(Posix::TooManySymlinks).into());
            }
            let target = next.read_link()?;
            names.extend(split(&target));
            if target.starts_with(b"/") { fs.root()?.into() } else { dir.into() }
        } else {
            next
        };
    }
    Ok(at)
}

/// The names of a path, the first one last. A slash at the end asks for a directory.
fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let dot = path.ends_with(b"/").then_some(&b"."[..]);
    let mut names: Vec<_> = names.chain(dot).map(<[u8]>::to_vec).collect();
    names.reverse();
    names
}

/// A page with the names in a directory.
pub fn listing(dir: &Dir, user: &Credentials, path: &[u8]) -> Result<String, Failure> {
    dir.check_access(user, READ)?;
    let mut entries = dir.read_dir().collect::<Result<Vec<_>, Error>>()?;
    entries.sort_by(|a, b| a.name().cmp(b.name()));
    let title = escape(path);
    let mut page = format!("<!DOCTYPE html>\n<title>{title}</title>\n<h1>{title}</h1>\n<table>\n");
    if path.iter().any(|byte| *byte != b'/') {
        page += "<tr><td><a href=\"../\">../</a></td></tr>\n";
    }
    for entry in entries {
        let (name, attr) = (entry.name().as_bytes(), entry.node()?.attributes()?);
        let slash = if attr.is_dir() { "/" } else { "" };
        let size = if attr.is_file() { attr.size.to_string() } else { String::new() };
        let (link, text) = (http::encode_name(name), escape(name));
        let _ =
            writeln!(page, "<tr><td><a href=\"./{link}{slash}\">{text}{slash}</a></td><td>{size}</td></tr>");
    }
    Ok(page + "</table>\n")
}

/// Bytes as text of a page.
fn escape(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
