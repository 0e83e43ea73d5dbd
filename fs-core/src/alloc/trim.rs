//! FITRIM: telling the device which blocks are free.

use std::ops::Range;

use ext4_format::{BlockNo, GroupNo};

use super::Allocator;
use super::group::Held;
use crate::error::{Error, Result};

/// What to trim, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrimRange {
    /// First block.
    pub start: BlockNo,
    /// Blocks.
    pub len: u64,
    /// Shorter free runs are left alone.
    pub least: u32,
}

impl Allocator {
    /// Discards the free runs in a range; the number of blocks discarded. Blocks are held back
    /// while their discard is under way, and blocks freed lately are not touched.
    ///
    /// # Errors
    /// The device's.
    pub fn trim(&self, what: TrimRange) -> Result<u64> {
        let geo = &self.vol.geo;
        let end = what.start.0.saturating_add(what.len).min(geo.blocks_count);
        let mut done = 0;
        let mut at = what.start.0.max(geo.first_data_block.into());
        while at < end {
            let Some((no, index)) = geo.locate_block(BlockNo(at)) else { break };
            let stop = (u64::from(index) + (end - at)).min(geo.blocks_in_group(no).into()) as u32;
            done += self.trim_group(no, index..stop, what.least.max(1))?;
            at += u64::from(stop - index);
        }
        Ok(done)
    }

    fn trim_group(&self, no: GroupNo, range: Range<u32>, least: u32) -> Result<u64> {
        let mut done = 0;
        let mut from = range.start;
        while self.orders.has_any(no.0) {
            let run = {
                let mut group = match self.with_blocks(no) {
                    Ok(Some(group)) => group,
                    Ok(None) | Err(Error::Corrupt(_)) => break,
                    Err(e) => return Err(e),
                };
                let Some(map) = &mut group.blocks else { break };
                let Some(start) = map.runs.find(from, least).filter(|start| *start < range.end) else {
                    break;
                };
                let run = start..start + map.runs.run_at(start, range.end - start);
                map.runs.set(run.clone(), false);
                group.held.push(Held { blocks: run.clone(), until: None });
                run
            };
            from = run.end;
            if run.end - run.start >= least && self.discard(no, &run) {
                done += u64::from(run.end - run.start);
            }
            let mut group = self.lock(no);
            let group = &mut *group;
            group.held.retain(|held| held.until.is_some() || held.blocks != run);
            if let Some(map) = &mut group.blocks {
                map.runs.set(run, true);
            }
            self.orders.set(no.0, group.longest());
        }
        Ok(done)
    }

    /// Discards `run` of group `no`, which nobody can allocate meanwhile. A failed discard only
    /// means that the device keeps the blocks.
    pub(super) fn discard(&self, no: GroupNo, run: &Range<u32>) -> bool {
        let size = u64::from(self.vol.block_size());
        let start = (self.vol.geo.group_first_block(no).0 + u64::from(run.start)) * size;
        match self.vol.dev.discard(start, u64::from(run.end - run.start) * size) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "a discard failed");
                false
            }
        }
    }
}
