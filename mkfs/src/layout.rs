//! From options and a size to a superblock: pure arithmetic, the choices those of mke2fs 1.47.
//!
//! The dimensions are a fixpoint: the number of groups says how many inodes each holds, that says how large a group's
//! metadata is, and that says whether the short last group can hold its own; if not, it is cut off and all
//! starts again.

use ext4_format::features::{Compat, Incompat, RoCompat};
use ext4_format::geometry::Geometry;
use ext4_format::superblock::{DefaultMountOpts, Flags, RawSuperBlock, State, SuperBlock};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32};

use crate::error::{Error, Result};
use crate::options::{Features, Options, Usage};

/// Below this no combination of options makes a filesystem.
const SMALLEST: u64 = 16 * 1024;
/// The largest orphan file that the kernel mounts, in bytes.
const MAX_ORPHAN_FILE: u64 = 8 << 20;
const FIRST_INO: u32 = 11;
const EXTRA_ISIZE: u16 = 32;
const FAST_COMMIT_RATIO: u32 = 64;
const MIN_BLOCKS_PER_GROUP: u32 = 256;

/// What will be made.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The superblock; its free counts are not set yet.
    pub superblock: SuperBlock,
    /// Blocks of the journal, fast-commit blocks included; 0 for none.
    pub journal_blocks: u32,
    /// Blocks of it that belong to fast commits.
    pub fast_commit_blocks: u32,
    /// Blocks of the orphan file; 0 for none.
    pub orphan_blocks: u32,
    /// What could not be met, in words for the user.
    pub notes: Vec<String>,
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Options(text.into()))
}

impl Layout {
    /// Plans a volume for a device of `device_size` bytes with sectors of `sector` bytes.
    ///
    /// # Errors
    /// Options that contradict each other, the size or the format.
    pub fn new(options: &Options, device_size: u64, sector: u32) -> Result<Layout> {
        let mut notes = Vec::new();
        let size = options.size.unwrap_or(device_size);
        if size > device_size {
            return refuse(format!(
                "the size asked for ({size} bytes) exceeds the device ({device_size} bytes)"
            ));
        }
        let by_size = [Usage::by_size(size)];
        let usage = if options.usage.is_empty() { &by_size[..] } else { &options.usage[..] };
        let usage = *usage.last().unwrap_or(&Usage::Default);

        let block_size = options.block_size.unwrap_or_else(|| usage.block_size().max(sector));
        if ![1024, 2048, 4096].contains(&block_size) {
            return refuse(format!("invalid block size {block_size} (1024, 2048 or 4096)"));
        }
        if block_size < sector {
            return refuse(format!("block size {block_size} is below the device's sector size {sector}"));
        }
        let mut blocks = size / u64::from(block_size);
        if options.size.is_none() {
            // A device's odd end is left alone: whole pages only, as mke2fs does.
            blocks &= !(4096 / u64::from(block_size) - 1);
        }
        let features = features(options, blocks, &mut notes)?;
        let inode_size = options.inode_size.unwrap_or(256);
        if !inode_size.is_power_of_two() || !(128..=block_size).contains(&inode_size) {
            return refuse(format!("invalid inode size {inode_size} (min 128/max {block_size})"));
        }
        if !(0.0..=50.0).contains(&options.reserved_percent) {
            return refuse(format!("invalid reserved blocks percent - {}", options.reserved_percent));
        }
        let inodes = inode_count(options, usage, blocks, block_size, inode_size)?;
        let resolved = ResolvedOptions { options, features, block_size, inode_size, blocks, inodes };
        let dimensions = resolved.dimensions()?;

        let (journal, fast_commit) = resolved.journal(&mut notes)?;
        let mut features = features;
        if journal == 0 {
            features.compat = features.compat.without(Compat::HAS_JOURNAL).without(Compat::FAST_COMMIT);
        }
        if !features.compat.has(Compat::HAS_JOURNAL) {
            features.compat = features.compat.without(Compat::ORPHAN_FILE);
        }
        let orphan_blocks = match options.orphan_file_size {
            _ if !features.compat.has(Compat::ORPHAN_FILE) => 0,
            None => orphan_file_blocks(dimensions.blocks),
            Some(size @ 1..=MAX_ORPHAN_FILE) => size.div_ceil(block_size.into()) as u32,
            Some(size) => {
                return refuse(format!("orphan file size {size} (min 1/max {MAX_ORPHAN_FILE} bytes)"));
            }
        };
        let superblock = ResolvedOptions { features, ..resolved }.superblock(&dimensions)?;
        Ok(Layout {
            superblock,
            journal_blocks: journal,
            fast_commit_blocks: fast_commit,
            orphan_blocks,
            notes,
        })
    }

    /// The dimensions of the volume.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry::new(&self.superblock)
    }

    /// The first blocks of the superblock's backups.
    pub fn backups(&self) -> Vec<u64> {
        let geometry = self.geometry();
        geometry.backup_groups().map(|group| geometry.group_first_block(group).0).collect()
    }
}

/// Features this program has no structures for: setting the bit alone would make a broken volume.
const NOT_MADE: &[&str] = &[
    "dir_prealloc",
    "imagic_inodes",
    "lazy_bg",
    "snapshot_bitmap",
    "snapshot",
    "quota",
    "bigalloc",
    "replica",
    "read-only",
    "project",
    "shared_blocks",
    "orphan_present",
    "compression",
    "needs_recovery",
    "journal_dev",
    "dirdata",
    "inline_data",
    "encrypt",
    "casefold",
];

fn features(options: &Options, blocks: u64, notes: &mut Vec<String>) -> Result<Features> {
    let mut features = Features::of(options.kind);
    for edit in &options.features {
        features.edit(edit)?;
    }
    let set = features.compat.names().chain(features.ro_compat.names()).chain(features.incompat.names());
    for name in set {
        if NOT_MADE.contains(&name.as_str()) {
            return refuse(format!("mkfs.rext4 does not make volumes with the feature {name}"));
        }
    }
    let Features { compat, ro_compat, incompat } = &mut features;
    if ro_compat.has(RoCompat::METADATA_CSUM) {
        *ro_compat = ro_compat.without(RoCompat::GDT_CSUM);
    } else if incompat.has(Incompat::CSUM_SEED) {
        *incompat = incompat.without(Incompat::CSUM_SEED);
    }
    if incompat.has(Incompat::BIT64) && !incompat.has(Incompat::EXTENTS) {
        return refuse("extents must be enabled for a 64-bit filesystem; pass -O extents to rectify");
    }
    if !incompat.has(Incompat::BIT64) && blocks > u64::from(u32::MAX) {
        return refuse(format!("{blocks} blocks need the feature 64bit"));
    }
    if blocks > u64::from(u32::MAX) && options.resize.is_none() {
        // Reserved descriptors are found through a block map of 32-bit numbers.
        *compat = compat.without(Compat::RESIZE_INODE);
    }
    if compat.has(Compat::RESIZE_INODE) {
        if incompat.has(Incompat::META_BG) {
            return refuse("the resize_inode and meta_bg features are not compatible");
        }
        let sparse = ro_compat.has(RoCompat::SPARSE_SUPER) || compat.has(Compat::SPARSE_SUPER2);
        if !sparse {
            return refuse(
                "reserved online resize blocks are not supported on a filesystem without sparse_super",
            );
        }
    } else if options.resize.is_some() {
        *compat = compat.with(Compat::RESIZE_INODE);
    }
    if compat.has(Compat::FAST_COMMIT) && !compat.has(Compat::HAS_JOURNAL) {
        notes.push("fast_commit needs a journal and was left out".to_owned());
        *compat = compat.without(Compat::FAST_COMMIT);
    }
    Ok(features)
}

fn inode_count(
    options: &Options,
    usage: Usage,
    blocks: u64,
    block_size: u32,
    inode_size: u32,
) -> Result<u64> {
    let bytes = blocks * u64::from(block_size);
    let ratio = options.inode_ratio.unwrap_or_else(|| usage.inode_ratio());
    if !(1024..=67_108_864).contains(&ratio) {
        return refuse(format!("invalid inode ratio {ratio} (min 1024/max 67108864)"));
    }
    let inodes = match options.inode_count {
        Some(count) => count,
        None => {
            let count = bytes / u64::from(ratio);
            if options.inode_ratio.is_none() { count.min(u64::from(u32::MAX)) } else { count }
        }
    };
    if bytes < SMALLEST {
        return Err(Error::TooSmall { blocks, block_size });
    }
    if inodes > u64::from(u32::MAX) {
        return refuse(format!("{inodes} inodes do not fit into 32 bits"));
    }
    if inodes.saturating_mul(u64::from(inode_size)) >= bytes {
        return Err(Error::TooManyInodes { inodes });
    }
    Ok(inodes)
}

fn orphan_file_blocks(blocks: u64) -> u32 {
    match blocks {
        0..0x2_0000 => 32,
        0x2_0000..0x20_0000 => (blocks / 4096) as u32,
        _ => 512,
    }
}

fn default_journal_blocks(blocks: u64) -> u32 {
    const KI: u64 = 1024;
    match blocks {
        0..2048 => 0,
        2048..32768 => 1024,
        n if n < 256 * KI => 4096,
        n if n < 512 * KI => 8192,
        n if n < 4096 * KI => 16384,
        n if n < 8192 * KI => 32768,
        n if n < 16384 * KI => 65536,
        n if n < 32768 * KI => 131_072,
        _ => 262_144,
    }
}

/// The options with their simple defaults filled in.
#[derive(Clone, Copy)]
struct ResolvedOptions<'a> {
    options: &'a Options,
    features: Features,
    block_size: u32,
    inode_size: u32,
    blocks: u64,
    inodes: u64,
}

/// The fixpoint of group count, inodes and metadata.
struct Dimensions {
    blocks: u64,
    reserved: u64,
    blocks_per_group: u32,
    inodes_per_group: u32,
    groups: u32,
    reserved_gdt: u32,
}

impl ResolvedOptions<'_> {
    fn first_data_block(&self) -> u64 {
        u64::from(self.block_size == 1024)
    }

    fn desc_size(&self) -> u32 {
        if self.features.incompat.has(Incompat::BIT64) { 64 } else { 32 }
    }

    fn dimensions(&self) -> Result<Dimensions> {
        let bits = self.block_size * 8;
        let first = self.first_data_block();
        if let Some(size) = self.options.desc_size.filter(|size| *size != self.desc_size()) {
            let fits = self.desc_size();
            return refuse(format!("group descriptors have {fits} bytes with these features, not {size}"));
        }
        let mut per_group = self.options.blocks_per_group.unwrap_or(bits);
        if !(MIN_BLOCKS_PER_GROUP..=bits).contains(&per_group) || !per_group.is_multiple_of(8) {
            return refuse(format!(
                "invalid blocks per group {per_group} (multiple of 8, min 256/max {bits})"
            ));
        }
        let too_small = Error::TooSmall { blocks: self.blocks, block_size: self.block_size };
        let mut blocks = self.blocks;
        let reserved_target = (self.options.reserved_percent * blocks as f64 / 100.0) as u64;
        let mut reserved = reserved_target;
        loop {
            let space = blocks.saturating_sub(first);
            let groups = space.div_ceil(per_group.into());
            let groups = u32::try_from(groups).map_err(|_| Error::Options("too many groups".into()))?;
            if groups == 0 {
                return Err(too_small);
            }
            let desc_blocks = groups.div_ceil(self.block_size / self.desc_size());
            let wanted = self.inodes.max(u64::from(FIRST_INO) + 1).div_ceil(groups.into());
            if wanted > u64::from(bits) {
                // Smaller groups, so that there are more of them to hold the inodes.
                if per_group < MIN_BLOCKS_PER_GROUP + 8 {
                    return Err(Error::TooManyInodes { inodes: self.inodes });
                }
                per_group -= 8;
                blocks = self.blocks;
                continue;
            }
            let inodes_per_group = self.inodes_per_group(wanted as u32, groups);
            if u64::from(inodes_per_group) * u64::from(groups) <= u64::from(FIRST_INO) {
                return Err(too_small);
            }
            let table = inodes_per_group * self.inode_size / self.block_size;
            let reserved_gdt = self.reserved_gdt(blocks, per_group, desc_blocks);
            let descs = if self.features.incompat.has(Incompat::META_BG) { 1 } else { desc_blocks };
            let overhead = 3 + u64::from(table) + u64::from(reserved_gdt) + u64::from(descs);
            if overhead > u64::from(per_group) {
                return Err(Error::TooManyInodes { inodes: self.inodes });
            }
            let dimensions = Dimensions {
                blocks,
                reserved,
                blocks_per_group: per_group,
                inodes_per_group,
                groups,
                reserved_gdt,
            };

            let rest = space % u64::from(per_group);
            let mut last = 2 + u64::from(table);
            if self.superblock(&dimensions).is_ok_and(|sb| {
                let geometry = Geometry::new(&sb);
                geometry.has_super(ext4_format::GroupNo(groups - 1))
            }) {
                last += 1 + u64::from(desc_blocks) + u64::from(reserved_gdt);
            }
            if rest == 0 || rest >= last + 50 {
                return Ok(dimensions);
            }
            blocks -= rest;
            reserved = (reserved_target as f64 / self.blocks as f64 * blocks as f64) as u64;
        }
    }

    /// Rounds up to whole blocks of the inode table, then down to a multiple of eight.
    fn inodes_per_group(&self, wanted: u32, groups: u32) -> u32 {
        let per_block = self.block_size / self.inode_size;
        let mut wanted = wanted.min(65536 - per_block);
        loop {
            let filled = wanted.div_ceil(per_block) * per_block;
            let rounded = filled.max(8) & !7;
            if u64::from(rounded) * u64::from(groups) <= u64::from(u32::MAX) {
                return rounded;
            }
            wanted = rounded - 1;
        }
    }

    /// Descriptor blocks to keep for growth: to 1024 times the size, unless told otherwise.
    fn reserved_gdt(&self, blocks: u64, per_group: u32, desc_blocks: u32) -> u32 {
        if !self.features.compat.has(Compat::RESIZE_INODE) {
            return 0;
        }
        let descs = u64::from(self.block_size / self.desc_size());
        let groups = match self.options.resize {
            Some(most) => most.div_ceil(u64::from(self.block_size) * 8),
            None => {
                let most = blocks.saturating_mul(1024).min(u64::from(u32::MAX));
                (most - self.first_data_block()).div_ceil(per_group.into())
            }
        };
        let wanted = groups.div_ceil(descs).saturating_sub(desc_blocks.into());
        wanted.min(u64::from(self.block_size / 4)) as u32
    }

    /// Blocks of the journal and, among them, of fast commits.
    fn journal(&self, notes: &mut Vec<String>) -> Result<(u32, u32)> {
        if !self.features.compat.has(Compat::HAS_JOURNAL) {
            return Ok((0, 0));
        }
        let blocks = match self.options.journal_mib {
            None => default_journal_blocks(self.blocks),
            Some(mib) => {
                let blocks = u64::from(mib) * (1 << 20) / u64::from(self.block_size);
                if !(1024..=10_240_000).contains(&blocks) {
                    return refuse(format!(
                        "the journal of {blocks} blocks must be between 1024 and 10240000 filesystem blocks"
                    ));
                }
                blocks as u32
            }
        };
        if blocks == 0 {
            notes.push("Filesystem too small for a journal".to_owned());
            return Ok((0, 0));
        }
        let fast = match self.options.fast_commit_kib {
            _ if !self.features.compat.has(Compat::FAST_COMMIT) => 0,
            None => blocks / FAST_COMMIT_RATIO,
            Some(kib) => {
                let wanted = u64::from(kib) * 1024 / u64::from(self.block_size);
                u32::try_from(wanted).ok().filter(|wanted| *wanted < blocks).ok_or_else(|| {
                    Error::Options(format!("a fast-commit area of {kib} KiB exceeds the journal"))
                })?
            }
        };
        if u64::from(blocks + fast) > self.blocks / 2 && self.options.journal_mib.is_some() {
            return refuse("journal size too big for filesystem");
        }
        Ok((blocks + fast, fast))
    }

    fn superblock(&self, dimensions: &Dimensions) -> Result<SuperBlock> {
        let options = self.options;
        let mut raw = RawSuperBlock::new_zeroed();
        let per_group = U32::new(dimensions.blocks_per_group);
        raw.magic = U16::new(ext4_format::superblock::MAGIC);
        raw.inodes_count = U32::new(dimensions.inodes_per_group * dimensions.groups);
        raw.blocks_count_lo = U32::new(dimensions.blocks as u32);
        raw.blocks_count_hi = U32::new((dimensions.blocks >> 32) as u32);
        raw.r_blocks_count_lo = U32::new(dimensions.reserved as u32);
        raw.r_blocks_count_hi = U32::new((dimensions.reserved >> 32) as u32);
        raw.first_data_block = U32::new(self.first_data_block() as u32);
        raw.log_block_size = U32::new(self.block_size.trailing_zeros() - 10);
        raw.log_cluster_size = raw.log_block_size;
        raw.blocks_per_group = per_group;
        raw.clusters_per_group = per_group;
        raw.inodes_per_group = U32::new(dimensions.inodes_per_group);
        raw.max_mnt_count = U16::new(u16::MAX);
        raw.state = U16::new(State::VALID.0);
        raw.errors = U16::new(options.on_error as u16);
        raw.rev_level = U32::new(1);
        raw.first_ino = U32::new(FIRST_INO);
        raw.inode_size = U16::new(self.inode_size as u16);
        raw.feature_compat = U32::new(self.features.compat.0);
        raw.feature_incompat = U32::new(self.features.incompat.0);
        raw.feature_ro_compat = U32::new(self.features.ro_compat.0);
        raw.uuid = options.uuid.unwrap_or_default();
        raw.volume_name[..options.label.len().min(16)]
            .copy_from_slice(&options.label[..options.label.len().min(16)]);
        let mounted = &options.last_mounted[..options.last_mounted.len().min(64)];
        raw.last_mounted[..mounted.len()].copy_from_slice(mounted);
        raw.reserved_gdt_blocks = U16::new(dimensions.reserved_gdt as u16);
        let seed = options.hash_seed.unwrap_or_default();
        for (word, bytes) in raw.hash_seed.iter_mut().zip(seed.chunks_exact(4)) {
            *word = U32::from_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        raw.def_hash_version = 1;
        raw.default_mount_opts = U32::new(DefaultMountOpts::XATTR_USER.with(DefaultMountOpts::ACL).0);
        raw.flags = U32::new(Flags::SIGNED_HASH.0 | if options.test_fs { Flags::TEST_FILESYS.0 } else { 0 });
        raw.raid_stride = U16::new(options.stride);
        raw.raid_stripe_width = U32::new(options.stripe_width);
        if self.features.incompat.has(Incompat::BIT64) {
            raw.desc_size = U16::new(self.desc_size() as u16);
        }
        if self.inode_size > 128 {
            raw.min_extra_isize = U16::new(EXTRA_ISIZE);
            raw.want_extra_isize = U16::new(EXTRA_ISIZE);
        }
        if self.features.incompat.has(Incompat::FLEX_BG) {
            let flex = options.groups_per_flex.unwrap_or(16);
            if !flex.is_power_of_two() {
                return refuse(format!("flex_bg size {flex} is not a power of 2"));
            }
            raw.log_groups_per_flex = flex.trailing_zeros() as u8;
        } else if options.groups_per_flex.is_some() {
            return refuse("the flex_bg feature is not enabled, so a flexible group's size may not be given");
        }
        if self.features.compat.has(Compat::SPARSE_SUPER2) {
            let last = dimensions.groups - 1;
            let named = [u32::from(last >= 1), if last >= 2 { last } else { 0 }];
            for (word, group) in raw.backup_bgs.iter_mut().zip(named).take(options.num_backup_sb as usize) {
                *word = U32::new(group);
            }
        }
        if self.features.ro_compat.has(RoCompat::METADATA_CSUM) {
            raw.checksum_type = 1;
        }
        if self.features.incompat.has(Incompat::CSUM_SEED) {
            raw.checksum_seed = U32::new(ext4_format::crc::crc32c(!0, &raw.uuid));
        }
        let mut superblock = SuperBlock::from_raw(raw)?;
        let now = options.now;
        superblock.set_write_time(now);
        superblock.set_check_time(now);
        superblock.edit(|raw| {
            raw.mkfs_time = U32::new(now as u32);
            raw.mkfs_time_hi = (now >> 32) as u8;
        })?;
        Ok(superblock)
    }
}
