//! The map of one file: which block of the device holds which block of the file.
//!
//! Two forms behind one interface: ext4's extent tree, and the indirect blocks of ext2 and ext3,
//! which know no unwritten blocks. This module knows no inode, only the 60 bytes of its root and
//! its count of sectors ([`MapRoot`]); whoever calls holds the lock that guards them and stores
//! them in the same handle.
//!
//! Invariants:
//! 1. A tree block is verified once, when it is loaded; depths fall by one on every step down, so
//!    no descent is endless.
//! 2. A freshly allocated *unwritten* extent is never merged with a neighbour, and
//!    [`split_unwritten`] cuts a larger one to the range of an IO. So converting exactly that range
//!    only flips a flag and may merge: it needs no block and cannot meet a full volume.
//! 3. Every data block named by a map is checked against the volume's own metadata before use.

mod indirect;
mod migrate;
mod path;
mod range;
mod tree;

use ext4_format::{BlockNo, Corruption, FileBlock, Ino, What, extent as codec};
use jbd2::{Credits, Handle};

use crate::alloc::{ALLOC_CREDITS, Allocator, BlockRequest, Depth, Reservation, Run, Stream};
use crate::error::{Error, Posix, Result};
use crate::volume::Volume;

pub use migrate::to_pointers;

/// What the functions of this module need to know of the volume and the file.
#[derive(Clone, Copy)]
pub struct MapCtx<'a> {
    /// The volume.
    pub vol: &'a Volume,
    /// Its allocator.
    pub alloc: &'a Allocator,
    /// The file, for placement, checksums and messages.
    pub ino: Ino,
    /// Its generation, for checksums.
    pub generation: u32,
}

/// The part of an inode that its map starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapRoot {
    /// `i_block`.
    pub block: [u8; 60],
    /// Space taken by data and map, in 512-byte units.
    pub sectors: u64,
    extents: bool,
}

impl MapRoot {
    /// The map in `block`: an extent tree, or pointers.
    #[must_use]
    pub fn new(block: [u8; 60], extents: bool, sectors: u64) -> MapRoot {
        MapRoot { block, sectors, extents }
    }

    /// The root of an empty extent tree.
    #[must_use]
    pub fn empty_tree() -> MapRoot {
        let mut root = MapRoot::new([0; 60], true, 0);
        let _ = codec::NodeMut::init(&mut root.block, 0);
        root
    }

    /// Whether it is an extent tree, which can hold unwritten extents.
    #[must_use]
    pub fn has_extents(&self) -> bool {
        self.extents
    }

    /// Levels of tree blocks below the root.
    fn depth(&self) -> u32 {
        match self.extents {
            true => codec::Node::parse(&self.block).map_or(0, |node| node.depth().into()),
            false => 3,
        }
    }
}

/// What lies at a place of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// Nothing: reads as zeros.
    Hole,
    /// Blocks that hold nothing yet: read as zeros.
    Unwritten(BlockNo),
    /// Data.
    Written(BlockNo),
}

/// A mapping and how many blocks it goes on for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// What lies at the first block.
    pub mapping: Mapping,
    /// Blocks of the file that are mapped alike, one after the other. At least 1.
    pub len: u32,
}

/// A range of a file, in blocks; `end` is the block after the last.
pub type BlockRange = std::ops::Range<u64>;

/// How [`allocate`] goes about it.
#[derive(Debug)]
pub struct AllocHow<'a> {
    /// Allocate as unwritten (refused by indirect maps). In an extent tree this is how file data
    /// begins; what is written at once is taken for the volume's own and put near the inodes.
    pub unwritten: bool,
    /// Who asks, when nothing was promised.
    pub depth: Depth,
    /// The promise that the data blocks are counted against.
    pub reserved: Option<&'a mut Reservation>,
}

/// Whether a step that is bounded by its handle's credits has come to the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// All of the range is done.
    Done,
    /// The credits are used up: store the inode, and go on in another handle.
    Again,
}

/// What `at` is mapped to and how far that goes on, `max` blocks at most (at least 1).
///
/// # Errors
/// `Corrupt` for a damaged tree, or a block that belongs to the volume itself.
pub fn lookup(ctx: &MapCtx<'_>, root: &MapRoot, at: FileBlock, max: u32) -> Result<Segment> {
    let found = match root.extents {
        true => tree::lookup(ctx, root, at, max.max(1))?,
        false => indirect::lookup(ctx, root, at, max.max(1))?,
    };
    if let Mapping::Unwritten(start) | Mapping::Written(start) = found.mapping
        && !ctx.alloc.may_hold_data(start, found.len.into())
    {
        let c = Corruption::new(What::ExtentNode, "block of the volume itself", start.0, 0);
        return Err(ctx.vol.corrupt(c.in_inode(ctx.ino)));
    }
    Ok(found)
}

/// Where a block had best lie.
struct Goal {
    block: BlockNo,
    /// It continues what lies before it.
    continues: bool,
    /// Nothing is mapped behind it.
    appends: bool,
}

/// Least and most blocks that are kept free behind a file that grows.
const MIN_AHEAD: u32 = 8;
const MAX_AHEAD: u32 = 2048;

/// Allocates up to `want` blocks for the hole at `at`, in one run, without mapping them.
/// [`ALLOC_CREDITS`].
///
/// # Errors
/// `NoSpace`; `FileTooBig` behind the last block that the map can name.
pub fn take(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &MapRoot,
    at: FileBlock,
    want: u32,
    how: AllocHow<'_>,
) -> Result<Run> {
    let limit = match root.extents {
        true => u32::MAX.into(),
        false => ext4_format::indirect::capacity(ctx.vol.block_size()),
    };
    let mut room = limit.saturating_sub(at.0.into());
    if room == 0 {
        return Err(Posix::FileTooBig.into());
    }
    if !root.extents {
        room = indirect::room(ctx, at).into();
    }
    let Goal { block: goal, continues, appends } = match root.extents {
        true => tree::goal(ctx, root, at, how.unwritten)?,
        false => indirect::goal(ctx, root, at)?,
    };
    let want = want.min(codec::Extent::max_len(how.unwritten)).min(room.min(u32::MAX.into()) as u32);
    // The longer a file has grown already, the more it is likely to grow by.
    let ahead = at.0.clamp(MIN_AHEAD, MAX_AHEAD).min(ctx.vol.geo.blocks_per_group / 8);
    let stream = (appends && at.0 > 0).then_some(Stream { owner: ctx.ino, ahead });
    let request =
        BlockRequest { goal, want, continues, at, stream, depth: how.depth, reserved: how.reserved };
    let run = ctx.alloc.alloc_blocks(handle, request)?;
    if !root.extents && run.start.0 + u64::from(run.len) > u64::from(u32::MAX) {
        ctx.alloc.free_blocks(handle, run.start, run.len)?;
        return Err(Error::NoSpace);
    }
    Ok(run)
}

/// Maps `run` at `at`, which must be a hole. [`insert_credits`]. On failure the run is freed again.
pub fn insert(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    at: FileBlock,
    run: Run,
    unwritten: bool,
) -> Result<()> {
    let inserted = match root.extents {
        true => {
            let new = codec::Extent { first: at, len: run.len, start: run.start, unwritten };
            range::insert(ctx, handle, root, new)
        }
        false if unwritten => Err(Posix::NotSupported.into()),
        false => indirect::insert(ctx, handle, root, at, run),
    };
    match inserted {
        Ok(()) => {
            root.sectors += u64::from(run.len) * ctx.sectors_per_block();
            Ok(())
        }
        Err(error) => {
            ctx.alloc.free_blocks(handle, run.start, run.len)?;
            Err(error)
        }
    }
}

/// Fills the hole at `at` with one run of up to `want` blocks. [`allocate_credits`].
///
/// # Errors
/// As [`take`].
pub fn allocate(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    at: FileBlock,
    want: u32,
    how: AllocHow<'_>,
) -> Result<Segment> {
    let unwritten = how.unwritten;
    let run = take(ctx, handle, root, at, want, how)?;
    insert(ctx, handle, root, at, run, unwritten)?;
    let mapping = if unwritten { Mapping::Unwritten(run.start) } else { Mapping::Written(run.start) };
    Ok(Segment { mapping, len: run.len })
}

/// Cuts unwritten extents at both ends of `range`, so that [`convert`] of it needs no block.
/// [`split_credits`].
pub fn split_unwritten(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    range: BlockRange,
) -> Result<()> {
    if !root.extents {
        return Ok(());
    }
    range::cut(ctx, handle, root, range.start, true)?;
    range::cut(ctx, handle, root, range.end, true)
}

/// Makes the allocated blocks of `range` written or unwritten; holes stay. Bounded by the
/// handle's credits: gives the block up to which it came. Start the handle with
/// [`convert_credits`], or with [`cut_and_convert_credits`] where the range was not cut out before;
/// with less it may never come any further, since a transaction that admits a handle need not have
/// room for more.
pub fn convert(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    range: BlockRange,
    to_written: bool,
) -> Result<u64> {
    match root.extents {
        true => range::convert(ctx, handle, root, range, to_written),
        false if to_written => Ok(range.end),
        false => Err(Posix::NotSupported.into()),
    }
}

/// Frees the blocks of `range` from its end, and the tree blocks that become empty. `metadata`
/// tells that they are the volume's own (a directory's) and may lie in the journal. Bounded by
/// the handle's credits (start it with [`remove_credits`]; [`KEEP`] of them are left over).
pub fn remove(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    range: BlockRange,
    metadata: bool,
) -> Result<Progress> {
    if range.is_empty() {
        return Ok(Progress::Done);
    }
    ctx.alloc.close_stream(ctx.ino);
    match root.extents {
        true => range::remove(ctx, handle, root, range, metadata),
        false => indirect::remove(ctx, handle, root, range, metadata),
    }
}

/// Takes back the `len` blocks from `at` that this very handle has mapped.
pub fn remove_new(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    at: FileBlock,
    len: u32,
) -> Result<()> {
    let start = u64::from(at.0);
    remove(ctx, handle, root, start..start + u64::from(len), true).map(|_| ())
}

/// Moves what is mapped from `from` on by `by` blocks, towards the front into a hole or towards
/// the back. Bounded by the handle's credits ([`shift_credits`]); `cursor` keeps the place
/// between calls and starts as `None`.
///
/// # Errors
/// `NotSupported` for indirect maps, `FileTooBig` when the last block would leave the map.
pub fn shift(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    from: u64,
    by: i64,
    cursor: &mut Option<u64>,
) -> Result<Progress> {
    match root.extents {
        true => range::shift(ctx, handle, root, from, by, cursor),
        false => Err(Posix::NotSupported.into()),
    }
}

/// The block after the last that is mapped; 0 for an empty map.
#[cfg(any(test, feature = "internals"))]
pub fn end(ctx: &MapCtx<'_>, root: &MapRoot) -> Result<u64> {
    match root.extents {
        true => tree::end(ctx, root),
        false => indirect::end(ctx, root),
    }
}

/// Credits that [`remove`] leaves in the handle, for storing the inode and taking it off the
/// orphans.
pub const KEEP: u32 = 8;

/// Most blocks of metadata that are freed, and revoked, in one step.
const MAX_REVOKES: u32 = 256;

/// Blocks that one new entry may change: the way down, and a new block for each level with what
/// allocating it takes.
#[must_use]
pub fn insert_credits(root: &MapRoot) -> u32 {
    let levels = root.depth() + 1;
    levels + (levels + 1) * (1 + ALLOC_CREDITS)
}

/// Credits for [`allocate`] called up to `runs` times.
#[must_use]
pub fn allocate_credits(root: &MapRoot, runs: u32) -> u32 {
    runs * (ALLOC_CREDITS + insert_credits(root))
}

/// Credits for [`split_unwritten`].
#[must_use]
pub fn split_credits(root: &MapRoot) -> u32 {
    2 * insert_credits(root)
}

/// Credits for [`convert`] to make progress, and for storing the inode after it.
#[must_use]
pub fn convert_credits(root: &MapRoot) -> Credits {
    let levels = root.depth() + 1;
    Credits { blocks: KEEP + 3 + 4 * levels, revokes: levels }
}

/// The same where extents may reach into the range from both sides, or be too long to change.
#[must_use]
pub fn cut_and_convert_credits(root: &MapRoot) -> Credits {
    let convert = convert_credits(root);
    Credits { blocks: convert.blocks + 3 * insert_credits(root), ..convert }
}

/// Credits for [`remove`] to make good progress.
#[must_use]
pub fn remove_credits(ctx: &MapCtx<'_>, root: &MapRoot, metadata: bool) -> Credits {
    let step = range::remove_step(ctx, root);
    let extra = if metadata { MAX_REVOKES } else { 0 };
    Credits { blocks: KEEP + 4 * step, revokes: 64 + extra }
}

/// Credits for [`shift`] to make good progress.
#[must_use]
pub fn shift_credits(root: &MapRoot) -> u32 {
    KEEP + 8 * (root.depth() + 2) + insert_credits(root)
}

impl MapCtx<'_> {
    fn sectors_per_block(&self) -> u64 {
        u64::from(self.vol.block_size() / 512)
    }

    fn damaged(&self, field: &'static str, found: u64, expected: u64) -> Error {
        self.vol.corrupt(Corruption::new(What::ExtentNode, field, found, expected).in_inode(self.ino))
    }

    /// A block for the map itself, away from the data, which it would tear apart. Data that was
    /// accepted must not fail for want of it, so the pool may be used.
    fn new_map_block(&self, handle: &Handle<'_>, root: &mut MapRoot) -> Result<BlockNo> {
        let goal = self.alloc.goal_for(self.ino, false);
        let run = self.alloc.alloc_blocks(handle, BlockRequest::one(goal, Depth::Pool))?;
        root.sectors += self.sectors_per_block();
        Ok(run.start)
    }

    fn free_map_block(&self, handle: &Handle<'_>, root: &mut MapRoot, block: BlockNo) -> Result<()> {
        handle.forget(block)?;
        root.sectors = root.sectors.saturating_sub(self.sectors_per_block());
        self.alloc.free_blocks(handle, block, 1)
    }

    /// Frees `len` data blocks from `start`.
    fn free_data(
        &self,
        handle: &Handle<'_>,
        root: &mut MapRoot,
        start: BlockNo,
        len: u32,
        metadata: bool,
    ) -> Result<()> {
        if metadata {
            for i in 0..u64::from(len) {
                handle.forget(BlockNo(start.0 + i))?;
            }
        }
        root.sectors = root.sectors.saturating_sub(u64::from(len) * self.sectors_per_block());
        self.alloc.free_blocks(handle, start, len)
    }
}
