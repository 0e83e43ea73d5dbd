//! The superblock: 1024 bytes at byte 1024 of the volume, copied to the start of some groups.
//!
//! [`RawSuperBlock`] is the bytes with names; [`SuperBlock`] is the same bytes after their arithmetic was
//! checked: sizes are powers of two in range, groups cover the volume, no later division or shift can fail.
//! The raw bytes are kept, so a field this crate has no use for survives a re-encode.

mod flags;
mod raw;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::casefold;
use crate::corruption::{Corruption, What};
use crate::crc::crc32c;
use crate::features::{self, Access, Compat, Incompat, RoCompat};
use crate::inode::{BASE_SIZE, FULL_EXTRA_ISIZE};
use crate::num::{BlockNo, Ino};

pub use flags::{DefaultMountOpts, Flags, OnError, State};
pub use raw::RawSuperBlock;

/// Byte of the volume where the primary superblock stands.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Length of a superblock in bytes.
pub const SUPERBLOCK_LEN: usize = 1024;
/// `s_magic`.
pub const MAGIC: u16 = 0xef53;

/// One entry of the error record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorEntry<'a> {
    /// Seconds since 1970.
    pub time: u64,
    /// The function that found it; at most 32 bytes are kept.
    pub func: &'a str,
    /// Its line.
    pub line: u32,
    /// The inode concerned, or 0.
    pub ino: u32,
    /// The block concerned, or 0.
    pub block: u64,
    /// ext4's number for the kind of error (1 unknown, 2 EIO, 3 ENOMEM, 4 EFSBADCRC, 5 EFSCORRUPTED, 6
    /// ENOSPC, ...).
    pub code: u8,
}

/// A superblock whose arithmetic is sound.
#[derive(Clone, Copy, Debug)]
pub struct SuperBlock {
    raw: RawSuperBlock,
}

/// The sum of a superblock's 1024 bytes. It is seeded with all ones, not with the volume's seed.
#[must_use]
pub fn checksum(bytes: &[u8; SUPERBLOCK_LEN]) -> u32 {
    crc32c(!0, &bytes[..SUPERBLOCK_LEN - 4])
}

fn wrong(field: &'static str, found: impl Into<u64>, expected: impl Into<u64>) -> Corruption {
    Corruption::new(What::SuperBlock, field, found.into(), expected.into())
}

fn join(lo: U32, hi: u32) -> u64 {
    u64::from(hi) << 32 | u64::from(lo.get())
}

fn time(lo: U32, hi: u8) -> u64 {
    join(lo, u32::from(hi))
}

fn split_time(seconds: u64) -> (U32, u8) {
    (U32::new(seconds as u32), (seconds >> 32) as u8)
}

fn text(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}

fn put_text(field: &mut [u8], text: &[u8]) {
    field.fill(0);
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// Whether `bytes` may be a superblock: they carry its magic at its place.
#[must_use]
pub fn has_magic(bytes: &[u8]) -> bool {
    RawSuperBlock::ref_from_prefix(bytes).is_ok_and(|(raw, _)| raw.magic.get() == MAGIC)
}

impl SuperBlock {
    /// Reads a superblock: magic, checksum if it has one, then its arithmetic.
    pub fn parse(bytes: &[u8; SUPERBLOCK_LEN]) -> Result<SuperBlock, Corruption> {
        let raw = RawSuperBlock::read_from_bytes(bytes.as_slice())
            .map_err(|_| wrong("length", SUPERBLOCK_LEN as u64, SUPERBLOCK_LEN as u64))?;
        if raw.magic.get() != MAGIC {
            return Err(wrong("s_magic", raw.magic.get(), MAGIC));
        }
        if RoCompat(raw.feature_ro_compat.get()).has(RoCompat::METADATA_CSUM) {
            if raw.checksum_type != 1 {
                return Err(wrong("s_checksum_type", raw.checksum_type, 1u8));
            }
            let sum = checksum(bytes);
            if raw.checksum.get() != sum {
                return Err(Corruption::checksum(What::SuperBlock, raw.checksum.get(), sum));
            }
        }
        SuperBlock::from_raw(raw)
    }

    /// Checks the arithmetic of a superblock, but neither its checksum nor its features.
    pub fn from_raw(raw: RawSuperBlock) -> Result<SuperBlock, Corruption> {
        if raw.magic.get() != MAGIC {
            return Err(wrong("s_magic", raw.magic.get(), MAGIC));
        }
        if raw.log_block_size.get() > 6 {
            return Err(wrong("s_log_block_size", raw.log_block_size.get(), 6u32));
        }
        let sb = SuperBlock { raw };
        let block_size = sb.block_size();
        let bits = block_size * 8;

        let first = u32::from(block_size == 1024);
        // Clusters of 1 KiB blocks may also start at block 0.
        let first_is_sound = raw.first_data_block.get() == first
            || (sb.ro_compat().has(RoCompat::BIGALLOC) && raw.first_data_block.get() == 0);
        if !first_is_sound {
            return Err(wrong("s_first_data_block", raw.first_data_block.get(), first));
        }
        if sb.ro_compat().has(RoCompat::BIGALLOC) {
            let ratio_log = raw.log_cluster_size.get().checked_sub(raw.log_block_size.get());
            let ratio = ratio_log.filter(|log| *log < 20).map(|log| 1u32 << log);
            let Some(ratio) = ratio else {
                return Err(wrong(
                    "s_log_cluster_size",
                    raw.log_cluster_size.get(),
                    raw.log_block_size.get(),
                ));
            };
            if raw.clusters_per_group.get().checked_mul(ratio) != Some(raw.blocks_per_group.get()) {
                return Err(wrong("s_clusters_per_group", raw.clusters_per_group.get(), bits));
            }
        } else if raw.log_cluster_size != raw.log_block_size {
            return Err(wrong("s_log_cluster_size", raw.log_cluster_size.get(), raw.log_block_size.get()));
        } else if raw.clusters_per_group != raw.blocks_per_group {
            return Err(wrong(
                "s_clusters_per_group",
                raw.clusters_per_group.get(),
                raw.blocks_per_group.get(),
            ));
        }
        let clusters = raw.clusters_per_group.get();
        if clusters < 256 || clusters > bits || !clusters.is_multiple_of(8) {
            return Err(wrong("s_clusters_per_group", clusters, bits));
        }

        let inode_size = sb.inode_size() as u32;
        if !inode_size.is_power_of_two() || inode_size < 128 || inode_size > block_size {
            return Err(wrong("s_inode_size", inode_size, block_size));
        }
        let inodes = raw.inodes_per_group.get();
        if inodes < block_size / inode_size || inodes > bits || !inodes.is_multiple_of(8) {
            return Err(wrong("s_inodes_per_group", inodes, bits));
        }
        if raw.rev_level.get() > 0
            && (raw.first_ino.get() < 11 || raw.first_ino.get() >= raw.inodes_count.get())
        {
            return Err(wrong("s_first_ino", raw.first_ino.get(), 11u32));
        }

        let desc_size = sb.desc_size();
        let smallest = if sb.incompat().has(Incompat::BIT64) { 64 } else { 32 };
        if desc_size < smallest || desc_size > 1024 || !desc_size.is_power_of_two() {
            return Err(wrong("s_desc_size", desc_size as u64, smallest as u64));
        }

        let blocks = sb.blocks_count().0;
        let first = u64::from(raw.first_data_block.get());
        if blocks <= first + u64::from(raw.reserved_gdt_blocks.get()) || blocks > 1 << 48 {
            return Err(wrong("s_blocks_count", blocks, first + 1));
        }
        let groups = (blocks - first).div_ceil(u64::from(raw.blocks_per_group.get()));
        if groups > u64::from(u32::MAX) || groups * u64::from(inodes) != u64::from(raw.inodes_count.get()) {
            return Err(wrong(
                "s_inodes_count",
                raw.inodes_count.get(),
                groups.saturating_mul(inodes.into()),
            ));
        }
        if raw.reserved_gdt_blocks.get() as u32 > block_size / 4 {
            return Err(wrong("s_reserved_gdt_blocks", raw.reserved_gdt_blocks.get(), block_size / 4));
        }
        let desc_blocks = groups.div_ceil(u64::from(block_size) / desc_size as u64);
        let meta_bg = sb.incompat().has(Incompat::META_BG);
        if meta_bg && u64::from(raw.first_meta_bg.get()) > desc_blocks {
            return Err(wrong("s_first_meta_bg", raw.first_meta_bg.get(), desc_blocks));
        }
        if sb.incompat().has(Incompat::FLEX_BG) && raw.log_groups_per_flex > 31 {
            return Err(wrong("s_log_groups_per_flex", raw.log_groups_per_flex, 31u8));
        }
        Ok(sb)
    }

    /// The 1024 bytes to write, with their checksum when the volume has them.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_LEN] {
        let mut bytes = [0; SUPERBLOCK_LEN];
        bytes.copy_from_slice(self.raw.as_bytes());
        if self.ro_compat().has(RoCompat::METADATA_CSUM) {
            let sum = checksum(&bytes);
            bytes[SUPERBLOCK_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }

    /// The bytes with names.
    #[must_use]
    pub fn raw(&self) -> &RawSuperBlock {
        &self.raw
    }

    /// Changes raw fields that have no setter here. The result is checked again.
    pub fn edit(&mut self, change: impl FnOnce(&mut RawSuperBlock)) -> Result<(), Corruption> {
        let mut raw = self.raw;
        change(&mut raw);
        *self = SuperBlock::from_raw(raw)?;
        Ok(())
    }

    /// `s_feature_compat`.
    #[must_use]
    pub fn compat(&self) -> Compat {
        Compat(self.raw.feature_compat.get())
    }

    /// `s_feature_ro_compat`.
    #[must_use]
    pub fn ro_compat(&self) -> RoCompat {
        RoCompat(self.raw.feature_ro_compat.get())
    }

    /// `s_feature_incompat`.
    #[must_use]
    pub fn incompat(&self) -> Incompat {
        Incompat(self.raw.feature_incompat.get())
    }

    /// Sets features that come and go while a volume is used.
    pub fn set_compat(&mut self, features: Compat) {
        self.raw.feature_compat = U32::new(features.0);
    }

    /// Sets features that come and go while a volume is used (`orphan_present`, `large_file`).
    pub fn set_ro_compat(&mut self, features: RoCompat) {
        self.raw.feature_ro_compat = U32::new(features.0);
    }

    /// Sets features that come and go while a volume is used (`needs_recovery`).
    pub fn set_incompat(&mut self, features: Incompat) {
        self.raw.feature_incompat = U32::new(features.0);
    }

    /// Sets or clears `needs_recovery`.
    pub fn set_needs_recovery(&mut self, on: bool) {
        let old = self.incompat();
        let bit = Incompat::RECOVER;
        self.set_incompat(if on { old.with(bit) } else { old.without(bit) });
    }

    /// Sets or clears `orphan_present`.
    pub fn set_orphan_present(&mut self, on: bool) {
        let old = self.ro_compat();
        let bit = RoCompat::ORPHAN_PRESENT;
        self.set_ro_compat(if on { old.with(bit) } else { old.without(bit) });
    }

    /// Block size in bytes: 1024 to 65536.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        1024 << self.raw.log_block_size.get()
    }

    /// Blocks in the volume, boot block included.
    #[must_use]
    pub fn blocks_count(&self) -> BlockNo {
        BlockNo(self.wide(self.raw.blocks_count_lo, self.raw.blocks_count_hi))
    }

    /// Blocks kept back for the owner in [`Self::reserved_uid`] and [`Self::reserved_gid`].
    #[must_use]
    pub fn reserved_blocks(&self) -> u64 {
        self.wide(self.raw.r_blocks_count_lo, self.raw.r_blocks_count_hi)
    }

    /// Free blocks, as last written; stale while a kernel has the volume mounted.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        self.wide(self.raw.free_blocks_count_lo, self.raw.free_blocks_count_hi)
    }

    /// Sets the number of free blocks.
    pub fn set_free_blocks(&mut self, count: u64) {
        self.raw.free_blocks_count_lo = U32::new(count as u32);
        if self.incompat().has(Incompat::BIT64) {
            self.raw.free_blocks_count_hi = U32::new((count >> 32) as u32);
        }
    }

    fn wide(&self, lo: U32, hi: U32) -> u64 {
        join(lo, if self.incompat().has(Incompat::BIT64) { hi.get() } else { 0 })
    }

    /// Who may use the reserved blocks (`s_def_resuid`).
    #[must_use]
    pub fn reserved_uid(&self) -> u32 {
        u32::from(self.raw.def_resuid.get())
    }

    /// Which group may use the reserved blocks (`s_def_resgid`).
    #[must_use]
    pub fn reserved_gid(&self) -> u32 {
        u32::from(self.raw.def_resgid.get())
    }

    /// Inodes in the volume.
    #[must_use]
    pub fn inodes_count(&self) -> u32 {
        self.raw.inodes_count.get()
    }

    /// Free inodes, as last written.
    #[must_use]
    pub fn free_inodes(&self) -> u32 {
        self.raw.free_inodes_count.get()
    }

    /// Sets the number of free inodes.
    pub fn set_free_inodes(&mut self, count: u32) {
        self.raw.free_inodes_count = U32::new(count);
    }

    /// Blocks in a full group.
    #[must_use]
    pub fn blocks_per_group(&self) -> u32 {
        self.raw.blocks_per_group.get()
    }

    /// Bits of a full group's block bitmap.
    #[must_use]
    pub fn clusters_per_group(&self) -> u32 {
        self.raw.clusters_per_group.get()
    }

    /// Inodes in every group.
    #[must_use]
    pub fn inodes_per_group(&self) -> u32 {
        self.raw.inodes_per_group.get()
    }

    /// Bytes of an inode: 128 in revision 0.
    #[must_use]
    pub fn inode_size(&self) -> usize {
        if self.raw.rev_level.get() == 0 { 128 } else { usize::from(self.raw.inode_size.get()) }
    }

    /// The first inode that is not reserved: 11 in revision 0.
    #[must_use]
    pub fn first_ino(&self) -> u32 {
        if self.raw.rev_level.get() == 0 { 11 } else { self.raw.first_ino.get() }
    }

    /// Bytes of a group descriptor: 32 without `64bit`.
    #[must_use]
    pub fn desc_size(&self) -> usize {
        if self.incompat().has(Incompat::BIT64) { usize::from(self.raw.desc_size.get()) } else { 32 }
    }

    /// Bytes after the first 128 that inodes use, new ones and those that change, as the kernel reads
    /// `s_want_extra_isize`: at least all fields known today; 0 when inodes are that small.
    #[must_use]
    pub fn want_extra_isize(&self) -> u16 {
        let room = self.inode_size() as u16 - BASE_SIZE as u16;
        let want = self.raw.want_extra_isize.get().max(self.min_extra_isize());
        let want = match self.ro_compat().has(RoCompat::EXTRA_ISIZE) {
            true if want <= room => want.max(FULL_EXTRA_ISIZE),
            _ => FULL_EXTRA_ISIZE,
        };
        if room == 0 { 0 } else { want.min(room) & !3 }
    }

    /// Bytes after the first 128 that an inode uses at least where there is not room for what is wanted.
    #[must_use]
    pub fn min_extra_isize(&self) -> u16 {
        self.raw.min_extra_isize.get()
    }

    /// The volume's UUID.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.raw.uuid
    }

    /// The volume's name.
    #[must_use]
    pub fn volume_name(&self) -> &[u8] {
        text(&self.raw.volume_name)
    }

    /// Most bytes of a label.
    pub const LABEL_LEN: usize = 16;

    /// Sets the label; what is beyond [`SuperBlock::LABEL_LEN`] is cut off.
    pub fn set_volume_name(&mut self, label: &[u8]) {
        put_text(&mut self.raw.volume_name, label);
    }

    /// Where it was last mounted.
    #[must_use]
    pub fn last_mounted(&self) -> &[u8] {
        text(&self.raw.last_mounted)
    }

    /// Sets where it was last mounted (at most 64 bytes are kept).
    pub fn set_last_mounted(&mut self, path: &[u8]) {
        put_text(&mut self.raw.last_mounted, path);
    }

    /// The mount options kept in the superblock, comma separated.
    #[must_use]
    pub fn mount_opts(&self) -> &[u8] {
        text(&self.raw.mount_opts)
    }

    /// The default mount options as bits.
    #[must_use]
    pub fn default_mount_opts(&self) -> DefaultMountOpts {
        DefaultMountOpts(self.raw.default_mount_opts.get())
    }

    /// The state bits.
    #[must_use]
    pub fn state(&self) -> State {
        State(self.raw.state.get())
    }

    /// Sets the state bits.
    pub fn set_state(&mut self, state: State) {
        self.raw.state = U16::new(state.0);
    }

    /// What may be done with the volume, by its features; an external journal is refused by name, and so are
    /// case-insensitive names in an unknown encoding.
    #[must_use]
    pub fn access(&self) -> Access {
        let mut refused = Vec::new();
        if self.has_external_journal() {
            refused.push("external journal".to_owned());
        }
        let encoding = self.raw.encoding.get();
        if self.incompat().has(Incompat::CASEFOLD) && encoding != casefold::ENCODING_UTF8 {
            refused.push(format!("casefold with encoding {encoding}"));
        }
        features::check_supported(self.compat(), self.ro_compat(), self.incompat(), refused)
    }

    /// What to do at an error; an unknown value means to carry on, as the kernel takes it.
    #[must_use]
    pub fn on_error(&self) -> OnError {
        match self.raw.errors.get() {
            2 => OnError::ReadOnly,
            3 => OnError::Panic,
            _ => OnError::Continue,
        }
    }

    /// Mounts since the last check.
    #[must_use]
    pub fn mount_count(&self) -> u16 {
        self.raw.mnt_count.get()
    }

    /// Sets the number of mounts since the last check.
    pub fn set_mount_count(&mut self, count: u16) {
        self.raw.mnt_count = U16::new(count);
    }

    /// Mounts after which a check is due, `None` for never.
    #[must_use]
    pub fn max_mount_count(&self) -> Option<u16> {
        let count = self.raw.max_mnt_count.get();
        (count != 0 && count & 0x8000 == 0).then_some(count)
    }

    /// Sets the last mount, seconds since 1970.
    pub fn set_mount_time(&mut self, seconds: u64) {
        (self.raw.mtime, self.raw.mtime_hi) = split_time(seconds);
    }

    /// Sets the last write, seconds since 1970.
    pub fn set_write_time(&mut self, seconds: u64) {
        (self.raw.wtime, self.raw.wtime_hi) = split_time(seconds);
    }

    /// Last check, seconds since 1970.
    #[must_use]
    pub fn check_time(&self) -> u64 {
        time(self.raw.lastcheck, self.raw.lastcheck_hi)
    }

    /// Sets the last check, seconds since 1970.
    pub fn set_check_time(&mut self, seconds: u64) {
        (self.raw.lastcheck, self.raw.lastcheck_hi) = split_time(seconds);
    }

    /// Seconds between checks, 0 for never.
    #[must_use]
    pub fn check_interval(&self) -> u32 {
        self.raw.checkinterval.get()
    }

    /// When it was made, seconds since 1970.
    #[must_use]
    pub fn mkfs_time(&self) -> u64 {
        time(self.raw.mkfs_time, self.raw.mkfs_time_hi)
    }

    /// KiB written over the volume's life.
    #[must_use]
    pub fn kbytes_written(&self) -> u64 {
        self.raw.kbytes_written.get()
    }

    /// Sets the KiB written over the volume's life.
    pub fn set_kbytes_written(&mut self, kib: u64) {
        self.raw.kbytes_written = U64::new(kib);
    }

    /// The head of the orphan list.
    #[must_use]
    pub fn last_orphan(&self) -> Option<Ino> {
        Ino::new(self.raw.last_orphan.get())
    }

    /// Sets the head of the orphan list.
    pub fn set_last_orphan(&mut self, head: Option<Ino>) {
        self.raw.last_orphan = U32::new(head.map_or(0, Ino::get));
    }

    /// The inode of the orphan file, if the volume has one.
    #[must_use]
    pub fn orphan_file(&self) -> Option<Ino> {
        self.compat().has(Compat::ORPHAN_FILE).then(|| Ino::new(self.raw.orphan_file_inum.get())).flatten()
    }

    /// The inode of the journal, `None` without an internal journal.
    #[must_use]
    pub fn journal_ino(&self) -> Option<Ino> {
        self.compat().has(Compat::HAS_JOURNAL).then(|| Ino::new(self.raw.journal_inum.get())).flatten()
    }

    /// Whether the journal is on another device.
    #[must_use]
    pub fn has_external_journal(&self) -> bool {
        self.compat().has(Compat::HAS_JOURNAL) && self.raw.journal_inum.get() == 0
    }

    /// The copy of the journal inode's `i_block` and size (`[15]` high half, `[16]` low half), if it was
    /// kept.
    #[must_use]
    pub fn journal_backup(&self) -> Option<[u32; 17]> {
        (self.raw.jnl_backup_type == 1).then(|| self.raw.jnl_blocks.map(U32::get))
    }

    /// Keeps a copy of the journal inode's `i_block` and size.
    pub fn set_journal_backup(&mut self, words: [u32; 17]) {
        self.raw.jnl_backup_type = 1;
        self.raw.jnl_blocks = words.map(U32::new);
    }

    /// The seed of directory hashes.
    #[must_use]
    pub fn hash_seed(&self) -> [u32; 4] {
        self.raw.hash_seed.map(U32::get)
    }

    /// The hash version of new indexed directories, as in an htree root, signedness not folded in
    /// (0 legacy, 1 half-MD4, 2 TEA).
    #[must_use]
    pub fn hash_version(&self) -> u8 {
        self.raw.def_hash_version
    }

    /// Whether directory hashes take characters as unsigned.
    #[must_use]
    pub fn hash_unsigned(&self) -> bool {
        self.flags().has(Flags::UNSIGNED_HASH)
    }

    /// The flag bits.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags(self.raw.flags.get())
    }

    /// Sets the flag bits.
    pub fn set_flags(&mut self, flags: Flags) {
        self.raw.flags = U32::new(flags.0);
    }

    /// The block of multi-mount protection, if the volume has it.
    #[must_use]
    pub fn mmp_block(&self) -> Option<BlockNo> {
        (self.incompat().has(Incompat::MMP) && self.raw.mmp_block.get() != 0)
            .then(|| BlockNo(self.raw.mmp_block.get()))
    }

    /// Seconds between two updates of the multi-mount protection block.
    #[must_use]
    pub fn mmp_interval(&self) -> u16 {
        self.raw.mmp_interval.get()
    }

    /// RAID stride and stripe width in blocks, 0 where unknown.
    #[must_use]
    pub fn raid(&self) -> (u32, u32) {
        (u32::from(self.raw.raid_stride.get()), self.raw.raid_stripe_width.get())
    }

    /// Blocks of metadata overhead as mke2fs or an earlier mount computed them, 0 when unknown.
    #[must_use]
    pub fn overhead_blocks(&self) -> u32 {
        self.raw.overhead_blocks.get()
    }

    /// Errors seen since the last check.
    #[must_use]
    pub fn error_count(&self) -> u32 {
        self.raw.error_count.get()
    }

    /// Enters an error: sets the error state, counts it, and keeps it as the latest (and the first, if it
    /// is).
    pub fn record_error(&mut self, error: &ErrorEntry<'_>) {
        self.set_state(self.state().with(State::ERROR));
        let raw = &mut self.raw;
        if raw.first_error_time.get() == 0 && raw.first_error_time_hi == 0 {
            (raw.first_error_time, raw.first_error_time_hi) = split_time(error.time);
            put_text(&mut raw.first_error_func, error.func.as_bytes());
            raw.first_error_line = U32::new(error.line);
            raw.first_error_ino = U32::new(error.ino);
            raw.first_error_block = U64::new(error.block);
            raw.first_error_errcode = error.code;
        }
        (raw.last_error_time, raw.last_error_time_hi) = split_time(error.time);
        put_text(&mut raw.last_error_func, error.func.as_bytes());
        raw.last_error_line = U32::new(error.line);
        raw.last_error_ino = U32::new(error.ino);
        raw.last_error_block = U64::new(error.block);
        raw.last_error_errcode = error.code;
        raw.error_count = U32::new(raw.error_count.get().saturating_add(1));
    }

    /// Forgets the error record and the error state, after a check has repaired the volume.
    pub fn clear_errors(&mut self) {
        self.set_state(self.state().without(State::ERROR));
        let raw = &mut self.raw;
        raw.error_count = U32::ZERO;
        (raw.first_error_time, raw.first_error_time_hi) = (U32::ZERO, 0);
        (raw.last_error_time, raw.last_error_time_hi) = (U32::ZERO, 0);
        raw.first_error_func = [0; 32];
        raw.last_error_func = [0; 32];
        (raw.first_error_line, raw.last_error_line) = (U32::ZERO, U32::ZERO);
        (raw.first_error_ino, raw.last_error_ino) = (U32::ZERO, U32::ZERO);
        (raw.first_error_block, raw.last_error_block) = (U64::ZERO, U64::ZERO);
        (raw.first_error_errcode, raw.last_error_errcode) = (0, 0);
    }
}
