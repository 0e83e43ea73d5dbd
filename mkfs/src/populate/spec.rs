//! Specification files: owners, modes, times, attributes and nodes by path.
//!
//! Three notations, told apart line by line: BSD mtree (mtree(5), with `/set`, relative and full paths, and
//! `xattr.NAME=BASE64` as gomtree has it), the list of the kernel's gen_init_cpio (`file`, `dir`, `nod`,
//! `slink`, `pipe`, `sock`), and device tables as genext2fs and makedevs read them (`/dev/null c 666 0 0 1 3 0
//! 0 -`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ext4_format::inode::{FileType, Time};

use super::error::{Error, Result};
use super::layer::{IMPLICIT, Merge};
use super::tar::pax::{number, time};
use super::tree::{Body, Content, Inode, InodeId, Meta, NodeId, ROOT};

/// Nodes that one line of a device table may make.
const MAX_NODES: u64 = 65536;

/// Applies a file to the tree.
pub fn apply(merge: &mut Merge<'_>, file: &Path) -> Result<()> {
    let text = std::fs::read(file).map_err(|source| Error::read(file, source))?;
    merge.next_layer(false)?;
    let mut spec =
        Spec { merge, folder: file.parent().map(Path::to_owned), set: Keywords::new(), at: Vec::new() };
    let mut lines = text.split(|byte| *byte == b'\n').enumerate();
    while let Some((number, line)) = lines.next() {
        let mut line = line.to_vec();
        while line.last() == Some(&b'\\') {
            line.pop();
            match lines.next() {
                Some((_, next)) => line.extend_from_slice(next),
                None => break,
            }
        }
        let words: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
        if words.first().is_none_or(|word| word.starts_with(b"#")) {
            continue;
        }
        spec.line(&words).map_err(|problem| match problem {
            Problem::Here(problem) => Error::Spec { file: file.to_owned(), line: number + 1, problem },
            Problem::Elsewhere(Error::Entry { name, problem }) => Error::Spec {
                file: file.to_owned(),
                line: number + 1,
                problem: format!("{}: {problem}", name.escape_ascii()),
            },
            Problem::Elsewhere(error) => error,
        })?;
    }
    Ok(())
}

enum Problem {
    Here(String),
    Elsewhere(Error),
}

impl From<String> for Problem {
    fn from(text: String) -> Problem {
        Problem::Here(text)
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Problem {
        Problem::Here(text.to_owned())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        Problem::Elsewhere(error)
    }
}

type Keywords = BTreeMap<Vec<u8>, Vec<u8>>;
type Done = std::result::Result<(), Problem>;

/// What one line asks for.
#[derive(Default)]
struct Wanted {
    kind: Option<FileType>,
    mode: Option<u16>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    target: Option<Vec<u8>>,
    device: Option<(u32, u32)>,
    contents: Option<PathBuf>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    optional: bool,
}

struct Spec<'m, 'r> {
    merge: &'m mut Merge<'r>,
    /// Where relative paths of the host start.
    folder: Option<PathBuf>,
    /// What `/set` says.
    set: Keywords,
    /// The directory that relative mtree names are in.
    at: Vec<Vec<u8>>,
}

impl Spec<'_, '_> {
    fn line(&mut self, words: &[&[u8]]) -> Done {
        let single = words.get(1).filter(|word| word.len() == 1).map(|word| word[0]);
        match words[0] {
            b"/set" => {
                let words = keywords(&words[1..]);
                self.set.extend(words);
                Ok(())
            }
            b"/unset" => {
                for word in &words[1..] {
                    self.set.remove(*word);
                    if *word == b"all" {
                        self.set.clear();
                    }
                }
                Ok(())
            }
            b"file" | b"dir" | b"nod" | b"slink" | b"pipe" | b"sock" if words.len() > 1 => self.cpio(words),
            path if path.starts_with(b"/") && single.is_some_and(|kind| b"fdcbpsr".contains(&kind)) => {
                self.table(words)
            }
            _ => self.mtree(words),
        }
    }

    fn mtree(&mut self, words: &[&[u8]]) -> Done {
        let name = unescaped(words[0]);
        if name == b".." {
            self.at.pop();
            return Ok(());
        }
        let mut all = self.set.clone();
        all.extend(keywords(&words[1..]));
        let mut wanted = Wanted::default();
        for (key, value) in &all {
            self.keyword(&mut wanted, key, value)?;
        }
        let full = name.contains(&b'/');
        let path = if full || name == b"." {
            name.clone()
        } else {
            self.at.iter().chain([&name]).cloned().collect::<Vec<_>>().join(&b'/')
        };
        if !full && wanted.kind == Some(FileType::Directory) && name != b"." {
            self.at.push(name);
        }
        self.put(&path, wanted)
    }

    fn keyword(&self, wanted: &mut Wanted, key: &[u8], value: &[u8]) -> Done {
        let wrong =
            || Problem::Here(format!("{}={} is not understood", key.escape_ascii(), value.escape_ascii()));
        match key {
            b"type" => {
                wanted.kind = Some(match value {
                    b"file" => FileType::Regular,
                    b"dir" => FileType::Directory,
                    b"link" => FileType::Symlink,
                    b"char" => FileType::CharDevice,
                    b"block" => FileType::BlockDevice,
                    b"fifo" => FileType::Fifo,
                    b"socket" => FileType::Socket,
                    _ => return Err(wrong()),
                });
            }
            b"mode" => wanted.mode = Some(octal(value).ok_or_else(wrong)?),
            b"uid" => wanted.uid = Some(id(value).ok_or_else(wrong)?),
            b"gid" => wanted.gid = Some(id(value).ok_or_else(wrong)?),
            b"time" => wanted.mtime = Some(mtree_time(value).ok_or_else(wrong)?),
            b"link" => wanted.target = Some(unescaped(value)),
            b"device" => wanted.device = Some(device(value).ok_or_else(wrong)?),
            b"contents" | b"content" => wanted.contents = Some(self.host(&unescaped(value))),
            b"optional" => wanted.optional = true,
            _ if key.starts_with(b"xattr.") => {
                let value = STANDARD.decode(value).map_err(|_| wrong())?;
                wanted.attributes.push((key[b"xattr.".len()..].to_vec(), value));
            }
            b"uname" | b"gname" => {
                let hint = "names of users and groups mean nothing here: give uid= and gid=";
                return Err(hint.into());
            }
            // What describes a file for comparison, and flags that ext4 has no place for.
            b"size" | b"nlink" | b"flags" | b"cksum" | b"ignore" | b"nochange" | b"tags" | b"inode"
            | b"resdevice" => {}
            _ if key.starts_with(b"md5") || key.starts_with(b"sha") || key.starts_with(b"rmd160") => {}
            _ => return Err(format!("the keyword {} is not known", key.escape_ascii()).into()),
        }
        Ok(())
    }

    fn cpio(&mut self, words: &[&[u8]]) -> Done {
        let few = || Problem::Here(format!("too few words for {}", words[0].escape_ascii()));
        let text = |at: usize| words.get(at).copied().ok_or_else(few);
        let path = text(1)?;
        let is = |name: &str| words[0] == name.as_bytes();
        let first = if is("file") || is("slink") { 3 } else { 2 };
        let mut wanted = Wanted {
            mode: Some(octal(text(first)?).ok_or("the mode is no octal number")?),
            uid: Some(id(text(first + 1)?).ok_or("the user is no number")?),
            gid: Some(id(text(first + 2)?).ok_or("the group is no number")?),
            ..Wanted::default()
        };
        let mut links = Vec::new();
        wanted.kind = Some(match words[0] {
            b"file" => {
                wanted.contents = Some(self.host(text(2)?));
                links = words[6.min(words.len())..].to_vec();
                FileType::Regular
            }
            b"slink" => {
                wanted.target = Some(text(2)?.to_vec());
                FileType::Symlink
            }
            b"nod" => {
                wanted.device = numbers(text(6)?, text(7)?);
                if wanted.device.is_none() {
                    return Err("the device numbers are out of range".into());
                }
                if text(5)? == b"b" { FileType::BlockDevice } else { FileType::CharDevice }
            }
            b"dir" => FileType::Directory,
            b"pipe" => FileType::Fifo,
            _ => FileType::Socket,
        });
        self.put(path, wanted)?;
        for link in links {
            let node = self.merge.lookup(path)?.ok_or("the file is not there")?;
            let inode = self.merge.tree.inode_of(node);
            let (parent, name) = self.place(link)?;
            self.merge.link(parent, &name, inode)?;
        }
        Ok(())
    }

    /// A line of a device table: name, type, mode, user, group, major, minor, start, increment, count.
    fn table(&mut self, words: &[&[u8]]) -> Done {
        let path = words[0];
        let value = |at: usize| words.get(at).copied().filter(|word| *word != b"-");
        let decimal =
            |at: usize| value(at).map(|word| number(word).ok_or("a number is expected")).transpose();
        let kept = |at: usize| value(at).filter(|word| *word != b"-1");
        let wanted = |kind, device| -> std::result::Result<Wanted, Problem> {
            Ok(Wanted {
                kind,
                device,
                mode: kept(2).map(|mode| octal(mode).ok_or("the mode is no octal number")).transpose()?,
                uid: kept(3).map(|uid| id(uid).ok_or("the user is no number")).transpose()?,
                gid: kept(4).map(|gid| id(gid).ok_or("the group is no number")).transpose()?,
                ..Wanted::default()
            })
        };
        match words[1] {
            b"f" => self.put(path, Wanted { kind: None, ..wanted(None, None)? }),
            b"d" => self.put(path, wanted(Some(FileType::Directory), None)?),
            b"p" => self.put(path, wanted(Some(FileType::Fifo), None)?),
            b"s" => self.put(path, wanted(Some(FileType::Socket), None)?),
            b"r" => {
                let top = self.merge.lookup(path)?.ok_or("the path is not in the tree")?;
                let mut all = vec![top];
                let mut at = 0;
                while at < all.len() {
                    all.extend(self.merge.tree.children(all[at]));
                    at += 1;
                }
                let wanted = wanted(None, None)?;
                for node in all {
                    self.change(self.merge.tree.inode_of(node), &wanted, path)?;
                }
                Ok(())
            }
            kind => {
                let kind = if kind == b"b" { FileType::BlockDevice } else { FileType::CharDevice };
                let major = decimal(5)?.ok_or("a device needs a major number")?;
                let minor = decimal(6)?.ok_or("a device needs a minor number")?;
                let (start, step) = (decimal(7)?.unwrap_or(0), decimal(8)?.unwrap_or(0));
                let count = decimal(9)?.filter(|count| *count > 0);
                if count.unwrap_or(1) > MAX_NODES {
                    return Err(format!("more than {MAX_NODES} nodes in one line").into());
                }
                for at in 0..count.unwrap_or(1) {
                    let minor = at.checked_mul(step).and_then(|ahead| minor.checked_add(ahead));
                    let device = minor.and_then(|minor| in_range(major, minor));
                    let device = device.ok_or("the device numbers are out of range")?;
                    let mut name = path.to_vec();
                    if count.is_some() {
                        name.extend_from_slice(start.saturating_add(at).to_string().as_bytes());
                    }
                    self.put(&name, wanted(Some(kind), Some(device))?)?;
                }
                Ok(())
            }
        }
    }

    fn host(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        self.folder.as_ref().map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }

    /// The directory and name of a path, which are made where they are missing.
    fn place(&mut self, path: &[u8]) -> std::result::Result<(NodeId, Vec<u8>), Problem> {
        let parts = Merge::components(path)?;
        let (name, parents) = parts.split_last().ok_or("the root is a directory and has no other name")?;
        Ok((self.merge.directory(parents, path)?, name.to_vec()))
    }

    /// Changes what is at a path, or makes it.
    fn put(&mut self, path: &[u8], wanted: Wanted) -> Done {
        if Merge::components(path)?.is_empty() {
            let root = self.merge.tree.inode_of(ROOT);
            return self.change(root, &wanted, b"/");
        }
        let found = self.merge.lookup(path)?;
        if let Some(node) = found {
            let inode = self.merge.tree.at(node);
            let fits = wanted.kind.is_none_or(|kind| kind == inode.file_type());
            if fits && wanted.contents.is_none() && wanted.target.is_none() && wanted.device.is_none() {
                return self.change(self.merge.tree.inode_of(node), &wanted, path);
            }
        }
        let body = match wanted.kind {
            Some(FileType::Directory) => Body::Directory(0),
            Some(FileType::Symlink) => {
                let target = wanted.target.clone().ok_or("a symbolic link needs link=")?;
                self.merge.tree.symlink(&target)?
            }
            Some(kind @ (FileType::CharDevice | FileType::BlockDevice)) => {
                let (major, minor) = wanted.device.ok_or("a device needs device=")?;
                Body::Device(kind, major, minor)
            }
            Some(FileType::Fifo) => Body::Fifo,
            Some(FileType::Socket) => Body::Socket,
            Some(FileType::Regular) if wanted.contents.is_some() => Body::File(Content::Host(0)),
            _ if wanted.optional => return Ok(()),
            _ => return Err(format!("{} is not in the tree", path.escape_ascii()).into()),
        };
        let default = match body {
            Body::Directory(_) => 0o755,
            Body::Symlink(..) => 0o777,
            _ => 0o644,
        };
        let meta = Meta { mode: default, uid: 0, gid: 0, mtime: IMPLICIT };
        let mut inode = Inode::new(meta, body);
        if let (Body::File(_), Some(host)) = (body, &wanted.contents) {
            let stat = std::fs::metadata(host).map_err(|source| Error::read(host, source))?;
            if !stat.is_file() {
                let error = io::Error::from(io::ErrorKind::InvalidInput);
                return Err(Error::read(host, error).into());
            }
            inode.size = stat.len();
            inode.body = Body::File(Content::Host(self.merge.tree.hosts.len() as u32));
            self.merge.tree.hosts.push(host.clone());
        }
        let (parent, name) = self.place(path)?;
        if let Some(node) = self.merge.put(parent, &name, inode)? {
            self.change(self.merge.tree.inode_of(node), &wanted, path)?;
        }
        Ok(())
    }

    /// Sets what is wanted on an inode. Owners of a specification are those of the image.
    fn change(&mut self, id: InodeId, wanted: &Wanted, path: &[u8]) -> Done {
        if !wanted.attributes.is_empty() {
            self.merge.add_attributes(id, wanted.attributes.clone(), path)?;
        }
        let inode = self.merge.tree.inode_mut(id);
        inode.meta.mode = wanted.mode.unwrap_or(inode.meta.mode);
        inode.meta.uid = wanted.uid.unwrap_or(inode.meta.uid);
        inode.meta.gid = wanted.gid.unwrap_or(inode.meta.gid);
        if let Some(mtime) = wanted.mtime {
            inode.meta.mtime = mtime;
            inode.source_time = false;
        }
        if id == self.merge.tree.inode_of(ROOT) {
            self.merge.tree.has_root = true;
        }
        Ok(())
    }
}

fn keywords<'w>(words: &'w [&[u8]]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + 'w {
    words.iter().map(|word| {
        let mut halves = word.splitn(2, |byte| *byte == b'=');
        let mut next = || halves.next().unwrap_or_default().to_vec();
        (next(), next())
    })
}

fn octal(text: &[u8]) -> Option<u16> {
    let mode = u16::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok()?;
    Some(mode & 0o7777)
}

fn id(text: &[u8]) -> Option<u32> {
    number(text).and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX)
}

fn numbers(major: &[u8], minor: &[u8]) -> Option<(u32, u32)> {
    in_range(number(major)?, number(minor)?)
}

fn in_range(major: u64, minor: u64) -> Option<(u32, u32)> {
    (major < 1 << 12 && minor < 1 << 20).then_some((major as u32, minor as u32))
}

/// `format,major,minor`, or one number as Linux packs it.
fn device(text: &[u8]) -> Option<(u32, u32)> {
    let parts: Vec<&[u8]> = text.split(|byte| *byte == b',').collect();
    match parts.as_slice() {
        [_, major, minor] => numbers(major, minor),
        [one] => {
            let one = std::str::from_utf8(one).ok()?;
            let packed = match one.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                None => one.parse().ok()?,
            };
            in_range(packed >> 8 & 0xfff, packed & 0xff | packed >> 12 & 0xf_ff00)
        }
        _ => None,
    }
}

/// mtree's time: seconds, and behind the dot a number of nanoseconds, not a fraction.
fn mtree_time(text: &[u8]) -> Option<Time> {
    let dot = text.iter().position(|byte| *byte == b'.');
    let Some(dot) = dot else { return time(text) };
    let sec = time(&text[..dot])?.sec;
    let nsec = number(&text[dot + 1..]).and_then(|nsec| u32::try_from(nsec).ok())?;
    (nsec < 1_000_000_000).then_some(Time { sec, nsec })
}

/// Names with vis(3)'s escapes: `\s`, `\t`, `\n`, `\\`, `\#`, `\ooo`.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let octal = text.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let (byte, len) = match (text[at], text.get(at + 1), octal) {
            (b'\\', Some(b's'), _) => (b' ', 2),
            (b'\\', Some(b't'), _) => (b'\t', 2),
            (b'\\', Some(b'n'), _) => (b'\n', 2),
            (b'\\', _, Some(byte)) => (byte, 4),
            (b'\\', Some(byte), None) => (*byte, 2),
            (byte, ..) => (byte, 1),
        };
        out.push(byte);
        at += len;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unescaped() {
        assert_eq!(unescaped(br"a\040b\sc\\d\#"), b"a b c\\d#");
        assert_eq!(unescaped(br"end\"), b"end\\");
    }

    #[test]
    fn devices_and_times_are_read() {
        assert_eq!(device(b"linux,1,3"), Some((1, 3)));
        assert_eq!(device(b"0x103"), Some((1, 3)));
        assert_eq!(device(b"linux,5000,3"), None);
        assert_eq!(mtree_time(b"5.000000007"), Some(Time { sec: 5, nsec: 7 }));
        assert_eq!(mtree_time(b"5.7"), Some(Time { sec: 5, nsec: 7 }));
    }
}
