//! Pass 1: every inode and every block it uses.
//!
//! Groups are scanned in parallel by the prober; an inode that needs a question is put on a list and looked
//! at again, alone and in order, by the judge. Inodes with trees of blocks come after the scan, in parallel
//! too and sorted by place, so that one group full of large files does not keep one core busy alone. The
//! device hears of the tables and trees that come next while those before them are looked at.

mod extents;
mod indirect;
pub mod inline;
mod inode;
mod metadata;
mod special;
mod xattr;

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use ext4_format::features::RoCompat;
use ext4_format::{BlockNo, GroupNo, Ino};

pub use extents::list as extents_of;
pub use inode::Effects;
pub use metadata::{claim as claim_metadata, ranges as metadata_ranges};

use crate::ask::{Ask, Judge, Probe};
use crate::context::{Context, Dir, NOWHERE, SharedBlock, lock};
use crate::error::{Error, Result};
use crate::parallel;
use crate::problem::{Code, Problem};

/// Inodes whose trees are asked for together.
const TREES_TOGETHER: usize = 8;

/// Runs the pass.
pub fn run(ctx: &mut Context, judge: &mut Judge<'_>) -> Result<()> {
    metadata::claim(ctx);
    let ctx = &*ctx;
    let suspects: Mutex<Vec<Ino>> = Mutex::default();
    let trees: Mutex<Vec<(u64, Ino)>> = Mutex::default();
    let groups = u64::from(ctx.geometry.group_count);
    let threads = ctx.options.thread_count();
    judge.progress(1, 0, groups)?;
    parallel::for_each(
        threads,
        groups,
        &mut |done| judge.progress(1, done, groups),
        || (),
        |(), group| {
            announce_table(ctx, GroupNo((group as u32).saturating_add(threads as u32)));
            scan_group(ctx, GroupNo(group as u32), &suspects, &trees)
        },
    )?;
    let mut trees = trees.into_inner().unwrap_or_default();
    trees.sort_unstable();
    let together: Vec<_> = trees.chunks(TREES_TOGETHER).collect();
    parallel::for_each(
        threads,
        together.len() as u64,
        &mut |_| Ok(()),
        || (),
        |(), at| {
            let inodes = together[at as usize].iter().map(|&(_, ino)| Ok((ino, ctx.read_record(ino)?)));
            let inodes = inodes.collect::<Result<Vec<_>>>()?;
            for block in inodes.iter().flat_map(|(_, record)| tree_blocks(record)) {
                ctx.disk.will_need(BlockNo(block), 1);
            }
            inodes.into_iter().try_for_each(|(ino, record)| probe(ctx, ino, record, &suspects))
        },
    )?;
    let mut suspects = suspects.into_inner().unwrap_or_default();
    suspects.sort_unstable();
    judge.learn_paths(ctx, suspects.iter().copied());
    for ino in suspects {
        let mut effects = Effects::default();
        inode::check(ctx, judge, ino, ctx.read_record(ino)?, &mut effects)?;
        apply(ctx, ino, &effects);
    }
    ctx.found.judged.store(true, Relaxed);
    special::check_numbers(ctx, judge)?;
    xattr::check_counts(ctx, judge)?;
    if ctx.found.large_file.load(Relaxed) && judge.ask(Problem::new(Code::LargeFileFeature))? {
        ctx.edit_super(|raw| {
            raw.feature_ro_compat.set(raw.feature_ro_compat.get() | RoCompat::LARGE_FILE.0);
        });
    }
    Ok(())
}

/// Effects of an inode as it stands, with every question answered "no" and nothing reported.
pub fn effects_of(ctx: &Context, ino: Ino) -> Result<Effects> {
    struct Never;
    impl Ask for Never {
        fn ask(&mut self, _: Problem) -> Result<bool> {
            Ok(false)
        }
    }
    let mut effects = Effects::default();
    inode::check(ctx, &mut Never, ino, ctx.read_record(ino)?, &mut effects)?;
    Ok(effects)
}

fn scan_group(
    ctx: &Context,
    group: GroupNo,
    suspects: &Mutex<Vec<Ino>>,
    trees: &Mutex<Vec<(u64, Ino)>>,
) -> Result<()> {
    let desc = &ctx.descs[group.0 as usize];
    if desc.inode_table == NOWHERE {
        return Ok(());
    }
    let used = ctx.inodes_to_scan(group);
    let size = ctx.geometry.inode_size;
    let per_read = (1 << 20) / size as u32;
    let mut buf = vec![0; per_read.min(used.max(1)) as usize * size];
    let mut index = 0;
    while index < used {
        let count = per_read.min(used - index) as usize;
        let bytes = &mut buf[..count * size];
        let start = desc.inode_table.0 * u64::from(ctx.geometry.block_size);
        ctx.disk.read_bytes(start + u64::from(index) * size as u64, bytes)?;
        for (at, record) in bytes.chunks_exact(size).enumerate() {
            let Some(ino) = ctx.geometry.inode_at(group, index + at as u32) else { break };
            match tree_blocks(record).next() {
                Some(block) => lock(trees).push((block, ino)),
                None => probe(ctx, ino, record.to_vec(), suspects)?,
            }
        }
        index += count as u32;
    }
    Ok(())
}

/// Asks for the inode table of a group that comes soon.
fn announce_table(ctx: &Context, group: GroupNo) {
    if let Some(desc) = ctx.descs.get(group.0 as usize).filter(|desc| desc.inode_table != NOWHERE) {
        let bytes = u64::from(ctx.inodes_to_scan(group)) * ctx.geometry.inode_size as u64;
        ctx.disk.will_need(desc.inode_table, bytes.div_ceil(ctx.geometry.block_size.into()));
    }
}

/// The blocks that the record itself names of the tree of an inode that needs more than its record to be
/// checked.
fn tree_blocks(record: &[u8]) -> impl Iterator<Item = u64> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| record[at + i]));
    let (mode, flags) = (word(0) & 0xf000, word(0x20));
    let links = word(0x18) >> 16;
    let depth = word(0x2c) >> 16;
    let places: &[usize] = if links == 0 || !(mode == 0x8000 || mode == 0x4000) {
        &[]
    } else if flags & ext4_format::inode::flag::EXTENTS == 0 {
        &[48, 52, 56]
    } else if depth > 0 {
        let entries = (word(0x28) >> 16) as usize;
        &[16, 28, 40, 52][..entries.clamp(1, 4)]
    } else {
        &[]
    };
    places.iter().map(move |at| u64::from(word(0x28 + at))).filter(|&block| block != 0)
}

fn probe(ctx: &Context, ino: Ino, record: Vec<u8>, suspects: &Mutex<Vec<Ino>>) -> Result<()> {
    let mut effects = Effects::default();
    match inode::check(ctx, &mut Probe, ino, record, &mut effects) {
        Ok(()) => apply(ctx, ino, &effects),
        Err(Error::Suspect) => lock(suspects).push(ino),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Joins what one inode uses to the picture of the whole.
fn apply(ctx: &Context, ino: Ino, effects: &Effects) {
    let found = &ctx.found;
    let Some(what) = effects.what else { return };
    found.inodes.set(ino, what, effects.links);
    if what.is_dir() {
        lock(&found.dirs).insert(ino.get(), Dir::default());
    }
    if effects.breaks > 0 {
        found.fragmented.fetch_add(1, Relaxed);
        if ctx.options.fragcheck {
            lock(&found.pieces).push((ino.get(), effects.breaks + 1));
        }
    }
    let claim = |start: BlockNo, len: u64| {
        found.blocks.claim(start, len, |cluster| {
            found.multiple.claim(found.multiple.block(cluster), 1, |_| ());
            found.any_multiple.store(true, Relaxed);
        });
    };
    if ctx.geometry.cluster_ratio == 1 {
        effects.claims.iter().for_each(|&(start, len)| claim(BlockNo(start), len));
    } else {
        let ratio = u64::from(ctx.geometry.cluster_ratio);
        for (from, to) in effects.cluster_runs(ctx) {
            claim(found.blocks.block(from), (to - from) * ratio);
        }
    }
    if let Some((block, refcount)) = effects.xattr_block {
        let mut shared = lock(&found.xattrs);
        let entry = shared.entry(block.0).or_insert(SharedBlock { refcount, users: 0 });
        entry.users += 1;
        if entry.users == 1 {
            claim(block, 1);
        }
    }
    if !effects.ea_refs.is_empty() {
        let mut refs = lock(&found.ea_refs);
        effects.ea_refs.iter().for_each(|target| *refs.entry(target.get()).or_default() += 1);
    }
}
