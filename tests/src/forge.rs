//! Volumes changed by hand, with every checksum made right again: what a hostile or unlucky image holds, and
//! no program of ours or of e2fsprogs would write.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockdev::BlockDevice;
use blockdev::sim::{Fill, MemDevice};
use ext4_format::bitmap::Bits;
use ext4_format::csum::Csum;
use ext4_format::extent::{Extent, Index, Node, NodeMut};
use ext4_format::geometry::Geometry;
use ext4_format::group_desc::{GroupDesc, GroupFlags};
use ext4_format::inode::{Inode, InodeLayout, flag};
use ext4_format::jbd2::{self, Incompat as JournalIncompat, Tag};
use ext4_format::superblock::{SUPERBLOCK_OFFSET, SuperBlock};
use ext4_format::{BlockNo, FileBlock, GroupNo, Ino, Tid, indirect, locate};

/// An image in memory. The device may be larger than the volume.
#[derive(Clone)]
pub struct Forge {
    /// The device's bytes.
    pub bytes: Vec<u8>,
    /// The superblock; [`Forge::set_superblock`] changes it in the image.
    pub sb: SuperBlock,
    /// Where things lie.
    pub geo: Geometry,
    csum: Csum,
    layout: InodeLayout,
}

impl Forge {
    /// The volume in an image file.
    pub fn load(image: &Path) -> Result<Forge> {
        Forge::new(std::fs::read(image)?)
    }

    /// The volume in these bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Forge> {
        let at = SUPERBLOCK_OFFSET as usize;
        let sb = SuperBlock::parse(bytes[at..at + 1024].try_into()?)?;
        Ok(Forge { bytes, sb, geo: Geometry::new(&sb), csum: Csum::new(&sb), layout: InodeLayout::new(&sb) })
    }

    fn size(&self) -> usize {
        self.geo.block_size as usize
    }

    /// A block's bytes.
    #[must_use]
    pub fn block(&self, block: u64) -> &[u8] {
        &self.bytes[block as usize * self.size()..][..self.size()]
    }

    /// The same, to be changed.
    pub fn block_mut(&mut self, block: u64) -> &mut [u8] {
        let size = self.size();
        &mut self.bytes[block as usize * size..][..size]
    }

    /// Bytes of the device behind the volume's end.
    #[must_use]
    pub fn beyond<'b>(&self, device: &'b [u8]) -> &'b [u8] {
        &device[self.geo.blocks_count as usize * self.size()..]
    }

    /// Makes the device larger than the volume by this many blocks, full of a pattern.
    pub fn extend(&mut self, blocks: u64) {
        self.bytes.resize(self.bytes.len() + blocks as usize * self.size(), b'P');
    }

    /// Changes the superblock.
    pub fn set_superblock(&mut self, change: impl FnOnce(&mut SuperBlock)) {
        change(&mut self.sb);
        let at = SUPERBLOCK_OFFSET as usize;
        self.bytes[at..at + 1024].copy_from_slice(&self.sb.encode());
    }

    /// A group's descriptor.
    pub fn group(&self, group: GroupNo) -> Result<GroupDesc> {
        let (block, at) = self.geo.descriptor(group);
        Ok(GroupDesc::decode(&self.block(block.0)[at..at + self.geo.desc_size])?)
    }

    /// The block of a group's descriptor with that descriptor changed.
    pub fn changed_group(
        &self,
        group: GroupNo,
        change: impl FnOnce(&mut GroupDesc),
    ) -> Result<(u64, Vec<u8>)> {
        let mut desc = self.group(group)?;
        change(&mut desc);
        let (block, at) = self.geo.descriptor(group);
        let mut bytes = self.block(block.0).to_vec();
        desc.encode_into(&mut bytes[at..at + self.geo.desc_size], group, &self.csum);
        Ok((block.0, bytes))
    }

    /// Block and byte of an inode's record.
    pub fn inode_place(&self, ino: Ino) -> Result<(u64, usize)> {
        let place = self.geo.inode_location(ino).context("inode number")?;
        Ok((self.group(place.group)?.inode_table.0 + u64::from(place.table_block), place.byte))
    }

    /// An inode.
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        let (block, at) = self.inode_place(ino)?;
        Ok(Inode::decode(&self.block(block)[at..at + self.geo.inode_size], &self.layout)?)
    }

    /// Its block of the inode table with this inode in it.
    pub fn changed_inode(&self, ino: Ino, inode: &Inode) -> Result<(u64, Vec<u8>)> {
        let (block, at) = self.inode_place(ino)?;
        let mut bytes = self.block(block).to_vec();
        let record = &mut bytes[at..at + self.geo.inode_size];
        inode.encode_into(record, &self.layout);
        self.csum.set_inode(record, ino);
        Ok((block, bytes))
    }

    /// Writes an inode.
    pub fn set_inode(&mut self, ino: Ino, inode: &Inode) -> Result<()> {
        let (block, bytes) = self.changed_inode(ino, inode)?;
        self.block_mut(block).copy_from_slice(&bytes);
        Ok(())
    }

    /// The blocks of a file, in its order.
    pub fn blocks_of(&self, ino: Ino) -> Result<Vec<u64>> {
        let runs =
            locate::runs::<_, ext4_format::Corruption>(&self.sb, &self.inode(ino)?, Some(ino), &mut |b| {
                Ok(self.block(b.0))
            })?;
        Ok(runs.iter().flat_map(|run| run.start.0..run.start.0 + u64::from(run.len)).collect())
    }

    /// The first block of an inode's extent tree.
    pub fn tree_block(&self, ino: Ino) -> Result<u64> {
        let root = self.inode(ino)?.block;
        let index = Node::parse(&root)?.index(0).context("the tree fits into the inode")?;
        Ok(index.child.0)
    }

    /// Blocks that nothing uses.
    pub fn free_blocks(&self) -> Result<Vec<u64>> {
        let mut free = Vec::new();
        for group in self.geo.groups() {
            let desc = self.group(group)?;
            let mut bitmap = self.block(desc.block_bitmap.0).to_vec();
            if self.csum.group_descs() && desc.flags.has(GroupFlags::BLOCK_UNINIT) {
                self.geo.fill_uninit_block_bitmap(group, &desc, &mut bitmap);
            }
            let bits = Bits::new(&bitmap, self.geo.blocks_in_group(group));
            let first = self.geo.group_first_block(group).0;
            free.extend(bits.clear_runs(0..bits.len()).flatten().map(|bit| first + u64::from(bit)));
        }
        Ok(free)
    }

    /// The volume's own blocks: superblocks, descriptors and those reserved for more, bitmaps, inode tables.
    pub fn metadata(&self) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for group in self.geo.groups() {
            let (desc, head) = (self.group(group)?, self.geo.head(group));
            all.extend(self.geo.group_first_block(group).0.max(1)..head.reserved.end);
            all.extend([desc.block_bitmap.0, desc.inode_bitmap.0]);
            all.extend((0..u64::from(self.geo.inode_table_blocks())).map(|at| desc.inode_table.0 + at));
        }
        Ok(all)
    }

    /// Lets an inode map these blocks in this order: by extents, in a leaf taken from `spare` when there are
    /// more than four, or by pointers with all their indirect blocks from `spare`.
    pub fn map(&mut self, ino: Ino, inode: &mut Inode, blocks: &[u64], spare: &mut Vec<u64>) -> Result<()> {
        let before = spare.len();
        inode.block = [0; 60];
        if inode.has(flag::EXTENTS) {
            self.map_extents(ino, inode, blocks, spare)?;
        } else {
            self.map_pointers(inode, blocks, spare)?;
        }
        let used = blocks.len() + before - spare.len();
        inode.blocks = (used * self.size() / 512) as u64;
        self.set_inode(ino, inode)
    }

    fn map_extents(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        blocks: &[u64],
        spare: &mut Vec<u64>,
    ) -> Result<()> {
        let mut extents: Vec<Extent> = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            match extents.last_mut() {
                Some(last) if last.start.0 + u64::from(last.len) == *block => last.len += 1,
                _ => extents.push(Extent {
                    first: FileBlock(at as u32),
                    len: 1,
                    start: BlockNo(*block),
                    unwritten: false,
                }),
            }
        }
        if extents.len() <= 4 {
            let mut root = NodeMut::init(&mut inode.block, 0);
            ensure!(extents.iter().enumerate().all(|(at, extent)| root.insert(at, *extent)));
            return Ok(());
        }
        let leaf = spare.pop().context("a block for the leaf")?;
        let mut bytes = vec![0; self.size()];
        let mut node = NodeMut::init(&mut bytes, 0);
        ensure!(extents.iter().enumerate().all(|(at, extent)| node.insert(at, *extent)), "too many extents");
        self.csum.set_extent_block(&mut bytes, ino, inode.generation);
        self.block_mut(leaf).copy_from_slice(&bytes);
        let mut root = NodeMut::init(&mut inode.block, 1);
        ensure!(root.insert(0, Index { first: FileBlock(0), child: BlockNo(leaf) }));
        Ok(())
    }

    fn map_pointers(&mut self, inode: &mut Inode, blocks: &[u64], spare: &mut Vec<u64>) -> Result<()> {
        for (at, block) in blocks.iter().enumerate() {
            let path = indirect::path(FileBlock(at as u32), self.geo.block_size).context("file too large")?;
            let mut holder: Option<u64> = None;
            for slot in &path.slots[..path.levels] {
                let bytes = holder.map_or(&inode.block[..], |block| self.block(block));
                let next = match indirect::pointer(bytes, *slot) {
                    Some(next) => next.0,
                    None => {
                        let next = spare.pop().context("a block for the map")?;
                        self.block_mut(next).fill(0);
                        let bytes = holder.map_or(&mut inode.block[..], |block| self.block_mut(block));
                        indirect::set_pointer(bytes, *slot, Some(BlockNo(next)));
                        next
                    }
                };
                holder = Some(next);
            }
            let bytes = holder.map_or(&mut inode.block[..], |block| self.block_mut(block));
            indirect::set_pointer(bytes, path.slots[path.levels], Some(BlockNo(*block)));
        }
        Ok(())
    }

    /// Writes a log of one committed transaction with these blocks into the journal, and says that it must be
    /// replayed.
    pub fn log(&mut self, logged: &[(u64, Vec<u8>)]) -> Result<()> {
        let places = self.blocks_of(self.sb.journal_ino().context("no journal")?)?;
        let mut log = jbd2::SuperBlock::parse(self.block(places[0])[..1024].try_into()?)?;
        log.set_incompat(JournalIncompat(if self.csum.metadata() { 0x13 } else { 0x3 }));
        let (tid, format) = (Tid(7), log.format());
        log.set_tail(Some(log.first()), tid);
        let mut blocks = Vec::new();
        for part in logged.chunks(format.tags_per_block(self.size())) {
            let mut descriptor = format.descriptor(self.size(), tid, &log.uuid());
            for (block, bytes) in part {
                let csum = format.tag_csum(tid, bytes);
                ensure!(descriptor.push(Tag { block: BlockNo(*block), escaped: false, csum }));
            }
            blocks.push(descriptor.finish());
            blocks.extend(part.iter().map(|(_, bytes)| bytes.clone()));
        }
        blocks.push(format.commit_block(self.size(), tid, 1_700_000_000, 0));
        for (at, bytes) in blocks.iter().enumerate() {
            self.block_mut(places[log.first() as usize + at]).copy_from_slice(bytes);
        }
        self.block_mut(places[0])[..1024].copy_from_slice(&log.encode());
        self.set_superblock(|sb| sb.set_needs_recovery(true));
        Ok(())
    }

    /// The image on a device in memory.
    #[must_use]
    pub fn device(&self) -> Arc<MemDevice> {
        let device = MemDevice::new(self.bytes.len() as u64, Fill::Zero);
        // A device in memory fails no request inside it.
        let _ = device.write_at(0, &self.bytes);
        Arc::new(device)
    }
}

/// A device's bytes.
#[must_use]
pub fn contents(device: &MemDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.geometry().size as usize];
    let _ = device.read_at(0, &mut bytes);
    bytes
}

/// `count` of these blocks in up to `pieces` runs, in a random order of the runs.
pub fn scattered(rng: &mut fastrand::Rng, free: &mut Vec<u64>, count: usize, pieces: usize) -> Vec<u64> {
    let mut cuts: HashSet<usize> = (1..pieces).map(|_| rng.usize(1..count)).collect();
    cuts.insert(count);
    let mut cuts: Vec<usize> = cuts.into_iter().collect();
    cuts.sort_unstable();
    let mut runs: Vec<Vec<u64>> = Vec::new();
    let mut from = 0;
    for to in cuts {
        // A gap in front of each run keeps it apart from the one before.
        let at = rng.usize(0..free.len() - (to - from) - 1);
        let mut run: Vec<u64> = free.splice(at..at + (to - from) + 1, []).collect();
        run.truncate(to - from);
        runs.push(run);
        from = to;
    }
    rng.shuffle(&mut runs);
    runs.concat()
}
