//! The bytes of one block: page aligned, shared, copied on write.
//!
//! A `BlockData` never changes while anybody else holds a clone of it. That is what makes a
//! commit's snapshot, a checkpoint's version and a reader's view free: each is one `Arc`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

const PAGE: usize = 4096;

// Whole pages keep every block at the alignment direct IO wants, without unsafe code. Blocks
// below a page waste the rest of theirs.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A snapshot of a block's bytes.
#[derive(Clone)]
pub struct BlockData {
    pages: Arc<[Page]>,
    len: usize,
}

impl BlockData {
    pub(crate) fn zeroed(len: usize) -> BlockData {
        let pages = std::iter::repeat_n(Page([0; PAGE]), len.div_ceil(PAGE)).collect();
        BlockData { pages, len }
    }

    /// The bytes for changing; copies them first when a snapshot holds them too.
    pub(crate) fn make_mut(&mut self) -> &mut [u8] {
        &mut Arc::make_mut(&mut self.pages).as_mut_bytes()[..self.len]
    }

    /// Memory that one block of `len` bytes takes.
    pub(crate) fn footprint(len: usize) -> usize {
        len.next_multiple_of(PAGE)
    }
}

impl Deref for BlockData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
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
