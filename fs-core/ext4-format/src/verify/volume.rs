//! Checks of what belongs to the volume as a whole: descriptors, bitmaps, the multi-mount block.

use crate::bitmap::Bits;
use crate::corruption::{Corruption, What};
use crate::csum::Csum;
use crate::geometry::Geometry;
use crate::group_desc::GroupDesc;
use crate::mmp::Mmp;
use crate::num::{BlockNo, GroupNo};

/// Checks a descriptor's bytes and decodes them: its sum, that what it points to lies on the volume (and in
/// its own group without `flex_bg`), and that it counts no more than there is.
pub fn group_desc(
    bytes: &[u8],
    csum: &Csum,
    geometry: &Geometry,
    group: GroupNo,
) -> Result<GroupDesc, Corruption> {
    let desc = GroupDesc::decode(bytes).map_err(|c| c.in_group(group))?;
    csum.verify_group_desc(bytes, group)?;
    let table = u64::from(geometry.inode_table_blocks());
    for (field, block, count) in [
        ("bg_block_bitmap", desc.block_bitmap, 1),
        ("bg_inode_bitmap", desc.inode_bitmap, 1),
        ("bg_inode_table", desc.inode_table, table),
    ] {
        let inside = if geometry.groups_per_flex > 1 {
            geometry.contains_blocks(block, count)
        } else {
            let first = geometry.group_first_block(group).0;
            let end = first + u64::from(geometry.blocks_in_group(group));
            block.0 >= first && block.0.checked_add(count).is_some_and(|last| last <= end)
        };
        if !inside {
            return Err(wrong(group, field, block.0, geometry.group_first_block(group).0));
        }
    }
    for (field, found, most) in [
        ("bg_free_blocks_count", desc.free_blocks, geometry.clusters_in_group(group)),
        ("bg_free_inodes_count", desc.free_inodes, geometry.inodes_per_group),
        ("bg_used_dirs_count", desc.used_dirs, geometry.inodes_per_group),
        (
            "bg_itable_unused",
            if csum.group_descs() { desc.itable_unused } else { 0 },
            geometry.inodes_per_group,
        ),
    ] {
        if found > most {
            return Err(wrong(group, field, found.into(), most.into()));
        }
    }
    Ok(desc)
}

fn wrong(group: GroupNo, field: &'static str, found: u64, expected: u64) -> Corruption {
    Corruption::new(What::GroupDesc, field, found, expected).in_group(group)
}

/// Checks a block bitmap as read from disk: its sum, that the group's own metadata in this group is marked,
/// and that the bits past the group's end are set. The caller skips groups flagged `BLOCK_UNINIT`.
pub fn block_bitmap(
    bytes: &[u8],
    csum: &Csum,
    geometry: &Geometry,
    group: GroupNo,
    desc: &GroupDesc,
) -> Result<(), Corruption> {
    let place = |c: Corruption| c.in_group(group).at_block(desc.block_bitmap);
    csum.verify_block_bitmap(bytes, desc).map_err(place)?;
    let bits = Bits::new(bytes, geometry.block_size * 8);
    let end = geometry.clusters_in_group(group);
    let own =
        [(desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, geometry.inode_table_blocks())];
    let own = own.into_iter().filter_map(|(first, count)| {
        let (at, index) = geometry.locate_block(first)?;
        let last = index.saturating_add(count).min(geometry.blocks_in_group(group));
        (at == group).then(|| index / geometry.cluster_ratio..last.div_ceil(geometry.cluster_ratio))
    });
    let in_use = own.chain(std::iter::once(end..bits.len()));
    for range in in_use {
        if let Some(bit) = bits.first_clear(range) {
            return Err(place(Corruption::new(What::BlockBitmap, "metadata bit", bit.into(), 1)));
        }
    }
    Ok(())
}

/// Checks an inode bitmap as read from disk: its sum, and that the bits past the last inode are set. The
/// caller skips groups flagged `INODE_UNINIT`.
pub fn inode_bitmap(
    bytes: &[u8],
    csum: &Csum,
    geometry: &Geometry,
    group: GroupNo,
    desc: &GroupDesc,
) -> Result<(), Corruption> {
    let place = |c: Corruption| c.in_group(group).at_block(desc.inode_bitmap);
    csum.verify_inode_bitmap(bytes, desc).map_err(place)?;
    let bits = Bits::new(bytes, geometry.block_size * 8);
    match bits.first_clear(geometry.inodes_per_group..bits.len()) {
        Some(bit) => Err(place(Corruption::new(What::InodeBitmap, "padding bit", bit.into(), 1))),
        None => Ok(()),
    }
}

/// Checks the multi-mount protection block: its magic and its sum.
pub fn mmp(bytes: &[u8], csum: &Csum, block: BlockNo) -> Result<Mmp, Corruption> {
    Mmp::decode(bytes, csum).map_err(|c| c.at_block(block))
}
