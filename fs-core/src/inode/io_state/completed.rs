//! The completed list: writes whose data are on the device while the extent tree on disk still
//! says unwritten. To readers these blocks count as written; fsync and the conversion worker
//! turn them into written extents, whoever comes first, once.
//!
//! Invariant: a block leaves the list in the critical section of the inode's map lock in which
//! its extent becomes written (or is freed), so a reader that looks at map and list under that
//! lock sees the data before, during and after the conversion.

use std::ops::Range;

use super::BlockSet;

/// A write that has reached the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoEnd {
    /// File blocks that are unwritten on disk and hold data now. Empty when only the size moves.
    pub unwritten: Range<u64>,
    /// End of the data in bytes: how far the size on disk may move with the conversion.
    pub end: u64,
}

/// The IoEnds of one inode that wait for conversion, neighbours merged.
#[derive(Debug, Default)]
pub struct Completed {
    blocks: BlockSet,
    size_to: Option<u64>,
    /// Extending writes between the handle that put the inode on the orphan list and their end.
    extending: u32,
    /// Set when an extending write failed and the blocks beyond the size wait to be trimmed.
    overhang: bool,
}

impl Completed {
    /// Adds `end` to the list; says whether it was merged with a neighbour.
    pub fn join(&mut self, end: &IoEnd) -> bool {
        self.size_to = self.size_to.max(Some(end.end));
        self.blocks.insert(end.unwritten.clone())
    }

    /// Whether nothing waits for conversion.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.size_to.is_none()
    }

    /// Whether no write beyond the size on disk is under way, unconverted or failed: the inode then
    /// needs no orphan list.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_empty() && !self.is_extending() && !self.has_overhang()
    }

    /// Blocks that wait.
    #[must_use]
    pub fn blocks(&self) -> &BlockSet {
        &self.blocks
    }

    /// Lowest blocks that wait, at most `max` of them.
    #[must_use]
    pub fn peek(&self, max: u64) -> Option<Range<u64>> {
        let first = self.blocks.first()?;
        Some(first.start..first.end.min(first.start.saturating_add(max)))
    }

    /// Takes blocks off: they were converted or are about to be freed.
    pub fn remove(&mut self, range: Range<u64>) {
        self.blocks.remove(range);
    }

    /// Once no block waits any more: the size that the disk may now show.
    pub fn take_size(&mut self) -> Option<u64> {
        if self.blocks.is_empty() { self.size_to.take() } else { None }
    }

    /// Forgets everything: the file's blocks are going away.
    pub fn clear(&mut self) {
        self.blocks = BlockSet::default();
        self.size_to = None;
    }

    /// An extending write has allocated its blocks.
    pub fn begin_extending(&mut self) {
        self.extending += 1;
    }

    /// An extending write has ended, well or not.
    pub fn end_extending(&mut self) {
        self.extending -= 1;
    }

    /// Whether a write beyond the size on disk is still under way, so that the inode has to stay
    /// on the orphan list.
    #[must_use]
    pub fn is_extending(&self) -> bool {
        self.extending > 0
    }

    /// Notes that blocks beyond the size are left over from a failed write.
    pub fn leave_overhang(&mut self) {
        self.overhang = true;
    }

    /// Whether there are such blocks; forgets it.
    pub fn take_overhang(&mut self) -> bool {
        std::mem::take(&mut self.overhang)
    }

    /// Whether blocks beyond the size are left over from a failed write.
    #[must_use]
    pub fn has_overhang(&self) -> bool {
        self.overhang
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_the_size_moves_last() {
        let mut list = Completed::default();
        assert!(!list.join(&IoEnd { unwritten: 4..8, end: 32_768 }));
        assert!(list.join(&IoEnd { unwritten: 8..10, end: 40_000 }));
        assert!(!list.join(&IoEnd { unwritten: 20..21, end: 5 }));
        assert_eq!(list.peek(100), Some(4..10));
        assert_eq!(list.peek(3), Some(4..7));
        list.remove(4..10);
        assert_eq!(list.take_size(), None);
        list.remove(20..21);
        assert_eq!(list.take_size(), Some(40_000));
        assert!(list.is_empty());
    }
}
