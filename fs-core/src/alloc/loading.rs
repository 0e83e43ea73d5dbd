//! Bringing a group's bitmaps into memory, and letting free runs go again when too many are there.

use ext4_format::group_desc::{GroupDesc, GroupFlags};
use ext4_format::{BlockNo, Corruption, GroupNo, What, verify};
use jbd2::Buffer;
use std::sync::atomic::Ordering;

use super::group::{BlockMap, Group};
use super::{Allocator, MAX_LOADED};
use crate::error::{Error, Result};
use crate::locks::LockGuard;

impl Allocator {
    /// The lock of group `no`. Its number must be below the group count.
    pub(super) fn lock(&self, no: GroupNo) -> LockGuard<'_, Group> {
        self.groups[no.0 as usize].lock()
    }

    /// Group `no`, locked, with its free runs in memory. `None` when its bitmap is damaged.
    ///
    /// # Errors
    /// The device's, or damage found now (the group is not used any more).
    pub(super) fn with_blocks(&self, no: GroupNo) -> Result<Option<LockGuard<'_, Group>>> {
        loop {
            let desc = {
                let mut group = self.lock(no);
                if group.damaged_blocks {
                    return Ok(None);
                }
                if group.blocks.is_some() {
                    group.recently_used = true;
                    return Ok(Some(group));
                }
                group.desc
            };
            self.make_room();
            let uninit = self.vol.csum.group_descs() && desc.flags.has(GroupFlags::BLOCK_UNINIT);
            let read = if uninit { Ok(None) } else { self.read_block_bitmap(no, &desc).map(Some) };
            let mut group = self.lock(no);
            if group.blocks.is_some() || group.desc != desc {
                continue;
            }
            let built = read.and_then(|buffer| {
                let runs = match &buffer {
                    Some(buffer) => self.build_runs(no, &group, &buffer.data())?,
                    None => {
                        let mut bytes = vec![0; self.vol.block_size() as usize];
                        self.fill_block_bitmap(no, &desc, &mut bytes);
                        self.build_runs(no, &group, &bytes)?
                    }
                };
                Ok(BlockMap { buffer, runs })
            });
            match built {
                Ok(map) => {
                    self.orders.set(no.0, map.runs.longest());
                    self.note_loaded(no, &mut group);
                    group.blocks = Some(Box::new(map));
                    return Ok(Some(group));
                }
                Err(Error::Corrupt(c)) => {
                    group.damaged_blocks = true;
                    self.orders.set(no.0, 0);
                    self.space.lose(group.desc.free_blocks.into());
                    drop(group);
                    return Err(self.vol.corrupt(c));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Group `no`, locked, with its inode bitmap's buffer if it has one (it has none while it is
    /// `INODE_UNINIT`). `None` when the bitmap is damaged.
    ///
    /// # Errors
    /// The device's, or damage found now.
    pub(super) fn with_inodes(&self, no: GroupNo) -> Result<Option<LockGuard<'_, Group>>> {
        loop {
            let desc = {
                let mut group = self.lock(no);
                if group.damaged_inodes {
                    return Ok(None);
                }
                group.recently_used = true;
                if group.inodes.is_some() || self.flagged(&group, GroupFlags::INODE_UNINIT) {
                    return Ok(Some(group));
                }
                group.desc
            };
            self.make_room();
            let read = self.read_inode_bitmap(no, &desc);
            let mut group = self.lock(no);
            if group.inodes.is_some() || group.desc != desc {
                continue;
            }
            match read {
                Ok(buffer) => {
                    self.note_loaded(no, &mut group);
                    group.inodes = Some(buffer);
                    return Ok(Some(group));
                }
                Err(Error::Corrupt(c)) => {
                    group.damaged_inodes = true;
                    self.group_inodes[no.0 as usize].store(0, Ordering::Relaxed);
                    drop(group);
                    return Err(self.vol.corrupt(c));
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn read_block_bitmap(&self, no: GroupNo, desc: &GroupDesc) -> Result<Buffer> {
        self.read_bitmap(desc.block_bitmap, What::BlockBitmap, |bytes| {
            verify::block_bitmap(bytes, &self.vol.csum, &self.vol.geo, no, desc)
        })
    }

    fn read_inode_bitmap(&self, no: GroupNo, desc: &GroupDesc) -> Result<Buffer> {
        self.read_bitmap(desc.inode_bitmap, What::InodeBitmap, |bytes| {
            verify::inode_bitmap(bytes, &self.vol.csum, &self.vol.geo, no, desc)
        })
    }

    fn read_bitmap(
        &self,
        block: BlockNo,
        what: What,
        check: impl FnOnce(&[u8]) -> std::result::Result<(), Corruption>,
    ) -> Result<Buffer> {
        match self.vol.journal.read(block, check) {
            // A bitmap that points outside the device is damage, not a failed request.
            Err(jbd2::Error::OutOfRange { block }) => {
                Err(Corruption::new(what, "place", block.0, self.vol.geo.blocks_count).into())
            }
            other => Ok(other?),
        }
    }

    /// Lists the group among those that have a bitmap in memory, before it gets its first.
    pub(super) fn note_loaded(&self, no: GroupNo, group: &mut Group) {
        if group.blocks.is_none() && group.inodes.is_none() {
            self.loaded.lock().push_back(no);
        }
        group.recently_used = true;
    }

    /// Lets go of the bitmaps of a group that was not used for long when too many are in memory.
    /// What is known of its longest run stays.
    fn make_room(&self) {
        let mut looks = 2 * MAX_LOADED;
        loop {
            let victim = {
                let mut loaded = self.loaded.lock();
                if loaded.len() < MAX_LOADED || looks == 0 {
                    return;
                }
                loaded.pop_front()
            };
            looks -= 1;
            let Some(no) = victim else { return };
            let mut group = self.lock(no);
            if std::mem::take(&mut group.recently_used) {
                self.loaded.lock().push_back(no);
            } else {
                group.blocks = None;
                group.inodes = None;
            }
        }
    }
}
