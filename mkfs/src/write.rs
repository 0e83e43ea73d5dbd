//! Puts a finished volume on a device.
//!
//! Order: old blocks given back, ranges zeroed, metadata, backups, flush, then the primary superblock and a
//! flush. Until that last write the device holds no filesystem: byte 1024 was zeroed before anything else was
//! written.

use std::ops::Range;

use blockdev::BlockDevice;
use ext4_format::GroupNo;
use ext4_format::group_desc::GroupDesc;
use ext4_format::superblock::{SUPERBLOCK_OFFSET, State, SuperBlock};
use zerocopy::little_endian::U16;

use crate::error::Result;
use crate::layout::Layout;
use crate::options::Options;
use crate::volume::Volume;
use crate::{Step, Watch};

/// A chunk of discard or zeroing, small enough that progress is seen.
const CHUNK: u64 = 4 << 30;
/// Metadata blocks that lie side by side are written together up to this length.
const GATHER: usize = 1 << 20;
/// Bytes zeroed at the end of the device: old labels of RAID and the like.
const TAIL: u64 = 64 * 1024;

/// What was written.
pub struct Written {
    /// The superblock.
    pub superblock: SuperBlock,
    /// Bytes written, zeroed ranges not counted.
    pub bytes: u64,
}

/// A tree that a volume holds: it writes its own inodes and blocks.
pub trait Tree {
    /// Fills the record of one of the inodes that [`Volume::fill`] left to the tree.
    fn inode(&self, ino: u32, record: &mut [u8]) -> Result<()>;

    /// Gives out the metadata blocks of its files: number and bytes.
    fn blocks(&self, put: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()>;

    /// Bytes of data that it wrote.
    fn data_bytes(&self) -> u64;
}

/// Gives a device's old blocks back and takes away what it holds: until the superblock is written at the
/// very end there is no filesystem on it.
pub fn prepare(
    device: &dyn BlockDevice,
    layout: &Layout,
    options: &Options,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let size = layout.superblock.blocks_count().0 * u64::from(layout.superblock.block_size());
    let device_size = device.geometry().size;
    if options.discard && device.geometry().discard {
        in_chunks(0..size, |at, len| {
            watch(Step::Discard, at, size);
            device.discard(at, len)
        })?;
        watch(Step::Discard, size, size);
    }
    device.write_zeroes(0, SUPERBLOCK_OFFSET + 1024)?;
    if device_size >= size + TAIL || device_size == size {
        device.write_zeroes(size.saturating_sub(TAIL).max(SUPERBLOCK_OFFSET + 1024), TAIL.min(size / 2))?;
    }
    device.flush()?;
    Ok(())
}

/// Writes the volume, and the tree that it holds.
pub fn write(
    device: &dyn BlockDevice,
    mut volume: Volume,
    layout: &Layout,
    options: &Options,
    tree: Option<&dyn Tree>,
    watch: &mut Watch<'_>,
) -> Result<Written> {
    let geometry = *volume.geometry();
    let block_size = u64::from(geometry.block_size);
    let mut out = Out { device, block_size, first: 0, pending: Vec::new(), bytes: 0 };
    let lazy = options.lazy_itable_init && volume.csum().group_descs();
    let descs = volume.groups(!lazy || options.assume_prezeroed);
    if !options.assume_prezeroed {
        zero_tables(device, &volume, &descs, lazy, watch)?;
    }
    if layout.journal_blocks > 0 {
        watch(Step::Journal(layout.journal_blocks), 0, 1);
    }
    for run in volume.zeroed.iter().filter(|_| !options.assume_prezeroed) {
        in_chunks(run.start * block_size..run.end * block_size, |at, len| device.write_zeroes(at, len))?;
    }
    if layout.journal_blocks > 0 {
        watch(Step::Journal(layout.journal_blocks), 1, 1);
    }

    let groups = u64::from(geometry.group_count);
    write_tables(&mut out, &volume, tree)?;
    for (number, bytes) in volume.blocks() {
        out.put(number, bytes)?;
    }
    if let Some(tree) = tree {
        tree.blocks(&mut |number, bytes| out.put(number, bytes))?;
        out.bytes += tree.data_bytes();
    }
    for group in geometry.groups() {
        watch(Step::Accounting, group.0.into(), groups);
        let desc = &descs[group.0 as usize];
        let (blocks, inodes) = volume.bitmaps(group, desc);
        if let Some(bytes) = blocks {
            out.put(desc.block_bitmap.0, &bytes)?;
        }
        if let Some(bytes) = inodes {
            out.put(desc.inode_bitmap.0, &bytes)?;
        }
    }
    let table = descriptor_table(&volume, &descs);
    let heads: u64 = geometry
        .groups()
        .map(|group| geometry.head(group))
        .map(|head| u64::from(head.superblock.is_some()) + (head.descriptors.end - head.descriptors.start))
        .sum();
    volume.superblock.set_kbytes_written((out.bytes + heads * block_size) / 1024);
    for group in geometry.groups() {
        write_head(&mut out, &volume, &table, group)?;
    }
    out.flush_pending()?;
    device.flush()?;
    device.write_at(SUPERBLOCK_OFFSET, &volume.superblock.encode())?;
    device.flush()?;
    watch(Step::Accounting, groups, groups);
    Ok(Written { superblock: volume.superblock, bytes: out.bytes + 1024 })
}

/// Writes the blocks of inode tables that hold inodes.
fn write_tables(out: &mut Out<'_>, volume: &Volume, tree: Option<&dyn Tree>) -> Result<()> {
    let size = volume.geometry().inode_size;
    let per_block = volume.block_size() / size;
    let mut bytes = vec![0; volume.block_size()];
    for group in volume.geometry().groups() {
        for index in 0..volume.table_blocks_in_use(group) {
            let (block, contents) = volume.contents_in(group, index);
            let first = group.0 * volume.geometry().inodes_per_group + index * per_block as u32 + 1;
            bytes.fill(0);
            for (ino, record) in (first..).zip(bytes.chunks_exact_mut(size)) {
                match (volume.record(ino), tree) {
                    (Some(own), _) => record[..own.len()].copy_from_slice(own),
                    (None, Some(tree)) if contents.contains(&ino) => tree.inode(ino, record)?,
                    _ => {}
                }
            }
            out.put(block, &bytes)?;
        }
    }
    Ok(())
}

/// Zeroes inode tables: all of them, or, where the first mount does it, the parts in use. Blocks that hold
/// inodes are written afterwards.
fn zero_tables(
    device: &dyn BlockDevice,
    volume: &Volume,
    descs: &[GroupDesc],
    lazy: bool,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let geometry = volume.geometry();
    let block_size = u64::from(geometry.block_size);
    let table = u64::from(geometry.inode_table_blocks());
    let total = descs.len() as u64;
    let mut run: Range<u64> = 0..0;
    for (index, desc) in descs.iter().enumerate() {
        watch(Step::InodeTables, index as u64, total);
        let count = if lazy {
            let used = u64::from(geometry.inodes_per_group - desc.itable_unused) * geometry.inode_size as u64;
            used.div_ceil(block_size)
        } else {
            table
        };
        if count == 0 {
            continue;
        }
        let here = desc.inode_table.0..desc.inode_table.0 + count;
        if here.start == run.end {
            run.end = here.end;
        } else {
            in_chunks(run.start * block_size..run.end * block_size, |at, len| device.write_zeroes(at, len))?;
            run = here;
        }
    }
    in_chunks(run.start * block_size..run.end * block_size, |at, len| device.write_zeroes(at, len))?;
    watch(Step::InodeTables, total, total);
    Ok(())
}

fn in_chunks(
    range: Range<u64>,
    mut each: impl FnMut(u64, u64) -> blockdev::Result<()>,
) -> blockdev::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(CHUNK);
        each(at, len)?;
        at += len;
    }
    Ok(())
}

/// All descriptors, in whole blocks.
fn descriptor_table(volume: &Volume, descs: &[GroupDesc]) -> Vec<u8> {
    let geometry = volume.geometry();
    let mut table = vec![0; geometry.desc_blocks as usize * volume.block_size()];
    for (group, (desc, bytes)) in descs.iter().zip(table.chunks_exact_mut(geometry.desc_size)).enumerate() {
        desc.encode_into(bytes, GroupNo(group as u32), volume.csum());
    }
    table
}

/// Writes what stands at the head of a group, all but the primary superblock.
fn write_head(out: &mut Out<'_>, volume: &Volume, table: &[u8], group: GroupNo) -> Result<()> {
    let head = volume.geometry().head(group);
    if let Some(block) = head.superblock.filter(|_| group.0 > 0) {
        // A copy does not vouch for the volume's state.
        let mut copy = volume.superblock;
        copy.set_state(State::default());
        copy.edit(|raw| raw.block_group_nr = U16::new(group.0 as u16))?;
        let mut bytes = vec![0; volume.block_size()];
        bytes[..1024].copy_from_slice(&copy.encode());
        out.put(block.0, &bytes)?;
    }
    let blocks = table.chunks_exact(volume.block_size()).skip(head.first_descriptor_block as usize);
    for (number, bytes) in head.descriptors.zip(blocks) {
        out.put(number, bytes)?;
    }
    Ok(())
}

/// Gathers neighbouring blocks into one write.
struct Out<'a> {
    device: &'a dyn BlockDevice,
    block_size: u64,
    first: u64,
    pending: Vec<u8>,
    bytes: u64,
}

impl Out<'_> {
    fn put(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        let next = self.first + self.pending.len() as u64 / self.block_size;
        if block != next || self.pending.len() >= GATHER {
            self.flush_pending()?;
            self.first = block;
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn flush_pending(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.device.write_at(self.first * self.block_size, &self.pending)?;
            self.bytes += self.pending.len() as u64;
            self.pending.clear();
        }
        Ok(())
    }
}
