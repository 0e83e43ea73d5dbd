//! Handing out inode numbers: directories by Orlov's policy, everything else near its parent; in
//! a group always the lowest free number, so that the used part of the inode table stays short
//! and itself in one piece.

use std::sync::atomic::Ordering;

use ext4_format::bitmap::{Bits, BitsMut};
use ext4_format::group_desc::GroupFlags;
use ext4_format::{BlockNo, Corruption, GroupNo, Ino, What};
use jbd2::{Buffer, Handle};

use super::Allocator;
use super::group::Group;
use super::orlov::Policy;
use crate::error::{Error, Result};

/// What an inode number is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InodeKind {
    /// A directory.
    Directory {
        /// Its parent is the root: such directories are spread over the volume.
        top_level: bool,
    },
    /// Anything else.
    Other,
}

impl Allocator {
    /// Hands out an inode number for a child of `parent` within `handle`
    /// ([`super::ALLOC_INODE_CREDITS`]). The block of the inode table that it lies in can be read.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when all inodes are in use.
    pub fn alloc_inode(&self, handle: &Handle<'_>, parent: Ino, kind: InodeKind) -> Result<Ino> {
        let directory = kind != InodeKind::Other;
        for no in self.inode_groups(parent, kind) {
            if self.group_inodes[no.0 as usize].load(Ordering::Relaxed) == 0 {
                continue;
            }
            if let Some(ino) = self.take_inode(handle, no, directory)? {
                return Ok(ino);
            }
        }
        Err(Error::NoSpace)
    }

    /// Gives an inode number back within `handle` ([`super::FREE_INODE_CREDITS`]).
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a number that is free, reserved or outside the volume.
    pub fn free_inode(&self, handle: &Handle<'_>, ino: Ino, was_dir: bool) -> Result<()> {
        let bad = |field, found: u64| Corruption::new(What::InodeBitmap, field, found, 1).in_inode(ino);
        let place = self.vol.geo.inode_location(ino).filter(|_| ino.get() >= self.first_ino);
        let Some(place) = place else {
            return Err(self.vol.corrupt(bad("freed inode", ino.get().into())));
        };
        let Some(mut group) = self.with_inodes(place.group)? else {
            return Err(bad("damaged", 0).in_group(place.group).into());
        };
        let cleared = match group.inodes.clone() {
            Some(buffer) => {
                let mut bytes = handle.write(&buffer)?;
                let mut bits = BitsMut::new(&mut bytes, self.vol.geo.inodes_per_group);
                let cleared = bits.clear(place.index..place.index + 1).is_ok();
                self.vol.csum.set_inode_bitmap(&bytes, &mut group.desc);
                cleared
            }
            None => false,
        };
        if !cleared {
            drop(group);
            return Err(self.vol.corrupt(bad("bit", 0).in_group(place.group)));
        }
        group.first_free_inode = group.first_free_inode.min(place.index);
        group.desc.free_inodes += 1;
        group.desc.used_dirs = group.desc.used_dirs.saturating_sub(was_dir.into());
        self.write_desc(handle, place.group, &group)?;
        self.group_inodes[place.group.0 as usize].store(group.desc.free_inodes, Ordering::Relaxed);
        drop(group);
        self.flex[self.vol.geo.flex_group(place.group) as usize].return_inode(was_dir);
        self.free_inodes.fetch_add(1, Ordering::Relaxed);
        self.directories.fetch_sub(was_dir.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Whether `ino` is in use, as its group's bitmap says.
    ///
    /// # Errors
    /// The device's, or damage.
    #[cfg(any(test, feature = "internals"))]
    pub fn inode_in_use(&self, ino: Ino) -> Result<bool> {
        let Some(place) = self.vol.geo.inode_location(ino) else { return Ok(false) };
        let Some(group) = self.with_inodes(place.group)? else { return Ok(false) };
        let ipg = self.vol.geo.inodes_per_group;
        Ok(group.inodes.as_ref().is_some_and(|buffer| Bits::new(&buffer.data(), ipg).get(place.index)))
    }

    /// The groups to look at for a new inode, best first; every group comes up.
    fn inode_groups(&self, parent: Ino, kind: InodeKind) -> impl Iterator<Item = GroupNo> + use<> {
        let geo = self.vol.geo;
        let (count, per_flex) = (geo.group_count, geo.groups_per_flex);
        let home = ((parent.get() - 1) / geo.inodes_per_group).min(count - 1);
        let first = match kind {
            InodeKind::Other => home,
            InodeKind::Directory { top_level } => {
                let policy = Policy {
                    flex: &self.flex,
                    free_inodes: self.free_inodes.load(Ordering::Relaxed).into(),
                    free_blocks: self.space.free(),
                    directories: self.directories.load(Ordering::Relaxed),
                    inodes_per_flex: u64::from(per_flex) * u64::from(geo.inodes_per_group),
                    blocks_per_flex: u64::from(per_flex) * u64::from(geo.blocks_per_group),
                };
                let choice = if top_level {
                    let start = self.vol.env.chance.next_u64() % self.flex.len().max(1) as u64;
                    policy.spread(start as usize)
                } else {
                    policy.near((home / per_flex) as usize)
                };
                // Within the parent's own flexible group the parent's group comes first.
                choice.map_or(home, |flex| {
                    let flex = flex as u32;
                    if flex == home / per_flex && !top_level { home } else { flex * per_flex }
                })
            }
        };
        // The rest of its flexible group, then by doubling strides so that the children of full
        // neighbours do not all crowd into the next group, then one after the other.
        let flex = first / per_flex * per_flex;
        let neighbours = (flex..flex.saturating_add(per_flex).min(count)).map(GroupNo);
        let strides = (0..count.ilog2()).scan(first.wrapping_add(parent.get()), move |at, power| {
            *at = at.wrapping_add(1 << power);
            Some(GroupNo(*at % count))
        });
        let all = (0..count).map(move |i| GroupNo((first + i) % count));
        std::iter::once(GroupNo(first)).chain(neighbours).chain(strides).chain(all)
    }

    fn take_inode(&self, handle: &Handle<'_>, no: GroupNo, directory: bool) -> Result<Option<Ino>> {
        let geo = self.vol.geo;
        let locked = match self.with_inodes(no) {
            Err(Error::Corrupt(_)) => self.vol.changeable().map(|()| None),
            other => other,
        }?;
        let Some(mut locked) = locked else { return Ok(None) };
        // An inode table in use makes the group's block bitmap real as well.
        if self.flagged(&locked, GroupFlags::BLOCK_UNINIT) && locked.blocks.is_none() {
            drop(locked);
            if self.with_blocks(no)?.is_none() {
                return Ok(None);
            }
            locked = self.lock(no);
            if locked.blocks.is_none() || locked.damaged_inodes {
                return Ok(None);
            }
        }
        let group = &mut *locked;
        let buffer = self.inode_bitmap(handle, no, group)?;
        let lowest = if no.0 == 0 { self.first_ino - 1 } else { 0 };
        let from = group.first_free_inode.max(lowest);
        let data = buffer.data();
        let found = Bits::new(&data, geo.inodes_per_group).first_clear(from..geo.inodes_per_group);
        let Some(ino) = found.and_then(|index| geo.inode_at(no, index)) else {
            group.first_free_inode = geo.inodes_per_group;
            self.group_inodes[no.0 as usize].store(0, Ordering::Relaxed);
            return Ok(None);
        };
        let index = (ino.get() - 1) % geo.inodes_per_group;
        if self.flagged(group, GroupFlags::BLOCK_UNINIT) {
            self.block_bitmap(handle, no, group)?;
        }
        self.open_table_block(handle, no, group, &data, index)?;
        drop(data);
        {
            let mut bytes = handle.write(&buffer)?;
            BitsMut::new(&mut bytes, geo.inodes_per_group).fill(index..index + 1, true);
            self.vol.csum.set_inode_bitmap(&bytes, &mut group.desc);
        }
        group.first_free_inode = index + 1;
        group.desc.free_inodes = group.desc.free_inodes.saturating_sub(1);
        group.desc.used_dirs += u32::from(directory);
        self.write_desc(handle, no, group)?;
        self.group_inodes[no.0 as usize].store(group.desc.free_inodes, Ordering::Relaxed);
        drop(locked);
        self.flex[geo.flex_group(no) as usize].take_inode(directory);
        self.free_inodes.fetch_sub(1, Ordering::Relaxed);
        self.directories.fetch_add(directory.into(), Ordering::Relaxed);
        Ok(Some(ino))
    }

    /// The inode bitmap's buffer, made from nothing when the group was not initialised yet.
    fn inode_bitmap(&self, handle: &Handle<'_>, no: GroupNo, group: &mut Group) -> Result<Buffer> {
        if let Some(buffer) = &group.inodes {
            return Ok(buffer.clone());
        }
        if !self.flagged(group, GroupFlags::INODE_UNINIT) {
            return Err(Corruption::new(What::InodeBitmap, "unread", 0, 1).in_group(no).into());
        }
        let buffer = handle.create(group.desc.inode_bitmap)?;
        self.vol.geo.fill_uninit_inode_bitmap(&mut handle.write(&buffer)?);
        group.desc.flags = group.desc.flags.without(GroupFlags::INODE_UNINIT);
        group.desc.itable_unused = self.vol.geo.inodes_per_group;
        self.note_loaded(no, group);
        group.inodes = Some(buffer.clone());
        Ok(buffer)
    }

    /// Moves the used part of the inode table behind `index`, and zeroes the block of the table
    /// that it enters: nobody was told of an inode in it before.
    fn open_table_block(
        &self,
        handle: &Handle<'_>,
        no: GroupNo,
        group: &mut Group,
        bitmap: &[u8],
        index: u32,
    ) -> Result<()> {
        let geo = &self.vol.geo;
        if !self.vol.csum.group_descs() {
            return Ok(());
        }
        let used = geo.inodes_per_group.saturating_sub(group.desc.itable_unused);
        if index < used {
            return Ok(());
        }
        let per_block = geo.block_size / geo.inode_size as u32;
        let first = index / per_block * per_block;
        let vacant = Bits::new(bitmap, geo.inodes_per_group).first_set(first..first + per_block).is_none();
        if first >= used && vacant {
            let table = self.tables[no.0 as usize];
            handle.create(BlockNo(table.0 + u64::from(index / per_block)))?;
        }
        group.desc.itable_unused = geo.inodes_per_group - (index + 1);
        Ok(())
    }
}
