//! Files by path, in the manner of [`std::fs`].
//!
//! A path begins at the root directory, with a slash or without. Symbolic links are followed inside the
//! filesystem, `..` of the root is the root, so no path leads out. What is made belongs to root; whoever needs
//! other owners uses the handles.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ext4_format::inode::FileType;

use crate::error::{Error, Posix, Result};
use crate::fs::Filesystem;
use crate::node::{Dir, Node, OpenFile};
use crate::ops::{OpenFlags, ReadDir, RenameFlags, SeekWhence, SetXattr};
use crate::types::{Attr, Credentials, SetAttr, SetTime};

/// Symbolic links that are followed in one path, as on Linux.
const MAX_SYMLINKS: u32 = 40;

/// Where a path leads.
struct Place {
    dir: Dir,
    /// Empty for the directory itself.
    name: Vec<u8>,
    node: Option<Node>,
}

impl Filesystem {
    /// The file at `path`; a symbolic link at its end is followed.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`, `TooManySymlinks`.
    pub fn lookup(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Node> {
        self.resolve(path.as_ref(), true)?.node.ok_or_else(|| Posix::NotFound.into())
    }

    /// The same without following a symbolic link at its end.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`].
    pub fn lookup_no_follow(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Node> {
        self.resolve(path.as_ref(), false)?.node.ok_or_else(|| Posix::NotFound.into())
    }

    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] and of [`Node::open`].
    pub fn open_file(self: &Arc<Self>, path: impl AsRef<Path>, flags: OpenFlags) -> Result<OpenFile> {
        self.lookup(path)?.open(flags)
    }

    /// Opens the regular file at `path` for writing, empty; makes it if it is not there.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] for its directory, of [`Node::open`] and of [`Dir::create`].
    pub fn create_file(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<OpenFile> {
        let place = self.resolve(path.as_ref(), true)?;
        match place.node {
            Some(node) => node.open(OpenFlags { write: true, truncate: true, ..OpenFlags::default() }),
            None => place.dir.create(place.name, 0o644),
        }
    }

    /// What the regular file at `path` holds.
    ///
    /// # Errors
    /// Those of [`Filesystem::open_file`] and of reading; `FileTooBig` for more than memory can address.
    pub fn read(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        const CHUNK: usize = 1 << 20;
        let file = self.open_file(path, OpenFlags::default())?;
        // Grown as it is filled: a size on disk is no reason to take memory.
        let mut content = Vec::new();
        loop {
            let done = content.len();
            let more = file.attributes()?.size.saturating_sub(done as u64).clamp(1, CHUNK as u64);
            content.resize(done.checked_add(more as usize).ok_or(Posix::FileTooBig)?, 0);
            let got = file.read_at(&mut content[done..], done as u64)?;
            content.truncate(done + got);
            if got == 0 {
                return Ok(content);
            }
        }
    }

    /// Makes `content` what the regular file at `path` holds; makes it if it is not there. Durable after
    /// [`Filesystem::sync`] or [`Filesystem::close`].
    ///
    /// # Errors
    /// Those of [`Filesystem::create_file`] and of writing.
    pub fn write(self: &Arc<Self>, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        self.create_file(path)?.write_all_at(content.as_ref(), 0)
    }

    /// Copies the content and the permissions of a regular file, holes as holes; gives its size in bytes.
    ///
    /// # Errors
    /// Those of [`Filesystem::open_file`] and [`Filesystem::create_file`]; `Invalid` for a copy to itself.
    pub fn copy(self: &Arc<Self>, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<u64> {
        let source = self.open_file(from, OpenFlags::default())?;
        let place = self.resolve(to.as_ref(), true)?;
        if place.node.as_ref().is_some_and(|node| node.ino() == source.ino()) {
            return Err(Posix::Invalid.into());
        }
        let target = self.create_file(to)?;
        let attr = source.attributes()?;
        target.set_len(attr.size)?;
        let mut at = 0;
        while let Some(data) = found(source.seek_to(at, SeekWhence::Data))? {
            let Some(end) = found(source.seek_to(data, SeekWhence::Hole))? else { break };
            at = data;
            while at < end {
                match source.copy_range(at, &target, at, end - at)? {
                    0 => return Err(Error::NoSpace),
                    copied => at += copied,
                }
            }
        }
        target.set_attributes(&SetAttr { mode: Some(attr.mode), ..SetAttr::default() })?;
        Ok(attr.size)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `Exists`, and those of [`Dir::create_dir`].
    pub fn create_dir(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<()> {
        let (dir, name) = self.parent(path.as_ref())?;
        dir.create_dir(name, 0o755).map(drop)
    }

    /// Makes a directory and those above it that are missing. One that is there already is no error.
    ///
    /// # Errors
    /// `NotDirectory` when something else is in the way, and those of [`Dir::create_dir`].
    pub fn create_dir_all(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<()> {
        let mut missing = Vec::new();
        let mut at = path.as_ref();
        let mut dir = loop {
            match self.lookup(if at.as_os_str().is_empty() { Path::new("/") } else { at }) {
                Ok(found) => break found.into_dir()?,
                Err(Error::Posix(Posix::NotFound)) => {}
                Err(error) => return Err(error),
            }
            // What ends in `..` has no name of its own.
            missing.push(at.file_name().ok_or(Posix::NotFound)?);
            at = at.parent().unwrap_or(Path::new("/"));
        };
        for name in missing.into_iter().rev() {
            dir = match dir.create_dir(name.as_bytes(), 0o755) {
                Err(Error::Posix(Posix::Exists)) => dir.lookup(name.as_bytes())?.into_dir()?,
                made => made?,
            };
        }
        Ok(())
    }

    /// Moves what is at `from` to `to`, replacing what is there as rename(2) does.
    ///
    /// # Errors
    /// Those of [`Dir::rename`].
    pub fn rename(self: &Arc<Self>, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let ((dir, name), (new_dir, new_name)) = (self.parent(from.as_ref())?, self.parent(to.as_ref())?);
        dir.rename(name, &new_dir, new_name, RenameFlags::default()).map(drop)
    }

    /// Makes `link` one more name of the file at `original`; a symbolic link there is not followed.
    ///
    /// # Errors
    /// Those of [`Dir::link`].
    pub fn hard_link(self: &Arc<Self>, original: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
        let file = self.lookup_no_follow(original)?;
        let (dir, name) = self.parent(link.as_ref())?;
        dir.link(name, &file)
    }

    /// Makes `link` a symbolic link to `target`.
    ///
    /// # Errors
    /// Those of [`Dir::symlink`].
    pub fn symlink(self: &Arc<Self>, target: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
        let (dir, name) = self.parent(link.as_ref())?;
        dir.symlink(name, target.as_ref().as_os_str().as_bytes()).map(drop)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn read_link(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<PathBuf> {
        Ok(OsString::from_vec(self.lookup_no_follow(path)?.read_link()?).into())
    }

    /// Removes a file that is no directory; a symbolic link is not followed.
    ///
    /// # Errors
    /// Those of [`Dir::unlink`].
    pub fn remove_file(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<()> {
        let (dir, name) = self.parent(path.as_ref())?;
        dir.unlink(name).map(drop)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of [`Dir::rmdir`].
    pub fn remove_dir(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<()> {
        let (dir, name) = self.parent(path.as_ref())?;
        dir.rmdir(name).map(drop)
    }

    /// Removes a directory and all that it holds. Symbolic links are removed, not followed.
    ///
    /// # Errors
    /// `NotDirectory`, and the first failure, which leaves the rest.
    pub fn remove_dir_all(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        let tree = parent.lookup(&name)?.into_dir()?;
        let mut open = vec![(parent, name, tree.read_dir(), tree)];
        while let Some((parent, name, entries, dir)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                parent.rmdir(name)?;
                open.pop();
                continue;
            };
            let entry = entry?;
            match dir.unlink(entry.name().as_bytes()) {
                Err(Error::Posix(Posix::IsDirectory)) => {
                    let below = dir.lookup(entry.name().as_bytes())?.into_dir()?;
                    let above = dir.clone();
                    open.push((above, entry.name().as_bytes().to_vec(), below.read_dir(), below));
                }
                // Somebody else was faster.
                Err(Error::Posix(Posix::NotFound)) => {}
                removed => drop(removed?),
            }
        }
        Ok(())
    }

    /// What a directory holds, without the dots.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`]; `NotDirectory`.
    pub fn read_dir(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<ReadDir> {
        Ok(self.lookup(path)?.into_dir()?.read_dir())
    }

    /// All files below `path` and the one there, each directory before what it holds. Symbolic links are given,
    /// not followed.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`].
    pub fn walk(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Walk> {
        let path = path.as_ref();
        Ok(Walk { first: Some((path.to_owned(), self.lookup_no_follow(path)?)), open: Vec::new() })
    }

    /// The attributes of the file at `path`; a symbolic link is followed.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`].
    pub fn metadata(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Attr> {
        self.lookup(path)?.attributes()
    }

    /// The same without following a symbolic link.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`].
    pub fn symlink_metadata(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Attr> {
        self.lookup_no_follow(path)?.attributes()
    }

    /// Whether there is a file at `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`], when it cannot be told.
    pub fn exists(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<bool> {
        match self.resolve(path.as_ref(), true) {
            Ok(place) => Ok(place.node.is_some()),
            Err(Error::Posix(Posix::NotFound)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets the permission bits of the file at `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] and of [`Node::set_attributes`].
    pub fn set_permissions(self: &Arc<Self>, path: impl AsRef<Path>, mode: u16) -> Result<()> {
        let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
        self.lookup(path)?.set_attributes(&change).map(drop)
    }

    /// Sets the times of last access and last change of the file at `path`; `None` leaves one.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] and of [`Node::set_attributes`].
    pub fn set_times(
        self: &Arc<Self>,
        path: impl AsRef<Path>,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> Result<()> {
        let change = SetAttr { atime, mtime, ..SetAttr::default() };
        self.lookup(path)?.set_attributes(&change).map(drop)
    }

    /// Sets owner and group of the file at `path`; `None` leaves one.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] and of [`Node::set_attributes`].
    pub fn chown(self: &Arc<Self>, path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let change = SetAttr { uid, gid, ..SetAttr::default() };
        self.lookup(path)?.set_attributes(&change).map(drop)
    }

    /// The value of an extended attribute of the file at `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] and of [`Node::xattr`].
    pub fn xattr(self: &Arc<Self>, path: impl AsRef<Path>, name: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        self.lookup(path)?.xattr(name)
    }

    /// The names of all extended attributes of the file at `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] and of damaged attributes.
    pub fn list_xattrs(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
        let list = self.lookup(path)?.list_xattrs_as(&Credentials::root())?;
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
    }

    /// Sets an extended attribute of the file at `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] and of [`Node::set_xattr`].
    pub fn set_xattr(
        self: &Arc<Self>,
        path: impl AsRef<Path>,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        self.lookup(path)?.set_xattr(name, value, SetXattr::Any)
    }

    /// Removes an extended attribute of the file at `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::lookup`] and of [`Node::remove_xattr`].
    pub fn remove_xattr(self: &Arc<Self>, path: impl AsRef<Path>, name: impl AsRef<[u8]>) -> Result<()> {
        self.lookup(path)?.remove_xattr(name)
    }

    /// The directory of a name that is to be made, moved or removed, and the name.
    fn parent(self: &Arc<Self>, path: &Path) -> Result<(Dir, Vec<u8>)> {
        let bytes = path.as_os_str().as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/').ok_or(Posix::Invalid)? + 1;
        let start = bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let above = match start {
            0 => self.root()?,
            start => self.lookup(OsStr::from_bytes(&bytes[..start]))?.into_dir()?,
        };
        Ok((above, bytes[start..end].to_vec()))
    }

    fn resolve(self: &Arc<Self>, path: &Path, follow: bool) -> Result<Place> {
        let mut todo = Vec::new();
        push(&mut todo, path.as_os_str().as_bytes());
        if todo.is_empty() {
            return Err(Posix::NotFound.into());
        }
        let (mut at, mut links) = (self.root()?, 0);
        while let Some(name) = todo.pop() {
            if name == b"." {
                continue;
            }
            let is_last = todo.is_empty();
            let node = match at.lookup(&name) {
                Err(Error::Posix(Posix::NotFound)) if is_last => None,
                found => Some(found?),
            };
            match node {
                Some(node) if node.kind() == FileType::Symlink && (follow || !is_last) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Posix::TooManySymlinks.into());
                    }
                    let target = node.read_link()?;
                    if target.starts_with(b"/") {
                        at = self.root()?;
                    }
                    push(&mut todo, &target);
                }
                Some(node) if !is_last || name == b".." => at = node.into_dir()?,
                node => return Ok(Place { dir: at, name, node }),
            }
        }
        Ok(Place { node: Some(at.clone().into()), dir: at, name: Vec::new() })
    }
}

/// Puts the names of `path` on the stack, the first on top. A slash at the end means the directory.
fn push(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let dot = path.ends_with(b"/").then_some(&b"."[..]);
    let all: Vec<_> = names.chain(dot).map(<[u8]>::to_vec).collect();
    todo.extend(all.into_iter().rev());
}

/// Where something was found; `None` at the end of the file.
fn found(sought: Result<u64>) -> Result<Option<u64>> {
    match sought {
        Err(Error::Posix(Posix::NoDevice)) => Ok(None),
        found => found.map(Some),
    }
}

/// A tree of files; see [`Filesystem::walk`].
pub struct Walk {
    first: Option<(PathBuf, Node)>,
    open: Vec<(PathBuf, ReadDir)>,
}

impl Walk {
    fn enter(&mut self, path: PathBuf, node: Node) -> (PathBuf, Node) {
        if let Ok(dir) = Dir::try_from(node.clone()) {
            self.open.push((path.clone(), dir.read_dir()));
        }
        (path, node)
    }
}

impl Iterator for Walk {
    type Item = Result<(PathBuf, Node)>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((path, node)) = self.first.take() {
            return Some(Ok(self.enter(path, node)));
        }
        while let Some((above, entries)) = self.open.last_mut() {
            let entry = match entries.next() {
                None => {
                    self.open.pop();
                    continue;
                }
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(entry)) => entry,
            };
            let path = above.join(entry.name());
            match entry.node() {
                Ok(node) => return Some(Ok(self.enter(path, node))),
                // Removed since it was listed.
                Err(Error::Posix(Posix::NotFound)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }
}
