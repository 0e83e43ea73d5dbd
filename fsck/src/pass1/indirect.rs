//! The block map of an ext2 or ext3 file: pointers that lead nowhere are cleared.

use std::collections::HashSet;

use ext4_format::indirect::{DIRECT, pointer, set_pointer, span};
use ext4_format::{BlockNo, Ino};

use super::inode::{Effects, Subject};
use crate::context::Context;
use crate::error::Result;
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// Blocks of a hole that is filled in a directory.
const MAX_HOLE: u64 = 64;

/// Checks the whole map of an inode.
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    let is_dir = s.inode.is_dir();
    let mut walk = Walk { ctx, ask, ino: s.ino, is_dir, nodes: HashSet::new(), effects };
    let mut first = 0;
    for slot in 0..DIRECT + 3 {
        let levels = (slot + 1).saturating_sub(DIRECT) as usize;
        if let Some(block) = pointer(&s.inode.block, slot)
            && walk.subtree(block, first, levels)?
        {
            set_pointer(&mut s.inode.block, slot, None);
            s.dirty = true;
        }
        first += span(ctx.geometry.block_size, levels);
    }
    Ok(())
}

struct Walk<'a> {
    ctx: &'a Context,
    ask: &'a mut dyn Ask,
    ino: Ino,
    is_dir: bool,
    /// Indirect blocks of this inode: a second visit would be a loop.
    nodes: HashSet<u64>,
    effects: &'a mut Effects,
}

/// Pointers off the volume in a block that may still be one of pointers.
const STRAYS: usize = 12;

impl Walk<'_> {
    /// Whether a block holds something else than pointers: most of them would lead off the volume. To clear
    /// them one by one would write into another file's data.
    fn is_foreign(&self, bytes: &[u8]) -> bool {
        let pointers = (0..self.ctx.geometry.block_size / 4).filter_map(|slot| pointer(bytes, slot));
        let (good, strays): (Vec<_>, Vec<_>) = pointers.partition(|child| self.ctx.on_volume(*child, 1));
        strays.len() > STRAYS && strays.len() > good.len()
    }

    /// Checks what a pointer leads to; true when the pointer must go.
    fn subtree(&mut self, block: BlockNo, first: u64, levels: usize) -> Result<bool> {
        let ctx = self.ctx;
        if levels == 0 {
            if !ctx.on_volume(block, 1) || first > u64::from(u32::MAX) || !ctx.spend_data(1) {
                let problem = Problem::of(Code::BlockPointer, self.ino).at(block).values(first, 0_u32);
                return self.ask.ask(problem);
            }
            // Holes of a directory are filled, so a block far behind the others would cost a volume of them.
            let far = self.effects.last.map_or(0, |last| last + 1) + MAX_HOLE;
            if self.is_dir && first > far {
                let problem = Problem::of(Code::DirectoryTooBig, self.ino).at(block).values(first, far);
                if self.ask.ask(problem)? {
                    return Ok(true);
                }
            }
            self.effects.data(first, block, 1, false);
            return Ok(false);
        }
        let sound = ctx.on_volume(block, 1) && !ctx.is_metadata(block, 1) && ctx.spend_tree();
        if !sound || !self.nodes.insert(block.0) {
            return self.ask.ask(Problem::of(Code::IndirectPointer, self.ino).at(block));
        }
        let Ok(mut bytes) = ctx.disk.read(block) else {
            return self.ask.ask(Problem::of(Code::IndirectPointer, self.ino).at(block));
        };
        if self.is_foreign(&bytes) {
            return self.ask.ask(Problem::of(Code::IndirectPointer, self.ino).at(block));
        }
        self.effects.claims.push((block.0, 1));
        // The pieces of a file are told by its data; the block that maps them may stand between.
        if self.effects.expected_next == block.0 {
            self.effects.expected_next += 1;
        }
        let unit = span(ctx.geometry.block_size, levels - 1);
        if levels > 1 {
            let children = (0..ctx.geometry.block_size / 4).filter_map(|slot| pointer(&bytes, slot));
            children.for_each(|child| ctx.disk.will_need(child, 1));
        }
        let mut changed = false;
        for slot in 0..ctx.geometry.block_size / 4 {
            if let Some(child) = pointer(&bytes, slot)
                && self.subtree(child, first + u64::from(slot) * unit, levels - 1)?
            {
                changed |= set_pointer(&mut bytes, slot, None);
            }
        }
        if changed {
            ctx.disk.write(block, &bytes)?;
        }
        Ok(false)
    }
}
