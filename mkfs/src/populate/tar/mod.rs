//! A tar archive as a source: ustar, GNU and PAX, with their sparse files and long names.
//!
//! An archive that can be read anywhere is only indexed: its files' contents are read later, from where they
//! lie. One that comes as a stream, or packed, is read once, and the contents go to a [`Spool`]. Nothing of
//! the archive is believed: numbers are checked, sizes bounded, and a member is named when it is wrong.

mod feed;
mod member;
pub mod pax;
mod sparse;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use ext4_format::inode::FileType;

use super::decoder::{MAGIC_LEN, Packing, ReadAhead, peek};
use super::error::{Error, Result};
use super::layer::Merge;
use super::spool::Spool;
use super::tree::{Body, Content, Inode};
use feed::{Feed, Ranged, Streamed};
use member::{Kind, Member, Reader};

/// A range of a file, to be read in order.
pub struct FileRange {
    /// The file.
    pub file: Arc<File>,
    /// The next byte.
    pub at: u64,
    /// One past the last.
    pub end: u64,
}

impl Read for FileRange {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let len = self.file.read_at(&mut buf[..most], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// Reads the archive in a range of a file into the tree. `name` is its name in messages, `spools` the folder
/// for temporary files.
pub fn read_file(
    merge: &mut Merge<'_>,
    file: Arc<File>,
    range: Range<u64>,
    name: &Path,
    spools: &Path,
) -> Result<()> {
    let mut first = [0; MAGIC_LEN];
    let mut start = FileRange { file: file.clone(), at: range.start, end: range.end };
    let len = start.read(&mut first).map_err(|source| Error::read(name, source))?;
    let packing = Packing::of(&first[..len]).map_err(|problem| archive(name, problem))?;
    if packing == Packing::None {
        let number = stored(merge, file.clone())?;
        return read(merge, &mut Ranged::new(&file, number, range), name);
    }
    let stream = FileRange { file, at: range.start, end: range.end };
    read_stream(merge, Box::new(stream), name, spools)
}

/// Reads an archive that comes once, packed or not, into the tree.
pub fn read_stream(
    merge: &mut Merge<'_>,
    stream: Box<dyn Read + Send>,
    name: &Path,
    spools: &Path,
) -> Result<()> {
    let (first, stream) = peek(stream).map_err(|source| Error::read(name, source))?;
    let packing = Packing::of(&first).map_err(|problem| archive(name, problem))?;
    let stream = packing.unpack(stream).map_err(|error| broken(name, &error))?;
    let spool = Spool::new(spools)?;
    let number = stored(merge, spool.file())?;
    let mut feed = Streamed::new(ReadAhead::new(stream), spool, number);
    read(merge, &mut feed, name)?;
    feed.finish()
}

fn stored(merge: &mut Merge<'_>, file: Arc<File>) -> Result<u16> {
    let number = u16::try_from(merge.tree.files.len());
    let number = number.map_err(|_| Error::Options("more than 65535 archives".into()))?;
    merge.tree.files.push(file);
    Ok(number)
}

fn archive(name: &Path, problem: impl Into<String>) -> Error {
    Error::Archive { archive: name.to_owned(), problem: problem.into() }
}

fn broken(name: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => archive(name, "ends too early; it is truncated"),
        _ => archive(name, format!("cannot be read: {error}")),
    }
}

fn read(merge: &mut Merge<'_>, feed: &mut dyn Feed, name: &Path) -> Result<()> {
    let mut reader = Reader::new(feed, name);
    while let Some(member) = reader.next(merge)? {
        let path = member.path.clone();
        apply(merge, member).map_err(|error| match error {
            // The archive is named, too: a tree may have many.
            Error::Entry { name: entry, problem } if entry == path => {
                archive(name, format!("member {}: {problem}", path.escape_ascii()))
            }
            other => other,
        })?;
    }
    Ok(())
}

/// Puts one member into the tree.
fn apply(merge: &mut Merge<'_>, member: Member) -> Result<()> {
    let Member { path, meta, kind, attributes } = member;
    let parts = Merge::components(&path)?;
    let Some((name, parents)) = parts.split_last() else {
        if kind != Kind::Directory {
            return Err(Error::entry(path, "the root of the tree is a directory"));
        }
        let attributes = merge.attributes(attributes, &path)?;
        return merge.put_root(meta, attributes);
    };
    let parent = merge.directory(parents, &path)?;
    if let Kind::HardLink(target) = &kind {
        let node = merge.lookup(target)?.filter(|node| !merge.tree.at(*node).is_directory());
        let Some(node) = node else {
            let problem =
                format!("a hard link to {}, which is not a file in the tree", target.escape_ascii());
            return Err(Error::entry(path, problem));
        };
        let inode = merge.tree.inode_of(node);
        return merge.link(parent, name, inode);
    }
    let attributes = merge.attributes(attributes, &path)?;
    let mut inode = Inode { attributes, ..Inode::new(meta, Body::Fifo) };
    inode.body = match kind {
        Kind::File { size, content, map } => {
            inode.size = size;
            inode.map = map.and_then(|map| merge.keep_map(map, size));
            Body::File(content)
        }
        Kind::Directory => Body::Directory(0),
        Kind::Symlink(target) => merge.tree.symlink(&target)?,
        Kind::Device(block, major, minor) => {
            let kind = if block { FileType::BlockDevice } else { FileType::CharDevice };
            Body::Device(kind, major, minor)
        }
        Kind::Fifo | Kind::HardLink(_) => Body::Fifo,
    };
    merge.put(parent, name, inode)?;
    Ok(())
}

/// A regular file whose bytes lie in a file that is kept.
fn file_at(file: u16, at: u64) -> Content {
    Content::Stored { file, at }
}
