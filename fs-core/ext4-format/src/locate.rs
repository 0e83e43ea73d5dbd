//! Finds a file's blocks before the volume is mounted: replay needs the journal's blocks, and the rest of the
//! volume is valid only after replay. The caller reads the blocks.

use crate::corruption::{Corruption, What};
use crate::csum::Csum;
use crate::extent;
use crate::geometry::Geometry;
use crate::group_desc::GroupDesc;
use crate::indirect;
use crate::inode::{Inode, InodeLayout, flag};
use crate::num::{BlockNo, FileBlock, Ino};
use crate::superblock::SuperBlock;
use crate::verify;

/// Blocks of a file that follow each other in the file and on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first of them, counted in the file.
    pub first: FileBlock,
    /// How many.
    pub len: u32,
    /// The first of them on the device.
    pub start: BlockNo,
}

/// The inode `ino`, its checksum verified. `read` fetches a block of the volume.
///
/// # Errors
/// A number outside the volume, a damaged descriptor or inode, or what `read` returns.
pub fn inode<B, E>(
    sb: &SuperBlock,
    ino: Ino,
    read: &mut impl FnMut(BlockNo) -> Result<B, E>,
) -> Result<Inode, E>
where
    B: AsRef<[u8]>,
    E: From<Corruption>,
{
    let (geo, csum) = (Geometry::new(sb), Csum::new(sb));
    let lost = |field| Corruption::new(What::Inode, field, ino.get().into(), geo.inodes_count.into());
    let place = geo.inode_location(ino).ok_or_else(|| lost("inode number"))?;
    let (block, byte) = geo.descriptor(place.group);
    let descriptors = read(block)?;
    let descriptor =
        descriptors.as_ref().get(byte..byte + geo.desc_size).ok_or_else(|| lost("descriptor"))?;
    csum.verify_group_desc(descriptor, place.group)?;
    let table = GroupDesc::decode(descriptor)?.inode_table;
    let at = BlockNo(table.0.saturating_add(place.table_block.into()));
    if !geo.contains_blocks(at, 1) {
        return Err(Corruption::new(What::GroupDesc, "bg_inode_table", at.0, geo.blocks_count).into());
    }
    let records = read(at)?;
    let record =
        records.as_ref().get(place.byte..place.byte + geo.inode_size).ok_or_else(|| lost("record"))?;
    Ok(verify::inode(record, &csum, &InodeLayout::new(sb), ino)?)
}

/// The blocks of a file in file order, neighbours merged; unwritten ones are left out. With the inode's number
/// as `owner` the checksums of its extent tree are verified.
///
/// # Errors
/// A damaged map, or what `read` returns.
pub fn runs<B, E>(
    sb: &SuperBlock,
    inode: &Inode,
    owner: Option<Ino>,
    read: &mut impl FnMut(BlockNo) -> Result<B, E>,
) -> Result<Vec<Run>, E>
where
    B: AsRef<[u8]>,
    E: From<Corruption>,
{
    let first_block = BlockNo(Geometry::new(sb).first_data_block.into());
    let count = sb.blocks_count().0;
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |first: FileBlock, len: u32, start: BlockNo| match runs.last_mut() {
        Some(last)
            if u64::from(last.first.0) + u64::from(last.len) == u64::from(first.0)
                && last.start.0 + u64::from(last.len) == start.0 =>
        {
            last.len = last.len.saturating_add(len);
        }
        _ => runs.push(Run { first, len, start }),
    };
    if inode.has(flag::EXTENTS) {
        let bounds = extent::Bounds::of_volume(first_block, count);
        let csum = Csum::new(sb);
        let mut verified = |block: BlockNo| -> Result<B, E> {
            let bytes = read(block)?;
            if let Some(ino) = owner {
                csum.verify_extent_block(bytes.as_ref(), ino, inode.generation)
                    .map_err(|c| c.at_block(block))?;
            }
            Ok(bytes)
        };
        extent::walk(&inode.block, bounds, &mut verified, &mut |step| {
            if let extent::Step::Extent(e) = step
                && !e.unwritten
            {
                add(e.first, e.len, e.start);
            }
            Ok(())
        })?;
    } else {
        let volume = first_block.0 + 1..count;
        indirect::walk(&inode.block, sb.block_size(), volume, read, &mut |step| {
            if let indirect::Step::Data { file_block, block } = step
                && let Ok(at) = u32::try_from(file_block)
            {
                add(FileBlock(at), 1, block);
            }
            Ok(())
        })?;
    }
    Ok(runs)
}

/// Refuses runs of blocks that touch the volume's own metadata: superblocks, descriptors and the blocks
/// reserved for more of them, bitmaps, inode tables, the multi-mount block.
///
/// # Errors
/// The first block that belongs to both, a damaged descriptor, or what `read` returns.
pub fn apart_from_metadata<B, E>(
    sb: &SuperBlock,
    runs: &[Run],
    read: &mut impl FnMut(BlockNo) -> Result<B, E>,
) -> Result<(), E>
where
    B: AsRef<[u8]>,
    E: From<Corruption>,
{
    let (geo, csum) = (Geometry::new(sb), Csum::new(sb));
    let mut taken: Vec<(u64, u64)> =
        runs.iter().map(|run| (run.start.0, run.start.0.saturating_add(run.len.into()))).collect();
    taken.sort_unstable();
    let refuse = |start: u64, end: u64| {
        let after = taken.partition_point(|run| run.1 <= start);
        match taken.get(after).filter(|run| start < end && run.0 < end) {
            Some(run) => {
                Err(Corruption::new(What::JournalBlock, "block of the volume itself", run.0.max(start), 0))
            }
            None => Ok(()),
        }
    };
    if let Some(mmp) = sb.mmp_block() {
        refuse(mmp.0, mmp.0.saturating_add(1))?;
    }
    let table = u64::from(geo.inode_table_blocks());
    let mut descriptors: Option<(BlockNo, B)> = None;
    for group in geo.groups() {
        refuse(geo.group_first_block(group).0, geo.head(group).reserved.end)
            .map_err(|c| c.in_group(group))?;
        let (block, byte) = geo.descriptor(group);
        let bytes = match &descriptors {
            Some((at, bytes)) if *at == block => bytes,
            _ => &descriptors.insert((block, read(block)?)).1,
        };
        let bytes = bytes.as_ref().get(byte..byte + geo.desc_size).unwrap_or_default();
        let desc = verify::group_desc(bytes, &csum, &geo, group)?;
        for (place, len) in [(desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, table)] {
            refuse(place.0, place.0.saturating_add(len)).map_err(|c| c.in_group(group))?;
        }
    }
    Ok(())
}
