//! Which attribute blocks could be shared: a small table from a block's hash to where it lies.
//!
//! An entry is a hint. Whoever follows it compares the bytes under the block's write guard, and
//! looks it up with a handle open: a block leaves the table before the handle that frees it
//! closes, so a hint found in a later transaction never leads to a block that became file data.

use ext4_format::BlockNo;

use crate::sync::{Rank, RankedMutex};

/// Bits of a slot's number.
const SLOT_BITS: u32 = 10;

/// Attribute blocks by hash. A newer block takes the slot of an older one.
pub struct XattrCache(RankedMutex<Vec<Option<(u32, BlockNo)>>>);

impl Default for XattrCache {
    fn default() -> Self {
        XattrCache(RankedMutex::new(Rank::Leaf, vec![None; 1 << SLOT_BITS]))
    }
}

impl XattrCache {
    /// A block whose hash is `hash`. Zero means "not to be shared".
    pub(super) fn find(&self, hash: u32) -> Option<BlockNo> {
        let slot = self.0.lock()[slot(hash)]?;
        (slot.0 == hash && hash != 0).then_some(slot.1)
    }

    pub(super) fn insert(&self, hash: u32, block: BlockNo) {
        if hash != 0 {
            self.0.lock()[slot(hash)] = Some((hash, block));
        }
    }

    /// Forgets `block`, which had `hash`.
    pub(super) fn remove(&self, hash: u32, block: BlockNo) {
        let mut slots = self.0.lock();
        if slots[slot(hash)] == Some((hash, block)) {
            slots[slot(hash)] = None;
        }
    }
}

/// Both halves of a block's hash are made by the same steps: values that are alike differ in few of its bits, and only
/// a product spreads them.
fn slot(hash: u32) -> usize {
    (hash.wrapping_mul(0x9e37_79b1) >> (u32::BITS - SLOT_BITS)) as usize
}
