//! The inode: one record of the inode table, the 128 bytes of ext2 and, in larger records, the extra fields.
//!
//! [`Inode`] is the decoded form: split fields joined, timestamps widened, units unified. What the record
//! keeps beyond it (unknown fields, the attributes after the extra fields) is left as it stands by
//! [`Inode::encode_into`]. Checksums belong to `csum`, the meaning of `block` to `extent`, `indirect` and
//! inline data. Source of every offset: the kernel's `Documentation/filesystems/ext4/inodes.rst`.

pub mod flag;

use std::mem::{offset_of, size_of};
use std::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, LittleEndian, U16, U32, Unaligned};

use crate::corruption::{Corruption, What};
use crate::features::{Incompat, RoCompat};
use crate::geometry::Geometry;
use crate::num::BlockNo;
use crate::superblock::SuperBlock;

/// Size in bytes of the part every inode has.
pub const BASE_SIZE: usize = 128;
/// Length in bytes of `i_block`.
pub const BLOCK_AREA: usize = 60;

/// The first 128 bytes of an inode, as they lie on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the format's own, `i_` taken off")]
pub struct RawInode {
    pub mode: U16<LittleEndian>,
    pub uid_lo: U16<LittleEndian>,
    pub size_lo: U32<LittleEndian>,
    pub atime: U32<LittleEndian>,
    pub ctime: U32<LittleEndian>,
    pub mtime: U32<LittleEndian>,
    pub dtime: U32<LittleEndian>,
    pub gid_lo: U16<LittleEndian>,
    pub links: U16<LittleEndian>,
    pub blocks_lo: U32<LittleEndian>,
    pub flags: U32<LittleEndian>,
    pub version_lo: U32<LittleEndian>,
    pub block: [u8; BLOCK_AREA],
    pub generation: U32<LittleEndian>,
    pub file_acl_lo: U32<LittleEndian>,
    pub size_hi: U32<LittleEndian>,
    pub obsolete_faddr: U32<LittleEndian>,
    pub blocks_hi: U16<LittleEndian>,
    pub file_acl_hi: U16<LittleEndian>,
    pub uid_hi: U16<LittleEndian>,
    pub gid_hi: U16<LittleEndian>,
    pub checksum_lo: U16<LittleEndian>,
    pub reserved: U16<LittleEndian>,
}

impl RawInode {
    /// The base part of a record; `None` for a record of less than [`BASE_SIZE`] bytes.
    #[must_use]
    pub fn of(record: &[u8]) -> Option<&RawInode> {
        RawInode::ref_from_prefix(record).ok().map(|(raw, _)| raw)
    }

    /// The base part of a record, to be changed.
    #[must_use]
    pub fn of_mut(record: &mut [u8]) -> Option<&mut RawInode> {
        RawInode::mut_from_prefix(record).ok().map(|(raw, _)| raw)
    }
}

/// The fields after byte 128; `extra_isize` says how many of them are in use.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
pub(crate) struct RawExtra {
    pub(crate) extra_isize: U16<LittleEndian>,
    pub(crate) checksum_hi: U16<LittleEndian>,
    pub(crate) ctime_extra: U32<LittleEndian>,
    pub(crate) mtime_extra: U32<LittleEndian>,
    pub(crate) atime_extra: U32<LittleEndian>,
    pub(crate) crtime: U32<LittleEndian>,
    pub(crate) crtime_extra: U32<LittleEndian>,
    pub(crate) version_hi: U32<LittleEndian>,
    pub(crate) projid: U32<LittleEndian>,
}

const _: () = {
    assert!(size_of::<RawInode>() == BASE_SIZE);
    assert!(offset_of!(RawInode, links) == 0x1a);
    assert!(offset_of!(RawInode, block) == 0x28);
    assert!(offset_of!(RawInode, generation) == 0x64);
    assert!(offset_of!(RawInode, blocks_hi) == 0x74);
    assert!(offset_of!(RawInode, checksum_lo) == 0x7c);
    assert!(size_of::<RawExtra>() == 32);
    assert!(offset_of!(RawExtra, checksum_hi) == 2);
    assert!(offset_of!(RawExtra, projid) == 28);
};

/// Byte offset of `i_checksum_lo` in the inode.
pub(crate) const CHECKSUM_LO_OFFSET: usize = offset_of!(RawInode, checksum_lo);
/// Byte offset of `i_checksum_hi` in the inode; in use when `extra_isize` is at least 4.
pub(crate) const CHECKSUM_HI_OFFSET: usize = BASE_SIZE + offset_of!(RawExtra, checksum_hi);
/// Byte offset of `i_generation` in the inode.
pub(crate) const GENERATION_OFFSET: usize = offset_of!(RawInode, generation);
/// Byte offset of `i_block` in the inode.
pub const BLOCK_OFFSET: usize = offset_of!(RawInode, block);
/// Byte offset of `i_dtime`, which links the chain of orphans while an inode is on it.
pub const DTIME_OFFSET: usize = offset_of!(RawInode, dtime);
/// `extra_isize` of an inode that uses every field known today.
pub const FULL_EXTRA_ISIZE: u16 = size_of::<RawExtra>() as u16;
/// End of `i_atime_extra` in the inode: records this long keep nanoseconds.
const ATIME_EXTRA_END: usize = BASE_SIZE + offset_of!(RawExtra, atime_extra) + 4;
/// End of `i_crtime_extra` in the extra fields.
const CRTIME_EXTRA_END: usize = offset_of!(RawExtra, crtime_extra) + 4;
/// Links of a directory that has too many subdirectories to count (feature `dir_nlink`).
pub const LINKS_UNCOUNTED: u16 = 1;
/// The largest link count ext4 gives a file or counts in a directory.
pub const MAX_LINKS: u16 = 65000;
/// The longest target kept inside the inode (with its terminating zero it fills `i_block`).
pub const MAX_FAST_SYMLINK: usize = BLOCK_AREA - 1;

/// What a superblock says about the shape of its inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InodeLayout {
    /// Bytes of one record of the inode table (128, 256, ... up to the block size).
    pub inode_size: u16,
    /// Block size in bytes.
    pub block_size: u32,
    /// Feature `huge_file`: `i_blocks` has 48 bits and may count filesystem blocks.
    pub huge_file: bool,
    /// Feature `large_dir`: directories have a 64-bit size too.
    pub large_dir: bool,
    /// Feature `64bit`: block numbers (here `i_file_acl`) have 48 bits.
    pub wide_blocks: bool,
    /// Feature `ea_inode`: `i_blocks` also counts the values of large attributes.
    pub ea_inode: bool,
    /// Size of an allocation unit in bytes: the block size, or more with `bigalloc`.
    pub cluster_size: u32,
}

impl InodeLayout {
    /// The layout of the volume with this superblock.
    #[must_use]
    pub fn new(sb: &SuperBlock) -> InodeLayout {
        InodeLayout {
            inode_size: sb.inode_size() as u16,
            block_size: sb.block_size(),
            huge_file: sb.ro_compat().has(RoCompat::HUGE_FILE),
            large_dir: sb.incompat().has(Incompat::LARGEDIR),
            wide_blocks: sb.incompat().has(Incompat::BIT64),
            ea_inode: sb.incompat().has(Incompat::EA_INODE),
            cluster_size: sb.block_size().saturating_mul(Geometry::new(sb).cluster_ratio),
        }
    }

    /// Nanoseconds between two timestamps that a record of this size can tell apart.
    #[must_use]
    pub fn time_granularity(&self) -> u32 {
        if usize::from(self.inode_size) >= ATIME_EXTRA_END { 1 } else { 1_000_000_000 }
    }

    /// The timestamp that a record keeps of `time`: 1901 to 2446, or to 2038 without extra fields. At either
    /// end the nanoseconds are 0.
    #[must_use]
    pub fn storable(&self, time: Time) -> Time {
        let (last, fine) = match self.time_granularity() {
            1 => (Time::MAX_SEC, true),
            _ => (i32::MAX.into(), false),
        };
        let inside = time.sec > Time::MIN_SEC && time.sec < last;
        Time { sec: time.sec.clamp(Time::MIN_SEC, last), nsec: if inside && fine { time.nsec } else { 0 } }
    }

    /// The `extra_isize` of a new inode: `want` (`s_want_extra_isize`) as far as the record has room, in
    /// units of four bytes.
    #[must_use]
    pub fn extra_isize(&self, want: u16) -> u16 {
        want.min(self.inode_size.saturating_sub(BASE_SIZE as u16)) & !3
    }

    /// Whether `extra_isize` bytes of extra fields hold the whole time of creation.
    #[must_use]
    pub fn has_crtime(extra_isize: u16) -> bool {
        usize::from(extra_isize) >= CRTIME_EXTRA_END
    }
}

/// The bits of `i_mode` below the type, by the names of POSIX and the kernel.
pub mod mode {
    /// Run with the owner's rights.
    pub const S_ISUID: u16 = 0o4000;
    /// Run with the group's rights; on a directory: children inherit the group.
    pub const S_ISGID: u16 = 0o2000;
    /// The group may execute.
    pub const S_IXGRP: u16 = 0o010;
    /// Read, write and execute for owner, group and others.
    pub const S_IRWXUGO: u16 = 0o777;
    /// Every bit but the type.
    pub const S_IALLUGO: u16 = 0o7777;
}

/// The type of a file, in the upper four bits of the mode and in directory entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink,
}

impl FileType {
    const TABLE: [(FileType, u16, u8); 7] = [
        (FileType::Regular, 0o100_000, 1),
        (FileType::Directory, 0o040_000, 2),
        (FileType::CharDevice, 0o020_000, 3),
        (FileType::BlockDevice, 0o060_000, 4),
        (FileType::Fifo, 0o010_000, 5),
        (FileType::Socket, 0o140_000, 6),
        (FileType::Symlink, 0o120_000, 7),
    ];
    /// The mode bits that hold the type.
    pub const MODE_MASK: u16 = 0o170_000;

    /// The type in a mode; `None` for a mode no file has.
    #[must_use]
    pub fn from_mode(mode: u16) -> Option<FileType> {
        Self::TABLE.iter().find(|row| row.1 == mode & Self::MODE_MASK).map(|row| row.0)
    }

    /// The type as a directory entry spells it (1 to 7); `None` for 0 (not recorded) and for unknown codes.
    #[must_use]
    pub fn from_dirent(code: u8) -> Option<FileType> {
        Self::TABLE.iter().find(|row| row.2 == code).map(|row| row.0)
    }

    /// The mode bits of this type.
    #[must_use]
    pub fn mode_bits(self) -> u16 {
        self.row().1
    }

    /// The code of this type in a directory entry.
    #[must_use]
    pub fn dirent_code(self) -> u8 {
        self.row().2
    }

    fn row(self) -> (FileType, u16, u8) {
        Self::TABLE[self as usize]
    }
}

/// A timestamp of an inode: seconds since 1970 (34 bits on disk where there is an extra field, else 32) and
/// nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Time {
    /// Seconds since the epoch; negative before it.
    pub sec: i64,
    /// Nanoseconds; below 1 000 000 000 on an intact disk, up to 2^30 - 1 on a damaged one.
    pub nsec: u32,
}

impl Time {
    /// The earliest second the format can hold.
    pub const MIN_SEC: i64 = i32::MIN as i64;
    /// The latest second a record with extra fields can hold (year 2446).
    pub const MAX_SEC: i64 = i32::MAX as i64 + (3 << 32);

    /// From the 32-bit seconds and the extra word: two bits of epoch, thirty of nanoseconds.
    #[must_use]
    pub fn decode(sec: u32, extra: Option<u32>) -> Time {
        let low = i64::from(sec as i32);
        match extra {
            Some(extra) => Time { sec: low + (i64::from(extra & 3) << 32), nsec: extra >> 2 },
            None => Time { sec: low, nsec: 0 },
        }
    }

    /// The 32-bit seconds and the extra word; what the format cannot hold is clamped first.
    #[must_use]
    pub fn encode(self) -> (u32, u32) {
        let sec = self.sec.clamp(Self::MIN_SEC, Self::MAX_SEC);
        let low = sec as u32;
        let epoch = ((sec - i64::from(low as i32)) >> 32) as u32 & 3;
        (low, epoch | self.nsec << 2)
    }
}

/// An inode, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Creation; `None` where the record has no room for it.
    pub crtime: Option<Time>,
    /// Deletion time in seconds; while the inode is on the orphan list, the number of the next orphan.
    pub dtime: u32,
    /// Hard links.
    pub links: u16,
    /// Space in units of 512 bytes, whatever unit the disk uses.
    pub blocks: u64,
    /// See [`flag`].
    pub flags: u32,
    /// `i_version`: 64 bits where the record has room, else 32.
    pub version: u64,
    /// Generation, part of the checksum seed and of NFS handles.
    pub generation: u32,
    /// The block of extended attributes; 0 is none.
    pub file_acl: BlockNo,
    /// Project quota id; 0 where the record has no room for it.
    pub project: u32,
    /// `i_block`: extent tree, block map, fast symlink, device number or inline data.
    pub block: [u8; BLOCK_AREA],
    /// Bytes of extra fields in use; 0 in a 128-byte record.
    pub extra_isize: u16,
}

impl Inode {
    /// Decodes one record of the inode table.
    ///
    /// # Errors
    /// A record shorter than the layout says, or an `extra_isize` that is unaligned or leaves the record.
    pub fn decode(bytes: &[u8], layout: &InodeLayout) -> Result<Inode, Corruption> {
        let size = usize::from(layout.inode_size);
        if size < BASE_SIZE || bytes.len() < size {
            return Err(Corruption::new(What::Inode, "inode_size", bytes.len() as u64, size as u64));
        }
        let inode = Inode::decode_damaged(bytes, layout);
        let room = size - BASE_SIZE;
        if usize::from(inode.extra_isize) > room || !inode.extra_isize.is_multiple_of(4) {
            return Err(Corruption::new(
                What::Inode,
                "extra_isize",
                u64::from(inode.extra_isize),
                room as u64,
            ));
        }
        Ok(inode)
    }

    /// Decodes a record whatever it holds: for a checker that wants to see the damage. An `extra_isize` that
    /// makes no sense is kept as it stands and uses no extra field; a short record reads as zeros past its
    /// end.
    #[must_use]
    pub fn decode_damaged(bytes: &[u8], layout: &InodeLayout) -> Inode {
        let mut padded = [0; BASE_SIZE];
        let raw = match RawInode::ref_from_prefix(bytes) {
            Ok((raw, _)) => raw.clone(),
            Err(_) => {
                padded[..bytes.len()].copy_from_slice(bytes);
                zerocopy::transmute!(padded)
            }
        };
        let (extra_isize, extra) = decode_extra(bytes, layout);
        // A field of the extra area counts when it ends inside `extra_isize`.
        let get = |offset: usize, value: U32<LittleEndian>| {
            (offset + 4 <= usize::from(extra.1)).then_some(value.get())
        };
        let x = &extra.0;
        let mode = raw.mode.get();
        let wide_size = layout.large_dir || FileType::from_mode(mode) != Some(FileType::Directory);
        let flags = raw.flags.get();
        let mut blocks = u64::from(raw.blocks_lo.get());
        if layout.huge_file {
            blocks |= u64::from(raw.blocks_hi.get()) << 32;
            if flags & flag::HUGE_FILE != 0 {
                blocks *= u64::from(layout.block_size / 512);
            }
        }
        let mut file_acl = u64::from(raw.file_acl_lo.get());
        if layout.wide_blocks {
            file_acl |= u64::from(raw.file_acl_hi.get()) << 32;
        }
        Inode {
            mode,
            uid: u32::from(raw.uid_lo.get()) | u32::from(raw.uid_hi.get()) << 16,
            gid: u32::from(raw.gid_lo.get()) | u32::from(raw.gid_hi.get()) << 16,
            size: u64::from(raw.size_lo.get())
                | if wide_size { u64::from(raw.size_hi.get()) << 32 } else { 0 },
            atime: Time::decode(raw.atime.get(), get(offset_of!(RawExtra, atime_extra), x.atime_extra)),
            ctime: Time::decode(raw.ctime.get(), get(offset_of!(RawExtra, ctime_extra), x.ctime_extra)),
            mtime: Time::decode(raw.mtime.get(), get(offset_of!(RawExtra, mtime_extra), x.mtime_extra)),
            crtime: get(offset_of!(RawExtra, crtime), x.crtime)
                .map(|sec| Time::decode(sec, get(offset_of!(RawExtra, crtime_extra), x.crtime_extra))),
            dtime: raw.dtime.get(),
            links: raw.links.get(),
            blocks,
            flags,
            version: u64::from(raw.version_lo.get())
                | u64::from(get(offset_of!(RawExtra, version_hi), x.version_hi).unwrap_or(0)) << 32,
            generation: raw.generation.get(),
            file_acl: BlockNo(file_acl),
            project: get(offset_of!(RawExtra, projid), x.projid).unwrap_or(0),
            block: raw.block,
            extra_isize,
        }
    }

    /// Writes the inode into its record. Fields that the record has no room for, unknown fields, the checksum
    /// and the attributes behind `extra_isize` stay as they are. Returns the flags as written: `HUGE_FILE`
    /// follows the size of `blocks`.
    ///
    /// # Panics
    /// When `bytes` is shorter than 128 bytes or than `extra_isize` asks for: the caller hands in a whole
    /// record.
    pub fn encode_into(&self, bytes: &mut [u8], layout: &InodeLayout) -> u32 {
        let room = bytes.len().min(usize::from(layout.inode_size)) - BASE_SIZE;
        let (head, tail) = bytes.split_at_mut(BASE_SIZE);
        let raw = RawInode::mut_from_bytes(head).expect("the record starts with 128 bytes");
        let (atime, atime_extra) = self.atime.encode();
        let (ctime, ctime_extra) = self.ctime.encode();
        let (mtime, mtime_extra) = self.mtime.encode();
        let (blocks, unit_flag) = self.blocks_on_disk(layout);
        let flags = self.flags & !flag::HUGE_FILE | unit_flag;
        raw.mode.set(self.mode);
        raw.uid_lo.set(self.uid as u16);
        raw.uid_hi.set((self.uid >> 16) as u16);
        raw.gid_lo.set(self.gid as u16);
        raw.gid_hi.set((self.gid >> 16) as u16);
        raw.size_lo.set(self.size as u32);
        raw.size_hi.set((self.size >> 32) as u32);
        raw.atime.set(atime);
        raw.ctime.set(ctime);
        raw.mtime.set(mtime);
        raw.dtime.set(self.dtime);
        raw.links.set(self.links);
        raw.blocks_lo.set(blocks as u32);
        if layout.huge_file {
            raw.blocks_hi.set((blocks >> 32) as u16);
        }
        raw.flags.set(flags);
        raw.version_lo.set(self.version as u32);
        raw.block = self.block;
        raw.generation.set(self.generation);
        raw.file_acl_lo.set(self.file_acl.0 as u32);
        if layout.wide_blocks {
            raw.file_acl_hi.set((self.file_acl.0 >> 32) as u16);
        }
        let used = usize::from(self.extra_isize);
        assert!(used <= room, "extra_isize {used} in a record with room for {room}");
        if room < size_of::<RawExtra>() {
            return flags;
        }
        let (extra, _) = RawExtra::mut_from_prefix(tail).expect("room was checked");
        extra.extra_isize.set(self.extra_isize);
        let (crtime, crtime_extra) = self.crtime.unwrap_or_default().encode();
        for (offset, field, value) in [
            (offset_of!(RawExtra, ctime_extra), &mut extra.ctime_extra, ctime_extra),
            (offset_of!(RawExtra, mtime_extra), &mut extra.mtime_extra, mtime_extra),
            (offset_of!(RawExtra, atime_extra), &mut extra.atime_extra, atime_extra),
            (offset_of!(RawExtra, crtime), &mut extra.crtime, crtime),
            (offset_of!(RawExtra, crtime_extra), &mut extra.crtime_extra, crtime_extra),
            (offset_of!(RawExtra, version_hi), &mut extra.version_hi, (self.version >> 32) as u32),
            (offset_of!(RawExtra, projid), &mut extra.projid, self.project),
        ] {
            if offset + 4 <= used {
                field.set(value);
            }
        }
        flags
    }

    /// `i_blocks` in its unit on disk, and the flag that selects the unit.
    fn blocks_on_disk(&self, layout: &InodeLayout) -> (u64, u32) {
        if self.blocks < 1 << 48 || !layout.huge_file {
            (self.blocks, 0)
        } else {
            (self.blocks / u64::from(layout.block_size / 512), flag::HUGE_FILE)
        }
    }

    /// The type of the file; `None` for a mode no file has.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        FileType::from_mode(self.mode)
    }

    /// Whether the inode is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type() == Some(FileType::Directory)
    }

    /// Whether flag `bit` is set.
    #[must_use]
    pub fn has(&self, bit: u32) -> bool {
        self.flags & bit != 0
    }

    /// Whether this symbolic link keeps its target in `block`: it has no data block, the attribute block
    /// apart.
    #[must_use]
    pub fn is_fast_symlink(&self, layout: &InodeLayout) -> bool {
        if self.file_type() != Some(FileType::Symlink) || self.has(flag::INLINE_DATA) {
            return false;
        }
        // With large attributes counted in `i_blocks`, only the size can tell.
        if layout.ea_inode {
            return (1..=MAX_FAST_SYMLINK as u64).contains(&self.size);
        }
        let attributes = if self.file_acl.0 != 0 { u64::from(layout.cluster_size / 512) } else { 0 };
        self.blocks == attributes
    }

    /// Whether `block` maps data blocks (and is not a short target, a device number or inline data).
    #[must_use]
    pub fn maps_blocks(&self, layout: &InodeLayout) -> bool {
        match self.file_type() {
            Some(FileType::Regular | FileType::Directory) => !self.has(flag::INLINE_DATA),
            Some(FileType::Symlink) => !self.has(flag::INLINE_DATA) && !self.is_fast_symlink(layout),
            _ => false,
        }
    }

    /// The target of a fast symlink: the bytes before the first zero, at most `size` of them.
    #[must_use]
    pub fn fast_target(&self) -> &[u8] {
        let end = usize::try_from(self.size).unwrap_or(BLOCK_AREA).min(BLOCK_AREA);
        let target = &self.block[..end];
        &target[..target.iter().position(|&b| b == 0).unwrap_or(end)]
    }

    /// Major and minor number of a device inode. The old encoding (8 bits each) stands in the first word; a
    /// zero there means the new one (12 and 20 bits) in the second.
    #[must_use]
    pub fn device(&self) -> (u32, u32) {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| self.block[at + i]));
        match (word(0), word(4)) {
            (0, new) => (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xfff00),
            (old, _) => (old >> 8 & 0xff, old & 0xff),
        }
    }

    /// Makes `block` hold a device number, in the old encoding where it fits.
    pub fn set_device(&mut self, major: u32, minor: u32) {
        let (first, second) = if major < 256 && minor < 256 {
            (major << 8 | minor, 0)
        } else {
            (0, minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12)
        };
        self.block = [0; BLOCK_AREA];
        self.block[..4].copy_from_slice(&first.to_le_bytes());
        self.block[4..8].copy_from_slice(&second.to_le_bytes());
    }

    /// The copy of a journal's inode that the superblock keeps (`s_jnl_blocks`): the words of `i_block`, then
    /// the upper and the lower half of the size.
    #[must_use]
    pub fn journal_backup(&self) -> [u32; 17] {
        let (words, _) = self.block.as_chunks::<4>();
        let size = [(self.size >> 32) as u32, self.size as u32];
        let mut all = words.iter().map(|word| u32::from_le_bytes(*word)).chain(size);
        std::array::from_fn(|_| all.next().unwrap_or(0))
    }

    /// Whether the extra fields in use reach far enough for the time of creation.
    #[must_use]
    pub fn has_room_for_crtime(&self) -> bool {
        usize::from(self.extra_isize) >= offset_of!(RawExtra, crtime) + 4
    }

    /// Where the attributes kept inside the record lie (they start with a four-byte magic), or `None` when
    /// there is no room for them.
    #[must_use]
    pub fn xattr_range(&self, layout: &InodeLayout) -> Option<Range<usize>> {
        let start = BASE_SIZE + usize::from(self.extra_isize);
        let end = usize::from(layout.inode_size);
        (self.extra_isize != 0 && self.extra_isize.is_multiple_of(4) && start + 4 < end).then_some(start..end)
    }
}

/// `extra_isize` as it stands, and the extra fields with the number of valid bytes.
fn decode_extra(bytes: &[u8], layout: &InodeLayout) -> (u16, (RawExtra, u16)) {
    let end = usize::from(layout.inode_size).min(bytes.len()).max(BASE_SIZE.min(bytes.len()));
    let area = bytes.get(BASE_SIZE..end).unwrap_or_default();
    match RawExtra::read_from_prefix(area) {
        Ok((extra, _)) => {
            let stated = extra.extra_isize.get();
            let valid = usize::from(stated) <= area.len() && stated.is_multiple_of(4);
            (stated, (extra, if valid { stated } else { 0 }))
        }
        Err(_) => (0, (zerocopy::transmute!([0_u8; size_of::<RawExtra>()]), 0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYOUT: InodeLayout = InodeLayout {
        inode_size: 256,
        block_size: 4096,
        huge_file: true,
        large_dir: false,
        wide_blocks: true,
        ea_inode: false,
        cluster_size: 4096,
    };

    #[test]
    fn file_types_agree_with_their_table() {
        for (kind, mode, code) in FileType::TABLE {
            assert_eq!(FileType::from_mode(mode | 0o755), Some(kind));
            assert_eq!(FileType::from_dirent(code), Some(kind));
            assert_eq!((kind.mode_bits(), kind.dirent_code()), (mode, code));
        }
        assert_eq!(FileType::from_mode(0o755), None);
        assert_eq!(FileType::from_dirent(0), None);
    }

    #[test]
    fn timestamps_cover_the_documented_epochs() {
        // The table of inodes.rst: epoch bits 0 with a negative second is 1901, 1 with a negative second is
        // 2038.
        assert_eq!(Time::decode(0x8000_0000, Some(0)).sec, -0x8000_0000);
        assert_eq!(Time::decode(0x8000_0000, Some(1)).sec, 0x8000_0000);
        assert_eq!(Time::decode(0x7fff_ffff, Some(3)).sec, 0x3_7fff_ffff);
        assert_eq!(Time { sec: i64::MAX, nsec: 0 }.encode(), (0x7fff_ffff, 3));
    }

    #[test]
    fn a_record_keeps_the_times_that_it_has_room_for() {
        let small = InodeLayout { inode_size: 128, ..LAYOUT };
        let time = |sec| Time { sec, nsec: 7 };
        for (layout, sec, kept) in [
            (LAYOUT, 1 << 32, time(1 << 32)),
            (LAYOUT, i64::MAX, Time { sec: 0x3_7fff_ffff, nsec: 0 }),
            (LAYOUT, i64::MIN, Time { sec: -0x8000_0000, nsec: 0 }),
            (small, 5, Time { sec: 5, nsec: 0 }),
            (small, 1 << 32, Time { sec: 0x7fff_ffff, nsec: 0 }),
        ] {
            assert_eq!(layout.storable(time(sec)), kept);
        }
        assert_eq!((LAYOUT.time_granularity(), small.time_granularity()), (1, 1_000_000_000));
        assert_eq!((LAYOUT.extra_isize(33), LAYOUT.extra_isize(500), small.extra_isize(32)), (32, 128, 0));
        assert_eq!([23, 24].map(InodeLayout::has_crtime), [false, true]);
    }

    #[test]
    fn fields_of_the_raw_record_lie_where_the_kernel_has_them() {
        let mut bytes: Vec<u8> = (0..=255).collect();
        let raw = RawInode::of(&bytes).unwrap();
        assert_eq!((raw.flags.get(), raw.size_hi.get()), (0x2322_2120, 0x6f6e_6d6c));
        assert_eq!((raw.obsolete_faddr.get(), raw.file_acl_hi.get()), (0x7372_7170, 0x7776));
        RawInode::of_mut(&mut bytes).unwrap().flags.set(0);
        assert_eq!(bytes[0x1f..0x25], [0x1f, 0, 0, 0, 0, 0x24][..]);
        assert!(RawInode::of(&bytes[..127]).is_none());
        let inode = Inode { size: 0x1_0000_0002, ..Inode::decode_damaged(&bytes, &LAYOUT) };
        assert_eq!(inode.journal_backup()[14..], [0x6362_6160, 1, 2]);
    }

    #[test]
    fn huge_files_switch_the_unit_of_blocks() {
        let mut bytes = vec![0; 256];
        let mut inode = Inode::decode(&bytes, &LAYOUT).unwrap();
        inode.blocks = 1 << 49;
        assert_eq!(inode.encode_into(&mut bytes, &LAYOUT) & flag::HUGE_FILE, flag::HUGE_FILE);
        assert_eq!(Inode::decode(&bytes, &LAYOUT).unwrap().blocks, 1 << 49);
    }

    #[test]
    fn a_bad_extra_isize_is_named() {
        let mut bytes = vec![0; 256];
        bytes[128] = 130;
        assert_eq!(Inode::decode(&bytes, &LAYOUT).unwrap_err().field, "extra_isize");
        assert_eq!(Inode::decode_damaged(&bytes, &LAYOUT).extra_isize, 130);
    }

    proptest! {
        #[test]
        fn any_record_survives_a_round_trip(mut bytes in proptest::collection::vec(any::<u8>(), 256), small in any::<bool>()) {
            bytes[128] = 32;
            bytes[129] = 0;
            let layout = if small { InodeLayout { inode_size: 128, ..LAYOUT } } else { LAYOUT };
            let bytes = &mut bytes[..usize::from(layout.inode_size)];
            // A directory's size_hi is not part of its size, and small `huge` units are renormalised.
            bytes[1] = 0x81;
            bytes[0x22] &= !4;
            let inode = Inode::decode(bytes, &layout).unwrap();
            let before = bytes.to_vec();
            inode.encode_into(bytes, &layout);
            prop_assert_eq!(&before[..], &bytes[..]);
        }

        #[test]
        fn device_numbers_round_trip(major in 0_u32..4096, minor in 0_u32..(1 << 20)) {
            let mut inode = Inode::decode(&[0; 256], &LAYOUT).unwrap();
            inode.set_device(major, minor);
            prop_assert_eq!(inode.device(), (major, minor));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let inode = Inode::decode_damaged(&bytes, &LAYOUT);
            prop_assert!(inode.fast_target().len() <= BLOCK_AREA);
            prop_assert!(inode.xattr_range(&LAYOUT).is_none_or(|range| range.end <= 256));
        }
    }
}
