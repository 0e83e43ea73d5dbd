//! What a caller may ask for, and the defaults of mke2fs 1.47's own configuration file.

use std::time::{SystemTime, UNIX_EPOCH};

use ext4_format::features::{Compat, Incompat, RoCompat, Word, by_name};
use ext4_format::superblock::OnError;

use crate::error::{Error, Result};

/// Which generation of the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// No journal.
    Ext2,
    /// A journal, nothing else.
    Ext3,
    /// Everything current.
    Ext4,
}

/// What the volume is for: picks block size and inode ratio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// Below 3 MiB.
    Floppy,
    /// Below 512 MiB.
    Small,
    /// Neither small nor big.
    Default,
    /// From 4 TiB.
    Big,
    /// From 16 TiB.
    Huge,
    /// Many small files.
    News,
    /// Files of megabytes.
    LargeFile,
    /// Files of many megabytes.
    LargeFile4,
}

impl Usage {
    /// The usage type of this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Usage> {
        Some(match name {
            "floppy" => Usage::Floppy,
            "small" => Usage::Small,
            "default" => Usage::Default,
            "big" => Usage::Big,
            "huge" => Usage::Huge,
            "news" => Usage::News,
            "largefile" => Usage::LargeFile,
            "largefile4" => Usage::LargeFile4,
            _ => return None,
        })
    }

    /// The usage type a volume of this many bytes falls into by itself.
    #[must_use]
    pub fn by_size(bytes: u64) -> Usage {
        const MIB: u64 = 1 << 20;
        match bytes / MIB {
            0..3 => Usage::Floppy,
            3..512 => Usage::Small,
            512..0x40_0000 => Usage::Default,
            0x40_0000..0x100_0000 => Usage::Big,
            _ => Usage::Huge,
        }
    }

    pub(crate) fn block_size(self) -> u32 {
        match self {
            Usage::Floppy | Usage::Small => 1024,
            _ => 4096,
        }
    }

    pub(crate) fn inode_ratio(self) -> u32 {
        match self {
            Usage::Floppy => 8192,
            Usage::Small | Usage::News => 4096,
            Usage::Default => 16384,
            Usage::Big => 32768,
            Usage::Huge => 65536,
            Usage::LargeFile => 1 << 20,
            Usage::LargeFile4 => 1 << 22,
        }
    }
}

/// The three feature words of a volume to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// `s_feature_compat`.
    pub compat: Compat,
    /// `s_feature_ro_compat`.
    pub ro_compat: RoCompat,
    /// `s_feature_incompat`.
    pub incompat: Incompat,
}

impl Features {
    /// What the kind has by default.
    #[must_use]
    pub fn of(kind: Kind) -> Features {
        let mut features = Features {
            compat: Compat::RESIZE_INODE.with(Compat::DIR_INDEX).with(Compat::EXT_ATTR),
            ro_compat: RoCompat::SPARSE_SUPER.with(RoCompat::LARGE_FILE),
            incompat: Incompat::FILETYPE,
        };
        if kind != Kind::Ext2 {
            features.compat = features.compat.with(Compat::HAS_JOURNAL);
        }
        if kind == Kind::Ext4 {
            features.compat = features.compat.with(Compat::ORPHAN_FILE);
            features.ro_compat = features
                .ro_compat
                .with(RoCompat::HUGE_FILE)
                .with(RoCompat::METADATA_CSUM)
                .with(RoCompat::DIR_NLINK)
                .with(RoCompat::EXTRA_ISIZE);
            features.incompat = features
                .incompat
                .with(Incompat::EXTENTS)
                .with(Incompat::FLEX_BG)
                .with(Incompat::CSUM_SEED)
                .with(Incompat::BIT64);
        }
        features
    }

    /// Applies one edit: a name sets a feature, `^name` clears it, `none` clears all.
    pub fn edit(&mut self, edit: &str) -> Result<()> {
        if edit == "none" {
            *self = Features { compat: Compat(0), ro_compat: RoCompat(0), incompat: Incompat(0) };
            return Ok(());
        }
        let (name, set) = match edit.strip_prefix('^') {
            Some(name) => (name, false),
            None => (edit, true),
        };
        let feature =
            by_name(name).ok_or_else(|| Error::Options(format!("invalid filesystem option set: {name}")))?;
        let word = match feature.word {
            Word::Compat => &mut self.compat.0,
            Word::RoCompat => &mut self.ro_compat.0,
            Word::Incompat => &mut self.incompat.0,
        };
        *word = if set { *word | feature.mask } else { *word & !feature.mask };
        Ok(())
    }
}

/// What is asked for. `None` means: as mke2fs would choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which generation of the format (`-t`).
    pub kind: Kind,
    /// What it is for (`-T`), else by size. The last one that says something counts.
    pub usage: Vec<Usage>,
    /// Size of the volume in bytes, else the whole device.
    pub size: Option<u64>,
    /// Block size in bytes (`-b`): 1024, 2048 or 4096.
    pub block_size: Option<u32>,
    /// Inode size in bytes (`-I`).
    pub inode_size: Option<u32>,
    /// Bytes of volume per inode (`-i`).
    pub inode_ratio: Option<u32>,
    /// Number of inodes (`-N`).
    pub inode_count: Option<u64>,
    /// Blocks in a group (`-g`).
    pub blocks_per_group: Option<u32>,
    /// Groups in a flexible group (`-G`), a power of two.
    pub groups_per_flex: Option<u32>,
    /// Volume name, at most 16 bytes (`-L`).
    pub label: Vec<u8>,
    /// Where it was last mounted, at most 64 bytes (`-M`).
    pub last_mounted: Vec<u8>,
    /// UUID (`-U`), else random.
    pub uuid: Option<[u8; 16]>,
    /// Seed of directory hashes (`-E hash_seed=`), else random.
    pub hash_seed: Option<[u8; 16]>,
    /// Feature edits in order (`-O`): `name` or `^name`.
    pub features: Vec<String>,
    /// Reserved blocks in percent (`-m`), 0 to 50.
    pub reserved_percent: f64,
    /// Journal size in MiB (`-J size=`).
    pub journal_mib: Option<u32>,
    /// Size of the journal's fast-commit area in KiB (`-J fast_commit_size=`).
    pub fast_commit_kib: Option<u32>,
    /// Bytes of a group descriptor (`-E desc-size=`): 64 with the feature `64bit`, else 32.
    pub desc_size: Option<u32>,
    /// Size of the orphan file in bytes (`-E orphan_file_size=`).
    pub orphan_file_size: Option<u64>,
    /// What a mount shall do that finds errors (`-e`).
    pub on_error: OnError,
    /// Let experimental kernel code mount it (`-E test_fs`).
    pub test_fs: bool,
    /// RAID stride in blocks (`-E stride=`).
    pub stride: u16,
    /// RAID stripe width in blocks (`-E stripe_width=`).
    pub stripe_width: u32,
    /// Leave the zeroing of inode tables to the first mount (`-E lazy_itable_init=`).
    pub lazy_itable_init: bool,
    /// The device reads as zeros, so nothing is zeroed (`-E assume_storage_prezeroed=`).
    pub assume_prezeroed: bool,
    /// Leave the journal's old bytes (`-E lazy_journal_init=`).
    pub lazy_journal_init: bool,
    /// Give the device's old blocks back first (`-E discard`, `-E nodiscard`).
    pub discard: bool,
    /// Owner of the root directory (`-E root_owner=`): user and group.
    pub root_owner: (u32, u32),
    /// Most blocks the volume is meant to grow to (`-E resize=`).
    pub resize: Option<u64>,
    /// Superblock backups under `sparse_super2` (`-E num_backup_sb=`): 0 to 2.
    pub num_backup_sb: u32,
    /// Seconds between updates of the multi-mount protection block (`-E mmp_update_interval=`).
    pub mmp_interval: u16,
    /// The moment written into the volume, in seconds since 1970.
    pub now: u64,
}

/// An ext4 made now, by the system's clock.
impl Default for Options {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Options::new(Kind::Ext4, now.as_secs())
    }
}

impl Options {
    /// The defaults for a kind, made at `now` (seconds since 1970).
    #[must_use]
    pub fn new(kind: Kind, now: u64) -> Options {
        Options {
            kind,
            usage: Vec::new(),
            size: None,
            block_size: None,
            inode_size: None,
            inode_ratio: None,
            inode_count: None,
            blocks_per_group: None,
            groups_per_flex: None,
            label: Vec::new(),
            last_mounted: Vec::new(),
            uuid: None,
            hash_seed: None,
            features: Vec::new(),
            reserved_percent: 5.0,
            journal_mib: None,
            fast_commit_kib: None,
            desc_size: None,
            orphan_file_size: None,
            on_error: OnError::Continue,
            test_fs: false,
            stride: 0,
            stripe_width: 0,
            lazy_itable_init: true,
            assume_prezeroed: false,
            lazy_journal_init: false,
            discard: true,
            root_owner: (0, 0),
            resize: None,
            num_backup_sb: 2,
            mmp_interval: 5,
            now,
        }
    }
}
