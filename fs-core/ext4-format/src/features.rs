//! Feature bits: one table row per known bit says its word, its name as e2fsprogs spells it, and what
//! rext4 does with a volume that has it.
//!
//! The three words differ in what an *unknown* bit means (kernel documentation, "Super Block"): compat
//! bits may be ignored, ro_compat bits forbid writing, incompat bits forbid mounting.

#![cfg_attr(
    not(test),
    deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::fmt;

use crate::bits::flag_bits;

flag_bits! {
    /// `s_feature_compat`: an unknown bit may be ignored.
    Compat(u32) {
        /// Directory preallocation (never used).
        DIR_PREALLOC = 0x1;
        /// AFS inodes.
        IMAGIC_INODES = 0x2;
        /// A jbd2 journal.
        HAS_JOURNAL = 0x4;
        /// Extended attributes.
        EXT_ATTR = 0x8;
        /// Reserved descriptor blocks held by inode 7.
        RESIZE_INODE = 0x10;
        /// Hashed directories.
        DIR_INDEX = 0x20;
        /// Ancestor of uninit_bg.
        LAZY_BG = 0x40;
        /// Snapshot exclude bitmap.
        EXCLUDE_BITMAP = 0x100;
        /// At most two backup superblocks, named by `s_backup_bgs`.
        SPARSE_SUPER2 = 0x200;
        /// Fast-commit blocks at the end of the journal.
        FAST_COMMIT = 0x400;
        /// Inode numbers and the UUID never change.
        STABLE_INODES = 0x800;
        /// Orphans are kept in a file.
        ORPHAN_FILE = 0x1000;
    }
}

flag_bits! {
    /// `s_feature_ro_compat`: an unknown bit forbids writing.
    RoCompat(u32) {
        /// Backups only in groups 0, 1 and powers of 3, 5 and 7.
        SPARSE_SUPER = 0x1;
        /// Files past 2 GiB.
        LARGE_FILE = 0x2;
        /// `i_blocks` in units of filesystem blocks, 48 bits.
        HUGE_FILE = 0x8;
        /// crc16 in group descriptors and uninitialised groups.
        GDT_CSUM = 0x10;
        /// More than 65000 subdirectories.
        DIR_NLINK = 0x20;
        /// Room in the inode after its first 128 bytes.
        EXTRA_ISIZE = 0x40;
        /// Next3 snapshots.
        HAS_SNAPSHOT = 0x80;
        /// Quota kept in hidden inodes.
        QUOTA = 0x100;
        /// Allocation in clusters.
        BIGALLOC = 0x200;
        /// crc32c in every metadata block.
        METADATA_CSUM = 0x400;
        /// Replicas.
        REPLICA = 0x800;
        /// The image is read-only for good.
        READONLY = 0x1000;
        /// Project quota.
        PROJECT = 0x2000;
        /// Blocks shared between files.
        SHARED_BLOCKS = 0x4000;
        /// fs-verity files.
        VERITY = 0x8000;
        /// The orphan file may hold orphans.
        ORPHAN_PRESENT = 0x10000;
    }
}

flag_bits! {
    /// `s_feature_incompat`: an unknown bit forbids mounting.
    Incompat(u32) {
        /// Compressed files (never used).
        COMPRESSION = 0x1;
        /// Directory entries carry a file type.
        FILETYPE = 0x2;
        /// The journal must be replayed.
        RECOVER = 0x4;
        /// The device *is* a journal.
        JOURNAL_DEV = 0x8;
        /// Descriptors stored with their meta group.
        META_BG = 0x10;
        /// Extent-mapped files.
        EXTENTS = 0x40;
        /// Block numbers of 64 bits.
        BIT64 = 0x80;
        /// Multi-mount protection.
        MMP = 0x100;
        /// Bitmaps and inode tables may lie in other groups.
        FLEX_BG = 0x200;
        /// Large attribute values in inodes of their own.
        EA_INODE = 0x400;
        /// Data in directory entries.
        DIRDATA = 0x1000;
        /// The checksum seed is stored instead of derived from the UUID.
        CSUM_SEED = 0x2000;
        /// Directories past 2 GiB and three index levels.
        LARGEDIR = 0x4000;
        /// Small files inside the inode.
        INLINE_DATA = 0x8000;
        /// Encrypted files.
        ENCRYPT = 0x10000;
        /// Case-insensitive directories.
        CASEFOLD = 0x20000;
    }
}

macro_rules! names_of_bits {
    ($($word:ident)*) => { $(
        impl $word {
            /// The names of the set bits, known ones as e2fsprogs spells them.
            pub fn names(self) -> impl Iterator<Item = String> {
                (0..32).filter(move |bit| self.0 & (1 << bit) != 0).map(|bit| name_of(Word::$word, 1 << bit))
            }
        }
    )* };
}

names_of_bits!(Compat RoCompat Incompat);

/// Which of the superblock's three feature words a bit belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// `s_feature_compat`.
    Compat,
    /// `s_feature_ro_compat`.
    RoCompat,
    /// `s_feature_incompat`.
    Incompat,
}

/// What rext4 does with a volume that has the feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// Mounts it for reading and writing.
    ReadWrite,
    /// Mounts it read-only.
    ReadOnly,
    /// Does not mount it.
    Refused,
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Support::ReadWrite => "read-write",
            Support::ReadOnly => "read-only",
            Support::Refused => "refused",
        })
    }
}

/// One known feature bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feature {
    /// The word it stands in.
    pub word: Word,
    /// Its bit, as a mask.
    pub mask: u32,
    /// Its name as e2fsprogs prints it.
    pub name: &'static str,
    /// What rext4 does about it.
    pub support: Support,
}

const fn compat(bit: Compat, name: &'static str, support: Support) -> Feature {
    Feature { word: Word::Compat, mask: bit.0, name, support }
}

const fn ro_compat(bit: RoCompat, name: &'static str, support: Support) -> Feature {
    Feature { word: Word::RoCompat, mask: bit.0, name, support }
}

const fn incompat(bit: Incompat, name: &'static str, support: Support) -> Feature {
    Feature { word: Word::Incompat, mask: bit.0, name, support }
}

use Support::{ReadOnly, ReadWrite, Refused};

/// Every feature bit that is known by name.
pub const TABLE: &[Feature] = &[
    compat(Compat::DIR_PREALLOC, "dir_prealloc", ReadWrite),
    compat(Compat::IMAGIC_INODES, "imagic_inodes", ReadOnly),
    compat(Compat::HAS_JOURNAL, "has_journal", ReadWrite),
    compat(Compat::EXT_ATTR, "ext_attr", ReadWrite),
    compat(Compat::RESIZE_INODE, "resize_inode", ReadWrite),
    compat(Compat::DIR_INDEX, "dir_index", ReadWrite),
    compat(Compat::LAZY_BG, "lazy_bg", ReadOnly),
    compat(Compat::EXCLUDE_BITMAP, "snapshot_bitmap", ReadOnly),
    compat(Compat::SPARSE_SUPER2, "sparse_super2", ReadWrite),
    compat(Compat::FAST_COMMIT, "fast_commit", ReadWrite),
    compat(Compat::STABLE_INODES, "stable_inodes", ReadWrite),
    compat(Compat::ORPHAN_FILE, "orphan_file", ReadWrite),
    ro_compat(RoCompat::SPARSE_SUPER, "sparse_super", ReadWrite),
    ro_compat(RoCompat::LARGE_FILE, "large_file", ReadWrite),
    ro_compat(RoCompat::HUGE_FILE, "huge_file", ReadWrite),
    ro_compat(RoCompat::GDT_CSUM, "uninit_bg", ReadWrite),
    ro_compat(RoCompat::DIR_NLINK, "dir_nlink", ReadWrite),
    ro_compat(RoCompat::EXTRA_ISIZE, "extra_isize", ReadWrite),
    ro_compat(RoCompat::HAS_SNAPSHOT, "snapshot", ReadOnly),
    ro_compat(RoCompat::QUOTA, "quota", ReadOnly),
    ro_compat(RoCompat::BIGALLOC, "bigalloc", ReadOnly),
    ro_compat(RoCompat::METADATA_CSUM, "metadata_csum", ReadWrite),
    ro_compat(RoCompat::REPLICA, "replica", ReadOnly),
    ro_compat(RoCompat::READONLY, "read-only", ReadOnly),
    ro_compat(RoCompat::PROJECT, "project", ReadOnly),
    ro_compat(RoCompat::SHARED_BLOCKS, "shared_blocks", ReadOnly),
    ro_compat(RoCompat::VERITY, "verity", ReadOnly),
    ro_compat(RoCompat::ORPHAN_PRESENT, "orphan_present", ReadWrite),
    incompat(Incompat::COMPRESSION, "compression", Refused),
    incompat(Incompat::FILETYPE, "filetype", ReadWrite),
    incompat(Incompat::RECOVER, "needs_recovery", ReadWrite),
    incompat(Incompat::JOURNAL_DEV, "journal_dev", Refused),
    incompat(Incompat::META_BG, "meta_bg", ReadWrite),
    incompat(Incompat::EXTENTS, "extent", ReadWrite),
    incompat(Incompat::BIT64, "64bit", ReadWrite),
    incompat(Incompat::MMP, "mmp", ReadWrite),
    incompat(Incompat::FLEX_BG, "flex_bg", ReadWrite),
    incompat(Incompat::EA_INODE, "ea_inode", ReadWrite),
    incompat(Incompat::DIRDATA, "dirdata", Refused),
    incompat(Incompat::CSUM_SEED, "metadata_csum_seed", ReadWrite),
    incompat(Incompat::LARGEDIR, "large_dir", ReadWrite),
    incompat(Incompat::INLINE_DATA, "inline_data", Refused),
    incompat(Incompat::ENCRYPT, "encrypt", Refused),
    incompat(Incompat::CASEFOLD, "casefold", ReadWrite),
];

/// The row of a feature by its e2fsprogs name; the spellings mke2fs also takes are understood.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Feature> {
    let name = match name {
        "extents" => "extent",
        "uninit_groups" | "gdt_csum" => "uninit_bg",
        "bmap64" => "64bit",
        other => other,
    };
    TABLE.iter().find(|feature| feature.name == name)
}

fn name_of(word: Word, mask: u32) -> String {
    if let Some(feature) = TABLE.iter().find(|f| f.word == word && f.mask == mask) {
        return feature.name.to_owned();
    }
    let letter = match word {
        Word::Compat => 'C',
        Word::RoCompat => 'R',
        Word::Incompat => 'I',
    };
    format!("FEATURE_{letter}{}", mask.trailing_zeros())
}

/// How a volume may be mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// For reading and writing.
    ReadWrite,
    /// For reading only.
    ReadOnly {
        /// The features that forbid writing, by name.
        because: Vec<String>,
    },
    /// Not at all.
    Refused {
        /// The features that are not understood, by name.
        names: Vec<String>,
    },
}

/// Decides from the feature words how a volume may be mounted. `refused` names what else is not supported.
pub(crate) fn check_supported(
    compat: Compat,
    ro_compat: RoCompat,
    incompat: Incompat,
    mut refused: Vec<String>,
) -> Access {
    let mut read_only = Vec::new();
    for (word, bits, when_unknown) in [
        (Word::Compat, compat.0, ReadWrite),
        (Word::RoCompat, ro_compat.0, ReadOnly),
        (Word::Incompat, incompat.0, Refused),
    ] {
        for mask in (0..32).map(|bit| 1 << bit).filter(|mask| bits & mask != 0) {
            let known = TABLE.iter().find(|f| f.word == word && f.mask == mask);
            match known.map_or(when_unknown, |feature| feature.support) {
                ReadWrite => {}
                ReadOnly => read_only.push(name_of(word, mask)),
                Refused => refused.push(name_of(word, mask)),
            }
        }
    }
    if !refused.is_empty() {
        Access::Refused { names: refused }
    } else if !read_only.is_empty() {
        Access::ReadOnly { because: read_only }
    } else {
        Access::ReadWrite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_one_bit_and_every_name_and_bit_is_there_once() {
        for (at, feature) in TABLE.iter().enumerate() {
            assert_eq!(feature.mask.count_ones(), 1, "{}", feature.name);
            for other in &TABLE[at + 1..] {
                assert_ne!(feature.name, other.name);
                assert!((feature.word, feature.mask) != (other.word, other.mask), "{}", feature.name);
            }
        }
    }

    #[test]
    fn unknown_bits_are_named_as_e2fsprogs_names_them() {
        assert_eq!(Incompat(1 << 19 | 2).names().collect::<Vec<_>>(), ["filetype", "FEATURE_I19"]);
        assert_eq!(RoCompat(1 << 30).names().collect::<Vec<_>>(), ["FEATURE_R30"]);
        assert_eq!(by_name("extents").map(|f| f.name), Some("extent"));
    }
}
