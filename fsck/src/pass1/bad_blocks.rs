//! The bad-blocks inode: its map is a list of blocks that nobody shall use. It owns no data, so nothing of it
//! is copied, and a block of it may lie under the volume's metadata.

use ext4_format::BlockNo;
use ext4_format::indirect::{DIRECT, pointer, set_pointer};

use super::indirect;
use super::inode::{Effects, Subject};
use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::map::Use;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, DryRun};

/// Checks the inode and what it lists.
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    effects.what = Some(Use::Internal);
    let inode = &s.inode;
    let wrong = inode.mode != 0
        || inode.uid != 0
        || inode.gid != 0
        || inode.links != 0
        || inode.file_acl.0 != 0
        || inode.flags != 0;
    for block in primary_blocks(ctx, s)? {
        if ask.ask(Problem::of(Code::BadBlockPrimary, s.ino).at(block))? {
            strike(ctx, s, block)?;
        }
    }
    let mut seen = Effects::default();
    // A list that is itself damaged is worth nothing: it goes as a whole.
    let sound = match indirect::check(ctx, &mut DryRun, s, &mut seen) {
        Ok(()) => !wrong,
        Err(Error::Suspect) => false,
        Err(error) => return Err(error),
    };
    if !sound {
        if ask.ask(Problem::of(Code::BadBlocksInode, s.ino))? {
            s.clear(ctx);
        }
        return Ok(());
    }
    for (block, len) in seen.claims {
        if ctx.is_metadata(BlockNo(block), len) {
            lock(&ctx.found.bad_metadata).insert(block);
        } else {
            effects.claims.push((block, len));
        }
    }
    Ok(())
}

/// Listed blocks on which the first superblock or the descriptors in use lie.
fn primary_blocks(ctx: &Context, s: &Subject) -> Result<Vec<BlockNo>> {
    let superblock = 1024 / u64::from(ctx.geometry.block_size);
    let descriptors: Vec<u64> =
        (0..ctx.geometry.desc_blocks).map(|at| ctx.geometry.descriptor_block(at).0).collect();
    let mut found = Vec::new();
    let mut list = |bytes: &[u8], slots: u32| {
        let blocks = (0..slots).filter_map(|slot| pointer(bytes, slot));
        found.extend(blocks.filter(|block| block.0 == superblock || descriptors.contains(&block.0)));
    };
    list(&s.inode.block, DIRECT);
    if let Some(node) = indirect_block(ctx, s) {
        list(&ctx.disk.read(node)?, ctx.geometry.block_size / 4);
    }
    Ok(found)
}

/// Takes a block out of the list.
fn strike(ctx: &Context, s: &mut Subject, block: BlockNo) -> Result<()> {
    let out = |bytes: &mut [u8], slots: u32| {
        (0..slots).any(|slot| pointer(bytes, slot) == Some(block) && set_pointer(bytes, slot, None))
    };
    if out(&mut s.inode.block, DIRECT) {
        s.dirty = true;
    } else if let Some(node) = indirect_block(ctx, s) {
        let mut bytes = ctx.disk.read(node)?;
        if out(&mut bytes, ctx.geometry.block_size / 4) {
            ctx.disk.write(node, &bytes)?;
        }
    }
    Ok(())
}

/// The block behind the direct pointers; longer lists are left as they are.
fn indirect_block(ctx: &Context, s: &Subject) -> Option<BlockNo> {
    pointer(&s.inode.block, DIRECT).filter(|node| ctx.on_volume(*node, 1) && !ctx.is_metadata(*node, 1))
}
