//! What a tree looks like from outside, as a value: read from one mount, kept, and compared with another.
//!
//! [`Depth::Copy`] is what a faithful copy of the tree shares with it: names, bytes, modes, owners,
//! modification times, link structure. [`Depth::Timeless`] leaves the times out. [`Depth::Same`] is what one
//! image must show under any system: inode numbers, change times, allocated blocks and folder sizes as well.
//! Holes are read as zeros and never distinguished.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::SeekFrom;
use xxhash_rust::xxh3::Xxh3;

/// How much of each entry is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What two trees share that were built at different times.
    Timeless,
    /// What a copy shares with its source.
    Copy,
    /// What one image shows everywhere.
    Same,
}

/// Everything known about one name, in words, ready to be compared and printed.
type Facts = BTreeMap<String, String>;

/// A tree as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    entries: BTreeMap<Vec<u8>, Facts>,
}

impl Manifest {
    /// Reads everything below `root` (the root's own attributes included), all bytes of all files.
    pub fn read(root: &Path, depth: Depth) -> Result<Manifest> {
        let mut entries = BTreeMap::new();
        let mut first_names: HashMap<u64, Vec<u8>> = HashMap::new();
        for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
            let entry = entry?;
            let inner = entry.path().strip_prefix(root).expect("walked from root").as_os_str();
            // Made by mkfs, not by the builder; a copy has none.
            if depth != Depth::Same && (inner.is_empty() || inner == "lost+found") {
                continue;
            }
            let meta = fs::symlink_metadata(entry.path())
                .with_context(|| format!("stat {}", entry.path().display()))?;
            let mut facts = facts(entry.path(), &meta, depth)
                .with_context(|| format!("reading {}", entry.path().display()))?;
            if meta.nlink() > 1 && !meta.is_dir() {
                let first = first_names.entry(meta.ino()).or_insert_with(|| inner.as_bytes().to_vec());
                facts.insert("same inode as".to_owned(), first.escape_ascii().to_string());
            }
            entries.insert(inner.as_bytes().to_vec(), facts);
        }
        Ok(Manifest { entries })
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no name at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The differences to `other`, one line each; none when both are the same.
    pub fn differences(&self, other: &Manifest) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, mine) in &self.entries {
            let shown = name.escape_ascii();
            let Some(theirs) = other.entries.get(name) else {
                lines.push(format!("{shown}: only on the left"));
                continue;
            };
            for key in mine.keys().chain(theirs.keys().filter(|key| !mine.contains_key(*key))) {
                let (left, right) = (mine.get(key), theirs.get(key));
                if left != right {
                    let text = |side: Option<&String>| side.map_or("absent".to_owned(), Clone::clone);
                    lines.push(format!("{shown}: {key}: {} / {}", text(left), text(right)));
                }
            }
        }
        for name in other.entries.keys().filter(|name| !self.entries.contains_key(*name)) {
            lines.push(format!("{}: only on the right", name.escape_ascii()));
        }
        lines
    }

    /// An error that shows the first differences, when there are any.
    pub fn expect_same(&self, other: &Manifest, what: &str) -> Result<()> {
        let lines = self.differences(other);
        let shown = lines.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n  ");
        ensure!(lines.is_empty(), "{what}: {} differences (left / right):\n  {shown}", lines.len());
        Ok(())
    }
}

fn facts(path: &Path, meta: &Metadata, depth: Depth) -> Result<Facts> {
    let mut facts = Facts::new();
    let mut note = |key: &str, value: String| {
        facts.insert(key.to_owned(), value);
    };
    note("mode", format!("{:o}", meta.mode()));
    note("owner", format!("{}:{}", meta.uid(), meta.gid()));
    note("links", meta.nlink().to_string());
    if depth != Depth::Timeless {
        note("modified", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()));
    }
    let kind = meta.file_type();
    if depth == Depth::Same || !meta.is_dir() {
        note("size", meta.size().to_string());
    }
    if kind.is_char_device() || kind.is_block_device() {
        note("device", format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
    }
    if kind.is_symlink() {
        note("target", fs::read_link(path)?.display().to_string());
    }
    if kind.is_file() {
        note("bytes", digest(&File::open(path)?, meta.size())?);
    }
    if depth == Depth::Same {
        note("inode", meta.ino().to_string());
        note("changed", format!("{}.{:09}", meta.ctime(), meta.ctime_nsec()));
        note("blocks", meta.blocks().to_string());
    }
    for (name, value) in xattrs(path)? {
        note(&format!("xattr {name}"), value);
    }
    Ok(facts)
}

/// A hash over the blocks that are not all zero and their places: the same for a hole and for written zeros.
fn digest(file: &File, size: u64) -> Result<String> {
    const BLOCK: u64 = 4096;
    // Smaller files are read as they are, and nothing depends on what their system says of their holes.
    const WORTH_SEEKING: u64 = 64 << 20;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            _ if size < WORTH_SEEKING => at,
            Ok(data) => data / BLOCK * BLOCK,
            Err(rustix::io::Errno::NXIO) => break,
            // A filesystem without SEEK_DATA: read it all.
            Err(_) => at,
        };
        let read = file.read_at(&mut buffer, at)?;
        ensure!(read > 0, "ends at {at}, {size} bytes expected");
        for (index, block) in buffer[..read].chunks(BLOCK as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                hash.update(&(at + index as u64 * BLOCK).to_le_bytes());
                hash.update(block);
            }
        }
        at += read as u64;
    }
    Ok(format!("{:032x}", hash.digest128()))
}

fn xattrs(path: &Path) -> Result<Vec<(String, String)>> {
    let mut names = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error).context("llistxattr"),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
            .with_context(|| format!("lgetxattr {}", name.escape_ascii()))?;
        found.push((String::from_utf8_lossy(name).into_owned(), value[..length].escape_ascii().to_string()));
    }
    Ok(found)
}
