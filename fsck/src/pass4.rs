//! Pass 4: every inode in use has as many names as it says.

use ext4_format::Ino;
use ext4_format::features::RoCompat;
use ext4_format::inode::{LINKS_UNCOUNTED, MAX_LINKS};

use crate::ask::{Ask, Judge};
use crate::context::Context;
use crate::error::Result;
use crate::map::Use;
use crate::pass3;
use crate::problem::{Code, Problem};

/// Runs the pass.
pub fn run(ctx: &Context, judge: &mut Judge<'_>) -> Result<()> {
    let total = u64::from(ctx.geometry.group_count);
    judge.progress(4, 0, total)?;
    for group in ctx.groups().filter(|group| ctx.found.inodes.touched(group.0)) {
        judge.progress(4, group.0.into(), total)?;
        let inodes = (0..ctx.geometry.inodes_per_group).map_while(|i| ctx.geometry.inode_at(group, i));
        let wrong: Vec<Ino> = inodes.filter(|ino| is_wrong(ctx, *ino)).collect();
        judge.learn_paths(ctx, wrong.iter().copied());
        for ino in wrong {
            check(ctx, judge, ino)?;
        }
    }
    Ok(())
}

/// Whether there is anything to say about an inode.
fn is_wrong(ctx: &Context, ino: Ino) -> bool {
    match ctx.found.inodes.get(ino) {
        Use::Attribute => true,
        Use::File(_) => u32::from(ctx.found.inodes.links(ino)) != links_expected(ctx, ino),
        _ => false,
    }
}

/// The link count that an inode should have. A directory with too many subdirectories stops counting.
fn links_expected(ctx: &Context, ino: Ino) -> u32 {
    let names = ctx.found.inodes.names(ino);
    let uncounted = ctx.found.inodes.get(ino).is_dir()
        && ctx.sb.ro_compat().has(RoCompat::DIR_NLINK)
        && names > u32::from(MAX_LINKS);
    if uncounted { u32::from(LINKS_UNCOUNTED) } else { names.min(u32::from(u16::MAX)) }
}

fn check(ctx: &Context, judge: &mut Judge<'_>, ino: Ino) -> Result<()> {
    let what = ctx.found.inodes.get(ino);
    if what == Use::Attribute {
        return check_attribute(ctx, judge, ino);
    }
    let names = ctx.found.inodes.names(ino);
    if names == 0 && what.is_dir() {
        // Pass 3 was not allowed to connect it.
        return Ok(());
    }
    if names == 0 {
        let inode = ctx.read_inode(ino)?;
        if inode.size == 0 && inode.blocks == 0 {
            return if judge.ask(Problem::of(Code::ZeroUnattached, ino))? { free(ctx, ino) } else { Ok(()) };
        }
        if !judge.ask(Problem::of(Code::InodeUnattached, ino))? {
            return Ok(());
        }
        pass3::reconnect_file(ctx, ino)?;
    }
    let (links, expected) = (ctx.found.inodes.links(ino), links_expected(ctx, ino));
    if u32::from(links) != expected && judge.ask(Problem::of(Code::LinkCount, ino).values(links, expected))? {
        let mut inode = ctx.read_inode(ino)?;
        inode.links = expected as u16;
        ctx.write_inode(ino, &inode)?;
    }
    Ok(())
}

/// An attribute's inode is held by references, not by names.
fn check_attribute(ctx: &Context, judge: &mut Judge<'_>, ino: Ino) -> Result<()> {
    let referred = crate::context::lock(&ctx.found.ea_refs).contains_key(&ino.get());
    if referred {
        return Ok(());
    }
    if judge.ask(Problem::of(Code::EaInodeUnused, ino))? { free(ctx, ino) } else { Ok(()) }
}

fn free(ctx: &Context, ino: Ino) -> Result<()> {
    for (start, len) in crate::pass1::effects_of(ctx, ino)?.claims {
        ctx.found.blocks.release(ext4_format::BlockNo(start), len);
    }
    ctx.write_record(ino, &mut vec![0; ctx.geometry.inode_size])?;
    ctx.found.inodes.set(ino, Use::Free, 0);
    Ok(())
}
