//! The buffers by block number, within a memory bound.
//!
//! Sharded by block; each shard is a ring swept by a CLOCK hand. A buffer can go when the shard
//! holds its only reference: what is dirty, being committed, awaiting its checkpoint or merely in
//! somebody's hands is referenced from there and stays. The bound can therefore be passed by as
//! much as the log holds. Knows nothing of transactions.

use ext4_format::BlockNo;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::buffer::Buffer;
use crate::bytes::BlockData;

const SHARDS: usize = 16;
const MIN_PER_SHARD: usize = 16;
/// Entries looked at per eviction, so that a cache full of held buffers costs a bounded search.
const SWEEP: usize = 64;

struct Entry {
    buffer: Buffer,
    referenced: bool,
}

#[derive(Default)]
struct Shard {
    index: FxHashMap<u64, usize>,
    ring: Vec<Entry>,
    hand: usize,
}

pub(crate) struct Cache {
    shards: Vec<Mutex<Shard>>,
    per_shard: usize,
    block_size: usize,
}

impl Cache {
    pub fn new(block_size: usize, bytes: usize) -> Cache {
        let blocks = bytes / BlockData::footprint(block_size);
        Cache {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            per_shard: (blocks / SHARDS).max(MIN_PER_SHARD),
            block_size,
        }
    }

    fn shard(&self, block: BlockNo) -> &Mutex<Shard> {
        // Runs of 8 neighbours share a shard: a directory or inode-table scan stays in one lock's cache line.
        &self.shards[(block.0 >> 3) as usize % SHARDS]
    }

    /// The buffer of `block`, absent if it was not here; and whether it was.
    pub fn get_or_insert(&self, block: BlockNo) -> (Buffer, bool) {
        let mut shard = self.shard(block).lock();
        if let Some(buffer) = shard.find(block) {
            return (buffer, true);
        }
        let buffer = Buffer::absent(block, self.block_size);
        while shard.ring.len() >= self.per_shard && shard.evict_one() {}
        let at = shard.ring.len();
        shard.index.insert(block.0, at);
        shard.ring.push(Entry { buffer: buffer.clone(), referenced: true });
        (buffer, false)
    }

    /// The buffer of `block` if it is here.
    pub fn peek(&self, block: BlockNo) -> Option<Buffer> {
        self.shard(block).lock().find(block)
    }

    /// Drops `block` if nobody holds it; otherwise gives it to the caller.
    pub fn drop_or_get(&self, block: BlockNo) -> Option<Buffer> {
        let mut shard = self.shard(block).lock();
        let at = *shard.index.get(&block.0)?;
        if shard.ring[at].buffer.is_sole() {
            shard.remove(at);
            return None;
        }
        Some(shard.ring[at].buffer.clone())
    }

    /// The cached blocks of a range, without touching each number of a range larger than the cache.
    pub fn blocks_in(&self, first: BlockNo, count: u64) -> Vec<BlockNo> {
        let end = first.0.saturating_add(count);
        if count <= 64 {
            return (first.0..end).map(BlockNo).collect();
        }
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            found.extend(
                shard.ring.iter().map(|e| e.buffer.block()).filter(|b| (first.0..end).contains(&b.0)),
            );
        }
        found
    }

    /// Buffers in the cache.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().ring.len()).sum()
    }
}

impl Shard {
    fn find(&mut self, block: BlockNo) -> Option<Buffer> {
        let at = *self.index.get(&block.0)?;
        let entry = &mut self.ring[at];
        entry.referenced = true;
        Some(entry.buffer.clone())
    }

    /// False when the hand met nothing but held or freshly used buffers.
    fn evict_one(&mut self) -> bool {
        for _ in 0..SWEEP {
            if self.hand >= self.ring.len() {
                self.hand = 0;
            }
            let entry = &mut self.ring[self.hand];
            if entry.buffer.is_sole() && !std::mem::take(&mut entry.referenced) {
                self.remove(self.hand);
                return true;
            }
            self.hand += 1;
        }
        false
    }

    fn remove(&mut self, at: usize) {
        let gone = self.ring.swap_remove(at);
        self.index.remove(&gone.buffer.block().0);
        if let Some(moved) = self.ring.get(at) {
            self.index.insert(moved.buffer.block().0, at);
        }
    }
}
