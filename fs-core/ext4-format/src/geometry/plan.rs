//! Where mkfs puts each group's bitmaps and inode table.
//!
//! Without `flex_bg` they follow the group's head. With it, a flexible group's block bitmaps stand together
//! in its first group, then its inode bitmaps, then its tables, each a run that steps over the heads of
//! groups in its way. The places are those mke2fs picks, so that a volume of ours and one of its differ in
//! nothing.

use super::{Geometry, UsedBlocks};
use crate::num::{BlockNo, GroupNo};

/// Where a group's bitmaps and table go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupPlan {
    /// The block of the block bitmap.
    pub block_bitmap: BlockNo,
    /// The block of the inode bitmap.
    pub inode_bitmap: BlockNo,
    /// The first block of the inode table.
    pub inode_table: BlockNo,
}

/// The volume is too small for its own metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("group {group} has no room for its bitmaps and inode table")]
pub struct PlanError {
    /// The group whose metadata found no place.
    pub group: GroupNo,
}

/// Places the bitmaps and tables of all groups. The blocks used are those and the groups' heads. Without
/// flexible groups a RAID `stride` (in blocks, 0 for none) moves each group's bitmaps on, so that they lie on
/// different disks.
pub fn plan(geometry: &Geometry, stride: u32) -> Result<(Vec<GroupPlan>, UsedBlocks), PlanError> {
    let mut used = UsedBlocks::default();
    for group in geometry.groups() {
        let head = geometry.head(group).len();
        if head > 0 {
            used.take(geometry.group_first_block(group).0, u64::from(head));
        }
    }
    let table_len = u64::from(geometry.inode_table_blocks());
    let mut plans: Vec<GroupPlan> = Vec::with_capacity(geometry.group_count as usize);
    for group in geometry.groups() {
        let first_group = GroupNo(geometry.flex_group(group) * geometry.groups_per_flex);
        let last_group = GroupNo((first_group.0 + geometry.groups_per_flex).min(geometry.group_count) - 1);
        let area = Area {
            from: geometry.group_first_block(first_group).0,
            to: geometry.group_first_block(last_group).0 + u64::from(geometry.blocks_in_group(last_group)),
            left: u64::from(last_group.0 - group.0 + 1),
            most: u64::from(geometry.blocks_per_group / 4),
        };
        // mke2fs leaves a lone group the gaps of a full flexible group.
        let gap = if first_group == last_group { u64::from(geometry.groups_per_flex) } else { area.left };
        let before = (group != first_group).then(|| plans.last()).flatten();
        let no_room = || PlanError { group };

        let strided = (stride > 0 && geometry.groups_per_flex == 1)
            .then(|| area.strided(&used, table_len, u64::from(stride) * u64::from(group.0)))
            .flatten();
        let after = before.map(|plan| plan.block_bitmap.0 + 1).or(strided);
        let block_bitmap = area.place(&mut used, after, 1).ok_or_else(no_room)?;
        let after = before.map_or(block_bitmap + gap, |plan| plan.inode_bitmap.0 + 1);
        let inode_bitmap = area.place(&mut used, Some(after), 1).ok_or_else(no_room)?;
        let after = before.map_or(inode_bitmap + gap, |plan| plan.inode_table.0 + table_len);
        let after = strided.is_none().then_some(after);
        let inode_table = area.place(&mut used, after, table_len).ok_or_else(no_room)?;
        plans.push(GroupPlan {
            block_bitmap: BlockNo(block_bitmap),
            inode_bitmap: BlockNo(inode_bitmap),
            inode_table: BlockNo(inode_table),
        });
    }
    Ok((plans, used))
}

/// The blocks of one flexible group, as seen from one of its groups.
struct Area {
    from: u64,
    to: u64,
    /// Groups of the area from this one on: a new run leaves room for all of theirs.
    left: u64,
    most: u64,
}

impl Area {
    /// Where the bitmaps of a group on a RAID go: behind its table, `offset` blocks on.
    fn strided(&self, used: &UsedBlocks, table_len: u64, offset: u64) -> Option<u64> {
        let start = used.find(self.from..self.to, 1)? + table_len;
        let room = self.to.checked_sub(start).filter(|room| *room > 0)?;
        let at = start + offset % room;
        (at < self.to - 1).then_some(at)
    }

    fn place(&self, used: &mut UsedBlocks, after: Option<u64>, count: u64) -> Option<u64> {
        let fits = |at: &u64| at + count <= self.to && used.is_free(*at, count);
        let at = after.filter(fits).or_else(|| {
            used.find(self.from..self.to, (self.left * count).min(self.most).max(count))
                .or_else(|| used.find(self.from..self.to, count))
        })?;
        used.take(at, count);
        Some(at)
    }
}
