//! Extent trees that hold all their extents, but cannot stay as they are: deeper than the format allows, or
//! with a node on the volume's own metadata. Their extents are saved before pass 1 writes anything, and the
//! tree is built anew when it is known what is free.

use std::collections::HashSet;

use ext4_format::extent::{Bounds, Extent, MAX_DEPTH, Node};
use ext4_format::inode::{Inode, flag};
use ext4_format::{BlockNo, Ino};

use super::extents::set_depth;
use super::inode::{Effects, Subject};
use crate::context::{Context, lock};
use crate::error::Result;
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// Levels of the deepest tree that is still followed.
const MOST_LEVELS: u16 = 64;

/// Saves the extents of an inode whose tree has such a fault and no other.
///
/// # Errors
/// The device's.
pub fn save(ctx: &Context, ino: Ino) -> Result<()> {
    let inode = ctx.read_inode(ino)?;
    let kept = inode.is_dir() || inode.file_type() == Some(ext4_format::inode::FileType::Regular);
    if !kept || inode.links == 0 || !inode.has(flag::EXTENTS) {
        return Ok(());
    }
    let mut walk = Walk { ctx, ino, inode: &inode, all: Vec::new(), seen: HashSet::new(), at_fault: false };
    if walk.node(&inode.block, None).is_some() && walk.at_fault {
        lock(&ctx.found.saved_trees).insert(ino.get(), walk.all);
    }
    Ok(())
}

/// Offers to build the tree of an inode anew from its saved extents; true when that was agreed to.
///
/// # Errors
/// As [`Ask::ask`].
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &Subject, effects: &mut Effects) -> Result<bool> {
    let Some(extents) = lock(&ctx.found.saved_trees).get(&s.ino.get()).cloned() else { return Ok(false) };
    let depth = u16::from_le_bytes([s.inode.block[6], s.inode.block[7]]);
    let problem = match depth > MAX_DEPTH {
        true => Problem::of(Code::ExtentTreeDeep, s.ino).values(depth, MAX_DEPTH),
        false => Problem::of(Code::ExtentNodeMetadata, s.ino),
    };
    if !ask.ask(problem)? {
        return Ok(false);
    }
    for extent in &extents {
        effects.data(extent.first.0.into(), extent.start, extent.len.into(), extent.unwritten);
    }
    lock(&ctx.found.to_extents).push((s.ino, Some(extents)));
    Ok(true)
}

struct Walk<'a> {
    ctx: &'a Context,
    ino: Ino,
    inode: &'a Inode,
    all: Vec<Extent>,
    seen: HashSet<u64>,
    at_fault: bool,
}

impl Walk<'_> {
    /// Follows a node of the depth that its parent promises; `None` for damage of another kind.
    fn node(&mut self, bytes: &[u8], promised: Option<u16>) -> Option<()> {
        let depth = u16::from_le_bytes([bytes[6], bytes[7]]);
        if promised.is_some_and(|promised| promised != depth) || depth > MOST_LEVELS {
            return None;
        }
        self.at_fault |= depth > MAX_DEPTH;
        let mut readable = bytes.to_vec();
        set_depth(&mut readable, depth.min(MAX_DEPTH));
        let node = Node::parse(&readable).ok().filter(|node| !node.is_empty())?;
        let geometry = &self.ctx.geometry;
        let volume = Bounds::of_volume(BlockNo(geometry.first_data_block.into()), geometry.blocks_count);
        node.check(&volume, false).ok()?;
        for extent in node.extents() {
            let fits = self.all.last().is_none_or(|last| last.end() <= extent.first.0.into());
            let free = !self.ctx.is_metadata(extent.start, extent.len.into());
            if !fits || !free || !self.ctx.spend_data(extent.len.into()) {
                return None;
            }
            self.all.push(extent);
        }
        for index in node.indexes() {
            if !self.ctx.on_volume(index.child, 1)
                || !self.ctx.spend_tree()
                || !self.seen.insert(index.child.0)
            {
                return None;
            }
            let child = self.ctx.disk.read(index.child).ok()?;
            self.ctx.csum.verify_extent_block(&child, self.ino, self.inode.generation).ok()?;
            self.at_fault |= self.ctx.is_metadata(index.child, 1);
            self.node(&child, Some(depth - 1))?;
        }
        Some(())
    }
}
