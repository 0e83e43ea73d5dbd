//! The tree's metadata as bytes: inode records, directory blocks, attribute blocks, maps.

use ext4_format::csum::Csum;
use ext4_format::dirent::NewEntry;
use ext4_format::inode::{FileType, Inode as Record, InodeLayout, LINKS_UNCOUNTED, MAX_LINKS, Time, flag};
use ext4_format::superblock::SuperBlock;
use ext4_format::xattr::{self, Home};
use ext4_format::{BlockNo, Ino};

use super::layer::IMPLICIT;
use super::order::FIRST_INO;
use super::plan::Plan;
use super::tree::{Body, Inode, InodeId, ROOT, Tree};
use crate::error::{Error, Result};
use crate::volume;
use crate::write;

/// Which times files get.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The time of the image itself, and of directories that no source describes.
    pub now: i64,
    /// The latest modification time.
    pub latest: Option<i64>,
}

impl Times {
    /// The time of an inode.
    pub fn of(&self, inode: &Inode) -> Time {
        let time =
            if inode.meta.mtime == IMPLICIT { Time { sec: self.now, nsec: 0 } } else { inode.meta.mtime };
        match self.latest {
            Some(latest) if time.sec >= latest => Time { sec: latest, nsec: 0 },
            _ => time,
        }
    }
}

/// A planned tree on a volume.
pub struct Contents<'p> {
    tree: &'p Tree,
    plan: &'p Plan,
    times: Times,
    csum: Csum,
    layout: InodeLayout,
    extra_isize: u16,
    block_size: usize,
    /// The region of each set in an inode.
    regions: Vec<Vec<u8>>,
    /// The hash of each value that has an inode, by set.
    hashes: Vec<Vec<u32>>,
}

impl<'p> Contents<'p> {
    /// The tree on the volume with this superblock, whose UUID is final.
    pub fn new(tree: &'p Tree, plan: &'p Plan, times: Times, superblock: &SuperBlock) -> Contents<'p> {
        let csum = Csum::new(superblock);
        let layout = InodeLayout::new(superblock);
        let extra_isize = superblock.want_extra_isize();
        let hashes = plan.sets.iter().enumerate().map(|(number, set)| {
            let attributes = tree.attributes.get(number as u32);
            set.values.iter().map(|(at, ..)| csum.ea_inode_value(&attributes[*at].value)).collect()
        });
        let mut contents = Contents {
            tree,
            plan,
            times,
            csum,
            layout,
            extra_isize,
            block_size: superblock.block_size() as usize,
            regions: Vec::new(),
            hashes: hashes.collect(),
        };
        let room = usize::from(layout.inode_size).saturating_sub(128 + usize::from(extra_isize));
        contents.regions = (0..plan.sets.len()).map(|set| contents.region(set, Home::Inode, room)).collect();
        contents
    }

    /// What the volume must know of the tree's inodes.
    pub fn counts(&self, geometry: &ext4_format::geometry::Geometry) -> volume::Contents {
        let mut directories = vec![0; geometry.group_count as usize];
        for directory in &self.plan.order.directories {
            let number = self.number(self.tree.inode_of(directory.node));
            if number >= FIRST_INO {
                directories[((number - 1) / geometry.inodes_per_group) as usize] += 1;
            }
        }
        let count = self.plan.order.inodes.len() as u32 + self.plan.value_inodes;
        volume::Contents { first: FIRST_INO, end: FIRST_INO + count, directories }
    }

    /// The root and lost+found, whose numbers are reserved: number and record.
    pub fn reserved(&self) -> Result<Vec<(Ino, Vec<u8>)>> {
        [self.tree.inode_of(ROOT), self.plan.lost_and_found(self.tree)]
            .into_iter()
            .map(|id| {
                let ino = self.ino(id)?;
                let mut record = vec![0; usize::from(self.layout.inode_size)];
                self.record(id, ino, &mut record)?;
                Ok((ino, record))
            })
            .collect()
    }

    fn number(&self, id: InodeId) -> u32 {
        self.plan.order.number(id)
    }

    fn ino(&self, id: InodeId) -> Result<Ino> {
        Ino::new(self.number(id)).ok_or(Error::TooManyInodes { inodes: 0 })
    }

    /// A set's attributes as they lie in the inode or a block; nothing where none do.
    fn region(&self, number: usize, home: Home, len: usize) -> Vec<u8> {
        let set = &self.plan.sets[number];
        let part = if home == Home::Inode { &set.division.inode } else { &set.division.block };
        if part.is_empty() {
            return Vec::new();
        }
        let mut region = vec![0; len];
        let attributes = self.tree.attributes.get(number as u32);
        let value = |at: usize| {
            let place = set.values.iter().position(|(value, ..)| *value == at)?;
            Some((Ino::new(set.values[place].1)?, self.hashes[number][place]))
        };
        let fits = set.division.encode(attributes, home, &mut region, value);
        debug_assert!(fits, "the division was made for these sizes");
        region
    }

    fn record(&self, id: InodeId, ino: Ino, record: &mut [u8]) -> Result<()> {
        let inode = self.tree.inode(id);
        let kind = inode.file_type();
        let time = self.times.of(inode);
        let now = Time { sec: self.times.now, nsec: 0 };
        let set = &self.plan.sets[inode.attributes as usize];
        let attribute_block = self.plan.attribute_blocks.get(&id).copied();
        let mut sectors = attribute_block.map_or(0, |_| self.sectors(1));
        sectors += set.values.iter().map(|(.., places)| self.sectors(length(places))).sum::<u64>();
        let mut encoded = Record {
            mode: kind.mode_bits() | inode.meta.mode,
            uid: inode.meta.uid,
            gid: inode.meta.gid,
            size: 0,
            atime: time,
            ctime: time,
            mtime: time,
            crtime: (self.extra_isize > 0).then_some(now),
            dtime: 0,
            links: inode.links.min(u32::from(MAX_LINKS)) as u16,
            blocks: sectors,
            flags: 0,
            version: 0,
            generation: 0,
            file_acl: BlockNo(attribute_block.unwrap_or(0)),
            project: 0,
            block: [0; 60],
            extra_isize: self.extra_isize,
        };
        match inode.body {
            Body::File(_) => {
                encoded.size = inode.size;
                self.map(&mut encoded, id, ino)?;
            }
            Body::Directory(_) => {
                let at = self.plan.order.directory(id);
                let shape = self.plan.shapes[at];
                encoded.size = u64::from(shape.blocks()) * self.block_size as u64;
                let links = self.plan.order.directories[at].subdirectories + 2;
                encoded.links = if links > u32::from(MAX_LINKS) { LINKS_UNCOUNTED } else { links as u16 };
                self.map(&mut encoded, id, ino)?;
                if shape.nodes.is_some() {
                    encoded.flags |= flag::INDEX;
                }
            }
            Body::Symlink(..) => {
                let target = self.tree.target(inode);
                encoded.size = target.len() as u64;
                match encoded.block.get_mut(..target.len()).filter(|_| target.len() < 60) {
                    Some(fast) => fast.copy_from_slice(target),
                    None => self.map(&mut encoded, id, ino)?,
                }
            }
            Body::Device(_, major, minor) => encoded.set_device(major, minor),
            Body::Fifo | Body::Socket => {}
        }
        encoded.encode_into(record, &self.layout);
        let region = &self.regions[inode.attributes as usize];
        if let Some(range) = encoded.xattr_range(&self.layout).filter(|_| !region.is_empty()) {
            record[range].copy_from_slice(region);
        }
        self.csum.set_inode(record, ino);
        Ok(())
    }

    fn sectors(&self, blocks: u64) -> u64 {
        blocks * (self.block_size / 512) as u64
    }

    fn map(&self, encoded: &mut Record, id: InodeId, ino: Ino) -> Result<()> {
        let (extents, nodes) = self.plan.extents(self.tree, id);
        encoded.block = self.plan.mapping.write(&self.csum, ino, &extents, nodes, |_, _| Ok(()))?;
        if self.plan.mapping.extents {
            encoded.flags |= flag::EXTENTS;
        }
        let data: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
        encoded.blocks += self.sectors(data + nodes.len() as u64);
        Ok(())
    }

    /// The inode of a value.
    fn value_record(&self, ino: Ino, record: &mut [u8]) -> Result<()> {
        let mut all = self.plan.sets.iter().enumerate().flat_map(|(number, set)| {
            set.values.iter().enumerate().map(move |(place, value)| (number, set, place, value))
        });
        let found = all.find(|(.., value)| value.1 == ino.get());
        let Some((number, set, place, (attribute, _, places))) = found else {
            return Err(Error::TooManyInodes { inodes: ino.get().into() });
        };
        let hash = self.hashes[number][place];
        let len = self.tree.attributes.get(number as u32)[*attribute].value.len();
        let now = Time { sec: self.times.now, nsec: 0 };
        // A shared block counts once, however many inodes share it.
        let in_block = set.division.block.contains(attribute);
        let users = if in_block { set.blocks.len() as u64 } else { u64::from(set.users) };
        let runs = [super::content::Run { first: 0, len: length(places) }];
        let extents = super::mapping::extents(runs.into_iter(), places);
        let encoded = Record {
            mode: FileType::Regular.mode_bits() | 0o600,
            uid: 0,
            gid: 0,
            size: len as u64,
            atime: Time { sec: hash.into(), nsec: 0 },
            ctime: Time { sec: (users >> 32) as i64, nsec: 0 },
            mtime: now,
            crtime: (self.extra_isize > 0).then_some(now),
            dtime: 0,
            links: 1,
            blocks: self.sectors(length(places)),
            flags: flag::EA_INODE | if self.plan.mapping.extents { flag::EXTENTS } else { 0 },
            version: users & 0xffff_ffff,
            generation: 0,
            file_acl: BlockNo(0),
            project: 0,
            block: self.plan.mapping.write(&self.csum, ino, &extents, &[], |_, _| Ok(()))?,
            extra_isize: self.extra_isize,
        };
        encoded.encode_into(record, &self.layout);
        self.csum.set_inode(record, ino);
        Ok(())
    }

    fn put_directories(&self, put: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        for (directory, shape) in self.plan.order.directories.iter().zip(&self.plan.shapes) {
            let id = self.tree.inode_of(directory.node);
            let itself = self.ino(id)?;
            let parent = self.ino(self.tree.inode_of(self.tree.parent(directory.node)))?;
            let entries = self.plan.order.entries_of(directory).iter().map(|node| {
                let id = self.tree.inode_of(*node);
                let file_type = self.tree.inode(id).file_type();
                Ok(NewEntry { ino: self.ino(id)?, file_type, name: self.tree.name(*node) })
            });
            let entries: Vec<NewEntry<'_>> = entries.collect::<Result<_>>()?;
            let places = self.plan.places(self.tree, id);
            let mut blocks = places.into_iter().flatten();
            self.plan.rules.write(&self.csum, *shape, (itself, parent), &entries, |bytes| {
                let block = blocks.next().ok_or(Error::NoSpace { what: "a directory" })?;
                put(block, bytes)
            })?;
        }
        Ok(())
    }

    fn put_attributes(&self, put: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        for (number, set) in self.plan.sets.iter().enumerate() {
            let mut bytes = self.region(number, Home::Block, self.block_size);
            let mut users = set.users;
            for block in &set.blocks {
                let count = users.min(xattr::MAX_REFCOUNT);
                users -= count;
                xattr::set_refcount(&mut bytes, count);
                self.csum.set_xattr_block(&mut bytes, BlockNo(*block));
                put(*block, &bytes)?;
            }
            for (attribute, _, places) in &set.values {
                let value = &self.tree.attributes.get(number as u32)[*attribute].value;
                let parts = value.chunks(self.block_size);
                for (block, part) in places.iter().cloned().flatten().zip(parts) {
                    put(block, &padded(part, self.block_size))?;
                }
            }
        }
        Ok(())
    }
}

fn padded(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut block = bytes.to_vec();
    block.resize(len, 0);
    block
}

fn length(places: &[std::ops::Range<u64>]) -> u64 {
    places.iter().map(|place| place.end - place.start).sum()
}

impl write::Tree for Contents<'_> {
    fn inode(&self, ino: u32, record: &mut [u8]) -> Result<()> {
        let number = Ino::new(ino).ok_or(Error::TooManyInodes { inodes: 0 })?;
        let at = ino - FIRST_INO;
        match self.plan.order.inodes.get(at as usize) {
            Some(id) => self.record(*id, number, record),
            None => self.value_record(number, record),
        }
    }

    fn blocks(&self, put: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        self.put_directories(put)?;
        for id in &self.plan.order.inodes {
            let inode = self.tree.inode(*id);
            match inode.body {
                Body::Symlink(..) => {
                    let target = padded(self.tree.target(inode), self.block_size);
                    for block in self.plan.places(self.tree, *id).into_iter().flatten() {
                        put(block, &target)?;
                    }
                }
                Body::File(_) if self.plan.is_scattered(*id) => {}
                _ => continue,
            }
            let (extents, nodes) = self.plan.extents(self.tree, *id);
            self.plan.mapping.write(&self.csum, self.ino(*id)?, &extents, nodes, &mut *put)?;
        }
        for directory in &self.plan.order.directories {
            let id = self.tree.inode_of(directory.node);
            let (extents, nodes) = self.plan.extents(self.tree, id);
            self.plan.mapping.write(&self.csum, self.ino(id)?, &extents, nodes, &mut *put)?;
        }
        self.put_attributes(put)
    }

    fn data_bytes(&self) -> u64 {
        self.plan.data_blocks * self.block_size as u64
    }
}
