//! Pass 1B: blocks that more than one claims. Each owner but the last gets copies of its own; the volume's
//! metadata stay where they are, and so does the list of bad blocks, which owns nothing.

use std::collections::HashMap;

use ext4_format::extent::{self, Extent};
use ext4_format::features::RoCompat;
use ext4_format::{BlockNo, FileBlock, Ino};

use crate::alloc;
use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::map::Use;
use crate::options::Mode;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};

/// Runs the pass; false when owners were left with blocks of others.
///
/// # Errors
/// The device's, or what a question ends with.
pub fn run(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<bool> {
    let shares = ctx.sb.ro_compat().has(RoCompat::SHARED_BLOCKS);
    let mut all_apart = true;
    let mut owners: Vec<(Ino, u64)> = Vec::new();
    let mut users: HashMap<u64, u32> = HashMap::new();
    for group in ctx.groups().filter(|group| ctx.found.inodes.touched(group.0)) {
        for index in 0..ctx.geometry.inodes_per_group {
            let Some(ino) = ctx.geometry.inode_at(group, index) else { break };
            if ctx.found.inodes.get(ino) == Use::Free {
                continue;
            }
            let shared = shared_clusters(ctx, ino)?;
            if !shared.is_empty() {
                if ino != Ino::BAD_BLOCKS {
                    owners.push((ino, shared.len() as u64));
                }
                shared.into_iter().for_each(|cluster| *users.entry(cluster).or_default() += 1);
            }
        }
    }
    for (cluster, count) in &mut users {
        let ratio = ctx.geometry.cluster_ratio.into();
        *count += u32::from(ctx.is_metadata(ctx.found.blocks.block(*cluster), ratio));
    }
    if shares {
        let (needed, free) = (room_for_copies(ctx, &owners, &users)?, ctx.found.blocks.free_count());
        if needed > free {
            prompter.ask(Problem::new(Code::UnshareNoRoom).values(needed, free))?;
            return Ok(false);
        }
    }
    prompter.learn_paths(ctx, owners.iter().map(|owner| owner.0));
    for (ino, count) in owners {
        let shared = shared_clusters(ctx, ino)?;
        let still = shared.iter().any(|cluster| users.get(cluster).is_some_and(|&users| users > 1));
        if !still {
            continue;
        }
        let problem = Problem::of(Code::MultiplyClaimed, ino).values(count, 0_u32);
        if !prompter.ask(problem)? {
            all_apart = false;
            // Whoever does not want copies may want the file gone.
            if ctx.options.mode == Mode::Ask && prompter.ask(Problem::of(Code::MultiplyClaimedDelete, ino))? {
                delete(ctx, ino)?;
                prompter.report.resolve(Code::MultiplyClaimed, ino);
                settle(&mut users, shared);
            }
            continue;
        }
        if ctx.found.inodes.get(ino) == Use::Reserved {
            // Nobody reads what a reserved inode maps: it gives it up.
            ctx.write_record(ino, &mut vec![0; ctx.geometry.inode_size])?;
            settle(&mut users, shared);
            continue;
        }
        let free = ctx.found.blocks.free_count();
        let needed = shared.len() as u64 + room_for_tree(ctx, ino, count)?;
        let cloned = match clone(ctx, ino, &users) {
            Err(Error::NoSpace) => false,
            other => other.map(|()| true)?,
        };
        if cloned {
            settle(&mut users, shared);
        } else if shares {
            prompter.ask(Problem::new(Code::UnshareNoRoom).values(needed, free))?;
            return Ok(false);
        } else if prompter.ask(Problem::of(Code::CloneNoRoom, ino).values(needed, free))? {
            delete(ctx, ino)?;
            settle(&mut users, shared);
        }
    }
    Ok(all_apart)
}

/// Clusters that it takes to give every owner its own, all of them but the last of each cluster.
fn room_for_copies(ctx: &Context, owners: &[(Ino, u64)], users: &HashMap<u64, u32>) -> Result<u64> {
    let copies: u64 = users.values().map(|&users| u64::from(users.saturating_sub(1))).sum();
    let trees = owners.iter().map(|&(ino, count)| room_for_tree(ctx, ino, count));
    trees.sum::<Result<u64>>().map(|trees| trees + copies)
}

/// The most clusters that the tree of an inode takes when so many of its clusters move.
fn room_for_tree(ctx: &Context, ino: Ino, moved: u64) -> Result<u64> {
    let extents = pass1::extents_of(ctx, &ctx.read_inode(ino)?).len() as u64 + moved;
    let in_node = u64::from(ctx.geometry.block_size) / extent::ENTRY_SIZE as u64 - 1;
    Ok(if extents <= 4 { 0 } else { extents.div_ceil(in_node) + 2 })
}

/// Makes an inode a free one; its names go in pass 2.
fn delete(ctx: &Context, ino: Ino) -> Result<()> {
    ctx.write_record(ino, &mut vec![0; ctx.geometry.inode_size])?;
    ctx.found.inodes.set(ino, Use::Free, 0);
    lock(&ctx.found.dirs).remove(&ino.get());
    Ok(())
}

/// Clusters have one user less.
fn settle(users: &mut HashMap<u64, u32>, shared: Vec<u64>) {
    for cluster in shared {
        if let Some(users) = users.get_mut(&cluster) {
            *users = users.saturating_sub(1);
        }
    }
}

/// Clusters of an inode that somebody else claims, too; one that it claims twice stands twice.
fn shared_clusters(ctx: &Context, ino: Ino) -> Result<Vec<u64>> {
    let effects = pass1::effects_of(ctx, ino)?;
    let mut shared = Vec::new();
    let mut claims = effects.claims;
    claims.extend(effects.xattr_block.map(|(block, _)| (block.0, 1)));
    for (start, len) in claims {
        if ctx.found.multiple.any(BlockNo(start), len) {
            let first = ctx.found.blocks.cluster(start);
            let last = ctx.found.blocks.cluster(start + len - 1);
            let is_shared = |cluster: &u64| ctx.found.multiple.has(ctx.found.blocks.block(*cluster));
            shared.extend((first..=last).filter(is_shared));
        }
    }
    if ctx.geometry.cluster_ratio > 1 {
        shared.sort_unstable();
        shared.dedup();
    }
    Ok(shared)
}

/// A block to be copied; zeros for one that a list of bad blocks or the device gives up.
fn read_for_copy(ctx: &Context, block: BlockNo) -> Result<Vec<u8>> {
    match ctx.disk.read(block) {
        Err(Error::Device(_)) => Ok(vec![0; ctx.disk.block_size()]),
        other => other,
    }
}

/// Gives an inode its own copy of every block it shares, and a tree of its own.
fn clone(ctx: &Context, ino: Ino, users: &HashMap<u64, u32>) -> Result<()> {
    let mut inode = ctx.read_inode(ino)?;
    let is_shared = |block: u64| {
        ctx.found.multiple.has(BlockNo(block))
            && users.get(&ctx.found.blocks.cluster(block)).is_some_and(|&users| users > 1)
    };
    if inode.file_acl.0 != 0 && is_shared(inode.file_acl.0) {
        let copy = alloc::cluster(ctx, inode.file_acl)?;
        let mut bytes = ctx.disk.read(inode.file_acl)?;
        ctx.csum.set_xattr_block(&mut bytes, copy);
        ctx.disk.write(copy, &bytes)?;
        inode.file_acl = copy;
        ctx.write_inode(ino, &inode)?;
    }
    if !inode.maps_blocks(&ctx.layout) {
        return Ok(());
    }
    let ratio = u64::from(ctx.geometry.cluster_ratio);
    let mut moved: HashMap<u64, u64> = HashMap::new();
    let mut all: Vec<Extent> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for extent in pass1::extents_of(ctx, &inode) {
        for ahead in 0..extent.len {
            let old = extent.start.0 + u64::from(ahead);
            let cluster = ctx.found.blocks.cluster(old);
            let twice_here = ratio == 1 && !seen.insert(old);
            let start = if is_shared(old) || twice_here {
                let base = match moved.get(&cluster) {
                    Some(&base) if ratio > 1 => base,
                    _ => {
                        let base = alloc::cluster(ctx, BlockNo(old))?.0;
                        moved.insert(cluster, base);
                        base
                    }
                };
                let new = base + (old - ctx.found.blocks.block(cluster).0);
                ctx.disk.write(BlockNo(new), &read_for_copy(ctx, BlockNo(old))?)?;
                new
            } else {
                old
            };
            let one = Extent {
                first: FileBlock(extent.first.0 + ahead),
                len: 1,
                start: BlockNo(start),
                unwritten: extent.unwritten,
            };
            match all.last_mut() {
                Some(last) if last.joins(&one) => last.len += 1,
                _ => all.push(one),
            }
        }
    }
    alloc::set_extents(ctx, ino, &mut inode, &all)?;
    ctx.write_inode(ino, &inode)
}
