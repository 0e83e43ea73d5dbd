//! Group descriptors: where a group's bitmaps and inode table lie, what is free, what is uninitialised.
//!
//! A descriptor is 32 bytes, or 64 and more with `64bit`, whose second half holds the high halves. The
//! uninit flags are valid only where descriptors carry a sum ([`crate::csum::Csum::group_descs`]).
//! Source: kernel documentation, ext4 "Block Group Descriptors".

use crate::bits::flag_bits;
use crate::corruption::{Corruption, What};
use crate::csum::Csum;
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
        if bytes.len() < 32 {
            return Err(Corruption::new(What::GroupDesc, "length", bytes.len() as u64, 32));
        }
        let wide = bytes.len() >= 64;
        let u16_at = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
        let both16 = |lo, hi| u16_at(lo) | if wide { u16_at(hi) << 16 } else { 0 };
        let both32 = |lo, hi| u64::from(u32_at(lo)) | if wide { u64::from(u32_at(hi)) << 32 } else { 0 };
        Ok(GroupDesc {
            block_bitmap: BlockNo(both32(0x00, 0x20)),
            inode_bitmap: BlockNo(both32(0x04, 0x24)),
            inode_table: BlockNo(both32(0x08, 0x28)),
            free_blocks: both16(0x0c, 0x2c),
            free_inodes: both16(0x0e, 0x2e),
            used_dirs: both16(0x10, 0x30),
            flags: GroupFlags(u16_at(0x12) as u16),
            exclude_bitmap: both32(0x14, 0x34),
            block_bitmap_csum: both16(0x18, 0x38),
            inode_bitmap_csum: both16(0x1a, 0x3a),
            itable_unused: both16(0x1c, 0x32),
        })
    }

    /// Writes the descriptor and its sum into its `desc_size` bytes; bytes past the 64th are kept.
    ///
    /// # Panics
    /// If `bytes` is shorter than 32.
    pub fn encode_into(&self, bytes: &mut [u8], group: GroupNo, csum: &Csum) {
        let wide = bytes.len() >= 64;
        let mut put16 = |at: usize, v: u32| bytes[at..at + 2].copy_from_slice(&(v as u16).to_le_bytes());
        for (lo, hi, value) in [
            (0x0c, 0x2c, self.free_blocks),
            (0x0e, 0x2e, self.free_inodes),
            (0x10, 0x30, self.used_dirs),
            (0x18, 0x38, self.block_bitmap_csum),
            (0x1a, 0x3a, self.inode_bitmap_csum),
            (0x1c, 0x32, self.itable_unused),
        ] {
            put16(lo, value);
            if wide {
                put16(hi, value >> 16);
            }
        }
        put16(0x12, u32::from(self.flags.0));
        for (lo, hi, value) in [
            (0x00, 0x20, self.block_bitmap.0),
            (0x04, 0x24, self.inode_bitmap.0),
            (0x08, 0x28, self.inode_table.0),
            (0x14, 0x34, self.exclude_bitmap),
        ] {
            bytes[lo..lo + 4].copy_from_slice(&(value as u32).to_le_bytes());
            if wide {
                bytes[hi..hi + 4].copy_from_slice(&((value >> 32) as u32).to_le_bytes());
            }
        }
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
