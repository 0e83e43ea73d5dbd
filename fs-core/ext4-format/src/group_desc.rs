//! Group descriptors: where a group's bitmaps and inode table lie, what is free, what is uninitialised.
//!
//! A descriptor is 32 bytes, or 64 and more with `64bit`, whose second half holds the high halves. The
//! uninit flags are valid only where descriptors carry a sum ([`crate::csum::Csum::group_descs`]).
//! Source: kernel documentation, ext4 "Block Group Descriptors".

#![cfg_attr(
    not(test),
    deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bits::flag_bits;
use crate::corruption::{Corruption, What};
use crate::csum::Csum;
use crate::halves::{join16, join32, split16, split32};
use crate::num::{BlockNo, GroupNo};

flag_bits! {
    /// `bg_flags`.
    GroupFlags(u16) {
        /// The inode bitmap and table are not initialised: every inode is free.
        INODE_UNINIT = 0x1;
        /// The block bitmap is not initialised: only the group's own metadata is in use.
        BLOCK_UNINIT = 0x2;
        /// The unused part of the inode table is zeroed.
        INODE_ZEROED = 0x4;
    }
}

/// The first half of a descriptor, as it lies on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawLow {
    block_bitmap: U32,
    inode_bitmap: U32,
    inode_table: U32,
    free_blocks: U16,
    free_inodes: U16,
    used_dirs: U16,
    flags: U16,
    exclude_bitmap: U32,
    block_bitmap_csum: U16,
    inode_bitmap_csum: U16,
    itable_unused: U16,
    checksum: U16,
}

/// The second half, in descriptors of 64 bytes and more.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHigh {
    block_bitmap: U32,
    inode_bitmap: U32,
    inode_table: U32,
    free_blocks: U16,
    free_inodes: U16,
    used_dirs: U16,
    itable_unused: U16,
    exclude_bitmap: U32,
    block_bitmap_csum: U16,
    inode_bitmap_csum: U16,
    reserved: U32,
}

const _: () = assert!(size_of::<RawLow>() == 32 && size_of::<RawHigh>() == 32);

/// One decoded group descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupDesc {
    /// The block of the block bitmap.
    pub block_bitmap: BlockNo,
    /// The block of the inode bitmap.
    pub inode_bitmap: BlockNo,
    /// The first block of the inode table.
    pub inode_table: BlockNo,
    /// Free clusters.
    pub free_blocks: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// Inodes that are directories.
    pub used_dirs: u32,
    /// Inodes at the end of the table that were never used.
    pub itable_unused: u32,
    /// Uninit flags.
    pub flags: GroupFlags,
    /// Snapshot exclude bitmap, kept as found.
    pub exclude_bitmap: u64,
    /// Sum of the block bitmap (16 bits in a descriptor of 32 bytes).
    pub block_bitmap_csum: u32,
    /// Sum of the inode bitmap (16 bits in a descriptor of 32 bytes).
    pub inode_bitmap_csum: u32,
}

impl GroupDesc {
    /// Reads a descriptor from its `desc_size` bytes. Its sum is [`Csum::verify_group_desc`]'s matter.
    pub fn decode(bytes: &[u8]) -> Result<GroupDesc, Corruption> {
        let Ok((lo, rest)) = RawLow::ref_from_prefix(bytes) else {
            let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            return Err(Corruption::new(What::GroupDesc, "length", len, 32));
        };
        let hi = RawHigh::read_from_prefix(rest).map_or_else(|_| RawHigh::new_zeroed(), |(hi, _)| hi);
        let both16 = |lo: U16, hi: U16| join16(lo.get(), hi.get());
        let both32 = |lo: U32, hi: U32| join32(lo.get(), hi.get());
        Ok(GroupDesc {
            block_bitmap: BlockNo(both32(lo.block_bitmap, hi.block_bitmap)),
            inode_bitmap: BlockNo(both32(lo.inode_bitmap, hi.inode_bitmap)),
            inode_table: BlockNo(both32(lo.inode_table, hi.inode_table)),
            free_blocks: both16(lo.free_blocks, hi.free_blocks),
            free_inodes: both16(lo.free_inodes, hi.free_inodes),
            used_dirs: both16(lo.used_dirs, hi.used_dirs),
            flags: GroupFlags(lo.flags.get()),
            exclude_bitmap: both32(lo.exclude_bitmap, hi.exclude_bitmap),
            block_bitmap_csum: both16(lo.block_bitmap_csum, hi.block_bitmap_csum),
            inode_bitmap_csum: both16(lo.inode_bitmap_csum, hi.inode_bitmap_csum),
            itable_unused: both16(lo.itable_unused, hi.itable_unused),
        })
    }

    /// Writes the descriptor and its sum into its `desc_size` bytes; bytes past the 64th are kept.
    ///
    /// # Panics
    /// If `bytes` is shorter than 32.
    pub fn encode_into(&self, bytes: &mut [u8], group: GroupNo, csum: &Csum) {
        let (lo, rest) = RawLow::mut_from_prefix(bytes).expect("a descriptor has at least 32 bytes");
        let mut spare = RawHigh::new_zeroed();
        let hi = RawHigh::mut_from_prefix(rest).map_or(&mut spare, |(hi, _)| hi);
        let put16 = |lo: &mut U16, hi: &mut U16, value: u32| {
            let (low, high) = split16(value);
            lo.set(low);
            hi.set(high);
        };
        let put32 = |lo: &mut U32, hi: &mut U32, value: u64| {
            let (low, high) = split32(value);
            lo.set(low);
            hi.set(high);
        };
        put32(&mut lo.block_bitmap, &mut hi.block_bitmap, self.block_bitmap.0);
        put32(&mut lo.inode_bitmap, &mut hi.inode_bitmap, self.inode_bitmap.0);
        put32(&mut lo.inode_table, &mut hi.inode_table, self.inode_table.0);
        put32(&mut lo.exclude_bitmap, &mut hi.exclude_bitmap, self.exclude_bitmap);
        put16(&mut lo.free_blocks, &mut hi.free_blocks, self.free_blocks);
        put16(&mut lo.free_inodes, &mut hi.free_inodes, self.free_inodes);
        put16(&mut lo.used_dirs, &mut hi.used_dirs, self.used_dirs);
        put16(&mut lo.block_bitmap_csum, &mut hi.block_bitmap_csum, self.block_bitmap_csum);
        put16(&mut lo.inode_bitmap_csum, &mut hi.inode_bitmap_csum, self.inode_bitmap_csum);
        put16(&mut lo.itable_unused, &mut hi.itable_unused, self.itable_unused);
        lo.flags.set(self.flags.0);
        csum.set_group_desc(bytes, group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_own_bytes() {
        let bytes: Vec<u8> = (0..64).collect();
        let desc = GroupDesc::decode(&bytes).unwrap();
        assert_eq!(desc.block_bitmap.0, 0x2322_2120_0302_0100);
        assert_eq!(desc.inode_table.0, 0x2b2a_2928_0b0a_0908);
        assert_eq!(desc.free_blocks, 0x2d2c_0d0c);
        assert_eq!(desc.itable_unused, 0x3332_1d1c);
        assert_eq!(desc.used_dirs, 0x3130_1110);
        assert_eq!(desc.inode_bitmap_csum, 0x3b3a_1b1a);
        assert_eq!(GroupDesc::decode(&bytes[..32]).unwrap().free_inodes, 0x0f0e);
        assert!(GroupDesc::decode(&bytes[..31]).is_err());
    }
}
