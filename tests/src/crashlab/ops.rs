//! The operations a workload is made of, over a small fixed set of names, and the points in between at
//! which something is made durable.
//!
//! Offsets and lengths are in cells of [`CELL`] bytes. A write fills its cells with one byte, its tag, that
//! no other write of the workload uses: so every cell on a disk says where it came from.

use std::fmt;
use std::str::FromStr;

use blockdev::sim::Dice;

/// Bytes of a cell, the grain in which contents are compared.
pub const CELL: u64 = 256;

/// How data reach a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By write(2) through the page cache.
    Cached,
    /// By O_DIRECT.
    Direct,
    /// By a shared mapping: whole pages written back.
    Mapped,
}

/// What fallocate(2) is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Falloc {
    /// Mode 0.
    Allocate,
    /// `FALLOC_FL_KEEP_SIZE`.
    KeepSize,
    /// `FALLOC_FL_PUNCH_HOLE`.
    Punch,
    /// `FALLOC_FL_ZERO_RANGE`.
    Zero,
    /// `FALLOC_FL_ZERO_RANGE` with `KEEP_SIZE`.
    ZeroKeepSize,
    /// `FALLOC_FL_COLLAPSE_RANGE`.
    Collapse,
    /// `FALLOC_FL_INSERT_RANGE`.
    Insert,
}

/// One operation. Names are absolute paths without the leading slash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Create an empty file.
    Create(&'static str),
    /// Create a directory.
    Mkdir(&'static str),
    /// Remove an empty directory.
    Rmdir(&'static str),
    /// Remove a name.
    Unlink(&'static str),
    /// Remove a name while the file stays open until the cut.
    UnlinkOpen(&'static str),
    /// Give a file another name.
    Link(&'static str, &'static str),
    /// Rename, replacing what is there.
    Rename(&'static str, &'static str),
    /// Swap two names.
    Exchange(&'static str, &'static str),
    /// Make a symbolic link with a target of so many bytes.
    Symlink(&'static str, usize),
    /// Write cells `at..at + len`.
    Write {
        /// The file.
        file: &'static str,
        /// How the data reach it.
        way: Way,
        /// First cell.
        at: u64,
        /// Cells.
        len: u64,
    },
    /// Write so many cells at the end of the file.
    Append {
        /// The file.
        file: &'static str,
        /// How the data reach it.
        way: Way,
        /// Cells.
        len: u64,
    },
    /// Set the size, in cells.
    Truncate(&'static str, u64),
    /// Allocate, punch, zero or shift cells `at..at + len`.
    Fallocate {
        /// The file.
        file: &'static str,
        /// What is asked for.
        how: Falloc,
        /// First cell.
        at: u64,
        /// Cells.
        len: u64,
    },
    /// Set the permission bits.
    Chmod(&'static str, u16),
    /// Set an attribute to so many bytes.
    SetXattr(&'static str, &'static str, usize),
    /// Remove an attribute.
    RemoveXattr(&'static str, &'static str),
}

impl Op {
    /// The file or directory that the operation is about, by its name afterwards.
    #[must_use]
    pub fn target(&self) -> &'static str {
        match *self {
            Op::Create(name)
            | Op::Mkdir(name)
            | Op::Rmdir(name)
            | Op::Unlink(name)
            | Op::UnlinkOpen(name)
            | Op::Link(_, name)
            | Op::Rename(_, name)
            | Op::Exchange(_, name)
            | Op::Symlink(name, _)
            | Op::Truncate(name, _)
            | Op::Chmod(name, _)
            | Op::SetXattr(name, _, _)
            | Op::RemoveXattr(name, _) => name,
            Op::Write { file, .. } | Op::Append { file, .. } | Op::Fallocate { file, .. } => file,
        }
    }
}

/// The directory a name lies in; the root is the empty name.
#[must_use]
pub fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// What is made durable after an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Persist {
    /// Nothing.
    No,
    /// fsync of the operation's target.
    Fsync,
    /// fdatasync of the operation's target.
    Fdatasync,
    /// fsync or fdatasync (the seed says which) of the directory that the target's name is in.
    FsyncParent,
    /// syncfs.
    Sync,
}

impl Persist {
    const LETTERS: [(Persist, char); 5] = [
        (Persist::No, 'n'),
        (Persist::Fsync, 'f'),
        (Persist::Fdatasync, 'd'),
        (Persist::FsyncParent, 'p'),
        (Persist::Sync, 's'),
    ];
}

const CATALOGUE: &[Op] = {
    use Falloc::{Allocate, Collapse, Insert, KeepSize, Punch, Zero, ZeroKeepSize};
    use Way::{Cached, Direct, Mapped};
    &[
        Op::Create("bar"),
        Op::Create("A/bar"),
        Op::Mkdir("C"),
        Op::Mkdir("A/D"),
        Op::Rmdir("B"),
        Op::Unlink("foo"),
        Op::Unlink("A/foo"),
        Op::UnlinkOpen("foo"),
        Op::Link("foo", "bar"),
        Op::Link("foo", "A/bar"),
        Op::Rename("foo", "bar"),
        Op::Rename("foo", "A/foo"),
        Op::Rename("A/foo", "foo"),
        Op::Rename("A/foo", "A/bar"),
        Op::Rename("A", "B"),
        Op::Rename("A", "C"),
        Op::Exchange("foo", "A/foo"),
        Op::Symlink("bar", 20),
        Op::Symlink("A/bar", 200),
        Op::Write { file: "foo", way: Cached, at: 0, len: 16 },
        Op::Write { file: "foo", way: Cached, at: 5, len: 18 },
        Op::Write { file: "foo", way: Cached, at: 80, len: 10 },
        Op::Write { file: "foo", way: Direct, at: 16, len: 16 },
        Op::Write { file: "foo", way: Direct, at: 96, len: 32 },
        Op::Write { file: "foo", way: Direct, at: 3, len: 1 },
        Op::Write { file: "foo", way: Mapped, at: 16, len: 16 },
        Op::Write { file: "A/foo", way: Cached, at: 0, len: 40 },
        Op::Append { file: "foo", way: Cached, len: 7 },
        Op::Append { file: "foo", way: Direct, len: 16 },
        Op::Append { file: "A/foo", way: Cached, len: 64 },
        Op::Append { file: "bar", way: Cached, len: 20 },
        Op::Append { file: "A/bar", way: Direct, len: 32 },
        Op::Truncate("foo", 0),
        Op::Truncate("foo", 10),
        Op::Truncate("foo", 150),
        Op::Truncate("A/foo", 0),
        Op::Fallocate { file: "foo", how: Allocate, at: 64, len: 64 },
        Op::Fallocate { file: "foo", how: KeepSize, at: 64, len: 64 },
        Op::Fallocate { file: "foo", how: Punch, at: 8, len: 24 },
        Op::Fallocate { file: "foo", how: Zero, at: 20, len: 80 },
        Op::Fallocate { file: "foo", how: ZeroKeepSize, at: 20, len: 80 },
        Op::Fallocate { file: "foo", how: Collapse, at: 16, len: 16 },
        Op::Fallocate { file: "foo", how: Insert, at: 16, len: 32 },
        Op::Chmod("foo", 0o600),
        Op::SetXattr("foo", "user.small", 12),
        Op::SetXattr("foo", "user.large", 700),
        Op::RemoveXattr("foo", "user.base"),
        Op::RemoveXattr("A/foo", "user.base"),
    ]
};

/// Every operation the lab knows. A step names one by its position.
#[must_use]
pub fn catalogue() -> &'static [Op] {
    CATALOGUE
}

/// An operation and what is made durable after it. Written like `19f`: position in the catalogue, then
/// `n`, `f`, `d`, `p` or `s` for nothing, fsync, fdatasync, fsync of the parent, syncfs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Step {
    /// Position of the operation in the catalogue.
    pub op: usize,
    /// What follows it.
    pub then: Persist,
}

impl Step {
    /// The operation.
    #[must_use]
    pub fn op(&self) -> &'static Op {
        &CATALOGUE[self.op]
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = Persist::LETTERS.iter().find(|(then, _)| *then == self.then).map_or('?', |l| l.1);
        write!(f, "{}{letter}", self.op)
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Step, String> {
        let parse = || -> Option<Step> {
            let letter = text.chars().last()?;
            let then = Persist::LETTERS.iter().find(|(_, l)| *l == letter)?.0;
            let op = text[..text.len() - letter.len_utf8()].parse().ok()?;
            (op < CATALOGUE.len()).then_some(Step { op, then })
        };
        parse().ok_or_else(|| format!("{text:?} is no step; like 19f"))
    }
}

/// A sequence of steps, written with commas: `8n,19f`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Workload(pub Vec<Step>);

impl Workload {
    /// A number of its own, so that one seed rolls other dice for every workload.
    #[must_use]
    pub fn salt(&self) -> u64 {
        self.0.iter().fold(0, |sum, step| Dice::new(sum ^ (step.op as u64) << 8 ^ step.then as u64).roll())
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            write!(f, "{}{step}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Workload, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Workload)
    }
}
