//! The log on the device: its superblock and the writing of one transaction.
//!
//! Ordering rules, each the reason why a power cut at any point leaves a log that can be replayed:
//! 1. The superblock names a tail before the first commit block after it is written: the flush in
//!    front of the commit block covers both.
//! 2. The tail moves only after the blocks it leaves behind are home *and flushed*, and the space is
//!    reused only after the new tail is flushed too.
//! 3. A commit block is written after a flush of everything in front of it. Its first sector is all
//!    that is not zero, and the zeros are written ahead with the data: so even a medium that tears
//!    a block between sectors has either the whole commit block or none.

use std::sync::Arc;

use blockdev::{BlockDevice, Clock};
use ext4_format::crc::crc32_be;
use ext4_format::jbd2::{Compat, Incompat, LogFormat, MAGIC_BYTES, SUPERBLOCK_LEN, SuperBlock, Tag};
use ext4_format::{Corruption, Tid, What};
use parking_lot::Mutex;

use crate::bytes::BlockData;
use crate::error::{Error, Result};
use crate::home::MAX_REQUEST;
use crate::map::{LogLocation, LogMap};
use crate::mutants::{Mutant, is};
use crate::transaction::Snapshot;

/// Smallest ring that can be worked with; real ones have `JBD2_MIN_JOURNAL_BLOCKS`, 1024.
const MIN_RING: u32 = 32;

/// The sums a log carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogChecksum {
    /// None.
    None,
    /// One crc32 over a transaction, in its commit block (`JBD2_FEATURE_COMPAT_CHECKSUM`).
    Compat,
    /// crc32c in every block, 16 bits in the tags (`JBD2_FEATURE_INCOMPAT_CSUM_V2`).
    V2,
    /// crc32c in every block, 32 bits in the tags (`JBD2_FEATURE_INCOMPAT_CSUM_V3`).
    V3,
}

/// What the log is asked to be. The kernel uses V3 when the filesystem has `metadata_csum` and none
/// otherwise, and wide numbers when it has `64bit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFeatures {
    /// The sums.
    pub checksum: LogChecksum,
    /// 64-bit block numbers.
    pub wide: bool,
}

pub(crate) struct Log {
    dev: Arc<dyn BlockDevice>,
    map: LogMap,
    block_size: usize,
    format: LogFormat,
    uuid: [u8; 16],
    compat_sum: bool,
    barrier: bool,
    clock: Arc<dyn Clock>,
    /// The ring: log blocks `first..end`.
    pub first: u32,
    pub end: u32,
    /// Held while the superblock is written; taken before `Journal::core`, never under it.
    superblock: Mutex<OnDisk>,
}

/// The journal superblock as it was last written, with the rest of its block.
pub(crate) struct OnDisk {
    sb: SuperBlock,
    block: BlockData,
}

impl Log {
    pub fn open(
        dev: Arc<dyn BlockDevice>,
        block_size: usize,
        location: &LogLocation,
        opts: &crate::Options,
    ) -> Result<Log> {
        let map = LogMap::new(location, &*dev, block_size)?;
        let (mut sb, block) = read_superblock(&*dev, &map, block_size)?;
        if sb.start().is_some() {
            return Err(Error::NeedsRecovery);
        }
        let size = sb.end() - sb.first();
        if size < MIN_RING {
            let wrong = Corruption::new(What::JournalSuperBlock, "s_maxlen", size.into(), MIN_RING.into());
            return Err(wrong.into());
        }
        // The log is empty, so its shape may be chosen anew; the superblock is written with the first commit.
        let features = opts.features.unwrap_or_else(|| present_features(&sb));
        let mut incompat = sb.incompat();
        for gone in [Incompat::ASYNC_COMMIT, Incompat::CSUM_V2, Incompat::CSUM_V3, Incompat::BIT64] {
            incompat = incompat.without(gone);
        }
        incompat = incompat.with(Incompat::REVOKE);
        match features.checksum {
            LogChecksum::V2 => incompat = incompat.with(Incompat::CSUM_V2),
            LogChecksum::V3 => incompat = incompat.with(Incompat::CSUM_V3),
            LogChecksum::None | LogChecksum::Compat => {}
        }
        if features.wide {
            incompat = incompat.with(Incompat::BIT64);
        }
        let compat_sum = features.checksum == LogChecksum::Compat;
        let compat = sb.compat().without(Compat::CHECKSUM);
        sb.set_compat(if compat_sum { compat.with(Compat::CHECKSUM) } else { compat });
        sb.set_incompat(incompat);
        Ok(Log {
            format: sb.format(),
            uuid: sb.uuid(),
            compat_sum,
            barrier: opts.barrier,
            clock: opts.clock.clone(),
            first: sb.first(),
            end: sb.end(),
            superblock: Mutex::new(OnDisk { sb, block }),
            dev,
            map,
            block_size,
        })
    }

    /// The sequence the next transaction has to carry.
    pub fn next_tid(&self) -> Tid {
        self.superblock.lock().sb.sequence()
    }

    /// Log blocks that a transaction of `blocks` blocks and `revokes` revoked numbers takes.
    pub fn cost(&self, blocks: u64, revokes: u64) -> u64 {
        let descriptors = blocks.div_ceil(self.format.tags_per_block(self.block_size) as u64);
        let revoke_blocks = revokes.div_ceil(self.format.revokes_per_block(self.block_size) as u64);
        blocks + descriptors + revoke_blocks + 1
    }

    /// Where a position `by` blocks after `at` lies in the ring.
    pub fn advance(&self, at: u32, by: u32) -> u32 {
        let ring = self.end - self.first;
        self.first + (at - self.first + by) % ring
    }

    /// Writes a transaction at `start` and makes it durable. `start` and the space behind it were
    /// reserved for exactly this transaction.
    pub fn write_transaction(&self, snapshot: &Snapshot, start: u32) -> Result<()> {
        self.leave_empty(start, snapshot.tid)?;
        let (mut blocks, sum) = self.encode(snapshot);
        let commit_at = self.advance(start, blocks.len() as u32);
        if is(Mutant::CommitBlockFirst) {
            self.seal(snapshot.tid, commit_at, sum)?;
            self.write_run(start, &blocks)?;
            return self.flush();
        }
        blocks.push(BlockData::zeroed(self.block_size));
        self.write_run(start, &blocks)?;
        if !is(Mutant::NoFlushBeforeCommit) {
            self.flush()?;
        }
        self.seal(snapshot.tid, commit_at, sum)?;
        if is(Mutant::NoFlushAfterCommit) {
            return Ok(());
        }
        self.flush()
    }

    /// Writes the commit block. Not flushed here.
    fn seal(&self, tid: Tid, at: u32, sum: u32) -> Result<()> {
        let now = self.clock.now();
        let sec = u64::try_from(now.sec).unwrap_or(0);
        let mut commit = self.format.commit_block(self.block_size, tid, sec, now.nsec);
        if self.compat_sum {
            // h_chksum_type JBD2_CRC32_CHKSUM, h_chksum_size 4, h_chksum[0].
            commit[0x0c..0x0e].copy_from_slice(&[1, 4]);
            commit[0x10..0x14].copy_from_slice(&sum.to_be_bytes());
        }
        let commit = aligned(&commit);
        let (home, _) = self.map.physical(at);
        Ok(self.dev.write_at(home.0 * self.block_size as u64, &commit[..self.commit_len()])?)
    }

    /// Bytes of the commit block written at the end: a sector where the device takes one as it is.
    fn commit_len(&self) -> usize {
        let geometry = self.dev.geometry();
        let sector = geometry.logical_sector.max(geometry.direct_align) as usize;
        if (64..self.block_size).contains(&sector) { sector } else { self.block_size }
    }

    /// The transaction's log blocks without the commit block, and the crc32 over all but the revokes.
    fn encode(&self, snapshot: &Snapshot) -> (Vec<BlockData>, u32) {
        let mut out = Vec::new();
        for revoked in snapshot.revoked.chunks(self.format.revokes_per_block(self.block_size)) {
            out.push(aligned(&self.format.revoke_block(self.block_size, snapshot.tid, revoked)));
        }
        let mut sum = !0;
        for batch in snapshot.blocks.chunks(self.format.tags_per_block(self.block_size)) {
            let mut descriptor = self.format.descriptor(self.block_size, snapshot.tid, &self.uuid);
            let at = out.len();
            out.push(BlockData::zeroed(0));
            for (block, data) in batch {
                let escaped = data.starts_with(&MAGIC_BYTES);
                let mut data = data.clone();
                if escaped {
                    data.make_mut()[..4].fill(0);
                }
                let csum = self.format.tag_csum(snapshot.tid, &data);
                let fits = descriptor.push(Tag { block: *block, escaped, csum });
                debug_assert!(fits, "tags_per_block promised room");
                out.push(data);
            }
            out[at] = aligned(&descriptor.finish());
            if self.compat_sum {
                sum = out[at..].iter().fold(sum, |sum, block| crc32_be(sum, block));
            }
        }
        (out, sum)
    }

    /// Writes log blocks from `start` on, in requests as long as the device ranges allow.
    fn write_run(&self, start: u32, blocks: &[BlockData]) -> Result<()> {
        let mut at = start;
        let mut rest = blocks;
        while !rest.is_empty() {
            let (home, contiguous) = self.map.physical(at);
            let len = rest
                .len()
                .min(contiguous.min(self.end - at) as usize)
                .min((MAX_REQUEST / self.block_size).max(1));
            let bufs: Vec<&[u8]> = rest[..len].iter().map(|block| &block[..]).collect();
            self.dev.write_vectored_at(home.0 * self.block_size as u64, &bufs)?;
            at = self.advance(at, len as u32);
            rest = &rest[len..];
        }
        Ok(())
    }

    /// Rule 1: an empty log gets its tail before the first transaction. Not flushed here.
    fn leave_empty(&self, start: u32, tid: Tid) -> Result<()> {
        let mut disk = self.superblock.lock();
        if disk.sb.start().is_none() {
            disk.sb.set_tail(Some(start), tid);
            self.write_superblock(&mut disk)?;
        }
        Ok(())
    }

    /// Rule 2: moves the tail to what `tail` says once the superblock is ours to write, durably.
    pub fn move_tail(&self, tail: impl FnOnce() -> (u32, Tid)) -> Result<()> {
        let mut disk = self.superblock.lock();
        let (start, tid) = tail();
        disk.sb.set_tail(Some(start), tid);
        self.write_superblock(&mut disk)?;
        self.flush()
    }

    /// Marks the log empty, durably, if `empty` gives the next sequence while nothing can be logged.
    pub fn mark_empty(&self, empty: impl FnOnce() -> Option<(u32, Tid)>) -> Result<bool> {
        let mut disk = self.superblock.lock();
        let Some((head, next)) = empty() else { return Ok(false) };
        if disk.sb.start().is_some() {
            disk.sb.set_tail(None, next);
            disk.sb.set_head(head);
            self.write_superblock(&mut disk)?;
            self.flush()?;
        }
        Ok(true)
    }

    /// Leaves an errno for the next mount, as far as the device still works.
    pub fn record_errno(&self, errno: u32) -> Result<()> {
        let mut disk = self.superblock.lock();
        disk.sb.set_errno(errno);
        self.write_superblock(&mut disk)?;
        self.flush()
    }

    fn write_superblock(&self, disk: &mut OnDisk) -> Result<()> {
        write_superblock(&*self.dev, &self.map, &disk.sb, &mut disk.block)
    }

    fn flush(&self) -> Result<()> {
        if self.barrier {
            self.dev.flush()?;
        }
        Ok(())
    }

    /// Log blocks of the ring.
    pub fn size(&self) -> u32 {
        self.end - self.first
    }
}

/// Reads and checks the superblock; also gives its whole block.
pub(crate) fn read_superblock(
    dev: &dyn BlockDevice,
    map: &LogMap,
    block_size: usize,
) -> Result<(SuperBlock, BlockData)> {
    if map.len() == 0 {
        return Err(Corruption::new(What::JournalSuperBlock, "length", 0, 1024).into());
    }
    let (home, _) = map.physical(0);
    let mut block = BlockData::zeroed(block_size);
    dev.read_at(home.0 * block_size as u64, block.make_mut())?;
    let bytes = block.first_chunk::<SUPERBLOCK_LEN>();
    let bytes =
        bytes.ok_or(Corruption::new(What::JournalSuperBlock, "s_blocksize", block_size as u64, 1024))?;
    let sb = SuperBlock::parse(bytes).map_err(|c| c.at_block(home))?;
    let wrong = |field, found: u32, expected: u32| {
        Corruption::new(What::JournalSuperBlock, field, found.into(), expected.into()).at_block(home)
    };
    if sb.block_size() as usize != block_size {
        return Err(wrong("s_blocksize", sb.block_size(), block_size as u32).into());
    }
    if sb.len_blocks() > map.len() {
        return Err(wrong("s_maxlen", sb.len_blocks(), map.len()).into());
    }
    Ok((sb, block))
}

/// Writes `sb` into log block 0, whose other bytes `block` keeps. Does not flush.
pub(crate) fn write_superblock(
    dev: &dyn BlockDevice,
    map: &LogMap,
    sb: &SuperBlock,
    block: &mut BlockData,
) -> Result<()> {
    block.make_mut()[..SUPERBLOCK_LEN].copy_from_slice(&sb.encode());
    let (home, _) = map.physical(0);
    Ok(dev.write_at(home.0 * block.len() as u64, block)?)
}

fn present_features(sb: &SuperBlock) -> LogFeatures {
    let incompat = sb.incompat();
    let checksum = if incompat.has(Incompat::CSUM_V3) {
        LogChecksum::V3
    } else if incompat.has(Incompat::CSUM_V2) {
        LogChecksum::V2
    } else if sb.compat().has(Compat::CHECKSUM) {
        LogChecksum::Compat
    } else {
        LogChecksum::None
    };
    LogFeatures { checksum, wide: incompat.has(Incompat::BIT64) }
}

fn aligned(bytes: &[u8]) -> BlockData {
    let mut block = BlockData::zeroed(bytes.len());
    block.make_mut().copy_from_slice(bytes);
    block
}
