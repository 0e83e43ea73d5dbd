//! Numbers that cannot be mistaken for each other.
//!
//! Arithmetic is deliberately absent where it has no meaning; where it has one it is
//! checked or says in its name that it wraps.

use std::fmt;
use std::num::NonZeroU32;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// This number plus `n`, or `None` when it would overflow.
            #[must_use]
            pub fn checked_add(self, n: $inner) -> Option<Self> {
                self.0.checked_add(n).map(Self)
            }
        }
    };
}

number! {
    /// A physical block of the filesystem, in units of its block size, from block 0 of the volume.
    BlockNo(u64)
}
number! {
    /// A logical block of a file, in units of the block size (ext4 extents: 32 bits).
    FileBlock(u32)
}
number! {
    /// A block group.
    GroupNo(u32)
}

/// An inode number. Zero means "no inode" on disk and is `Option::None` here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Ino(pub NonZeroU32);

impl Ino {
    /// Inode 1, the list of bad blocks.
    pub const BAD_BLOCKS: Ino = Ino::literal(1);
    /// Inode 2, the root directory.
    pub const ROOT: Ino = Ino::literal(2);
    /// Inode 3, where user quotas used to be and mostly are.
    pub const USER_QUOTA: Ino = Ino::literal(3);
    /// Inode 4, group quotas likewise.
    pub const GROUP_QUOTA: Ino = Ino::literal(4);
    /// Inode 5, the boot loader.
    pub const BOOT_LOADER: Ino = Ino::literal(5);
    /// Inode 7, the reserved group descriptor blocks.
    pub const RESIZE: Ino = Ino::literal(7);
    /// Inode 8, the journal, unless the superblock names another.
    pub const JOURNAL: Ino = Ino::literal(8);

    /// `n` as an inode number, or `None` for zero.
    #[must_use]
    pub fn new(n: u32) -> Option<Ino> {
        NonZeroU32::new(n).map(Ino)
    }

    /// The number as it stands on disk.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    const fn literal(n: u32) -> Ino {
        match NonZeroU32::new(n) {
            Some(n) => Ino(n),
            None => panic!("inode numbers start at 1"),
        }
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A journal transaction's sequence number. It wraps, so it has no `Ord`: two numbers are
/// compared by their signed distance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Tid(pub u32);

impl Tid {
    /// The transaction after this one.
    #[must_use]
    pub fn next(self) -> Tid {
        Tid(self.0.wrapping_add(1))
    }

    /// Whether this transaction comes before `other`, as jbd2's `tid_gt` orders them.
    #[must_use]
    pub fn is_before(self, other: Tid) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether this transaction is `other` or comes after it.
    #[must_use]
    pub fn is_at_least(self, other: Tid) -> bool {
        !self.is_before(other)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_numbers_compare_across_the_wrap() {
        assert!(Tid(u32::MAX).is_before(Tid(0)));
        assert!(Tid(5).is_at_least(Tid(u32::MAX - 5)));
        assert_eq!(Tid(u32::MAX).next(), Tid(0));
    }
}
