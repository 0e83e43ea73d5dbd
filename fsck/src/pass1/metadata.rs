//! The volume's own blocks: superblocks, descriptors, bitmaps and inode tables, claimed before any file's.

use std::ops::Range;

use ext4_format::BlockNo;

use crate::context::{Context, UNALLOCATED};

/// Claims the metadata of every group.
pub fn claim(ctx: &mut Context) {
    let ranges = ranges(ctx);
    for range in &ranges {
        ctx.found.blocks.claim(BlockNo(range.start), range.end - range.start, |_| ());
    }
    ctx.metadata = ranges;
}

/// The metadata of every group, as sorted, disjoint ranges of blocks.
#[must_use]
pub fn ranges(ctx: &Context) -> Vec<Range<u64>> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let table = u64::from(ctx.geometry.inode_table_blocks());
    for group in ctx.geometry.groups() {
        let first = ctx.geometry.group_first_block(group).0;
        // With clusters of 1 KiB blocks the boot block stands before the head, in the same cluster.
        let end = ctx.geometry.head(group).reserved.end;
        if end > first {
            ranges.push((first, end));
        }
        let desc = &ctx.descs[group.0 as usize];
        for (place, len) in [(desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, table)] {
            if place != UNALLOCATED {
                ranges.push((place.0, place.0 + len));
            }
        }
    }
    if let Some(block) = ctx.sb.mmp_block() {
        ranges.push((block.0, block.0 + 1));
    }
    // Blocks in front of the first group's first block do not count.
    let floor = u64::from(ctx.geometry.first_data_block);
    ranges.retain_mut(|range| {
        range.0 = range.0.max(floor);
        range.1 = range.1.min(ctx.geometry.blocks_count);
        range.0 < range.1
    });
    ranges.sort_unstable();
    let mut joined: Vec<Range<u64>> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => joined.push(start..end),
        }
    }
    joined
}
