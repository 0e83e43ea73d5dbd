//! Orphans: inodes that a crash caught between losing their last name (or their tail) and giving up their
//! blocks. They stand on a list through the inodes, or in the orphan file.

use std::collections::HashSet;

use ext4_format::extent::{Extent, NodeMut};
use ext4_format::features::{Compat, RoCompat};
use ext4_format::inode::{Inode, flag};
use ext4_format::{BlockNo, Ino, indirect, orphan};

use crate::context::{Context, lock};
use crate::error::Result;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};
use crate::release;

/// Finishes what the orphans were in the middle of. Nothing happens where nothing may be written: the passes
/// see those on the list as what they are, files to be freed, and those of the orphan file as files in use.
pub fn process(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    if ctx.options.may_write() || prompter.overlaid {
        walk_list(ctx, prompter)?;
    }
    walk_file(ctx, prompter)
}

fn walk_list(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let mut seen = HashSet::new();
    let mut at = ctx.sb.last_orphan();
    if at.is_none() {
        return Ok(());
    }
    while let Some(ino) = at {
        let outside = ino.get() < ctx.first_ino() || ino.get() > ctx.geometry.inodes_count;
        if outside || !seen.insert(ino) {
            let code = if seen.len() <= 1 { Code::OrphanHead } else { Code::OrphanLink };
            prompter.ask(Problem::of(code, ino).values(ino.get(), 0_u32).named("no such inode"))?;
            break;
        }
        let inode = ctx.read_inode(ino)?;
        let next = Ino::new(inode.dtime);
        if inode.mode == 0 && inode.links == 0 {
            prompter.ask(Problem::of(Code::OrphanLink, ino).named("free inode"))?;
            break;
        }
        settle(ctx, prompter, ino, inode)?;
        at = next;
    }
    lock(&ctx.next_sb).set_last_orphan(None);
    Ok(())
}

fn walk_file(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let present = ctx.sb.ro_compat().has(RoCompat::ORPHAN_PRESENT);
    if !ctx.sb.compat().has(Compat::ORPHAN_FILE) {
        if present && prompter.ask(Problem::new(Code::OrphanPresent))? {
            lock(&ctx.next_sb).set_orphan_present(false);
        }
        return Ok(());
    }
    let Some(ino) = ctx.sb.orphan_file().filter(|ino| ino.get() <= ctx.geometry.inodes_count) else {
        if prompter.ask(Problem::new(Code::OrphanFileInode).named("no such inode"))? {
            give_up_file(ctx);
        }
        return Ok(());
    };
    let inode = ctx.read_inode(ino)?;
    let regular = inode.links > 0 && inode.file_type() == Some(ext4_format::inode::FileType::Regular);
    // A file without one block of the right kind is some other file, which must not be written to.
    let mut any = false;
    for extent in pass1::extents_of(ctx, &inode).into_iter().filter(|_| regular) {
        for ahead in 0..u64::from(extent.len) {
            any = any || orphan::check(&ctx.disk.read(BlockNo(extent.start.0 + ahead))?).is_ok();
        }
    }
    // A journal that was thrown away comes back.
    let journal = ctx.sb.compat().has(Compat::HAS_JOURNAL) || prompter.journal_lost;
    if !any || !journal {
        let why = match (regular, journal) {
            (false, _) => "not a regular file",
            (true, false) => "there is no journal",
            (true, true) => "no orphan blocks",
        };
        if prompter.ask(Problem::of(Code::OrphanFileInode, ino).named(why))? {
            if any {
                ctx.write_record(ino, &mut vec![0; ctx.geometry.inode_size])?;
            }
            give_up_file(ctx);
        }
        return Ok(());
    }
    let sums = ctx.sb.ro_compat().has(RoCompat::METADATA_CSUM);
    for extent in pass1::extents_of(ctx, &inode) {
        for ahead in 0..u64::from(extent.len) {
            let block = BlockNo(extent.start.0 + ahead);
            let mut bytes = ctx.disk.read(block)?;
            let sound = ext4_format::verify::orphan_block(&bytes, &ctx.csum, block, ino, inode.generation);
            let mut changed = false;
            if let Err(corruption) = sound {
                let problem = Problem::of(Code::OrphanFileBlock, ino).at(block).named(corruption.field);
                if !prompter.ask(problem)? {
                    continue;
                }
                orphan::init(&mut bytes);
                changed = true;
            }
            // Without the feature zeros stand in its place.
            if let Some(sum) = bytes.last_chunk_mut::<4>().filter(|sum| !sums && **sum != [0; 4]) {
                let problem = Problem::of(Code::OrphanFileBlock, ino).at(block).named("ob_checksum");
                if prompter.ask(problem)? {
                    *sum = [0; 4];
                    changed = true;
                }
            }
            let entries: Vec<(usize, Ino)> = orphan::entries(&bytes).collect();
            for (slot, target) in entries {
                if !present || target.get() < ctx.first_ino() || target.get() > ctx.geometry.inodes_count {
                    let problem = Problem::of(Code::OrphanFileEntry, ino).values(target.get(), 0_u32);
                    changed |= prompter.ask(problem)? && orphan::set(&mut bytes, slot, None);
                } else if !ctx.options.may_write() && !prompter.overlaid {
                    lock(&ctx.found.orphans).insert(target);
                } else {
                    settle(ctx, prompter, target, ctx.read_inode(target)?)?;
                    changed |= orphan::set(&mut bytes, slot, None);
                }
            }
            if changed {
                ctx.csum.set_orphan_block(&mut bytes, block, ino, inode.generation);
                ctx.disk.write(block, &bytes)?;
            }
        }
    }
    // A mounted volume always says so, and so does one after a crash: who may not write leaves it at that.
    if present && ctx.options.may_write() && prompter.ask(Problem::new(Code::OrphanPresent))? {
        lock(&ctx.next_sb).set_orphan_present(false);
    }
    Ok(())
}

/// The volume goes on without an orphan file.
fn give_up_file(ctx: &Context) {
    let mut sb = lock(&ctx.next_sb);
    sb.set_orphan_present(false);
    let _ = sb.edit(|raw| {
        raw.feature_compat.set(raw.feature_compat.get() & !Compat::ORPHAN_FILE.0);
        raw.orphan_file_inum.set(0);
    });
}

/// Frees an orphan without names, or cuts one with names to its size.
fn settle(ctx: &Context, prompter: &mut Prompter<'_>, ino: Ino, mut inode: Inode) -> Result<()> {
    if inode.links == 0 {
        if prompter.ask(Problem::of(Code::OrphanInode, ino))? {
            release::free(ctx, ino)?;
        }
        return Ok(());
    }
    let problem = Problem::of(Code::OrphanTruncate, ino).values(0_u32, inode.size);
    if prompter.ask(problem)? {
        let held = release::held_by(ctx, ino)?;
        truncate(ctx, ino, &mut inode)?;
        zero_tail(ctx, &inode)?;
        inode.dtime = 0;
        ctx.write_inode(ino, &inode)?;
        inode.blocks = pass1::effects_of(ctx, ino)?.clusters(ctx) * ctx.cluster_sectors()
            + if inode.file_acl.0 != 0 { ctx.cluster_sectors() } else { 0 };
        ctx.write_inode(ino, &inode)?;
        release::cut(ctx, ino, held)?;
    }
    Ok(())
}

/// Zeros what the last block holds behind the end of the file, or a file that grows again would show it.
fn zero_tail(ctx: &Context, inode: &Inode) -> Result<()> {
    let size = ctx.disk.block_size() as u64;
    let (last, used) = (inode.size / size, (inode.size % size) as usize);
    if used == 0 || !inode.maps_blocks(&ctx.layout) || inode.has(flag::ENCRYPT) {
        return Ok(());
    }
    let holds = |extent: &Extent| (u64::from(extent.first.0)..extent.end()).contains(&last);
    let extents = pass1::extents_of(ctx, inode);
    let Some(extent) = extents.iter().find(|extent| holds(extent) && !extent.unwritten) else {
        return Ok(());
    };
    let block = BlockNo(extent.start.0 + last - u64::from(extent.first.0));
    if !ctx.on_volume(block, 1) || ctx.is_metadata(block, 1) {
        return Ok(());
    }
    let mut bytes = ctx.disk.read(block)?;
    bytes[used..].fill(0);
    ctx.disk.write(block, &bytes)
}

/// Takes away what an inode maps behind its size.
fn truncate(ctx: &Context, ino: Ino, inode: &mut Inode) -> Result<()> {
    if !inode.maps_blocks(&ctx.layout) {
        return Ok(());
    }
    let end = inode.size.div_ceil(u64::from(ctx.geometry.block_size));
    if inode.has(flag::EXTENTS) {
        let mut root = inode.block;
        cut_node(ctx, ino, inode.generation, &mut root, end, 0)?;
        if NodeMut::parse(&mut root).is_ok_and(|node| node.view().is_empty()) {
            let _ = NodeMut::init(&mut root, 0);
        }
        inode.block = root;
        return Ok(());
    }
    let mut first = 0;
    for slot in 0..indirect::DIRECT + 3 {
        let levels = (slot + 1).saturating_sub(indirect::DIRECT) as usize;
        cut_pointer(ctx, &mut inode.block, slot, first, levels, end)?;
        first += indirect::span(ctx.geometry.block_size, levels);
    }
    Ok(())
}

fn cut_node(ctx: &Context, ino: Ino, generation: u32, bytes: &mut [u8], end: u64, level: u16) -> Result<()> {
    let Ok(mut node) = NodeMut::parse(bytes) else { return Ok(()) };
    while let Some(last) = node.view().len().checked_sub(1) {
        let first = node.view().first_of(last).map_or(0, |first| u64::from(first.0));
        if first >= end {
            node.remove(last..last + 1);
            continue;
        }
        if let Some(extent) = node.view().extent(last) {
            if extent.end() > end {
                node.set(last, Extent { len: (end - first) as u32, ..extent });
            }
        } else if let Some(index) = node.view().index(last)
            && level < ext4_format::extent::MAX_DEPTH
            && ctx.on_volume(index.child, 1)
        {
            let mut child = ctx.disk.read(index.child)?;
            cut_node(ctx, ino, generation, &mut child, end, level + 1)?;
            if NodeMut::parse(&mut child).is_ok_and(|child| child.view().is_empty()) {
                node.remove(last..last + 1);
                continue;
            }
            ctx.csum.set_extent_block(&mut child, ino, generation);
            ctx.disk.write(index.child, &child)?;
        }
        break;
    }
    Ok(())
}

fn cut_pointer(
    ctx: &Context,
    bytes: &mut [u8],
    slot: u32,
    first: u64,
    levels: usize,
    end: u64,
) -> Result<()> {
    let Some(block) = indirect::pointer(bytes, slot) else { return Ok(()) };
    if first >= end {
        indirect::set_pointer(bytes, slot, None);
        return Ok(());
    }
    if levels == 0
        || first + indirect::span(ctx.geometry.block_size, levels) <= end
        || !ctx.on_volume(block, 1)
    {
        return Ok(());
    }
    let mut child = ctx.disk.read(block)?;
    let unit = indirect::span(ctx.geometry.block_size, levels - 1);
    for at in 0..ctx.geometry.block_size / 4 {
        cut_pointer(ctx, &mut child, at, first + u64::from(at) * unit, levels - 1, end)?;
    }
    ctx.disk.write(block, &child)
}
