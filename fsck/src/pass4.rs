//! Pass 4: every inode in use has as many names as it says.

use ext4_format::Ino;
use ext4_format::features::RoCompat;
use ext4_format::inode::{LINKS_UNCOUNTED, MAX_LINKS, flag};

use crate::context::{Context, lock};
use crate::error::Result;
use crate::map::Use;
use crate::pass3;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};

/// Runs the pass.
pub fn run(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let total = u64::from(ctx.geometry.group_count);
    prompter.progress(4, 0, total)?;
    for group in ctx.groups().filter(|group| ctx.found.inodes.touched(group.0)) {
        prompter.progress(4, group.0.into(), total)?;
        let inodes = (0..ctx.geometry.inodes_per_group).map_while(|i| ctx.geometry.inode_at(group, i));
        let wrong: Vec<Ino> = inodes.filter(|ino| is_wrong(ctx, *ino)).collect();
        prompter.learn_paths(ctx, wrong.iter().copied());
        for ino in wrong {
            check(ctx, prompter, ino)?;
        }
    }
    Ok(())
}

/// Whether there is anything to say about an inode.
fn is_wrong(ctx: &Context, ino: Ino) -> bool {
    let needs_feature = is_overfull(ctx, ino) && !ctx.sb.ro_compat().has(RoCompat::DIR_NLINK);
    matches!(ctx.found.inodes.get(ino), Use::File(_))
        && (needs_feature || u32::from(ctx.found.inodes.links(ino)) != links_expected(ctx, ino))
}

/// The link count that an inode should have. A directory with too many subdirectories stops counting.
fn links_expected(ctx: &Context, ino: Ino) -> u32 {
    let names = ctx.found.inodes.names(ino);
    if is_overfull(ctx, ino) { u32::from(LINKS_UNCOUNTED) } else { names.min(u32::from(u16::MAX)) }
}

/// Whether a directory has more subdirectories than are counted.
fn is_overfull(ctx: &Context, ino: Ino) -> bool {
    ctx.found.inodes.get(ino).is_dir() && ctx.found.inodes.names(ino) > u32::from(MAX_LINKS)
}

fn check(ctx: &Context, prompter: &mut Prompter<'_>, ino: Ino) -> Result<()> {
    let what = ctx.found.inodes.get(ino);
    let names = ctx.found.inodes.names(ino);
    if names == 0 && what.is_dir() {
        // Pass 3 was not allowed to connect it.
        return Ok(());
    }
    if names == 0 {
        let inode = ctx.read_inode(ino)?;
        if inode.size == 0 && inode.blocks == 0 {
            return if prompter.ask(Problem::of(Code::ZeroUnattached, ino))? {
                free(ctx, ino)
            } else {
                Ok(())
            };
        }
        if !prompter.ask(Problem::of(Code::InodeUnattached, ino))? {
            return Ok(());
        }
        if !pass3::reconnect_file(ctx, ino)? {
            prompter.ask(Problem::of(Code::NoRoomToReconnect, ino))?;
            return Ok(());
        }
    }
    let counts = |ctx: &Context| lock(&ctx.next_sb).ro_compat().has(RoCompat::DIR_NLINK);
    if is_overfull(ctx, ino) && !counts(ctx) && prompter.ask(Problem::of(Code::DirNlinkFeature, ino))? {
        ctx.edit_super(|raw| {
            raw.feature_ro_compat.set(raw.feature_ro_compat.get() | RoCompat::DIR_NLINK.0);
        });
    }
    let (links, expected) = (ctx.found.inodes.links(ino), links_expected(ctx, ino));
    if u32::from(links) == expected {
        return Ok(());
    }
    let mut inode = ctx.read_inode(ino)?;
    // A directory that had too many once keeps the count that means so.
    let overflowed = what.is_dir() && links == LINKS_UNCOUNTED && inode.has(flag::INDEX);
    let code = if overflowed { Code::LinkOverflow } else { Code::LinkCount };
    if prompter.ask(Problem::of(code, ino).values(links, expected))? {
        inode.links = expected as u16;
        ctx.write_inode(ino, &inode)?;
    }
    Ok(())
}

fn free(ctx: &Context, ino: Ino) -> Result<()> {
    for (start, len) in crate::pass1::effects_of(ctx, ino)?.claims {
        ctx.found.blocks.release(ext4_format::BlockNo(start), len);
    }
    ctx.write_record(ino, &mut vec![0; ctx.geometry.inode_size])?;
    ctx.found.inodes.set(ino, Use::Free, 0);
    Ok(())
}
