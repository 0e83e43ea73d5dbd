//! What a transaction has collected: the blocks it will write, forget and revoke.
//!
//! A transaction grows while it runs and is frozen by `snapshot`, when no handle of it is open
//! and none can be started. Knows neither the log nor the device.

use ext4_format::{BlockNo, Tid};
use parking_lot::Mutex;
use rustc_hash::FxHashSet;

use crate::buffer::Buffer;
use crate::bytes::BlockData;

pub(crate) struct Transaction {
    pub tid: Tid,
    /// A leaf lock (rank 100): taken under a buffer's.
    pub work: Mutex<Work>,
}

#[derive(Default)]
pub(crate) struct Work {
    /// Every buffer that ever joined, once each. Those forgotten since are no longer dirty.
    pub list: Vec<Buffer>,
    /// How many of them are dirty.
    pub dirty: u32,
    /// Blocks freed in this transaction: older committed versions die when it is durable.
    pub forgotten: FxHashSet<BlockNo>,
    /// Those of them that the log may still replay.
    pub revoked: FxHashSet<BlockNo>,
}

impl Work {
    pub fn is_empty(&self) -> bool {
        self.dirty == 0 && self.forgotten.is_empty() && self.revoked.is_empty()
    }
}

/// A transaction's final content.
pub(crate) struct Snapshot {
    pub tid: Tid,
    /// Sorted by block.
    pub blocks: Vec<(BlockNo, BlockData)>,
    /// Keeps the buffers in the cache until their bytes can be read from the device again; in the
    /// order of `blocks`.
    pub pins: Vec<Buffer>,
    pub forgotten: FxHashSet<BlockNo>,
    /// Sorted.
    pub revoked: Vec<BlockNo>,
}

impl Transaction {
    pub fn new(tid: Tid) -> Transaction {
        Transaction { tid, work: Mutex::default() }
    }

    /// Takes the dirty bytes. The buffers are clean (as far as the cache goes) from here on.
    pub fn snapshot(&self) -> Snapshot {
        let Work { list, forgotten, revoked, .. } = std::mem::take(&mut *self.work.lock());
        let mut blocks = Vec::with_capacity(list.len());
        let mut pins = Vec::with_capacity(list.len());
        for buffer in list {
            let mut slot = buffer.lock();
            if slot.dirty.take_if(|tid| *tid == self.tid).is_some() {
                blocks.push((buffer.block(), slot.data.clone()));
                drop(slot);
                pins.push(buffer);
            }
        }
        blocks.sort_unstable_by_key(|(block, _)| *block);
        pins.sort_unstable_by_key(Buffer::block);
        let mut revoked: Vec<BlockNo> = revoked.into_iter().collect();
        revoked.sort_unstable();
        Snapshot { tid: self.tid, blocks, pins, forgotten, revoked }
    }
}
