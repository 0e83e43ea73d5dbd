//! The bytes of one block: sector aligned, shared, copied on write.
//!
//! A `BlockData` never changes while anybody else holds a clone of it. That is what makes a
//! commit's snapshot, a checkpoint's version and a reader's view free: each is one `Arc`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

const SECTOR: usize = 512;

// Whole sectors keep every block at the alignment direct IO wants of memory, without unsafe
// code. Page alignment would cost a second page for the counts in front of each block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(512))]
struct Sector([u8; SECTOR]);

/// A snapshot of a block's bytes.
#[derive(Clone)]
pub struct BlockData {
    sectors: Arc<[Sector]>,
    len: usize,
}

impl BlockData {
    pub(crate) fn zeroed(len: usize) -> BlockData {
        let sectors = std::iter::repeat_n(Sector([0; SECTOR]), len.div_ceil(SECTOR)).collect();
        BlockData { sectors, len }
    }

    /// The bytes for changing; copies them first when a snapshot holds them too.
    pub(crate) fn make_mut(&mut self) -> &mut [u8] {
        &mut Arc::make_mut(&mut self.sectors).as_mut_bytes()[..self.len]
    }

    /// Memory that one block of `len` bytes takes, with its counts and what the allocator loses
    /// to alignment.
    pub(crate) fn footprint(len: usize) -> usize {
        len.next_multiple_of(SECTOR) + 2 * SECTOR
    }
}

impl Deref for BlockData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.sectors.as_bytes()[..self.len]
    }
}

impl AsRef<[u8]> for BlockData {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for BlockData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockData({} bytes)", self.len)
    }
}
