//! Where the log's blocks lie on the device.

use blockdev::BlockDevice;
use ext4_format::{BlockNo, Corruption, What};

use crate::error::Result;

/// A run of the log on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogExtent {
    /// First block of the run, counted inside the log.
    pub first: u32,
    /// Blocks in the run.
    pub len: u32,
    /// Where it starts on the device.
    pub start: BlockNo,
}

/// Where the log's blocks lie: the extents of the journal inode. Block 0 of the log holds the
/// journal superblock, which knows everything else (UUID, checksums, sequence).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogLocation {
    /// Runs, in order of `first`, without gaps.
    pub extents: Vec<LogExtent>,
}

impl LogLocation {
    /// Refuses a location that is none: with gaps, with blocks outside the device, or with blocks named twice.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] with the first run that is wrong.
    pub fn check(&self, dev: &dyn BlockDevice, block_size: u32) -> Result<()> {
        LogMap::new(self, dev, block_size as usize).map(|_| ())
    }
}

/// Longest log taken, a hundred times what mke2fs makes: positions in the ring can be added up.
const MAX_BLOCKS: u32 = 1 << 30;

/// A checked `LogLocation`: gapless from log block 0, inside the device.
pub(crate) struct LogMap {
    extents: Vec<LogExtent>,
    /// Device ranges, sorted, for `contains`.
    ranges: Vec<(u64, u64)>,
    len: u32,
}

impl LogMap {
    pub fn new(location: &LogLocation, dev: &dyn BlockDevice, block_size: usize) -> Result<LogMap> {
        let device_blocks = dev.geometry().size / block_size as u64;
        let mut len = 0u32;
        for extent in &location.extents {
            if extent.first != len {
                return Err(wrong("first", extent.first.into(), len.into()));
            }
            let end = extent.start.0.checked_add(extent.len.into()).filter(|end| *end <= device_blocks);
            if extent.len == 0 || end.is_none() {
                return Err(wrong("start", extent.start.0, device_blocks));
            }
            let more = len.checked_add(extent.len).filter(|len| *len <= MAX_BLOCKS);
            len = more.ok_or_else(|| wrong("len", extent.len.into(), MAX_BLOCKS.into()))?;
        }
        let mut ranges: Vec<(u64, u64)> =
            location.extents.iter().map(|e| (e.start.0, e.start.0 + u64::from(e.len))).collect();
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(wrong("start", pair[1].0, pair[0].1));
        }
        Ok(LogMap { extents: location.extents.clone(), ranges, len })
    }

    /// Blocks of the log.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The device block of a log block below `len`, and how many log blocks follow it on the device,
    /// itself included.
    pub fn physical(&self, log_block: u32) -> (BlockNo, u32) {
        let at = self.extents.partition_point(|e| e.first <= log_block) - 1;
        let extent = &self.extents[at];
        let inside = log_block - extent.first;
        (BlockNo(extent.start.0 + u64::from(inside)), extent.len - inside)
    }

    /// Whether a device block belongs to the log.
    pub fn contains(&self, block: BlockNo) -> bool {
        let after = self.ranges.partition_point(|(start, _)| *start <= block.0);
        after > 0 && block.0 < self.ranges[after - 1].1
    }
}

fn wrong(field: &'static str, found: u64, expected: u64) -> crate::Error {
    Corruption::new(What::JournalSuperBlock, field, found, expected).into()
}
