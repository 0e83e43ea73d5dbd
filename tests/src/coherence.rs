//! Two processes on one file, one with O_DIRECT, one through the page cache (read, write and mappings), which
//! must see each other's writes.
//!
//! Both draw the same plan for each round: which pages change, how, and who does it. In the first half they
//! write at the same time, each its own pages, and read the other's pages meanwhile, whatever they find, so
//! that the cache is filled with what is just being changed. In the second half both read every page of the
//! round in every way they have, and it must be what the plan says. A byte through a pipe in each direction
//! parts the halves.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use blockdev::AlignedBuf;
use fastrand::Rng;
use mmap_io::MemoryMappedFile;
use rustix::fs::{FallocateFlags, Mode, OFlags};

use crate::tree::fill;

const PAGE: u64 = 4096;
const SECTOR: u64 = 512;
const PAGES: u64 = 256;
/// Pages that change in a round.
const CHANGES: usize = 16;

/// Which of the two processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Opens the file with O_DIRECT.
    Direct,
    /// Reads and writes through the page cache.
    Cached,
}

/// What happens to one page in a round.
struct Change {
    side: Side,
    /// Bytes of the file, whole sectors of one page.
    at: u64,
    length: u64,
    seed: u64,
    /// A hole instead of data.
    punch: bool,
    /// Through a mapping, where the side has one.
    mapped: bool,
    /// Followed by fdatasync.
    sync: bool,
}

impl Change {
    fn bytes(&self) -> AlignedBuf {
        let mut bytes = AlignedBuf::zeroed(self.length as usize);
        if !self.punch {
            fill(self.seed, self.at, &mut bytes);
        }
        bytes
    }
}

/// The changes of a round, all of different pages; the same in both processes.
fn plan(seed: u64, round: u64) -> Vec<Change> {
    let mut rng = Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(round));
    let pages = rng.choose_multiple(0..PAGES, CHANGES);
    let change = |page: u64| {
        let from = if rng.bool() { 0 } else { rng.u64(0..PAGE / SECTOR) };
        let sectors = if from == 0 { PAGE / SECTOR } else { rng.u64(1..=PAGE / SECTOR - from) };
        Change {
            side: if rng.bool() { Side::Direct } else { Side::Cached },
            at: page * PAGE + from * SECTOR,
            length: sectors * SECTOR,
            seed: rng.u64(..),
            punch: rng.u8(0..16) == 0,
            mapped: rng.bool(),
            sync: rng.u8(0..64) == 0,
        }
    };
    pages.into_iter().map(change).collect()
}

/// One of the two processes.
struct Party {
    side: Side,
    file: File,
    map: Option<MemoryMappedFile>,
    /// What the file must hold.
    model: Vec<u8>,
}

impl Party {
    fn new(side: Side, path: &Path) -> Result<Party> {
        let direct = if side == Side::Direct { OFlags::DIRECT } else { OFlags::empty() };
        let file =
            File::from(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | direct, Mode::empty())?);
        let map = (side == Side::Cached).then(|| MemoryMappedFile::open_rw(path)).transpose()?;
        Ok(Party { side, file, map, model: vec![0; (PAGES * PAGE) as usize] })
    }

    fn apply(&self, change: &Change) -> Result<()> {
        let bytes = change.bytes();
        match &self.map {
            _ if change.punch => {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, how, change.at, change.length)?;
            }
            Some(map) if change.mapped => map.update_region(change.at, &bytes)?,
            _ => {
                let wrote = rustix::io::pwrite(self.file.as_fd(), &bytes, change.at)?;
                ensure!(wrote == bytes.len(), "a write of {} bytes wrote {wrote}", bytes.len());
            }
        }
        if change.sync {
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Reads the page of a change and gives its bytes, through the mapping or not.
    fn page_of(&self, change: &Change, mapped: bool) -> Result<AlignedBuf> {
        let at = change.at / PAGE * PAGE;
        let mut page = AlignedBuf::zeroed(PAGE as usize);
        match &self.map {
            Some(map) if mapped => map.read_into(at, &mut page)?,
            _ => {
                let read = rustix::io::pread(self.file.as_fd(), &mut page[..], at)?;
                ensure!(read == page.len(), "a read of a page gave {read} bytes");
            }
        }
        Ok(page)
    }

    /// The first half; returns the number of operations.
    fn write(&self, changes: &[Change]) -> Result<u64> {
        for change in changes {
            if change.side == self.side {
                self.apply(change).with_context(|| format!("{:?} write at {}", self.side, change.at))?;
            } else {
                self.page_of(change, change.mapped)?;
            }
        }
        Ok(changes.len() as u64)
    }

    /// The second half; returns the number of operations.
    fn check(&mut self, round: u64, changes: &[Change]) -> Result<u64> {
        let mut done = 0;
        for change in changes {
            let at = change.at as usize;
            self.model[at..at + change.length as usize].copy_from_slice(&change.bytes());
        }
        for change in changes {
            let ways: &[bool] = if self.map.is_some() { &[true, false] } else { &[false] };
            for &mapped in ways {
                let page = self.page_of(change, mapped)?;
                let start = (change.at / PAGE * PAGE) as usize;
                let right = &self.model[start..start + PAGE as usize];
                let wrong = page.iter().zip(right).position(|(found, right)| found != right);
                ensure!(
                    wrong.is_none(),
                    "round {round}: {:?} (mapped: {mapped}) sees byte {} as it was before {:?} wrote {} at {}",
                    self.side,
                    start + wrong.unwrap_or_default(),
                    change.side,
                    change.length,
                    change.at
                );
                done += 1;
            }
        }
        Ok(done)
    }

    /// Rounds until the other process ends or `enough` operations are done.
    fn run(&mut self, seed: u64, enough: u64, from: &mut impl Read, to: &mut impl Write) -> Result<u64> {
        let mut done = 0;
        let mut meet = || -> Result<bool> {
            to.write_all(b".").and_then(|()| to.flush()).context("the other process has ended")?;
            Ok(from.read(&mut [0])? == 1)
        };
        for round in 0.. {
            if done >= enough || !meet()? {
                break;
            }
            let changes = plan(seed, round);
            done += self.write(&changes)?;
            if !meet()? {
                break;
            }
            done += self.check(round, &changes)?;
        }
        Ok(done)
    }
}

/// The direct side, on a new file at `path`. `other` is the command of the cached side: it is started here,
/// and ends when its standard input does. Returns the operations of this side; the other's are one and a half
/// times as many.
pub fn direct_side(path: &Path, other: &mut Command, seed: u64, operations: u64) -> Result<u64> {
    File::create(path)?.set_len(PAGES * PAGE)?;
    let mut party = Party::new(Side::Direct, path)?;
    let mut child = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut to = child.stdin.take().context("piped")?;
    let mut from = child.stdout.take().context("piped")?;
    let done = party.run(seed, operations, &mut from, &mut to);
    drop(to);
    let status = child.wait()?;
    // What the other side has to say comes first: this one may only have lost its partner.
    ensure!(status.success(), "the cached side ended with {status} ({done:?} here)");
    let done = done?;
    ensure!(done >= operations, "the cached side ended after {done} operations");
    Ok(done)
}

/// The cached side, in a process of its own, in step with the direct side behind the standard streams.
pub fn cached_side(path: &Path, seed: u64) -> Result<()> {
    let mut party = Party::new(Side::Cached, path)?;
    party.run(seed, u64::MAX, &mut std::io::stdin().lock(), &mut std::io::stdout().lock()).map(drop)
}
