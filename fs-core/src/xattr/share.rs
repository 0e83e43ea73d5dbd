//! Which attribute blocks and value inodes could be shared: small tables from a content's hash to where it
//! lies.
//!
//! An entry is a hint. Whoever follows it compares the content, and counts himself in under the write guard
//! of the place that counts, unless the count there has come to 0. He looks it up with a handle open: a place
//! leaves the table before the handle that frees it closes, so a hint found in a later transaction never
//! leads to a block that became file data.

use ext4_format::{BlockNo, Ino};

use crate::locks::{Rank, RankedMutex};

/// Bits of a slot's number.
const SLOT_BITS: u32 = 10;

/// Places by the hash of what they hold. A newer place takes the slot of an older one.
pub(super) struct Hints<T>(RankedMutex<Vec<Option<(u32, T)>>>);

/// What the inodes of a volume may share.
#[derive(Default)]
pub struct XattrCache {
    pub(super) blocks: Hints<BlockNo>,
    pub(super) values: Hints<Ino>,
}

impl<T: Copy> Default for Hints<T> {
    fn default() -> Self {
        Hints(RankedMutex::new(Rank::Leaf, vec![None; 1 << SLOT_BITS]))
    }
}

impl<T: Copy + PartialEq> Hints<T> {
    /// A place whose hash is `hash`. Zero means "not to be shared".
    pub(super) fn find(&self, hash: u32) -> Option<T> {
        let slot = self.0.lock()[slot(hash)]?;
        (slot.0 == hash && hash != 0).then_some(slot.1)
    }

    pub(super) fn insert(&self, hash: u32, place: T) {
        if hash != 0 {
            self.0.lock()[slot(hash)] = Some((hash, place));
        }
    }

    /// Forgets `place`, which had `hash`.
    pub(super) fn remove(&self, hash: u32, place: T) {
        let mut slots = self.0.lock();
        if slots[slot(hash)] == Some((hash, place)) {
            slots[slot(hash)] = None;
        }
    }
}

/// Both halves of a block's hash are made by the same steps: values that are alike differ in few of its bits,
/// and only a product spreads them.
fn slot(hash: u32) -> usize {
    (hash.wrapping_mul(0x9e37_79b1) >> (u32::BITS - SLOT_BITS)) as usize
}
