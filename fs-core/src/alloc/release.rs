//! Freed blocks on their way back: clear in the bitmap at once, handed out again only when the
//! transaction that freed them is durable.

use std::sync::atomic::Ordering;

use ext4_format::{BlockNo, Corruption, GroupNo, Tid, What};
use jbd2::Handle;

use super::Allocator;
use super::group::Held;
use crate::error::{Error, Result};

/// Groups in which a transaction has freed blocks.
pub(super) struct Waiting {
    pub tid: Tid,
    pub groups: Vec<GroupNo>,
}

/// Most attempts after the first that an operation makes for want of space, as the kernel's.
const MAX_RETRIES: u32 = 3;

/// What [`Allocator::should_retry`] compares with: what had been given back before an attempt.
#[derive(Debug)]
pub struct Retry {
    tries: u32,
    released: u64,
}

impl Allocator {
    /// Frees `len` blocks from `start` within `handle`: a bitmap and a descriptor block for each
    /// group they lie in ([`Allocator::free_credits`]). They are counted as free at once, and
    /// handed out after the transaction has committed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a block that is free already, that the volume needs itself, or that
    /// lies outside of it.
    pub fn free_blocks(&self, handle: &Handle<'_>, start: BlockNo, len: u32) -> Result<()> {
        if !self.may_hold_data(start, len.into()) {
            let c = Corruption::new(What::BlockBitmap, "freed block", start.0, self.vol.geo.blocks_count);
            return Err(self.vol.corrupt(c.at_block(start)));
        }
        let (mut at, mut left) = (start, len);
        while left > 0 {
            let Some((no, index)) = self.vol.geo.locate_block(at) else { break };
            let count = left.min(self.vol.geo.blocks_per_group - index);
            self.free_in_group(handle, no, index, count)?;
            at.0 += u64::from(count);
            left -= count;
        }
        Ok(())
    }

    /// Blocks that freeing one run of `len` blocks may change.
    #[must_use]
    pub fn free_credits(&self, len: u32) -> u32 {
        2 * (1 + len.div_ceil(self.vol.geo.blocks_per_group)).min(self.vol.geo.group_count)
    }

    fn free_in_group(&self, handle: &Handle<'_>, no: GroupNo, index: u32, count: u32) -> Result<()> {
        let Some(mut group) = self.with_blocks(no)? else {
            return Err(Corruption::new(What::BlockBitmap, "damaged", 0, 1).in_group(no).into());
        };
        let range = index..index + count;
        if let Err(e) = self.mark_blocks(handle, no, &mut group, range.clone(), false) {
            drop(group);
            return Err(match e {
                Error::Corrupt(c) => self.vol.corrupt(c),
                e => e,
            });
        }
        let tid = handle.tid();
        match group.held.last_mut() {
            Some(last) if last.until == Some(tid) && last.blocks.end == range.start => {
                last.blocks.end = range.end;
            }
            Some(last) if last.until == Some(tid) && last.blocks.start == range.end => {
                last.blocks.start = range.start;
            }
            last => {
                if last.is_none_or(|held| held.until != Some(tid)) {
                    self.wait_for(tid, no);
                }
                group.held.push(Held { blocks: range, until: Some(tid) });
            }
        }
        self.space.returned(count.into());
        Ok(())
    }

    /// Notes that `no` has blocks waiting for `tid`.
    fn wait_for(&self, tid: Tid, no: GroupNo) {
        let mut waiting = self.waiting.lock();
        match waiting.iter_mut().rev().find(|w| w.tid == tid) {
            Some(entry) => entry.groups.push(no),
            None => waiting.push_back(Waiting { tid, groups: vec![no] }),
        }
    }

    /// `tid` is durable: what it freed may be handed out. With `-o discard` it is discarded first.
    /// Commits come one at a time, so the front of the queue is this call's alone.
    pub fn committed(&self, tid: Tid) {
        loop {
            let groups = match self.waiting.lock().front_mut() {
                Some(first) if tid.is_at_least(first.tid) => std::mem::take(&mut first.groups),
                _ => return,
            };
            for no in groups {
                self.let_go(no, tid);
            }
            // Only now: until then there are blocks to be waited for.
            self.released.fetch_add(1, Ordering::Release);
            self.waiting.lock().pop_front();
        }
    }

    fn let_go(&self, no: GroupNo, tid: Tid) {
        let durable = |held: &Held| held.until.is_some_and(|until| tid.is_at_least(until));
        if self.vol.opts.discard {
            let runs: Vec<_> =
                self.lock(no).held.iter().filter(|h| durable(h)).map(|h| h.blocks.clone()).collect();
            for run in runs {
                self.discard(no, &run);
            }
        }
        let mut group = self.lock(no);
        let group = &mut *group;
        group.held.retain(|held| {
            let free = durable(held);
            if free && let Some(map) = &mut group.blocks {
                map.runs.set(held.blocks.clone(), true);
            }
            !free
        });
        self.orders.set(no.0, group.longest());
    }

    /// What an attempt that is about to begin may later be compared with.
    #[must_use]
    pub fn retry(&self) -> Retry {
        Retry { tries: 0, released: self.released.load(Ordering::Acquire) }
    }

    /// After [`Error::NoSpace`]: whether it is worth trying again, because freed blocks have become available
    /// since the last attempt began. Those that wait for a commit are waited for here. The caller holds no
    /// handle and no lock. True at most three times.
    ///
    /// # Errors
    /// Those of the commit.
    pub fn should_retry(&self, retry: &mut Retry) -> Result<bool> {
        if retry.tries == MAX_RETRIES {
            return Ok(false);
        }
        retry.tries += 1;
        let newest = self.waiting.lock().back().map(|waiting| waiting.tid);
        if let Some(tid) = newest {
            self.vol.journal.commit(tid)?;
        }
        // Somebody else's commit may have come between the attempt and here.
        let before = std::mem::replace(&mut retry.released, self.released.load(Ordering::Acquire));
        Ok(retry.released != before)
    }

    /// Whether the bitmap on disk says that all of `len` blocks from `start` are in use.
    ///
    /// # Errors
    /// The device's, or damage.
    #[cfg(any(test, feature = "internals"))]
    pub fn in_use(&self, start: BlockNo, len: u32) -> Result<bool> {
        let (mut at, mut left) = (start, len);
        while left > 0 {
            let Some((no, index)) = self.vol.geo.locate_block(at) else { return Ok(false) };
            let count = left.min(self.vol.geo.blocks_per_group - index);
            let Some(group) = self.with_blocks(no)? else { return Ok(false) };
            let Some(map) = &group.blocks else { return Ok(false) };
            let range = index..index + count;
            let all = match &map.buffer {
                Some(buffer) => {
                    let data = buffer.data();
                    let bits = ext4_format::bitmap::Bits::new(&data, self.vol.geo.blocks_in_group(no));
                    bits.first_clear(range).is_none()
                }
                None => map.runs.none_in(range),
            };
            if !all {
                return Ok(false);
            }
            at.0 += u64::from(count);
            left -= count;
        }
        Ok(true)
    }
}
