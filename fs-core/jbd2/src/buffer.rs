//! One cached block.
//!
//! A buffer's bytes are in one of these states; the edges name who moves it:
//!
//! ```text
//!            Journal::read                 Handle::write, create
//!   Absent ----------------> clean -----------------------------> dirty in the running tid
//!     ^                        ^  ^                                  |            |
//!     | forget, invalidate     |  '---- its snapshot is taken -------'            | forget
//!     |                        |        (commit, Switched)                        |
//!     '------------------------+--------------------------------------------------'
//! ```
//!
//! The snapshot lives on its own: first in the committing transaction, then, committed, in the
//! checkpoint list until it has been written home or a newer committed version took its place.
//!
//! Invariants:
//! 1. At most one `Slot` exists per block: the cache drops a slot only when it alone holds it.
//! 2. `Slot::dirty` is the running transaction's number or `None`; a slot dirty in a transaction
//!    is in that transaction's list, so it cannot be evicted.
//! 3. Snapshots and readers hold the bytes by `Arc`; a writer that finds them shared copies.
//! 4. A slot's lock (rank 80) is held across device IO only while the slot loads.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use ext4_format::{BlockNo, Tid};
use parking_lot::{ArcMutexGuard, Mutex, RawMutex};

use crate::bytes::BlockData;

/// How far a slot's bytes can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Load {
    /// Nothing was read, or the block was forgotten.
    Absent,
    /// Read ahead, not verified yet.
    Unverified,
    /// Verified or created here.
    Ready,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub data: BlockData,
    pub load: Load,
    /// The transaction whose list this slot was last put on (it may have been forgotten since).
    pub listed: Option<Tid>,
    /// The transaction that will write these bytes.
    pub dirty: Option<Tid>,
}

pub(crate) type SlotGuard = ArcMutexGuard<RawMutex, Slot>;

/// A block of the cache. Cloning shares it.
#[derive(Clone)]
pub struct Buffer {
    block: BlockNo,
    slot: Arc<Mutex<Slot>>,
}

impl Buffer {
    pub(crate) fn absent(block: BlockNo, block_size: usize) -> Buffer {
        let data = BlockData::zeroed(block_size);
        let slot = Slot { data, load: Load::Absent, listed: None, dirty: None };
        Buffer { block, slot: Arc::new(Mutex::new(slot)) }
    }

    /// Where the block lies on the volume.
    #[must_use]
    pub fn block(&self) -> BlockNo {
        self.block
    }

    /// The bytes as they are now. Waits while somebody holds the block's [`WriteGuard`]; the
    /// snapshot itself never changes.
    #[must_use]
    pub fn data(&self) -> BlockData {
        self.slot.lock().data.clone()
    }

    pub(crate) fn lock(&self) -> SlotGuard {
        self.slot.lock_arc()
    }

    pub(crate) fn try_lock(&self) -> Option<SlotGuard> {
        self.slot.try_lock_arc()
    }

    /// Whether nobody but the caller's own copy holds this buffer. Only meaningful under the
    /// lock of the shard it is in, from which every further copy is made.
    pub(crate) fn is_sole(&self) -> bool {
        Arc::strong_count(&self.slot) == 1
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.block)
    }
}

/// The right to change one block, exclusive while it is held (rank 80). Derefs to the bytes;
/// the first mutable use copies them if a snapshot still needs the old ones. It must go before its
/// handle does:
///
/// ```compile_fail,E0505
/// fn ends_too_early(handle: jbd2::Handle<'_>, buffer: &jbd2::Buffer) {
///     let bytes = handle.write(buffer).unwrap();
///     handle.finish().unwrap();
/// }
/// ```
pub struct WriteGuard<'h> {
    slot: SlotGuard,
    _handle: PhantomData<&'h ()>,
}

impl WriteGuard<'_> {
    pub(crate) fn new(slot: SlotGuard) -> Self {
        WriteGuard { slot, _handle: PhantomData }
    }
}

impl Drop for WriteGuard<'_> {
    // Nothing to do; but a type with a destructor cannot outlive what it borrows, the handle.
    fn drop(&mut self) {}
}

impl Deref for WriteGuard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.slot.data
    }
}

impl DerefMut for WriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.slot.data.make_mut()
    }
}
