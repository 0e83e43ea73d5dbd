//! Pass 5: bitmaps, flags and counts say what the passes found.
//!
//! Each group is compared on its own and in parallel; what differs is told and written in order.

use std::sync::Mutex;

use ext4_format::bitmap::{Bits, BitsMut};
use ext4_format::group_desc::{GroupDesc, GroupFlags};
use ext4_format::{BlockNo, GroupNo};

use crate::context::{Context, UNALLOCATED, lock};
use crate::error::Result;
use crate::parallel;
use crate::problem::{Code, Problem};
use crate::prompt::{Agree, Ask, Prompter};

/// What a group should say.
struct Truth {
    blocks: Vec<u8>,
    inodes: Vec<u8>,
    free_blocks: u32,
    free_inodes: u32,
    dirs: u32,
    /// Inodes up to the last one in use.
    used_inodes: u32,
}

/// How many groups ahead bitmaps are asked for.
const GROUPS_AHEAD: u64 = 32;

/// Runs the pass.
pub fn run(ctx: &mut Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let groups = u64::from(ctx.geometry.group_count);
    prompter.progress(5, 0, groups)?;
    let (suspects, sums) = compare(ctx, &mut |done| prompter.progress(5, done, groups))?;
    for group in suspects {
        repair(ctx, prompter, group)?;
    }
    let stated = ctx.sb.free_blocks();
    let wrong = Problem::new(Code::FreeBlocks).values(stated, sums.free_blocks);
    if stated != sums.free_blocks && prompter.ask(wrong)? {
        lock(&ctx.next_sb).set_free_blocks(sums.free_blocks);
    }
    let stated = u64::from(ctx.sb.free_inodes());
    let wrong = Problem::new(Code::FreeInodes).values(stated, sums.free_inodes);
    if stated != sums.free_inodes && prompter.ask(wrong)? {
        lock(&ctx.next_sb).set_free_inodes(sums.free_inodes as u32);
    }
    set_usage(ctx, prompter, &sums);
    Ok(())
}

/// Brings bitmaps and counts in line with what was found, without a question: after changes that were no
/// repairs.
///
/// # Errors
/// The device's.
pub fn refresh(ctx: &mut Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let (suspects, sums) = compare(ctx, &mut |_| Ok(()))?;
    for group in suspects {
        repair(ctx, &mut Agree, group)?;
    }
    let mut sb = lock(&ctx.next_sb);
    sb.set_free_blocks(sums.free_blocks);
    sb.set_free_inodes(sums.free_inodes as u32);
    drop(sb);
    set_usage(ctx, prompter, &sums);
    Ok(())
}

/// What all groups have together.
#[derive(Default)]
struct Sums {
    free_blocks: u64,
    free_inodes: u64,
    dirs: u64,
}

/// Compares every group; returns those that say something else, in order.
fn compare(ctx: &Context, progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<(Vec<GroupNo>, Sums)> {
    let suspects: Mutex<Vec<GroupNo>> = Mutex::default();
    let sums: Mutex<Sums> = Mutex::default();
    parallel::for_each(
        ctx.options.thread_count(),
        ctx.geometry.group_count.into(),
        progress,
        || (),
        |(), number| {
            let group = GroupNo(number as u32);
            announce_bitmaps(ctx, number + GROUPS_AHEAD);
            let ratio = u64::from(ctx.geometry.cluster_ratio);
            if is_untouched(ctx, group) {
                let mut sums = lock(&sums);
                sums.free_blocks += u64::from(ctx.geometry.clusters_in_group(group)) * ratio;
                sums.free_inodes += u64::from(ctx.geometry.inodes_per_group);
                return Ok(());
            }
            let truth = truth_of(ctx, group);
            {
                let mut sums = lock(&sums);
                sums.free_blocks += u64::from(truth.free_blocks) * ratio;
                sums.free_inodes += u64::from(truth.free_inodes);
                sums.dirs += u64::from(truth.dirs);
            }
            let agrees = problems_of(ctx, group, &ctx.descs[number as usize], &truth)?.is_empty();
            if !agrees {
                lock(&suspects).push(group);
            }
            Ok(())
        },
    )?;
    let mut suspects = suspects.into_inner().unwrap_or_default();
    suspects.sort_unstable_by_key(|group| group.0);
    Ok((suspects, sums.into_inner().unwrap_or_default()))
}

fn set_usage(ctx: &Context, prompter: &mut Prompter<'_>, sums: &Sums) {
    let usage = &mut prompter.report.usage;
    usage.inodes_total = ctx.geometry.inodes_count.into();
    usage.inodes = usage.inodes_total - sums.free_inodes;
    usage.blocks_total = ctx.geometry.blocks_count;
    usage.blocks = usage.blocks_total.saturating_sub(sums.free_blocks);
    usage.directories = sums.dirs;
    usage.fragmented = ctx.found.fragmented.load(std::sync::atomic::Ordering::Relaxed);
}

/// Asks for the bitmaps of a group that comes soon, as far as they are on the device.
fn announce_bitmaps(ctx: &Context, group: u64) {
    let Some(desc) = ctx.descs.get(group as usize) else { return };
    let has = |flag| ctx.csum.group_descs() && desc.flags.has(flag);
    if !has(GroupFlags::BLOCK_UNINIT) {
        ctx.disk.will_need(desc.block_bitmap, 1);
    }
    if !has(GroupFlags::INODE_UNINIT) {
        ctx.disk.will_need(desc.inode_bitmap, 1);
    }
}

/// Whether a group is one that nothing ever used, and says so: most groups of a large young volume.
fn is_untouched(ctx: &Context, group: GroupNo) -> bool {
    let desc = &ctx.descs[group.0 as usize];
    let clusters = ctx.geometry.clusters_in_group(group);
    let start = ctx.geometry.group_first_block(group);
    let blocks = u64::from(ctx.geometry.blocks_in_group(group));
    ctx.csum.group_descs()
        && desc.flags.has(GroupFlags::BLOCK_UNINIT)
        && desc.flags.has(GroupFlags::INODE_UNINIT)
        && (1..ctx.geometry.group_count - 1).contains(&group.0)
        && desc.free_blocks == clusters
        && desc.free_inodes == ctx.geometry.inodes_per_group
        && desc.used_dirs == 0
        && desc.itable_unused <= ctx.geometry.inodes_per_group
        && !ctx.found.inodes.touched(group.0)
        && ctx.found.blocks.is_blank(start, blocks)
        && !ctx.is_metadata(start, blocks)
}

fn truth_of(ctx: &Context, group: GroupNo) -> Truth {
    let size = ctx.disk.block_size();
    let (mut blocks, mut inodes) = (vec![0; size], vec![0; size]);
    let clusters = ctx.geometry.clusters_in_group(group);
    let first = ctx.found.blocks.cluster(ctx.geometry.group_first_block(group).0);
    // Groups start at multiples of eight clusters.
    ctx.found.blocks.copy_bits(first, &mut blocks[..clusters.div_ceil(8) as usize]);
    let per_group = ctx.geometry.inodes_per_group;
    let (mut dirs, mut used_inodes) = (0, 0);
    {
        let mut bits = BitsMut::new(&mut inodes, per_group);
        if ctx.found.inodes.touched(group.0) {
            for index in 0..per_group {
                let Some(ino) = ctx.geometry.inode_at(group, index) else { break };
                let what = ctx.found.inodes.get(ino);
                if what.is_used() {
                    bits.fill(index..index + 1, true);
                    dirs += u32::from(what.is_dir());
                    used_inodes = index + 1;
                }
            }
        }
        // The reserved inodes count as used, whatever they hold.
        let reserved = ctx.reserved_inodes(group);
        bits.fill(0..reserved, true);
        used_inodes = used_inodes.max(reserved);
    }
    let free_blocks = Bits::new(&blocks, clusters).count_clear(0..clusters);
    let free_inodes = Bits::new(&inodes, per_group).count_clear(0..per_group);
    let len = size as u32 * 8;
    BitsMut::new(&mut blocks, len).fill(clusters..len, true);
    BitsMut::new(&mut inodes, len).fill(per_group..len, true);
    Truth { blocks, inodes, free_blocks, free_inodes, dirs, used_inodes }
}

/// The bitmap as the group says it is.
fn stated_blocks(ctx: &Context, group: GroupNo, desc: &GroupDesc) -> Result<Vec<u8>> {
    if ctx.csum.group_descs() && desc.flags.has(GroupFlags::BLOCK_UNINIT) {
        let mut bytes = vec![0; ctx.disk.block_size()];
        ctx.geometry.fill_uninit_block_bitmap(group, desc, &mut bytes);
        return Ok(bytes);
    }
    read_bitmap(ctx, desc.block_bitmap)
}

/// A bitmap; zeros where it was lost.
fn read_bitmap(ctx: &Context, place: BlockNo) -> Result<Vec<u8>> {
    if place == UNALLOCATED { Ok(vec![0; ctx.disk.block_size()]) } else { ctx.disk.read(place) }
}

fn stated_inodes(ctx: &Context, desc: &GroupDesc) -> Result<Vec<u8>> {
    if ctx.csum.group_descs() && desc.flags.has(GroupFlags::INODE_UNINIT) {
        let mut bytes = vec![0; ctx.disk.block_size()];
        ctx.geometry.fill_uninit_inode_bitmap(&mut bytes);
        return Ok(bytes);
    }
    read_bitmap(ctx, desc.inode_bitmap)
}

fn differences(stated: &[u8], truth: &[u8], bits: u32) -> Option<(u64, u64)> {
    let mut count = 0_u64;
    let mut first = None;
    for (at, (a, b)) in stated.iter().zip(truth).enumerate().take(bits.div_ceil(8) as usize) {
        let mask = if (at as u32 + 1) * 8 > bits { (1_u8 << (bits % 8)) - 1 } else { 0xff };
        let different = (a ^ b) & mask;
        if different != 0 {
            first.get_or_insert(at as u64 * 8 + u64::from(different.trailing_zeros()));
            count += u64::from(different.count_ones());
        }
    }
    first.map(|first| (count, first))
}

fn problems_of(ctx: &Context, group: GroupNo, desc: &GroupDesc, truth: &Truth) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let trusted = ctx.csum.group_descs();
    let has = |flag| trusted && desc.flags.has(flag);
    let clusters = ctx.geometry.clusters_in_group(group);
    let per_group = ctx.geometry.inodes_per_group;
    let of = |code| Problem::of_group(code, group);
    let blocks = stated_blocks(ctx, group, desc)?;
    if let Some((count, first)) = differences(&blocks, &truth.blocks, clusters) {
        let ratio = u64::from(ctx.geometry.cluster_ratio);
        let block = BlockNo(ctx.geometry.group_first_block(group).0 + first * ratio);
        problems.push(of(Code::BlockBitmap).at(block).values(count, 0_u32));
    } else if !has(GroupFlags::BLOCK_UNINIT) {
        if blocks != truth.blocks {
            problems.push(of(Code::BitmapPadding).named("block bitmap"));
        } else if ctx.csum.verify_block_bitmap(&blocks, desc).is_err() {
            problems.push(of(Code::BlockBitmapChecksum));
        }
    }
    let inodes = stated_inodes(ctx, desc)?;
    if let Some((count, first)) = differences(&inodes, &truth.inodes, per_group) {
        let ino = u64::from(group.0) * u64::from(per_group) + first + 1;
        problems.push(of(Code::InodeBitmap).values(count, ino));
    } else if !has(GroupFlags::INODE_UNINIT) {
        if inodes != truth.inodes {
            problems.push(of(Code::BitmapPadding).named("inode bitmap"));
        } else if ctx.csum.verify_inode_bitmap(&inodes, desc).is_err() {
            problems.push(of(Code::InodeBitmapChecksum));
        }
    }
    let uninit = GroupFlags(GroupFlags::INODE_UNINIT.0 | GroupFlags::BLOCK_UNINIT.0);
    if !trusted && (desc.flags.0 & uninit.0 != 0 || desc.itable_unused != 0) {
        problems.push(of(Code::GroupUninitFeature));
    }
    if has(GroupFlags::BLOCK_UNINIT) && group.0 + 1 == ctx.geometry.group_count {
        problems.push(of(Code::GroupLastUninit));
    }
    if has(GroupFlags::INODE_UNINIT) && truth.used_inodes > 0 {
        problems.push(of(Code::GroupUninit).named("INODE_UNINIT"));
    }
    let unused = if trusted { desc.itable_unused } else { 0 };
    if truth.used_inodes + unused > per_group {
        let last = u64::from(group.0) * u64::from(per_group) + u64::from(truth.used_inodes);
        problems.push(of(Code::ItableUnused).values(unused, last));
    }
    for (code, stated, right) in [
        (Code::GroupFreeBlocks, desc.free_blocks, truth.free_blocks),
        (Code::GroupFreeInodes, desc.free_inodes, truth.free_inodes),
        (Code::GroupUsedDirs, desc.used_dirs, truth.dirs),
    ] {
        if stated != right {
            problems.push(of(code).values(stated, right));
        }
    }
    Ok(problems)
}

fn repair(ctx: &mut Context, ask: &mut dyn Ask, group: GroupNo) -> Result<()> {
    let truth = truth_of(ctx, group);
    let mut desc = ctx.descs[group.0 as usize];
    let (mut blocks, mut inodes) = (false, false);
    for problem in problems_of(ctx, group, &desc, &truth)? {
        let code = problem.code;
        if !ask.ask(problem)? {
            continue;
        }
        match code {
            Code::GroupFreeBlocks => desc.free_blocks = truth.free_blocks,
            Code::GroupFreeInodes => desc.free_inodes = truth.free_inodes,
            Code::GroupUsedDirs => desc.used_dirs = truth.dirs,
            Code::GroupUninitFeature => {
                desc.flags.0 &= !(GroupFlags::INODE_UNINIT.0 | GroupFlags::BLOCK_UNINIT.0);
                desc.itable_unused = 0;
            }
            Code::ItableUnused => desc.itable_unused = 0,
            Code::InodeBitmap | Code::InodeBitmapChecksum | Code::GroupUninit => inodes = true,
            Code::BlockBitmap | Code::BlockBitmapChecksum | Code::GroupLastUninit => blocks = true,
            _ => (blocks, inodes) = (true, true),
        }
    }
    if blocks {
        ctx.disk.write(desc.block_bitmap, &truth.blocks)?;
        desc.flags.0 &= !GroupFlags::BLOCK_UNINIT.0;
        ctx.csum.set_block_bitmap(&truth.blocks, &mut desc);
    }
    if inodes {
        ctx.disk.write(desc.inode_bitmap, &truth.inodes)?;
        if desc.flags.has(GroupFlags::INODE_UNINIT) {
            // What stands behind the inodes in use was never written.
            zero_table(ctx, &desc, truth.used_inodes)?;
            desc.flags.0 &= !GroupFlags::INODE_UNINIT.0;
        }
        ctx.csum.set_inode_bitmap(&truth.inodes, &mut desc);
    }
    ctx.descs[group.0 as usize] = desc;
    Ok(())
}

fn zero_table(ctx: &Context, desc: &GroupDesc, used: u32) -> Result<()> {
    let per_block = ctx.geometry.block_size / ctx.geometry.inode_size as u32;
    let zeros = vec![0; ctx.disk.block_size()];
    let touched = used.div_ceil(per_block);
    for ahead in touched..ctx.geometry.inode_table_blocks() {
        ctx.disk.write(BlockNo(desc.inode_table.0 + u64::from(ahead)), &zeros)?;
    }
    Ok(())
}
