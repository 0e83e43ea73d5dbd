//! Bits of the bitmaps on the device, changed where it is known what is right without asking the passes.
//!
//! A bitmap that is not as it should be is left alone, and the caller is told.

use std::collections::BTreeMap;

use ext4_format::bitmap::{Bits, BitsMut};
use ext4_format::group_desc::GroupFlags;
use ext4_format::{GroupNo, Ino};

use crate::context::{Context, lock};
use crate::error::Result;

/// A run of clusters: the first, and the one behind the last.
pub type Run = (u64, u64);

/// Marks runs of clusters as free or in use. False when some are so already, or are metadata, or a bitmap is
/// not to be trusted: nothing was changed in the groups concerned.
///
/// # Errors
/// The device's.
pub fn clusters(ctx: &mut Context, runs: impl IntoIterator<Item = Run>, used: bool) -> Result<bool> {
    let per_group = u64::from(ctx.geometry.clusters_per_group);
    let mut groups: BTreeMap<u32, Vec<Run>> = BTreeMap::new();
    for (mut start, end) in runs {
        while start < end {
            let group = start / per_group;
            let stop = end.min((group + 1) * per_group);
            groups.entry(group as u32).or_default().push((start, stop));
            start = stop;
        }
    }
    let mut all = true;
    for (group, runs) in groups {
        all &= in_group(ctx, GroupNo(group), &runs, used)?;
    }
    Ok(all)
}

fn in_group(ctx: &mut Context, group: GroupNo, runs: &[Run], used: bool) -> Result<bool> {
    let Some(mut desc) = ctx.descs.get(group.0 as usize).copied() else { return Ok(false) };
    let ratio = u64::from(ctx.geometry.cluster_ratio);
    let metadata =
        runs.iter().any(|run| ctx.is_metadata(ctx.found.blocks.block(run.0), (run.1 - run.0) * ratio));
    if metadata || !ctx.on_volume(desc.block_bitmap, 1) {
        return Ok(false);
    }
    let mut bytes = ctx.disk.read(desc.block_bitmap)?;
    if ctx.csum.group_descs() && desc.flags.has(GroupFlags::BLOCK_UNINIT) {
        ctx.geometry.fill_uninit_block_bitmap(group, &desc, &mut bytes);
        desc.flags.0 &= !GroupFlags::BLOCK_UNINIT.0;
    } else if ctx.csum.verify_block_bitmap(&bytes, &desc).is_err() {
        return Ok(false);
    }
    let first = u64::from(group.0) * u64::from(ctx.geometry.clusters_per_group);
    let mut bits = BitsMut::new(&mut bytes, ctx.geometry.clusters_in_group(group));
    for run in runs {
        let range = (run.0 - first) as u32..(run.1 - first) as u32;
        let count = range.end - range.start;
        let done = if used { bits.set(range) } else { bits.clear(range) };
        if done.is_err() {
            return Ok(false);
        }
        desc.free_blocks = match used {
            true => desc.free_blocks.saturating_sub(count),
            false => desc.free_blocks + count,
        };
    }
    ctx.disk.write(desc.block_bitmap, &bytes)?;
    ctx.csum.set_block_bitmap(&bytes, &mut desc);
    ctx.descs[group.0 as usize] = desc;
    write_descriptor(ctx, group)?;
    Ok(true)
}

/// Marks inodes as free; each comes with whether it was a directory. False as for [`clusters`].
///
/// # Errors
/// The device's.
pub fn free_inodes(ctx: &mut Context, inodes: impl IntoIterator<Item = (Ino, bool)>) -> Result<bool> {
    let mut all = true;
    for (ino, is_dir) in inodes {
        all &= free_inode(ctx, ino, is_dir)?;
    }
    Ok(all)
}

fn free_inode(ctx: &mut Context, ino: Ino, is_dir: bool) -> Result<bool> {
    let per_group = ctx.geometry.inodes_per_group;
    let (group, index) = (GroupNo((ino.get() - 1) / per_group), (ino.get() - 1) % per_group);
    let Some(mut desc) = ctx.descs.get(group.0 as usize).copied() else { return Ok(false) };
    let uninit = ctx.csum.group_descs() && desc.flags.has(GroupFlags::INODE_UNINIT);
    if uninit || !ctx.on_volume(desc.inode_bitmap, 1) {
        return Ok(false);
    }
    let mut bytes = ctx.disk.read(desc.inode_bitmap)?;
    if ctx.csum.verify_inode_bitmap(&bytes, &desc).is_err() || !Bits::new(&bytes, per_group).get(index) {
        return Ok(false);
    }
    BitsMut::new(&mut bytes, per_group).fill(index..index + 1, false);
    desc.free_inodes += 1;
    desc.used_dirs = desc.used_dirs.saturating_sub(u32::from(is_dir));
    ctx.disk.write(desc.inode_bitmap, &bytes)?;
    ctx.csum.set_inode_bitmap(&bytes, &mut desc);
    ctx.descs[group.0 as usize] = desc;
    write_descriptor(ctx, group)?;
    Ok(true)
}

/// Writes the first copy of a group's descriptor.
fn write_descriptor(ctx: &Context, group: GroupNo) -> Result<()> {
    let (block, byte) = ctx.geometry.descriptor(group);
    let mut bytes = ctx.disk.read(block)?;
    ctx.descs[group.0 as usize].encode_into(
        &mut bytes[byte..byte + ctx.geometry.desc_size],
        group,
        &ctx.csum,
    );
    ctx.disk.write(block, &bytes)
}

/// Makes the superblock's counts the sums of the descriptors': while a volume is mounted only these are kept
/// right.
pub fn count_free(ctx: &Context) {
    let (mut clusters, mut inodes) = (0, 0);
    for desc in &ctx.descs {
        clusters += u64::from(desc.free_blocks);
        inodes += u64::from(desc.free_inodes);
    }
    let mut sb = lock(&ctx.next_sb);
    sb.set_free_blocks(clusters * u64::from(ctx.geometry.cluster_ratio));
    sb.set_free_inodes(inodes as u32);
}

/// The parts of some runs that no other run covers.
#[must_use]
pub fn without(runs: &[Run], others: &[Run]) -> Vec<Run> {
    let mut left = Vec::new();
    for &(first, end) in runs {
        let mut start = first;
        let mut covering: Vec<&Run> = others.iter().filter(|run| run.0 < end && run.1 > first).collect();
        covering.sort_unstable();
        for run in covering {
            if run.0 > start {
                left.push((start, run.0));
            }
            start = start.max(run.1);
        }
        if start < end {
            left.push((start, end));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_runs() {
        assert_eq!(without(&[(0, 10), (20, 30)], &[]), [(0, 10), (20, 30)]);
        assert_eq!(without(&[(0, 10)], &[(8, 12), (2, 4)]), [(0, 2), (4, 8)]);
        assert_eq!(without(&[(0, 10), (20, 30)], &[(5, 25)]), [(0, 5), (25, 30)]);
        assert_eq!(without(&[(5, 6)], &[(0, 100)]), []);
    }
}
