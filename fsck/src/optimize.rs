//! What can be made smaller on a volume that is sound: directories (`-D`), extent trees, and block maps that
//! become extent trees (`-E bmap2extent`). None of it is a repair, so no exit code tells of it.
//!
//! It comes after the passes, when nothing is left to be repaired; bitmaps, counts and quotas are brought in
//! line with it.

use ext4_format::Ino;
use ext4_format::features::Incompat;
use ext4_format::inode::flag;

use crate::alloc;
use crate::context::{Context, lock};
use crate::error::Result;
use crate::map::Use;
use crate::marks::without;
use crate::prompt::{Agree, Prompter};
use crate::{pass1, pass5, quota, rehash};

/// Does what the options ask for.
///
/// # Errors
/// The device's.
pub fn run(ctx: &mut Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let mut changed = 0;
    if ctx.options.to_extents {
        changed += convert(ctx, prompter)?;
    }
    if ctx.options.optimize_extents {
        changed += shorten(ctx, prompter)?;
    }
    if ctx.options.optimize_dirs {
        changed += pack(ctx, prompter)?;
    }
    if changed > 0 {
        quota::run(ctx, &mut Agree)?;
        pass5::refresh(ctx, prompter)?;
        prompter.report.optimized = true;
    }
    Ok(())
}

/// Changes an inode; what it no longer maps comes free.
fn with(ctx: &Context, ino: Ino, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = pass1::effects_of(ctx, ino)?.cluster_runs(ctx);
    change()?;
    let after = pass1::effects_of(ctx, ino)?.cluster_runs(ctx);
    let ratio = u64::from(ctx.geometry.cluster_ratio);
    for (start, end) in without(&before, &after) {
        ctx.found.blocks.release(ctx.found.blocks.block(start), (end - start) * ratio);
    }
    Ok(())
}

/// Gives every file with a block map an extent tree.
fn convert(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<u64> {
    prompter.say("Converting block maps to extents");
    ctx.edit_super(|raw| raw.feature_incompat.set(raw.feature_incompat.get() | Incompat::EXTENTS.0));
    let mut changed = 0;
    for group in ctx.groups().filter(|group| ctx.found.inodes.touched(group.0)) {
        prompter.go_on()?;
        for index in 0..ctx.geometry.inodes_per_group {
            let Some(ino) = ctx.geometry.inode_at(group, index) else { break };
            if !matches!(ctx.found.inodes.get(ino), Use::File(_)) {
                continue;
            }
            let inode = ctx.read_inode(ino)?;
            if inode.maps_blocks(&ctx.layout) && !inode.has(flag::EXTENTS) {
                with(ctx, ino, || alloc::to_extents(ctx, ino, None))?;
                changed += 1;
            }
        }
    }
    Ok(changed)
}

/// Rebuilds extent trees that are deeper or wider than their extents need.
fn shorten(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<u64> {
    let mut wide = std::mem::take(&mut *lock(&ctx.found.wide_trees));
    wide.sort_unstable();
    let mut changed = 0;
    for ino in wide {
        let text = format!("Inode {ino}: its extent tree could be smaller");
        if !prompter.offers(&text, "Optimize")? {
            continue;
        }
        with(ctx, ino, || {
            let mut inode = ctx.read_inode(ino)?;
            let extents = pass1::extents_of(ctx, &inode);
            alloc::set_extents(ctx, ino, &mut inode, &extents)?;
            ctx.write_inode(ino, &inode)
        })?;
        changed += 1;
    }
    Ok(changed)
}

/// Packs and indexes every directory.
fn pack(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<u64> {
    prompter.say("Optimizing directories");
    let all: Vec<Ino> = lock(&ctx.found.dirs).keys().filter_map(|&ino| Ino::new(ino)).collect();
    for ino in &all {
        prompter.go_on()?;
        with(ctx, *ino, || rehash::rebuild(ctx, *ino))?;
    }
    Ok(all.len() as u64)
}
