//! One walk along the log, from its tail to the last commit block that follows in sequence.
//!
//! What ends a log and what damages it look alike: a block that does not verify. It is the end when
//! nothing behind it proves that its transaction was committed (a commit waits for all its blocks,
//! so a torn one has no commit block), and a corruption when something does.

use blockdev::BlockDevice;
use ext4_format::crc::crc32_be;
use ext4_format::jbd2::{BlockType, Compat, Header, Incompat, LogFormat, RawCommit, SuperBlock, Tag};
use ext4_format::{BlockNo, Corruption, Tid, What};
use rustc_hash::FxHashMap;
use zerocopy::FromBytes;

use super::fast_commits;
use crate::bytes::BlockData;
use crate::error::Result;
use crate::map::LogMap;

/// A logged block of a committed transaction.
pub(super) struct Copied {
    pub tid: Tid,
    pub tag: Tag,
    /// Where the copy stands on the device.
    pub at: BlockNo,
}

/// What the walk found.
pub(super) struct Walk {
    /// In log order.
    pub copies: Vec<Copied>,
    /// The newest transaction that revokes each block.
    pub revoked: FxHashMap<BlockNo, Tid>,
    pub revokes: u64,
    pub transactions: u32,
    /// The first sequence that was not committed.
    pub end: Tid,
}

/// What the transaction under the walk has shown so far; dropped if it never commits.
#[derive(Default)]
struct Open {
    copies: Vec<(Tag, BlockNo)>,
    revoked: Vec<BlockNo>,
    /// The first block that failed its sum.
    damage: Option<Corruption>,
    sum: u32,
}

impl Open {
    fn new() -> Open {
        Open { sum: !0, ..Open::default() }
    }
}

struct Walker<'a> {
    dev: &'a dyn BlockDevice,
    map: &'a LogMap,
    format: LogFormat,
    compat_sum: bool,
    first: u32,
    end: u32,
    at: u32,
    /// Blocks the walk may still take: a log is walked around once at most.
    left: u32,
    block: BlockData,
}

impl Walk {
    pub fn through(
        dev: &dyn BlockDevice,
        block_size: usize,
        map: &LogMap,
        sb: &SuperBlock,
        start: u32,
    ) -> Result<Walk> {
        let mut walker = Walker {
            dev,
            map,
            format: sb.format(),
            compat_sum: sb.compat().has(Compat::CHECKSUM) && !sb.has_csum(),
            first: sb.first(),
            end: sb.end(),
            at: start,
            left: sb.end() - sb.first(),
            block: BlockData::zeroed(block_size),
        };
        let mut walk = Walk {
            copies: Vec::new(),
            revoked: FxHashMap::default(),
            revokes: 0,
            transactions: 0,
            end: sb.sequence(),
        };
        let mut last_commit_time = 0;
        while let Some((open, time)) = walker.transaction(walk.end, last_commit_time)? {
            let tid = walk.end;
            walk.revokes += open.revoked.len() as u64;
            walk.revoked.extend(open.revoked.into_iter().map(|block| (block, tid)));
            walk.copies.extend(open.copies.into_iter().map(|(tag, at)| Copied { tid, tag, at }));
            walk.transactions += 1;
            walk.end = tid.next();
            last_commit_time = time;
        }
        if sb.incompat().has(Incompat::FAST_COMMIT) && walker.has_fast_commits(sb, walk.end)? {
            return Err(fast_commits());
        }
        Ok(walk)
    }
}

impl Walker<'_> {
    /// Reads the block under the walk and steps over it; its header if it continues `tid`.
    fn next(&mut self, tid: Tid) -> Result<Option<(Header, BlockNo)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let at = self.read(self.at)?;
        let header = Header::decode(&self.block).filter(|header| header.sequence == tid);
        if header.is_some() {
            self.step(1);
        }
        Ok(header.map(|header| (header, at)))
    }

    fn read(&mut self, log_block: u32) -> Result<BlockNo> {
        let (at, _) = self.map.physical(log_block);
        self.dev.read_at(at.0 * self.block.len() as u64, self.block.make_mut())?;
        Ok(at)
    }

    /// `by` is at most `left`.
    fn step(&mut self, by: u32) {
        self.at = self.first + (self.at - self.first + by) % (self.end - self.first);
        self.left -= by;
    }

    /// The next transaction if it was committed, with its commit time.
    fn transaction(&mut self, tid: Tid, last_commit_time: u64) -> Result<Option<(Open, u64)>> {
        let mut open = Open::new();
        while let Some((header, at)) = self.next(tid)? {
            match header.kind {
                BlockType::Descriptor => {
                    if let Err(damage) = self.format.verify_tail(&self.block) {
                        open.damage.get_or_insert(damage.at_block(at));
                    }
                    if !self.descriptor(&mut open)? {
                        return Ok(None);
                    }
                }
                BlockType::Revoke => {
                    if let Err(damage) = self.format.verify_tail(&self.block) {
                        open.damage.get_or_insert(damage.at_block(at));
                    }
                    match self.format.revoked(&self.block) {
                        Ok(blocks) => open.revoked.extend(blocks),
                        Err(damage) => drop(open.damage.get_or_insert(damage.at_block(at))),
                    }
                }
                BlockType::Commit => return self.commit(tid, at, open, last_commit_time),
                BlockType::SuperBlockV1 | BlockType::SuperBlockV2 => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Takes a descriptor's tags and steps over the blocks they name; false when the log is too short.
    fn descriptor(&mut self, open: &mut Open) -> Result<bool> {
        if self.compat_sum {
            open.sum = crc32_be(open.sum, &self.block);
        }
        let tags: Vec<Tag> = self.format.tags(&self.block).collect();
        for tag in tags {
            if self.left == 0 {
                return Ok(false);
            }
            let at = if self.compat_sum {
                let at = self.read(self.at)?;
                open.sum = crc32_be(open.sum, &self.block);
                at
            } else {
                self.map.physical(self.at).0
            };
            self.step(1);
            open.copies.push((tag, at));
        }
        Ok(true)
    }

    fn commit(
        &mut self,
        tid: Tid,
        at: BlockNo,
        open: Open,
        last_commit_time: u64,
    ) -> Result<Option<(Open, u64)>> {
        let (commit, _) = RawCommit::read_from_prefix(&self.block)
            .map_err(|_| Corruption::new(What::JournalBlock, "length", self.block.len() as u64, 60))?;
        let time = commit.commit_sec.get();
        if let Err(damage) = self.commit_sum(&commit, open.sum) {
            // Torn: the log ends here. But then nobody can have gone on to the next transaction.
            return if self.goes_on(tid.next())? { Err(damage.at_block(at).into()) } else { Ok(None) };
        }
        match open.damage {
            // A leftover of an earlier life of the log that happens to carry the right sequence.
            Some(_) if time < last_commit_time => Ok(None),
            Some(damage) => Err(damage.into()),
            None => Ok(Some((open, time))),
        }
    }

    fn commit_sum(&self, commit: &RawCommit, sum: u32) -> std::result::Result<(), Corruption> {
        self.format.verify_commit(&self.block)?;
        // Type JBD2_CRC32_CHKSUM, 4 bytes; a commit block without a sum has zeros there.
        let carries_sum = (commit.checksum_type, commit.checksum_size) == (1, 4);
        let found = commit.checksum[0].get();
        if self.compat_sum && carries_sum && found != sum {
            return Err(Corruption::checksum(What::JournalBlock, found, sum));
        }
        Ok(())
    }

    /// Whether the block under the walk belongs to transaction `tid`.
    fn goes_on(&mut self, tid: Tid) -> Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        self.read(self.at)?;
        Ok(Header::decode(&self.block).is_some_and(|header| header.sequence == tid))
    }

    /// Whether the fast-commit blocks behind the ring continue the log: their first block then begins
    /// with a tag `EXT4_FC_TAG_HEAD` (9) that names the first uncommitted sequence. The kernel leaves
    /// one block between the ring and them. Source: kernel documentation, ext4 "Fast commits"; images.
    fn has_fast_commits(&mut self, sb: &SuperBlock, end: Tid) -> Result<bool> {
        let first = sb.end() + 1;
        if first >= sb.len_blocks() {
            return Ok(false);
        }
        self.read(first)?;
        let tag = u16::from_le_bytes([self.block[0], self.block[1]]);
        // Tag and length (4 bytes), features (4), then the sequence; all little-endian.
        let tid = u32::from_le_bytes([self.block[8], self.block[9], self.block[10], self.block[11]]);
        Ok(tag == 9 && tid == end.0)
    }
}
