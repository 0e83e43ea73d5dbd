//! One group, as it stands in memory under its lock.
//!
//! The descriptor is always here. The block bitmap is in one of three states: *unread* (`blocks`
//! is `None`), *in memory*, or *damaged*, which is final. What is in memory is the on-disk bitmap
//! less the runs in `held` and `windows`, which are clear on disk and still not handed out.

use std::ops::Range;

use ext4_format::bitmap::{Bits, BitsMut};
use ext4_format::group_desc::{GroupDesc, GroupFlags};
use ext4_format::{BlockNo, Corruption, GroupNo, Tid, What};
use jbd2::{Buffer, Handle};

use super::Allocator;
use super::runs::FreeRuns;
use super::windows::Window;
use crate::error::Result;

/// Clear in the bitmap, but not to be handed out.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Blocks, counted from the group's first.
    pub blocks: Range<u32>,
    /// Until this transaction is durable; `None`: until the discard of these blocks has ended.
    pub until: Option<Tid>,
}

/// A group's block bitmap in memory.
pub(super) struct BlockMap {
    /// The bitmap's buffer; `None` while the group is `BLOCK_UNINIT`.
    pub buffer: Option<Buffer>,
    /// What may be handed out.
    pub runs: FreeRuns,
}

/// What a group's lock guards.
pub(super) struct Group {
    pub desc: GroupDesc,
    pub blocks: Option<Box<BlockMap>>,
    /// The inode bitmap's buffer once it was read and verified.
    pub inodes: Option<Buffer>,
    /// Whether a bitmap was used since the last look for something to drop.
    pub recently_used: bool,
    /// No inode below this index is free.
    pub first_free_inode: u32,
    pub held: Vec<Held>,
    pub windows: Vec<Window>,
    pub damaged_blocks: bool,
    pub damaged_inodes: bool,
}

impl Group {
    pub fn new(desc: GroupDesc) -> Group {
        Group {
            desc,
            blocks: None,
            inodes: None,
            recently_used: false,
            first_free_inode: 0,
            held: Vec::new(),
            windows: Vec::new(),
            damaged_blocks: false,
            damaged_inodes: false,
        }
    }

    /// Blocks that may be handed out, as far as is known without the bitmap.
    pub fn available(&self) -> u32 {
        if self.damaged_blocks {
            return 0;
        }
        let held: u32 = self.not_to_hand_out().map(|blocks| blocks.end - blocks.start).sum();
        self.desc.free_blocks.saturating_sub(held)
    }

    /// Runs that are clear on disk and not to be handed out.
    fn not_to_hand_out(&self) -> impl Iterator<Item = &Range<u32>> {
        self.held.iter().map(|held| &held.blocks).chain(self.windows.iter().map(|window| &window.blocks))
    }

    /// The longest run that can be hoped for.
    pub fn longest(&self) -> u32 {
        match &self.blocks {
            _ if self.damaged_blocks => 0,
            Some(map) => map.runs.longest(),
            None => self.available(),
        }
    }
}

impl Allocator {
    /// Whether `group`'s flag counts: the uninit flags do only where descriptors carry a sum.
    pub(super) fn flagged(&self, group: &Group, flag: GroupFlags) -> bool {
        self.vol.csum.group_descs() && group.desc.flags.has(flag)
    }

    /// Writes the group's descriptor to its block within `handle` (one credit).
    pub(super) fn write_desc(&self, handle: &Handle<'_>, no: GroupNo, group: &Group) -> Result<()> {
        let geo = &self.vol.geo;
        let at = geo.descriptor(no).1;
        let index = (no.0 / geo.descs_per_block()) as usize;
        let lost = || Corruption::new(What::GroupDesc, "descriptor block", no.0.into(), 0);
        let buffer = self.desc_blocks.get(index).ok_or_else(lost)?;
        let mut bytes = handle.write(buffer)?;
        let place = bytes.get_mut(at..at + geo.desc_size).ok_or_else(lost)?;
        group.desc.encode_into(place, no, &self.vol.csum);
        Ok(())
    }

    /// The block bitmap's buffer, made from nothing when the group was not initialised yet. The
    /// map must be in memory. The caller writes the descriptor.
    pub(super) fn block_bitmap(&self, handle: &Handle<'_>, no: GroupNo, group: &mut Group) -> Result<Buffer> {
        let uninit = self.flagged(group, GroupFlags::BLOCK_UNINIT);
        let Some(map) = &mut group.blocks else {
            return Err(Corruption::new(What::BlockBitmap, "unread", 0, 1).in_group(no).into());
        };
        if let Some(buffer) = &map.buffer {
            return Ok(buffer.clone());
        }
        debug_assert!(uninit, "only an uninitialised group has no bitmap buffer");
        let buffer = handle.create(group.desc.block_bitmap)?;
        let mut bytes = handle.write(&buffer)?;
        self.fill_block_bitmap(no, &group.desc, &mut bytes);
        self.vol.csum.set_block_bitmap(&bytes, &mut group.desc);
        drop(bytes);
        group.desc.flags = group.desc.flags.without(GroupFlags::BLOCK_UNINIT);
        map.buffer = Some(buffer.clone());
        Ok(buffer)
    }

    /// What the bitmap of an uninitialised group says: its own metadata, and whatever other
    /// groups' metadata a flexible group has put there.
    pub(super) fn fill_block_bitmap(&self, no: GroupNo, desc: &GroupDesc, bytes: &mut [u8]) {
        let geo = &self.vol.geo;
        geo.fill_uninit_block_bitmap(no, desc, bytes);
        let (first, len) = (geo.group_first_block(no).0, geo.blocks_in_group(no));
        let mut bits = BitsMut::new(bytes, len);
        for (start, len) in self.zone.within(first, len.into()) {
            let at = (start - first) as u32;
            bits.fill(at..at + len as u32, true);
        }
    }

    /// Sets or clears `range` in the bitmap on disk and counts it in the descriptor, within
    /// `handle`. A bit that is so already is damage, and nothing is changed.
    pub(super) fn mark_blocks(
        &self,
        handle: &Handle<'_>,
        no: GroupNo,
        group: &mut Group,
        range: Range<u32>,
        take: bool,
    ) -> Result<()> {
        let buffer = self.block_bitmap(handle, no, group)?;
        let count = range.end - range.start;
        {
            let mut bytes = handle.write(&buffer)?;
            let mut bits = BitsMut::new(&mut bytes, self.vol.geo.blocks_in_group(no));
            let done = if take { bits.set(range) } else { bits.clear(range) };
            done.map_err(|bit| {
                Corruption::new(What::BlockBitmap, "bit", u64::from(!take), u64::from(take))
                    .in_group(no)
                    .at_block(BlockNo(self.vol.geo.group_first_block(no).0 + u64::from(bit)))
            })?;
            self.vol.csum.set_block_bitmap(&bytes, &mut group.desc);
        }
        let free = group.desc.free_blocks;
        group.desc.free_blocks = if take { free.saturating_sub(count) } else { free.saturating_add(count) };
        self.write_desc(handle, no, group)?;
        let flex = &self.flex[self.vol.geo.flex_group(no) as usize];
        if take {
            flex.take_blocks(count)
        } else {
            flex.return_blocks(count)
        }
        Ok(())
    }

    /// The group's free runs from its bitmap and what is held back; the descriptor must agree.
    pub(super) fn build_runs(
        &self,
        no: GroupNo,
        group: &Group,
        bitmap: &[u8],
    ) -> std::result::Result<FreeRuns, Corruption> {
        let len = self.vol.geo.blocks_in_group(no);
        let free = Bits::new(bitmap, len).count_clear(0..len);
        if free != group.desc.free_blocks {
            let c = Corruption::new(
                What::GroupDesc,
                "bg_free_blocks_count",
                group.desc.free_blocks.into(),
                free.into(),
            );
            return Err(c.in_group(no));
        }
        // Metadata that the bitmap calls free would be handed out and overwritten.
        let first = self.vol.geo.group_first_block(no).0;
        for (start, count) in self.zone.within(first, len.into()) {
            let at = (start - first) as u32;
            if let Some(bit) = Bits::new(bitmap, len).first_clear(at..at + count as u32) {
                let c = Corruption::new(What::BlockBitmap, "metadata bit", 0, 1).in_group(no);
                return Err(c.at_block(BlockNo(first + u64::from(bit))));
            }
        }
        let mut runs = FreeRuns::from_bitmap(bitmap, len);
        for blocks in group.not_to_hand_out() {
            runs.set(blocks.clone(), false);
        }
        Ok(runs)
    }
}
