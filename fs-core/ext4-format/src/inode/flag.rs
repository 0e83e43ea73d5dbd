//! The bits of `i_flags`.

/// Secure deletion.
pub const SECRM: u32 = 0x1;
/// Undelete.
pub const UNRM: u32 = 0x2;
/// Compressed file.
pub const COMPR: u32 = 0x4;
/// Synchronous updates.
pub const SYNC: u32 = 0x8;
/// Immutable file.
pub const IMMUTABLE: u32 = 0x10;
/// Writes may only append.
pub const APPEND: u32 = 0x20;
/// Not for dump(8).
pub const NODUMP: u32 = 0x40;
/// Access times are not kept.
pub const NOATIME: u32 = 0x80;
/// Encrypted inode.
pub const ENCRYPT: u32 = 0x800;
/// A directory with an htree index.
pub const INDEX: u32 = 0x1000;
/// AFS directory.
pub const IMAGIC: u32 = 0x2000;
/// The file's data are journaled.
pub const JOURNAL_DATA: u32 = 0x4000;
/// The tail must not be merged.
pub const NOTAIL: u32 = 0x8000;
/// Directory changes are synchronous.
pub const DIRSYNC: u32 = 0x1_0000;
/// Top of a directory hierarchy, for the allocator.
pub const TOPDIR: u32 = 0x2_0000;
/// `i_blocks` counts filesystem blocks.
pub const HUGE_FILE: u32 = 0x4_0000;
/// `i_block` holds an extent tree.
pub const EXTENTS: u32 = 0x8_0000;
/// A verity file: its Merkle tree lies past its end.
pub const VERITY: u32 = 0x10_0000;
/// The inode holds the value of a large extended attribute.
pub const EA_INODE: u32 = 0x20_0000;
/// Blocks past the end are meant to be there.
pub const EOFBLOCKS: u32 = 0x40_0000;
/// Mapped directly on persistent memory.
pub const DAX: u32 = 0x200_0000;
/// The data lie in the inode.
pub const INLINE_DATA: u32 = 0x1000_0000;
/// New files inherit the project.
pub const PROJINHERIT: u32 = 0x2000_0000;
/// A directory whose names compare without regard to case.
pub const CASEFOLD: u32 = 0x4000_0000;

/// Flags a new child takes from its directory.
pub const INHERITED: u32 = SECRM
    | UNRM
    | COMPR
    | SYNC
    | NODUMP
    | NOATIME
    | JOURNAL_DATA
    | NOTAIL
    | DIRSYNC
    | PROJINHERIT
    | CASEFOLD
    | DAX;
/// Flags chattr(1) may show.
pub const USER_VISIBLE: u32 = 0x725B_DFFF;
/// Flags chattr(1) may change.
pub const USER_MODIFIABLE: u32 = 0x624B_C0FF;
