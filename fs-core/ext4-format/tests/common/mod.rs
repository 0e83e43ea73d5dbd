//! What several tests begin with.

use ext4_format::superblock::{MAGIC, RawSuperBlock};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32};

/// A sound superblock of 300 MiB in 1 KiB blocks.
pub fn sound() -> RawSuperBlock {
    let mut raw = RawSuperBlock::new_zeroed();
    raw.magic = U16::new(MAGIC);
    raw.rev_level = U32::new(1);
    raw.first_ino = U32::new(11);
    raw.inode_size = U16::new(256);
    raw.blocks_count_lo = U32::new(307_200);
    raw.first_data_block = U32::new(1);
    raw.blocks_per_group = U32::new(8192);
    raw.clusters_per_group = U32::new(8192);
    raw.inodes_per_group = U32::new(2024);
    raw.inodes_count = U32::new(2024 * 38);
    raw.feature_incompat = U32::new(0x2c2);
    raw.feature_ro_compat = U32::new(0x46b);
    raw.desc_size = U16::new(64);
    raw.log_groups_per_flex = 4;
    raw
}
