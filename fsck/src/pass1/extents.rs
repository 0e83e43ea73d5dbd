//! The extent tree of one inode: every node and entry, with entries that make no sense taken out.
//!
//! A repaired tree stays a valid tree: entries go, emptied nodes go with their index, and an index follows
//! its child's first block. Depth is bounded by the format, breadth by a budget of blocks for the whole
//! volume.

use std::collections::BTreeMap;

use ext4_format::extent::{self, Bounds, ENTRY_SIZE, Extent, MAX_DEPTH, Node, NodeMut};
use ext4_format::inode::flag;
use ext4_format::{BlockNo, FileBlock, Ino};

use super::inode::{Effects, Subject};
use super::whole_tree;
use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// Checks the whole tree of an inode.
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    let ino = s.ino;
    if whole_tree::check(ctx, ask, s, effects)? {
        return Ok(());
    }
    if repair_max(ask, ino, &mut s.inode.block)? {
        s.dirty = true;
    }
    repair_depth(ctx, ask, s)?;
    let mut root = s.inode.block;
    let bad = match Node::parse(&root) {
        Ok(node) if node.depth() > 0 && node.is_empty() => Some("eh_entries"),
        Ok(_) => None,
        Err(corruption) => Some(corruption.field),
    };
    if let Some(why) = bad {
        if ask.ask(Problem::of(Code::ExtentHeader, ino).named(why))? {
            s.clear(ctx);
        }
        return Ok(());
    }
    let mut walk = Walk {
        ctx,
        ask,
        ino,
        generation: s.inode.generation,
        is_dir: s.inode.is_dir(),
        next: 0,
        last_cluster: None,
        placed: BTreeMap::new(),
        effects,
    };
    let end = u64::from(u32::MAX);
    if walk.node(&mut root, end)? {
        s.inode.block = root;
        s.dirty = true;
    }
    // An index root that lost all its nodes becomes an empty leaf.
    if Node::parse(&s.inode.block).is_ok_and(|node| node.depth() > 0 && node.is_empty()) {
        let _ = NodeMut::init(&mut s.inode.block, 0);
        s.dirty = true;
    }
    Ok(())
}

/// A node may say that a few entries less fit than do, as old kernels wrote it; not many less, and not more.
fn repair_max(ask: &mut dyn Ask, ino: Ino, bytes: &mut [u8]) -> Result<bool> {
    const EH_MAX: std::ops::Range<usize> = 4..6;
    let fit = (bytes.len() / ENTRY_SIZE - 1) as u16;
    let stated = u16::from_le_bytes([bytes[EH_MAX.start], bytes[EH_MAX.start + 1]]);
    let magic = bytes[..2] == [0x0a, 0xf3];
    let entries = u16::from_le_bytes([bytes[2], bytes[3]]);
    let wrong = magic && entries <= fit && (stated.saturating_add(2) < fit || stated > fit);
    if !wrong || !ask.ask(Problem::of(Code::ExtentMax, ino).values(stated, fit))? {
        return Ok(false);
    }
    extent::set_max(bytes, fit);
    Ok(true)
}

/// A root whose only fault is its depth: one without entries is an empty leaf, and one that makes sense as a
/// leaf is one.
fn repair_depth(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject) -> Result<()> {
    let mut leaf = s.inode.block;
    extent::set_depth(&mut leaf, 0);
    let why = match Node::parse(&s.inode.block) {
        Ok(node) if node.depth() > 0 && node.is_empty() => "no entries",
        Err(corruption) if corruption.field == "eh_depth" && Node::parse(&leaf).is_ok() => "more than five",
        _ => return Ok(()),
    };
    let volume = Bounds::of_volume(BlockNo(ctx.geometry.first_data_block.into()), ctx.geometry.blocks_count);
    let sane = Node::parse(&leaf).is_ok_and(|node| node.is_empty() || node.check(&volume, false).is_ok());
    if sane && ask.ask(Problem::of(Code::ExtentDepth, s.ino).named(why))? {
        s.inode.block = leaf;
        s.dirty = true;
    }
    Ok(())
}

struct Walk<'a> {
    ctx: &'a Context,
    ask: &'a mut dyn Ask,
    ino: Ino,
    generation: u32,
    is_dir: bool,
    /// The first file block that the next entry may have.
    next: u64,
    /// The last cluster of the file so far, and where it lies.
    last_cluster: Option<(u64, u64)>,
    /// Runs of clusters on the device, by the first: behind the last, and how far from their place in the
    /// file.
    placed: BTreeMap<u64, (u64, i64)>,
    effects: &'a mut Effects,
}

impl Walk<'_> {
    /// Checks the entries of a node that covers file blocks below `end`; true when the bytes were changed.
    fn node(&mut self, bytes: &mut [u8], end: u64) -> Result<bool> {
        let depth = Node::parse(bytes).map_or(0, |node| node.depth());
        if depth == 0 { self.leaf(bytes, end) } else { self.index_node(bytes, end, depth) }
    }

    fn leaf(&mut self, bytes: &mut [u8], end: u64) -> Result<bool> {
        let mut changed = false;
        let mut at = 0;
        while let Some(mut extent) = Node::parse(bytes).ok().and_then(|node| node.extent(at)) {
            let first = u64::from(extent.first.0);
            // An extent that runs into the next one is too long: the next one keeps its place.
            let next = Node::parse(bytes).ok().and_then(|node| node.first_of(at + 1));
            if let Some(next) = next.filter(|next| *next > extent.first && u64::from(next.0) < extent.end()) {
                let problem = Problem::of(Code::ExtentOrder, self.ino).at(extent.start);
                if self.ask.ask(problem.values(next.0, extent.end()))? {
                    extent.len = next.0 - extent.first.0;
                    changed |= edit(bytes, |node| node.set(at, extent));
                }
            }
            let problem = |code| Problem::of(code, self.ino).at(extent.start).values(first, self.next);
            let wrong = if extent.len == 0 {
                Some(problem(Code::ExtentInvalid).named("length 0"))
            } else if !self.ctx.on_volume(extent.start, extent.len.into()) {
                Some(problem(Code::ExtentInvalid).named("outside the volume"))
            } else if first < self.next {
                Some(problem(Code::ExtentOrder))
            } else if extent.end() > end {
                Some(problem(Code::ExtentHugeBlock))
            } else if self.is_dir && extent.end() > 1 << 30 {
                Some(problem(Code::DirectoryTooBig))
            } else if !self.ctx.spend_data(extent.len.into()) {
                Some(problem(Code::ExtentInvalid).named("files claim more than the volume has"))
            } else {
                None
            };
            if let Some(problem) = wrong {
                if self.ask.ask(problem)? {
                    changed |= edit(bytes, |node| node.remove(at..at + 1));
                } else {
                    at += 1;
                }
                continue;
            }
            let torn = self.ctx.geometry.cluster_ratio > 1
                && (self.is_askew(&extent) || self.tears_cluster(&extent));
            if torn && self.ask.ask(problem(Code::ExtentCollision))? {
                lock(&self.ctx.found.to_realign).insert(self.ino);
            }
            let (first, extent) =
                if self.is_dir && first > self.next && self.ask.ask(problem(Code::ExtentDirHole))? {
                    // A directory has no holes: what lies behind one moves down.
                    let moved = Extent { first: FileBlock(self.next as u32), ..extent };
                    changed |= edit(bytes, |node| node.set(at, moved));
                    (self.next, moved)
                } else {
                    (first, extent)
                };
            if self.is_dir
                && extent.unwritten
                && self.ask.ask(Problem::of(Code::ExtentUnwrittenDir, self.ino).values(first, 0_u32))?
            {
                changed |= edit(bytes, |node| node.set(at, Extent { unwritten: false, ..extent }));
            }
            self.effects.data(first, extent.start, extent.len.into(), extent.unwritten);
            self.next = extent.end();
            if !torn {
                self.place(&extent);
            }
            at += 1;
        }
        Ok(changed)
    }

    /// Whether an extent begins in another part of a cluster of the file than of one of the device.
    fn is_askew(&self, extent: &Extent) -> bool {
        let ratio = u64::from(self.ctx.geometry.cluster_ratio);
        let place = extent.start.0 - u64::from(self.ctx.geometry.first_data_block);
        u64::from(extent.first.0) % ratio != place % ratio
    }

    /// The cluster of a block in the file and of a block on the device.
    fn clusters(&self, file_block: u64, block: u64) -> (u64, u64) {
        (file_block / u64::from(self.ctx.geometry.cluster_ratio), self.ctx.found.blocks.cluster(block))
    }

    /// The run of clusters of an extent on the device, its end, and how far it is from its place in the file.
    fn run(&self, extent: &Extent) -> (u64, u64, i64) {
        let (inside, place) = self.clusters(extent.first.0.into(), extent.start.0);
        let end = self.clusters(0, extent.start.0 + u64::from(extent.len) - 1).1 + 1;
        (place, end, place as i64 - inside as i64)
    }

    /// Whether an extent begins in a cluster of the file that lies elsewhere already, or takes one that is
    /// another's.
    fn tears_cluster(&self, extent: &Extent) -> bool {
        let (place, end, distance) = self.run(extent);
        let inside = self.clusters(extent.first.0.into(), 0).0;
        self.last_cluster.is_some_and(|last| last.0 == inside && last.1 != place)
            || self.placed.range(..end).rev().take_while(|run| run.1.0 > place).any(|run| run.1.1 != distance)
    }

    /// Notes where an extent of a volume with larger clusters lies.
    fn place(&mut self, extent: &Extent) {
        if self.ctx.geometry.cluster_ratio > 1 {
            let (place, end, distance) = self.run(extent);
            self.placed.insert(place, (end, distance));
            self.last_cluster =
                Some(self.clusters(extent.end() - 1, extent.start.0 + u64::from(extent.len) - 1));
        }
    }

    fn index_node(&mut self, bytes: &mut [u8], end: u64, depth: u16) -> Result<bool> {
        if let Ok(node) = Node::parse(bytes) {
            node.indexes().for_each(|index| self.ctx.disk.will_need(index.child, 1));
        }
        let mut changed = false;
        let mut at = 0;
        while let Some(index) = Node::parse(bytes).ok().and_then(|node| node.index(at)) {
            let child_end = Node::parse(bytes)
                .ok()
                .and_then(|node| node.first_of(at + 1))
                .map_or(end, |next| u64::from(next.0).clamp(u64::from(index.first.0) + 1, end));
            match self.child(index.child, index.first, child_end, depth)? {
                Child::Keep(first) => {
                    if let Some(first) = first {
                        changed |= edit(bytes, |node| node.set_first(at, first));
                    }
                    at += 1;
                }
                Child::Drop => changed |= edit(bytes, |node| node.remove(at..at + 1)),
                Child::Leave => at += 1,
            }
        }
        Ok(changed)
    }

    fn child(&mut self, block: BlockNo, first: FileBlock, end: u64, depth: u16) -> Result<Child> {
        let (ctx, ino) = (self.ctx, self.ino);
        let decide = |fix: bool| if fix { Child::Drop } else { Child::Leave };
        let misplaced = !ctx.on_volume(block, 1) || ctx.is_metadata(block, 1) || !ctx.spend_tree();
        if misplaced {
            return Ok(decide(self.ask.ask(Problem::of(Code::ExtentNodePlace, ino).at(block))?));
        }
        let mut bytes = match ctx.disk.read(block) {
            Ok(bytes) => bytes,
            Err(Error::Device(_)) => {
                return Ok(decide(
                    self.ask.ask(Problem::of(Code::ExtentNode, ino).at(block).named("unreadable"))?,
                ));
            }
            Err(error) => return Err(error),
        };
        let sum_holds = ctx.csum.verify_extent_block(&bytes, ino, self.generation).is_ok();
        let repaired = repair_max(self.ask, ino, &mut bytes)?;
        let wrong = match Node::parse(&bytes) {
            Err(corruption) => Some(corruption.field),
            Ok(_) if depth > MAX_DEPTH => Some("eh_depth"),
            Ok(node) if node.is_empty() => Some("eh_entries"),
            Ok(_) => None,
        };
        if let Some(why) = wrong {
            return Ok(decide(self.ask.ask(Problem::of(Code::ExtentNode, ino).at(block).named(why))?));
        }
        if !sum_holds && !self.sane(&bytes) {
            let problem = Problem::of(Code::ExtentNode, ino).at(block).named("checksum and contents");
            return Ok(decide(self.ask.ask(problem)?));
        }
        let mut changed = repaired;
        let stated = Node::parse(&bytes).map_or(0, |node| node.depth());
        if stated + 1 != depth {
            // A node whose entries make sense where it hangs only has a wrong number.
            let mut right = bytes.clone();
            extent::set_depth(&mut right, depth - 1);
            let problem = Problem::of(Code::ExtentNodeDepth, ino).at(block).values(stated, depth - 1);
            if !self.sane(&right) || !self.ask.ask(problem)? {
                return Ok(decide(
                    self.ask.ask(Problem::of(Code::ExtentNode, ino).at(block).named("eh_depth"))?,
                ));
            }
            bytes = right;
            changed = true;
        }
        self.effects.claims.push((block.0, 1));
        self.effects.nodes += 1;
        self.effects.depth = self.effects.depth.max(depth);
        changed |= self.node(&mut bytes, end)?;
        if !sum_holds && !changed {
            changed = self.ask.ask(Problem::of(Code::ExtentNodeChecksum, ino).at(block))?;
        }
        if changed {
            ctx.csum.set_extent_block(&mut bytes, ino, self.generation);
            ctx.disk.write(block, &bytes)?;
        }
        let Some(starts) = Node::parse(&bytes).ok().and_then(|node| node.first_of(0)) else {
            self.effects.claims.retain(|&claim| claim != (block.0, 1));
            return Ok(Child::Drop);
        };
        if starts != first {
            let problem = Problem::of(Code::ExtentIndexStart, ino).at(block).values(first.0, starts.0);
            if self.ask.ask(problem)? {
                return Ok(Child::Keep(Some(starts)));
            }
        }
        Ok(Child::Keep(None))
    }

    /// Whether a node with a wrong checksum may still be one.
    fn sane(&self, bytes: &[u8]) -> bool {
        let volume = Bounds::of_volume(
            BlockNo(u64::from(self.ctx.geometry.first_data_block)),
            self.ctx.geometry.blocks_count,
        );
        Node::parse(bytes).is_ok_and(|node| node.check(&volume, false).is_ok())
    }
}

enum Child {
    /// It stays; its index must start at another block when one is given.
    Keep(Option<FileBlock>),
    /// Its index goes.
    Drop,
    /// Damaged, but not to be touched.
    Leave,
}

/// Writes the depth of a node.
pub(super) fn set_depth(bytes: &mut [u8], depth: u16) {
    const EH_DEPTH: std::ops::Range<usize> = 6..8;
    bytes[EH_DEPTH].copy_from_slice(&depth.to_le_bytes());
}

fn edit(bytes: &mut [u8], change: impl FnOnce(&mut NodeMut<'_>) -> bool) -> bool {
    NodeMut::parse(bytes).is_ok_and(|mut node| change(&mut node))
}

/// The extents of an inode in file order, without checks: for passes after this one. Damage ends the list.
pub fn list(ctx: &Context, inode: &ext4_format::inode::Inode) -> Vec<Extent> {
    let mut all = Vec::new();
    if inode.has(flag::EXTENTS) {
        let volume = Bounds::of_volume(BlockNo(0), ctx.geometry.blocks_count);
        let _ = ext4_format::extent::walk::<_, Walked>(
            &inode.block,
            volume,
            &mut |block| {
                if ctx.spend_tree() { ctx.disk.read(block).map_err(|_| Walked) } else { Err(Walked) }
            },
            &mut |step| {
                if let ext4_format::extent::Step::Extent(extent) = step {
                    all.push(extent);
                }
                Ok(())
            },
        );
    } else {
        let volume = 1..ctx.geometry.blocks_count;
        let _ = ext4_format::indirect::walk::<_, Walked>(
            &inode.block,
            ctx.geometry.block_size,
            volume,
            &mut |block| {
                if ctx.spend_tree() { ctx.disk.read(block).map_err(|_| Walked) } else { Err(Walked) }
            },
            &mut |step| {
                if let ext4_format::indirect::Step::Data { file_block, block } = step {
                    let Ok(first) = u32::try_from(file_block) else { return Err(Walked) };
                    let one = Extent { first: FileBlock(first), len: 1, start: block, unwritten: false };
                    match all.last_mut() {
                        Some(last) if Extent::joins(last, &one) => last.len += 1,
                        _ => all.push(one),
                    }
                }
                Ok(())
            },
        );
    }
    all
}

/// The end of a walk that met damage; what was seen before it counts.
struct Walked;

impl From<ext4_format::Corruption> for Walked {
    fn from(_: ext4_format::Corruption) -> Walked {
        Walked
    }
}
