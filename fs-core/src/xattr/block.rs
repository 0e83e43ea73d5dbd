//! The attribute block: written in place while one inode has it, shared between inodes whose
//! attributes are equal, and copied when one of several changes.
//!
//! A block has one reference to each value inode for every entry that names it, however many inodes share the
//! block.
//!
//! The reference count is part of the block and changes only under its write guard. A count of 0
//! marks a block that is about to be freed: nobody may join it any more.

use ext4_format::verify;
use ext4_format::xattr::{self as codec, Attributes, BLOCK_HEADER, Home, MAX_REFCOUNT, block_header};
use ext4_format::{BlockNo, Corruption, What};
use jbd2::{Buffer, Handle};

use super::{Changed, Xattrs};
use crate::alloc::BlockRequest;
use crate::error::{Error, Result};
use crate::inode::Core;

impl Xattrs<'_> {
    pub(super) fn look_in_block<T>(
        &self,
        core: &Core,
        look: impl FnOnce(&[u8]) -> std::result::Result<T, Corruption>,
    ) -> Result<Option<T>> {
        if core.disk.file_acl.0 == 0 {
            return Ok(None);
        }
        let data = self.load(core.disk.file_acl)?.data();
        look(&data).map(Some).map_err(|c| self.damaged(c))
    }

    /// Gives the inode a block with exactly these attributes, or none.
    pub(super) fn write_block(
        &self,
        handle: &Handle<'_>,
        core: &mut Core,
        list: &Attributes,
        change: &mut Changed,
    ) -> Result<()> {
        let old = Some(core.disk.file_acl).filter(|block| block.0 != 0);
        if list.list().is_empty() {
            return match old {
                Some(old) => {
                    self.leave(handle, old, change)?;
                    self.point(core, None);
                    Ok(())
                }
                None => Ok(()),
            };
        }
        let mut image = vec![0; self.ctx.vol.block_size() as usize];
        if !list.write(&mut image, Home::Block) {
            return Err(Error::NoSpace);
        }
        let hash = block_header(&image).map_err(|c| self.damaged(c))?.hash;
        if let Some(twin) = self.join(handle, hash, &image, old)? {
            if let Some(old) = old {
                self.leave(handle, old, change)?;
            }
            self.point(core, Some(twin));
            return Ok(());
        }
        if let Some(old) = old
            && self.overwrite(handle, old, &image, list, change)?
        {
            self.ctx.cache.blocks.insert(hash, old);
            return Ok(());
        }
        let goal = self.ctx.alloc.goal_for(self.inode.ino, false);
        let run = self.ctx.alloc.alloc_blocks(handle, BlockRequest::one(goal, self.ctx.depth))?;
        let buffer = handle.create(run.start)?;
        self.fill(handle, &buffer, &image)?;
        self.count_values(handle, &Attributes::default(), list, change)?;
        self.ctx.cache.blocks.insert(hash, run.start);
        if let Some(old) = old {
            self.leave(handle, old, change)?;
        }
        self.point(core, Some(run.start));
        Ok(())
    }

    /// Shares a block that holds `image` already.
    fn join(
        &self,
        handle: &Handle<'_>,
        hash: u32,
        image: &[u8],
        old: Option<BlockNo>,
    ) -> Result<Option<BlockNo>> {
        let Some(block) = self.ctx.cache.blocks.find(hash).filter(|block| Some(*block) != old) else {
            return Ok(None);
        };
        let shares = |bytes: &[u8]| {
            let equal = bytes.get(BLOCK_HEADER..) == image.get(BLOCK_HEADER..);
            let header = block_header(bytes).ok().filter(|h| equal && h.hash == hash)?;
            (1..MAX_REFCOUNT).contains(&header.refcount).then_some(header.refcount)
        };
        let Ok(buffer) = self.load(block) else { return Ok(None) };
        if shares(&buffer.data()).is_none() {
            return Ok(None);
        }
        let mut bytes = match handle.write(&buffer) {
            Ok(bytes) => bytes,
            Err(jbd2::Error::Forgotten { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(count) = shares(&bytes) else { return Ok(None) };
        codec::set_refcount(&mut bytes, count + 1);
        self.ctx.vol.csum.set_xattr_block(&mut bytes, block);
        Ok(Some(block))
    }

    /// Replaces the content of a block that only this inode has. False when others have it too.
    fn overwrite(
        &self,
        handle: &Handle<'_>,
        block: BlockNo,
        image: &[u8],
        list: &Attributes,
        change: &mut Changed,
    ) -> Result<bool> {
        let buffer = self.load(block)?;
        let before = self.decode(&buffer.data(), Home::Block).map_err(|c| self.damaged(c))?;
        {
            let mut bytes = handle.write(&buffer)?;
            let header = block_header(&bytes).map_err(|c| self.damaged(c))?;
            if header.refcount > 1 {
                return Ok(false);
            }
            self.ctx.cache.blocks.remove(header.hash, block);
            bytes.copy_from_slice(image);
            self.ctx.vol.csum.set_xattr_block(&mut bytes, block);
        }
        self.count_values(handle, &before, list, change)?;
        Ok(true)
    }

    /// Gives up this inode's share of `block`; the last one frees it, and its values with it.
    fn leave(&self, handle: &Handle<'_>, block: BlockNo, change: &mut Changed) -> Result<()> {
        let buffer = self.load(block)?;
        let before = self.decode(&buffer.data(), Home::Block).map_err(|c| self.damaged(c))?;
        let (count, hash) = {
            let mut bytes = handle.write(&buffer)?;
            let header = block_header(&bytes).map_err(|c| self.damaged(c))?;
            let count = header.refcount.saturating_sub(1);
            codec::set_refcount(&mut bytes, count);
            self.ctx.vol.csum.set_xattr_block(&mut bytes, block);
            (count, header.hash)
        };
        if count == 0 {
            self.count_values(handle, &before, &Attributes::default(), change)?;
            self.ctx.cache.blocks.remove(hash, block);
            handle.forget(block)?;
            self.ctx.alloc.free_blocks(handle, block, 1)?;
        }
        Ok(())
    }

    fn fill(&self, handle: &Handle<'_>, buffer: &Buffer, image: &[u8]) -> Result<()> {
        let mut bytes = handle.write(buffer)?;
        bytes.copy_from_slice(image);
        self.ctx.vol.csum.set_xattr_block(&mut bytes, buffer.block());
        Ok(())
    }

    fn point(&self, core: &mut Core, block: Option<BlockNo>) {
        let sectors = u64::from(self.ctx.vol.block_size() / 512);
        let had = core.disk.file_acl.0 != 0;
        match (had, block.is_some()) {
            (false, true) => core.map.sectors += sectors,
            (true, false) => core.map.sectors = core.map.sectors.saturating_sub(sectors),
            _ => {}
        }
        core.disk.file_acl = block.unwrap_or(BlockNo(0));
    }

    fn load(&self, block: BlockNo) -> Result<Buffer> {
        if !self.ctx.alloc.may_hold_data(block, 1) {
            let most = self.ctx.vol.geo.blocks_count;
            return Err(self.damaged(Corruption::new(What::Xattr, "i_file_acl", block.0, most)));
        }
        let ino = self.inode.ino;
        self.ctx.vol.read_meta(block, |bytes| {
            verify::xattr_block(bytes, &self.ctx.vol.csum, block).map_err(|c| c.in_inode(ino))
        })
    }
}
