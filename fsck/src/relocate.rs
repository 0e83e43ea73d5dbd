//! Bitmaps and inode tables on impossible places: outside the volume or their group, or on other metadata.
//!
//! They are told before pass 1, which does without them, and get new places after it, when it is known what
//! is free. The contents of bitmaps are made in pass 5; a table that was lost starts empty.

use ext4_format::geometry::Geometry;
use ext4_format::group_desc::GroupDesc;
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, GroupNo};

use crate::ask::{Ask, Judge};
use crate::context::{Context, Homeless, NOWHERE};
use crate::error::{Error, Result};
use crate::map::BlockMap;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::volume::{distrusted, may_lie};

/// Finds what needs a new place; its descriptor says [`NOWHERE`] from here on.
pub fn judge(
    sb: &SuperBlock,
    geometry: &Geometry,
    descs: &mut [GroupDesc],
    judge: &mut Judge<'_>,
) -> Result<Vec<Homeless>> {
    let table = u64::from(geometry.inode_table_blocks());
    // Neighbours among the metadata may share a cluster: overlaps are told block by block.
    let mut blockwise = *geometry;
    blockwise.cluster_ratio = 1;
    let taken = BlockMap::new(&blockwise);
    for group in geometry.groups() {
        let first = geometry.group_first_block(group);
        taken.claim(first, geometry.head(group).reserved.end - first.0, |_| ());
    }
    let mut homeless = Vec::new();
    // Tables before bitmaps: where two lay claim to a block, what cannot be computed again keeps it.
    for code in [Code::InodeTablePlace, Code::BlockBitmapPlace, Code::InodeBitmapPlace] {
        for (at, desc) in descs.iter_mut().enumerate() {
            let group = GroupNo(at as u32);
            let (place, len) = match code {
                Code::InodeTablePlace => (&mut desc.inode_table, table),
                Code::BlockBitmapPlace => (&mut desc.block_bitmap, 1),
                _ => (&mut desc.inode_bitmap, 1),
            };
            let inside = may_lie(sb, geometry, group, *place, len) && *place != NOWHERE;
            if inside && !taken.any(*place, len) {
                taken.claim(*place, len, |_| ());
                continue;
            }
            let fix = judge.ask(Problem::of_group(code, group).values(place.0, 0_u32))?;
            if fix {
                homeless.push(Homeless { group, code });
            }
            if fix || !inside {
                *place = NOWHERE;
                *desc = distrusted(*desc);
            }
        }
    }
    Ok(homeless)
}

/// Gives each homeless piece a place that nothing uses.
pub fn run(ctx: &mut Context) -> Result<()> {
    let zeros = vec![0; ctx.disk.block_size()];
    for Homeless { group, code } in std::mem::take(&mut ctx.homeless) {
        let len = match code {
            Code::InodeTablePlace => u64::from(ctx.geometry.inode_table_blocks()),
            _ => 1,
        };
        let clusters = len.div_ceil(u64::from(ctx.geometry.cluster_ratio));
        let goal = ctx.geometry.group_first_block(group);
        let Some(free) = ctx.found.blocks.find_free(goal, clusters) else {
            return Err(Error::Unusable(format!("group {group} has no place for its metadata")));
        };
        for ahead in 0..len {
            ctx.disk.write(BlockNo(free.0 + ahead), &zeros)?;
        }
        let desc = &mut ctx.descs[group.0 as usize];
        match code {
            Code::BlockBitmapPlace => desc.block_bitmap = free,
            Code::InodeBitmapPlace => desc.inode_bitmap = free,
            _ => desc.inode_table = free,
        }
        pass1::claim_metadata(ctx);
    }
    Ok(())
}
