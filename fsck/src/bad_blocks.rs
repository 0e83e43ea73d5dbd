//! The list of bad blocks, which inode 1 maps so that nobody else takes them.

use std::collections::BTreeSet;

use ext4_format::extent::Extent;
use ext4_format::group_desc::GroupFlags;
use ext4_format::inode::Time;
use ext4_format::{BlockNo, FileBlock, Ino};

use crate::alloc;
use crate::context::Context;
use crate::error::Result;
use crate::marks::{self, without};
use crate::options::{BadBlocks, Options};
use crate::pass1;
use crate::prompt::Prompter;
use crate::volume;

/// Makes the list what the caller found, and opens the volume anew. Who else uses a block of it is for the
/// passes to find out.
///
/// # Errors
/// The device's, or a volume without room for the map.
pub fn update(
    mut ctx: Context,
    list: &BadBlocks,
    options: &Options,
    prompter: &mut Prompter<'_>,
) -> Result<Context> {
    let mut bad: BTreeSet<u64> = if list.keep { known(&ctx)? } else { BTreeSet::new() };
    for &block in &list.blocks {
        // A block map has 32 bits for a block.
        if ctx.on_volume(BlockNo(block), 1) && u32::try_from(block).is_ok() {
            bad.insert(block);
        } else {
            prompter.say(&format!("Bad block {block} out of range; ignored."));
        }
    }
    prompter.say("Updating bad block inode.");
    pass1::claim_metadata(&mut ctx);
    let before = pass1::effects_of(&ctx, Ino::BAD_BLOCKS)?.cluster_runs(&ctx);
    claim_used(&ctx)?;
    bad.iter().for_each(|&block| ctx.found.blocks.claim(BlockNo(block), 1, |_| ()));
    write(&ctx, &bad)?;
    let after = pass1::effects_of(&ctx, Ino::BAD_BLOCKS)?.cluster_runs(&ctx);
    // One at a time: some may be in use, which is no reason to leave the others.
    for (runs, used) in [(without(&before, &after), false), (without(&after, &before), true)] {
        for cluster in runs.into_iter().flat_map(|run| run.0..run.1) {
            marks::clusters(&mut ctx, [(cluster, cluster + 1)], used)?;
        }
    }
    marks::count_free(&ctx);
    volume::write_back(&ctx)?;
    prompter.report.optimized = true;
    volume::open(ctx.disk, options, prompter)
}

/// The bad blocks that the volume knows of.
fn known(ctx: &Context) -> Result<BTreeSet<u64>> {
    let inode = ctx.read_inode(Ino::BAD_BLOCKS)?;
    let extents = pass1::extents_of(ctx, &inode);
    let blocks = extents.iter().flat_map(|extent| extent.start.0..extent.start.0 + u64::from(extent.len));
    Ok(blocks.filter(|&block| ctx.on_volume(BlockNo(block), 1)).collect())
}

/// Fills the set of used blocks from the bitmaps: the passes, which know better, come later.
fn claim_used(ctx: &Context) -> Result<()> {
    for group in ctx.groups() {
        let desc = &ctx.descs[group.0 as usize];
        if !ctx.on_volume(desc.block_bitmap, 1)
            || ctx.csum.group_descs() && desc.flags.has(GroupFlags::BLOCK_UNINIT)
        {
            continue;
        }
        let bytes = ctx.disk.read(desc.block_bitmap)?;
        let clusters = ctx.geometry.clusters_in_group(group);
        let first = u64::from(group.0) * u64::from(ctx.geometry.clusters_per_group);
        let ratio = u64::from(ctx.geometry.cluster_ratio);
        for run in ext4_format::bitmap::Bits::new(&bytes, clusters).set_runs(0..clusters) {
            let start = ctx.found.blocks.block(first + u64::from(run.start));
            ctx.found.blocks.claim(start, u64::from(run.end - run.start) * ratio, |_| ());
        }
    }
    Ok(())
}

/// Writes the inode and its map.
fn write(ctx: &Context, bad: &BTreeSet<u64>) -> Result<()> {
    let ino = Ino::BAD_BLOCKS;
    let extents: Vec<Extent> = bad
        .iter()
        .enumerate()
        .map(|(at, &block)| Extent {
            first: FileBlock(at as u32),
            len: 1,
            start: BlockNo(block),
            unwritten: false,
        })
        .collect();
    let mut inode = ctx.read_inode(ino)?;
    inode.flags = 0;
    let now = Time { sec: i64::from(ctx.options.now()), nsec: 0 };
    (inode.atime, inode.mtime, inode.ctime) = (now, now, now);
    alloc::set_extents(ctx, ino, &mut inode, &extents)?;
    inode.size = bad.len() as u64 * u64::from(ctx.geometry.block_size);
    ctx.write_inode(ino, &inode)
}
