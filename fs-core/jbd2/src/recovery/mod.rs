//! Bringing a volume back to its last committed transaction, on a plain device.
//!
//! First [`scan`], which does not write: it walks the log from its tail while sequences follow each
//! other and every transaction ends in a good commit block; revoke records are collected with the
//! newest sequence that names each block; then the newest copy of every block that no record of the
//! same or a later transaction revokes becomes the [`Replay`]. An [`Overlay`] shows what it would make of the
//! device, for whoever must judge it first and for read-only mounts. [`Replay::apply`] writes it,
//! flushes and marks the log empty: cut short anywhere, it can run again and does the same.
//!
//! A log is hostile input: every step is bounded by its length, a block outside the device or inside
//! the log is a corruption, and so is damage inside a transaction that was committed. The device may
//! be larger than the volume, and the superblock in the log may be newer than the one on disk, so
//! the volume's bounds are the caller's to give ([`Replay::confine`]).

mod overlay;
mod walk;

use std::ops::Range;

use blockdev::BlockDevice;
use ext4_format::jbd2::MAGIC_BYTES;
use ext4_format::{BlockNo, Corruption, Tid, What};
use rustc_hash::FxHashMap;

use crate::bytes::BlockData;
use crate::error::Result;
use crate::home::write_home;
use crate::log::{read_superblock, write_superblock};
use crate::map::LogMap;

pub use crate::error::Error;
pub use crate::map::{LogExtent, LogLocation};
pub use overlay::Overlay;
use walk::{Copied, Walk};

/// Blocks written home between two looks at the log, to bound memory.
const BATCH_BYTES: usize = 8 << 20;

/// What a recovery did, or a scan found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Committed transactions in the log.
    pub transactions: u32,
    /// Blocks (to be) written home.
    pub blocks: u64,
    /// Revoke records found in them.
    pub revokes: u64,
    /// The errno an aborted journal left behind, 0 for none; [`clear_errno`] removes it.
    pub errno: u32,
}

/// What a replay writes: for each block where its newest committed copy stands in the log.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    copies: FxHashMap<BlockNo, LoggedCopy>,
    found: Recovered,
    /// The first sequence that was not committed.
    end: Tid,
}

#[derive(Clone, Copy, Debug)]
struct LoggedCopy {
    at: BlockNo,
    escaped: bool,
}

impl Replay {
    /// What was found.
    #[must_use]
    pub fn found(&self) -> Recovered {
        self.found
    }

    /// The blocks that a replay writes, in no order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockNo> + '_ {
        self.copies.keys().copied()
    }

    /// Refuses a replay that would write outside the blocks `volume`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the number of such a block.
    pub fn confine(&self, volume: Range<u64>) -> Result<()> {
        match self.blocks().filter(|block| !volume.contains(&block.0)).min() {
            None => Ok(()),
            Some(block) => {
                let outside =
                    Corruption::new(What::JournalBlock, "t_blocknr", block.0, volume.end.saturating_sub(1));
                Err(outside.into())
            }
        }
    }

    /// Writes the replay onto the device it was scanned from and marks the log empty. A clean log is
    /// left alone.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Corrupt`] for a log that changed since.
    pub fn apply(&self, dev: &dyn BlockDevice, block_size: u32, log: &LogLocation) -> Result<Recovered> {
        let block_size = block_size as usize;
        let map = LogMap::new(log, dev, block_size)?;
        let (mut sb, mut block) = read_superblock(dev, &map, block_size)?;
        if sb.start().is_none() {
            return Ok(self.found);
        }
        let mut homes: Vec<BlockNo> = self.blocks().collect();
        homes.sort_unstable();
        for batch in homes.chunks((BATCH_BYTES / block_size).max(1)) {
            let mut blocks = Vec::with_capacity(batch.len());
            for &home in batch {
                let mut data = BlockData::zeroed(block_size);
                if let Some(read) = self.read(dev, home, data.make_mut()) {
                    read?;
                    blocks.push((home, data));
                }
            }
            write_home(dev, block_size, &mut blocks)?;
        }
        dev.flush()?;
        // One past the first uncommitted sequence, so that no half-written transaction of that number
        // can ever continue a new one.
        sb.set_tail(None, self.end.next());
        write_superblock(dev, &map, &sb, &mut block)?;
        dev.flush()?;
        Ok(self.found)
    }

    /// Reads the bytes that belong to `block`, if the replay has any for it.
    fn read(&self, dev: &dyn BlockDevice, block: BlockNo, into: &mut [u8]) -> Option<blockdev::Result<()>> {
        let copy = self.copies.get(&block)?;
        let read = dev.read_at(copy.at.0 * into.len() as u64, into);
        if copy.escaped {
            into[..4].copy_from_slice(&MAGIC_BYTES);
        }
        Some(read)
    }
}

/// Finds what a replay would write, without writing. An empty log gives an empty replay.
///
/// # Errors
/// [`Error::Corrupt`] for a log that contradicts the format, [`Error::Unsupported`] for one that
/// holds fast commits, [`Error::Io`].
pub fn scan(dev: &dyn BlockDevice, block_size: u32, log: &LogLocation) -> Result<Replay> {
    let block_size = block_size as usize;
    let map = LogMap::new(log, dev, block_size)?;
    let (sb, _) = read_superblock(dev, &map, block_size)?;
    let errno = sb.errno();
    let Some(start) = sb.start() else {
        return Ok(Replay {
            found: Recovered { errno, ..Recovered::default() },
            end: sb.sequence(),
            ..Replay::default()
        });
    };
    let walk = Walk::through(dev, block_size, &map, &sb, start)?;
    let mut newest: FxHashMap<BlockNo, Copied> = FxHashMap::default();
    for copied in walk.copies {
        newest.insert(copied.tag.block, copied);
    }
    // A record kills every copy up to and including its own transaction.
    newest.retain(|block, copied| walk.revoked.get(block).is_none_or(|tid| tid.is_before(copied.tid)));
    let device_blocks = dev.geometry().size / block_size as u64;
    let mut logged = BlockData::zeroed(block_size);
    let mut copies = FxHashMap::default();
    for (block, copied) in newest {
        if block.0 >= device_blocks || map.contains(block) {
            let wrong = Corruption::new(What::JournalBlock, "t_blocknr", block.0, device_blocks);
            return Err(wrong.at_block(copied.at).into());
        }
        dev.read_at(copied.at.0 * block_size as u64, logged.make_mut())?;
        sb.format().verify_logged(copied.tid, &copied.tag, &logged)?;
        copies.insert(block, LoggedCopy { at: copied.at, escaped: copied.tag.escaped });
    }
    let found = Recovered {
        transactions: walk.transactions,
        blocks: copies.len() as u64,
        revokes: walk.revokes,
        errno,
    };
    Ok(Replay { copies, found, end: walk.end })
}

/// Scans the log and applies it to a device that is the volume and nothing else.
///
/// # Errors
/// As [`scan`]; nothing has been written when the log is refused.
pub fn recover(dev: &dyn BlockDevice, block_size: u32, log: &LogLocation) -> Result<Recovered> {
    scan(dev, block_size, log)?.apply(dev, block_size, log)
}

/// Removes the errno that an aborted journal left in its superblock. The caller has recorded the
/// error in the filesystem's own superblock before.
///
/// # Errors
/// [`Error::Corrupt`] or [`Error::Io`].
pub fn clear_errno(dev: &dyn BlockDevice, block_size: u32, log: &LogLocation) -> Result<()> {
    let block_size = block_size as usize;
    let map = LogMap::new(log, dev, block_size)?;
    let (mut sb, mut block) = read_superblock(dev, &map, block_size)?;
    if sb.errno() != 0 {
        sb.set_errno(0);
        write_superblock(dev, &map, &sb, &mut block)?;
        dev.flush()?;
    }
    Ok(())
}

fn fast_commits() -> Error {
    Error::Unsupported { what: "fast_commit: the log holds fast commits".into() }
}
