//! What is remembered of a directory while it is in memory. Nothing here is needed for
//! correctness: all of it can be made again from the blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ext4_format::Ino;
use ext4_format::inode::FileType;

use crate::locks::{Rank, RankedMutex};

/// One name of a [`Listing`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its position in the directory's reading order (`dir::cookie`).
    pub position: u64,
    /// The inode it names.
    pub ino: Ino,
    /// The recorded type, where there is one.
    pub kind: Option<FileType>,
    /// Where the name lies in [`Listing::names`]: first byte and length.
    pub name: (u32, u8),
}

/// A stretch of a directory, in reading order.
#[derive(Debug)]
pub struct Listing {
    /// The first position it covers.
    pub from: u64,
    /// The first position it does not cover.
    pub to: u64,
    /// The names, by rising position.
    pub entries: Vec<Listed>,
    /// The bytes of all names.
    pub names: Vec<u8>,
}

impl Listing {
    /// The bytes of a name.
    #[must_use]
    pub fn name(&self, entry: &Listed) -> &[u8] {
        let (at, len) = (entry.name.0 as usize, usize::from(entry.name.1));
        &self.names[at..at + len]
    }
}

/// What an [`super::Inode`] remembers of its entries.
#[derive(Debug)]
pub struct DirState {
    /// Counts changes of the entries. It moves only under the inode's lock held exclusively.
    changes: AtomicU64,
    /// The stretch that was read last, and the count of changes it belongs to.
    last: RankedMutex<Option<(u64, Arc<Listing>)>>,
    /// Whether the index was found damaged: then the entries are listed block by block.
    index_is_bad: AtomicBool,
}

impl Default for DirState {
    fn default() -> Self {
        DirState {
            changes: AtomicU64::new(0),
            last: RankedMutex::new(Rank::Leaf, None),
            index_is_bad: AtomicBool::new(false),
        }
    }
}

impl DirState {
    /// Takes note that the entries changed.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The remembered stretch around `position`, if it is still true.
    #[must_use]
    pub fn listing(&self, position: u64) -> Option<Arc<Listing>> {
        let changes = self.changes.load(Ordering::Acquire);
        let last = self.last.lock();
        let (at, listing) = last.as_ref()?;
        let covers = *at == changes && listing.from <= position && position < listing.to;
        covers.then(|| listing.clone())
    }

    /// Remembers a stretch that was just read, under the inode's lock.
    pub fn remember(&self, listing: Arc<Listing>) {
        *self.last.lock() = Some((self.changes.load(Ordering::Acquire), listing));
    }

    /// Whether a listing has met a damaged index.
    #[must_use]
    pub fn index_is_bad(&self) -> bool {
        self.index_is_bad.load(Ordering::Relaxed)
    }

    /// A listing has met a damaged index.
    pub fn set_index_is_bad(&self) {
        self.index_is_bad.store(true, Ordering::Relaxed);
    }

    /// Forgets the stretch: nobody reads on.
    pub fn forget(&self) {
        *self.last.lock() = None;
    }
}
