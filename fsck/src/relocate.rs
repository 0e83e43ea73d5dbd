//! Bitmaps and inode tables on impossible places: outside the volume or their group, or on other metadata.
//!
//! They are reported before pass 1, which does without them, and get new places after it, when it is known what
//! is free. The contents of bitmaps are made in pass 5; a table that was lost starts empty. What lies on a bad
//! block moves with its contents.

use ext4_format::geometry::Geometry;
use ext4_format::group_desc::GroupDesc;
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, GroupNo, Ino};

use crate::context::{Context, NeedsRelocation, UNALLOCATED, lock};
use crate::error::{Error, Result};
use crate::map::BlockMap;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};
use crate::volume::{distrusted, may_lie};

/// How many bitmaps and tables lie on impossible places, or on each other.
#[must_use]
pub fn count_misplaced(sb: &SuperBlock, geometry: &Geometry, descs: &[GroupDesc]) -> usize {
    let mut blockwise = *geometry;
    blockwise.cluster_ratio = 1;
    let taken = BlockMap::new(&blockwise);
    let table = u64::from(geometry.inode_table_blocks());
    let mut count = 0;
    for (at, desc) in descs.iter().enumerate() {
        for (place, len) in [(desc.inode_table, table), (desc.block_bitmap, 1), (desc.inode_bitmap, 1)] {
            if may_lie(sb, geometry, GroupNo(at as u32), place, len) && !taken.any(place, len) {
                taken.claim(place, len, |_| ());
            } else {
                count += 1;
            }
        }
    }
    count
}

/// Finds what needs a new place; its descriptor says [`UNALLOCATED`] from here on.
pub fn find_misplaced(
    sb: &SuperBlock,
    geometry: &Geometry,
    descs: &mut [GroupDesc],
    prompter: &mut Prompter<'_>,
) -> Result<Vec<NeedsRelocation>> {
    let table = u64::from(geometry.inode_table_blocks());
    // Neighbours among the metadata may share a cluster: overlaps are told block by block.
    let mut blockwise = *geometry;
    blockwise.cluster_ratio = 1;
    let taken = BlockMap::new(&blockwise);
    let reserved = BlockMap::new(&blockwise);
    for group in geometry.groups() {
        let (first, head) = (geometry.group_first_block(group), geometry.head(group));
        taken.claim(first, head.reserved.start - first.0, |_| ());
        reserved.claim(BlockNo(head.reserved.start), head.reserved.end - head.reserved.start, |_| ());
    }
    let mut needs_relocation = Vec::new();
    // Tables before bitmaps: where two lay claim to a block, what cannot be computed again keeps it.
    for code in [Code::InodeTablePlace, Code::BlockBitmapPlace, Code::InodeBitmapPlace] {
        for (at, desc) in descs.iter_mut().enumerate() {
            let group = GroupNo(at as u32);
            let (place, len) = match code {
                Code::InodeTablePlace => (&mut desc.inode_table, table),
                Code::BlockBitmapPlace => (&mut desc.block_bitmap, 1),
                _ => (&mut desc.inode_bitmap, 1),
            };
            let inside = may_lie(sb, geometry, group, *place, len) && *place != UNALLOCATED;
            let free = inside && !taken.any(*place, len);
            if free && !reserved.any(*place, len) {
                taken.claim(*place, len, |_| ());
                continue;
            }
            let fix = prompter.ask(Problem::of_group(code, group).values(place.0, 0_u32))?;
            if fix {
                needs_relocation.push(NeedsRelocation { group, code });
            }
            if free && code == Code::InodeTablePlace {
                // Blocks that are reserved for descriptors hold none yet: the table moves with its inodes.
                taken.claim(*place, len, |_| ());
                *desc = distrusted(*desc);
            } else if fix || !inside {
                *place = UNALLOCATED;
                *desc = distrusted(*desc);
            }
        }
    }
    Ok(needs_relocation)
}

/// Gives each piece that needs it a place that nothing uses.
///
/// # Errors
/// The device's, or [`Error::Unusable`] when a piece that has no place at all gets none.
pub fn run(ctx: &mut Context, prompter: &mut Prompter<'_>) -> Result<()> {
    for piece in std::mem::take(&mut ctx.needs_relocation) {
        if !place(ctx, piece)? {
            return Err(Error::Unusable(format!("group {} has no place for its metadata", piece.group)));
        }
    }
    let bad = std::mem::take(&mut *lock(&ctx.found.bad_metadata));
    bad.into_iter().try_for_each(|block| leave_bad_block(ctx, prompter, BlockNo(block)))
}

/// Moves what lies on a block that the list of bad blocks names. Copies of the superblock and the descriptors
/// are where they are.
fn leave_bad_block(ctx: &mut Context, prompter: &mut Prompter<'_>, block: BlockNo) -> Result<()> {
    let table = u64::from(ctx.geometry.inode_table_blocks());
    let holder = ctx.descs.iter().enumerate().find_map(|(at, desc)| {
        let (name, code) = match block {
            _ if block == desc.block_bitmap => ("block bitmap", Code::BlockBitmapPlace),
            _ if block == desc.inode_bitmap => ("inode bitmap", Code::InodeBitmapPlace),
            _ if (desc.inode_table.0..desc.inode_table.0 + table).contains(&block.0) => {
                ("inode table", Code::InodeTablePlace)
            }
            _ => return None,
        };
        Some((NeedsRelocation { group: GroupNo(at as u32), code }, name))
    });
    let Some((piece, name)) = holder else {
        let group = ctx.geometry.group_of_block(block).unwrap_or(GroupNo(0));
        prompter.ask(Problem::of_group(Code::BadBlockMetadata, group).at(block))?;
        return Ok(());
    };
    let problem = |code| Problem::of_group(code, piece.group).at(block).named(name);
    if prompter.ask(problem(Code::BadBlockPlace))? && !place(ctx, piece)? {
        prompter.ask(problem(Code::BadBlockNoRoom))?;
    }
    Ok(())
}

/// Finds a place for a piece and moves what it holds; false when there is none.
fn place(ctx: &mut Context, piece: NeedsRelocation) -> Result<bool> {
    let NeedsRelocation { group, code } = piece;
    let len = match code {
        Code::InodeTablePlace => u64::from(ctx.geometry.inode_table_blocks()),
        _ => 1,
    };
    let clusters = len.div_ceil(u64::from(ctx.geometry.cluster_ratio));
    let goal = ctx.geometry.group_first_block(group);
    // The search goes up from the group's start: what it finds behind the end is all there is.
    let free = ctx.found.blocks.find_free(goal, clusters);
    let Some(free) = free.filter(|free| may_lie(&ctx.sb, &ctx.geometry, group, *free, len)) else {
        return Ok(false);
    };
    let desc = &mut ctx.descs[group.0 as usize];
    let field = match code {
        Code::BlockBitmapPlace => &mut desc.block_bitmap,
        Code::InodeBitmapPlace => &mut desc.inode_bitmap,
        _ => &mut desc.inode_table,
    };
    let old = std::mem::replace(field, free);
    let listed = pass1::extents_of(ctx, &ctx.read_inode(Ino::BAD_BLOCKS)?);
    for ahead in 0..len {
        let from = BlockNo(old.0 + ahead);
        let held = if old == UNALLOCATED { None } else { ctx.disk.read(from).ok() };
        ctx.disk.write(BlockNo(free.0 + ahead), &held.unwrap_or_else(|| vec![0; ctx.disk.block_size()]))?;
        let bad = listed.iter().any(|run| (run.start.0..run.start.0 + u64::from(run.len)).contains(&from.0));
        let alone = ctx.geometry.cluster_ratio == 1 && !ctx.found.multiple.has(from);
        if old != UNALLOCATED && !bad && alone {
            ctx.found.blocks.release(from, 1);
        }
    }
    pass1::claim_metadata(ctx);
    Ok(true)
}
