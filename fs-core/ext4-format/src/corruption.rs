//! One shape for everything a verifier can find wrong: what, where, found, expected.

#![cfg_attr(
    not(test),
    deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::fmt;

use crate::num::{BlockNo, GroupNo, Ino};

/// The structure that was found damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum What {
    /// The superblock or one of its backups.
    SuperBlock,
    /// A block group descriptor.
    GroupDesc,
    /// A block bitmap.
    BlockBitmap,
    /// An inode bitmap.
    InodeBitmap,
    /// An inode of the inode table.
    Inode,
    /// A node of an extent tree, in an inode or in a block of its own.
    ExtentNode,
    /// An indirect block of the ext2/ext3 mapping.
    IndirectBlock,
    /// A linear directory block.
    DirBlock,
    /// An htree root or index block.
    HtreeBlock,
    /// An extended attribute block or the attributes inside an inode.
    Xattr,
    /// A block of the orphan file.
    OrphanFile,
    /// The journal's superblock.
    JournalSuperBlock,
    /// A descriptor, revoke or commit block of the journal.
    JournalBlock,
    /// The multi-mount protection block.
    Mmp,
    /// A quota file.
    QuotaFile,
}

/// Where it was found. More than one field may be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The inode concerned.
    pub ino: Option<Ino>,
    /// The block group concerned.
    pub group: Option<GroupNo>,
    /// The physical block concerned.
    pub block: Option<BlockNo>,
    /// The byte inside the structure.
    pub offset: Option<usize>,
}

/// What kind of rule is broken; the kernel answers them with different errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The checksum alone: the bytes may be right for all else that is known.
    Checksum,
    /// Anything else.
    Structure,
}

/// A structure on disk that contradicts the format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corruption {
    /// Which structure.
    pub what: What,
    /// Where it lies.
    pub place: Place,
    /// The kind of rule that is broken.
    pub fault: Fault,
    /// The field or rule that is broken, in the format's own words (`"eh_magic"`, `"checksum"`).
    pub field: &'static str,
    /// The value found.
    pub found: u64,
    /// The value expected, or the bound that was passed.
    pub expected: u64,
}

impl Corruption {
    /// A corruption of `what` in `field`, with no place yet.
    #[must_use]
    pub fn new(what: What, field: &'static str, found: u64, expected: u64) -> Self {
        Corruption { what, place: Place::default(), fault: Fault::Structure, field, found, expected }
    }

    /// A wrong checksum of `what`, with no place yet.
    #[must_use]
    pub fn checksum(what: What, found: u32, expected: u32) -> Self {
        let fault = Fault::Checksum;
        Corruption { fault, ..Corruption::new(what, "checksum", found.into(), expected.into()) }
    }

    /// The same, with the inode named.
    #[must_use]
    pub fn in_inode(mut self, ino: Ino) -> Self {
        self.place.ino = Some(ino);
        self
    }

    /// The same, with the physical block named.
    #[must_use]
    pub fn at_block(mut self, block: BlockNo) -> Self {
        self.place.block = Some(block);
        self
    }

    /// The same, with the group named.
    #[must_use]
    pub fn in_group(mut self, group: GroupNo) -> Self {
        self.place.group = Some(group);
        self
    }

    /// The same, with the byte offset named.
    #[must_use]
    pub fn at_offset(mut self, offset: usize) -> Self {
        self.place.offset = Some(offset);
        self
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)?;
        if let Some(ino) = self.place.ino {
            write!(f, " of inode {ino}")?;
        }
        if let Some(group) = self.place.group {
            write!(f, " in group {group}")?;
        }
        if let Some(block) = self.place.block {
            write!(f, " at block {block}")?;
        }
        if let Some(offset) = self.place.offset {
            write!(f, " byte {offset}")?;
        }
        write!(f, ": {} is {:#x}, expected {:#x}", self.field, self.found, self.expected)
    }
}

impl std::error::Error for Corruption {}
