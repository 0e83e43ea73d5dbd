//! Pass 1: every inode and every block it uses.
//!
//! Groups are scanned in parallel as a dry run; an inode that needs a question is put on a list and looked
//! at again, alone and in order, by the prompter. Inodes with trees of blocks come after the scan, in parallel
//! too and sorted by place, so that one group full of large files does not keep one core busy alone. The
//! device hears of the tables and trees that come next while those before them are looked at.

mod bad_blocks;
mod extents;
mod flags;
mod indirect;
pub mod inline;
mod inode;
mod metadata;
mod special;
mod whole_tree;
mod xattr;

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use ext4_format::extent::Node;
use ext4_format::features::RoCompat;
use ext4_format::indirect::{DIRECT, pointer};
use ext4_format::inode::{FileType, RawInode, flag};
use ext4_format::{BlockNo, GroupNo, Ino};

pub use extents::list as extents_of;
pub use inode::Effects;
pub use metadata::{claim as claim_metadata, ranges as metadata_ranges};
pub use xattr::{ea_references, set_ea_references, value_hash};

use crate::alloc;
use crate::context::{Context, Dir, SharedBlock, UNALLOCATED, lock};
use crate::error::{Error, Result};
use crate::map::Use;
use crate::parallel;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, DryRun, Prompter};

/// Inodes whose trees are asked for together.
const TREES_TOGETHER: usize = 8;

/// Runs the pass.
pub fn run(ctx: &mut Context, prompter: &mut Prompter<'_>) -> Result<()> {
    metadata::claim(ctx);
    let ctx = &*ctx;
    let suspects: Mutex<Vec<Ino>> = Mutex::default();
    let trees: Mutex<Vec<(u64, Ino)>> = Mutex::default();
    let groups = u64::from(ctx.geometry.group_count);
    let threads = ctx.options.thread_count();
    prompter.progress(1, 0, groups)?;
    parallel::for_each(
        threads,
        groups,
        &mut |done| prompter.progress(1, done, groups),
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
    suspects.iter().try_for_each(|ino| whole_tree::save(ctx, *ino))?;
    prompter.learn_paths(ctx, suspects.iter().copied());
    for ino in suspects {
        let mut effects = Effects::default();
        inode::check(ctx, prompter, ino, ctx.read_record(ino)?, &mut effects)?;
        apply(ctx, ino, &effects);
    }
    ctx.found.judged.store(true, Relaxed);
    special::check_numbers(ctx, prompter)?;
    xattr::check_counts(ctx, prompter)?;
    if ctx.found.large_file.load(Relaxed) && prompter.ask(Problem::new(Code::LargeFileFeature))? {
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
    effects_with(ctx, &mut Never, ino, ctx.read_record(ino)?)
}

/// Effects of an inode with this record, with questions answered by the caller.
///
/// # Errors
/// The caller's, or the device's.
pub fn effects_with(ctx: &Context, ask: &mut dyn Ask, ino: Ino, record: Vec<u8>) -> Result<Effects> {
    let mut effects = Effects::default();
    inode::check(ctx, ask, ino, record, &mut effects)?;
    Ok(effects)
}

fn scan_group(
    ctx: &Context,
    group: GroupNo,
    suspects: &Mutex<Vec<Ino>>,
    trees: &Mutex<Vec<(u64, Ino)>>,
) -> Result<()> {
    let desc = &ctx.descs[group.0 as usize];
    if desc.inode_table == UNALLOCATED {
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
            if is_blank(record) && ino.get() >= ctx.first_ino() {
                continue;
            }
            match tree_blocks(record).next() {
                Some(block) => lock(trees).push((block, ino)),
                None => probe(ctx, ino, record.to_vec(), suspects)?,
            }
        }
        index += count as u32;
    }
    Ok(())
}

/// Whether a record was never written. Most of a young volume's are not, so it is asked by long words.
fn is_blank(record: &[u8]) -> bool {
    let (words, rest) = record.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// Asks for the inode table of a group that comes soon.
fn announce_table(ctx: &Context, group: GroupNo) {
    if let Some(desc) = ctx.descs.get(group.0 as usize).filter(|desc| desc.inode_table != UNALLOCATED) {
        let bytes = u64::from(ctx.inodes_to_scan(group)) * ctx.geometry.inode_size as u64;
        ctx.disk.will_need(desc.inode_table, bytes.div_ceil(ctx.geometry.block_size.into()));
    }
}

/// The blocks that the record itself names of the tree of an inode that needs more than its record to be
/// checked.
fn tree_blocks(record: &[u8]) -> impl Iterator<Item = u64> {
    let raw = RawInode::of(record).filter(|raw| {
        let kind = FileType::from_mode(raw.mode.get());
        raw.links.get() != 0 && matches!(kind, Some(FileType::Regular | FileType::Directory))
    });
    let (extents, mapped): (Option<Node>, Option<&RawInode>) = match raw {
        Some(raw) if raw.flags.get() & flag::EXTENTS != 0 => (Node::parse(&raw.block).ok(), None),
        raw => (None, raw),
    };
    let children = extents
        .into_iter()
        .flat_map(|node| (0..node.len()).filter_map(move |at| Some(node.index(at)?.child)));
    let roots = DIRECT..DIRECT + 3;
    let roots =
        mapped.into_iter().flat_map(move |raw| roots.clone().filter_map(|slot| pointer(&raw.block, slot)));
    children.chain(roots).map(|block| block.0).filter(|&block| block != 0)
}

fn probe(ctx: &Context, ino: Ino, record: Vec<u8>, suspects: &Mutex<Vec<Ino>>) -> Result<()> {
    let mut effects = Effects::default();
    match inode::check(ctx, &mut DryRun, ino, record, &mut effects) {
        Ok(()) => apply(ctx, ino, &effects),
        Err(Error::Suspect) => lock(suspects).push(ino),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether the extents of an inode would fit into a lower tree, or into half as many nodes.
fn is_wide(ctx: &Context, effects: &Effects) -> bool {
    let extents = (effects.claims.len() as u64).saturating_sub(effects.nodes);
    let (depth, nodes) = alloc::tree_shape(ctx, extents);
    depth < effects.depth || effects.nodes > 1 && effects.nodes >= 2 * nodes
}

/// Joins what one inode uses to the picture of the whole.
fn apply(ctx: &Context, ino: Ino, effects: &Effects) {
    let found = &ctx.found;
    let Some(what) = effects.what else { return };
    found.inodes.set(ino, what, effects.links);
    if what == Use::Attribute {
        lock(&found.attributes).push(ino);
    }
    if what.is_dir() {
        lock(&found.dirs).insert(ino.get(), Dir::default());
    }
    if ctx.options.optimize_extents && effects.nodes > 0 && is_wide(ctx, effects) {
        lock(&found.wide_trees).push(ino);
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
