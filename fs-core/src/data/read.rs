//! Reading: first a plan, which says for each part of the range where its bytes are, then its
//! execution, which a frontend may do in its own way (splice). The plan holds off the freeing of
//! the file's blocks, so it stays true until it is dropped; it must not outlive the request, and
//! its holder must not ask for the inode's lock.

use std::ops::Range;
use std::sync::Arc;

use blockdev::BlockDevice;
use ext4_format::FileBlock;
use smallvec::SmallVec;

use super::DataPath;
use super::flight::Reading;
use crate::error::Result;
use crate::extent::{self, Mapping};
use crate::inode::{Core, Inode, Slice};

/// Where some bytes of a file are.
#[derive(Clone)]
pub enum Segment {
    /// On the device.
    Device {
        /// First byte on the device.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Nowhere: a hole, or allocated and not written.
    Zeros {
        /// Number of bytes.
        len: u64,
    },
    /// In write-behind.
    Memory(Slice),
}

impl Segment {
    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Segment::Device { len, .. } | Segment::Zeros { len } => *len,
            Segment::Memory(slice) => slice.len() as u64,
        }
    }

    /// Whether it stands for no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the bytes of a range of a file are.
pub struct ReadPlan<'a> {
    segments: SmallVec<[Segment; 4]>,
    len: u64,
    _reading: Reading<'a>,
}

impl ReadPlan<'_> {
    /// The parts of the range in order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes of the range that lie inside the file.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the range lies past the end of the file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, segment: Segment) {
        self.len += segment.len();
        match (self.segments.last_mut(), &segment) {
            (Some(Segment::Device { offset, len }), Segment::Device { offset: next, len: more })
                if *offset + *len == *next =>
            {
                *len += more;
            }
            (Some(Segment::Zeros { len }), Segment::Zeros { len: more }) => *len += more,
            _ => self.segments.push(segment),
        }
    }

    /// Reads the bytes into `buf`, which has room for all of them; gives their number. What is
    /// behind them in `buf` may change: a last partial sector is read whole if it fits.
    ///
    /// # Errors
    /// Those of the device.
    pub fn execute(&self, dev: &dyn BlockDevice, buf: &mut [u8]) -> Result<usize> {
        let align = u64::from(dev.geometry().direct_align.max(1));
        let mut at = 0;
        for (i, segment) in self.segments.iter().enumerate() {
            let len = segment.len() as usize;
            match segment {
                Segment::Device { offset, len: bytes } => {
                    let mut end = at + len;
                    let whole = at + bytes.next_multiple_of(align) as usize;
                    let fits = *offset + (whole - at) as u64 <= dev.geometry().size && whole <= buf.len();
                    if i + 1 == self.segments.len() && fits {
                        end = whole;
                    }
                    dev.read_at(*offset, &mut buf[at..end])?;
                }
                Segment::Zeros { .. } => buf[at..at + len].fill(0),
                Segment::Memory(slice) => buf[at..at + len].copy_from_slice(slice),
            }
            at += len;
        }
        Ok(at)
    }
}

impl DataPath {
    /// Plans the reading of the bytes `range`. The caller holds the inode lock, or a write of
    /// these blocks is under way on its behalf.
    pub fn plan<'a>(&self, inode: &'a Inode, range: Range<u64>) -> Result<ReadPlan<'a>> {
        let core = inode.core.read();
        let range = range.start..range.end.min(core.size);
        let mut held: SmallVec<[(u64, Slice); 4]> = SmallVec::new();
        // Write-behind first, the map after it: data that lands in between is then seen in
        // either place, and in the reverse order in neither.
        let reading = {
            let mut io = inode.io.lock();
            if !io.behind.is_empty() && !range.is_empty() {
                io.behind.overlay(range.clone(), |at, slice| held.push((at, slice)));
            }
            Reading::begin(inode, &mut io)
        };
        let mut plan = ReadPlan { segments: SmallVec::new(), len: 0, _reading: reading };
        let mut at = range.start;
        for (start, slice) in held {
            self.plan_mapped(inode, &core, at..start, &mut plan)?;
            at = start + slice.len() as u64;
            plan.push(Segment::Memory(slice));
        }
        self.plan_mapped(inode, &core, at..range.end, &mut plan)?;
        Ok(plan)
    }

    /// Plans a range of which nothing is in write-behind.
    fn plan_mapped(
        &self,
        inode: &Inode,
        core: &Core,
        range: Range<u64>,
        plan: &mut ReadPlan<'_>,
    ) -> Result<()> {
        let bs = u64::from(self.vol.block_size());
        let mut at = range.start;
        while at < range.end {
            let block = at / bs;
            let blocks = range.end.div_ceil(bs) - block;
            let (place, run) = self.find(inode, core, block, blocks)?;
            let len = ((block + run) * bs).min(range.end) - at;
            plan.push(match place {
                Place::Data(start) => Segment::Device { offset: start * bs + at % bs, len },
                Place::Unwritten(_) | Place::Hole => Segment::Zeros { len },
            });
            at += len;
        }
        Ok(())
    }

    /// Where block `at` of a file is, and for how many blocks (at most `max`) that goes on. Looks
    /// at the map and the completed list; the caller holds the map lock.
    pub fn find(&self, inode: &Inode, core: &Core, at: u64, max: u64) -> Result<(Place, u64)> {
        let Ok(block) = u32::try_from(at) else { return Ok((Place::Hole, max)) };
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let segment = extent::lookup(&self.map_ctx(inode), &core.map, FileBlock(block), max)?;
        let len = u64::from(segment.len);
        Ok(match segment.mapping {
            Mapping::Hole => (Place::Hole, len),
            Mapping::Written(start) => (Place::Data(start.0), len),
            Mapping::Unwritten(start) => match inode.io.lock().completed.blocks().status(at, len) {
                (true, len) => (Place::Data(start.0), len),
                (false, len) => (Place::Unwritten(start.0), len),
            },
        })
    }

    /// The bytes of one block as readers see them, zeros past the end of the file. The caller
    /// holds the inode lock exclusively or has a write of the block under way.
    pub(super) fn read_block(&self, inode: &Arc<Inode>, block: u64, buf: &mut [u8]) -> Result<()> {
        let bs = u64::from(self.vol.block_size());
        let plan = self.plan(inode, block * bs..(block + 1) * bs)?;
        let len = plan.execute(self.vol.dev.as_ref(), buf)?;
        buf[len..].fill(0);
        Ok(())
    }
}

/// Where a block of a file is. Block numbers of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Nowhere.
    Hole,
    /// Allocated, without data.
    Unwritten(u64),
    /// On the device: written, or written with the conversion pending.
    Data(u64),
}
