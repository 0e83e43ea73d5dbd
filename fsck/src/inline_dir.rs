//! Directories whose entries lie in their inode: visited in place, and moved to a block when they need more
//! room than the inode has.

use ext4_format::dirent::{DirBlock, DirBlockMut, DirFormat, NewEntry};
use ext4_format::extent::NodeMut;
use ext4_format::features::Incompat;
use ext4_format::inode::{BLOCK_AREA, FileType, Inode, flag};
use ext4_format::xattr::{Attributes, Home, INDEX_SYSTEM};
use ext4_format::{BlockNo, Ino};

use crate::alloc;
use crate::context::Context;
use crate::error::Result;
use crate::pass1::{inline, value_hash};

/// Calls `visit` with each area that holds entries until it returns true; what it changed is written back.
/// True when it did.
///
/// # Errors
/// The device's.
pub fn with_areas(
    ctx: &Context,
    ino: Ino,
    inode: &Inode,
    mut visit: impl FnMut(&mut [u8], DirFormat) -> bool,
) -> Result<bool> {
    let mut record = ctx.read_record(ino)?;
    let format = DirFormat { tail: false, ..DirFormat::new(&ctx.sb, inode.flags) };
    for area in inline::areas(ctx, &record, inode) {
        let mut bytes = record[area.clone()].to_vec();
        let stop = visit(&mut bytes, format);
        if bytes != record[area.clone()] {
            record[area].copy_from_slice(&bytes);
            ctx.write_record(ino, &mut record)?;
        }
        if stop {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Moves the entries of such a directory to a block.
///
/// # Errors
/// The device's, or [`crate::Error::NoSpace`].
pub fn to_block(ctx: &Context, ino: Ino) -> Result<()> {
    let mut inode = ctx.read_inode(ino)?;
    let format = DirFormat::new(&ctx.sb, inode.flags);
    let parent = u32::from_le_bytes(std::array::from_fn(|i| inode.block[i]));
    let mut bytes = vec![0; ctx.disk.block_size()];
    let mut block = DirBlockMut::init_first(&mut bytes, format, ino, Ino::new(parent).unwrap_or(Ino::ROOT));
    with_areas(ctx, ino, &inode, |area, format| {
        for entry in DirBlock::new(area, format).entries().map_while(std::result::Result::ok) {
            let Some(target) = entry.ino else { continue };
            let file_type = entry.file_type().unwrap_or(FileType::Regular);
            // What fits into an inode fits into a block.
            let _ = block.insert(&NewEntry { ino: target, file_type, name: entry.name });
        }
        false
    })?;
    let place = alloc::cluster(ctx, BlockNo(0))?;
    ctx.csum.set_dir_block(&mut bytes, ino, inode.generation);
    ctx.disk.write(place, &bytes)?;
    let mut record = ctx.read_record(ino)?;
    if let Some(range) = inode.xattr_range(&ctx.layout) {
        let all = Attributes::read(&record[range.clone()], Home::Inode, |ino| value_hash(ctx, ino));
        if let Ok(mut all) = all {
            all.remove(INDEX_SYSTEM, b"data");
            let _ = all.write(&mut record[range], Home::Inode);
            ctx.write_record(ino, &mut record)?;
        }
    }
    inode.flags &= !flag::INLINE_DATA;
    inode.block = [0; BLOCK_AREA];
    if ctx.has_incompat(Incompat::EXTENTS) {
        inode.flags |= flag::EXTENTS;
        let _ = NodeMut::init(&mut inode.block, 0);
    }
    inode.size = ctx.geometry.block_size.into();
    alloc::map_block(ctx, ino, &mut inode, 0, place)?;
    ctx.write_inode(ino, &inode)
}
