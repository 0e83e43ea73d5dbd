//! Handing out blocks: at the goal, else near it in one piece, else in one piece anywhere, else
//! whatever there is. Only a group's own lock is taken, one at a time; which groups are worth
//! a look is known from the hints.

use ext4_format::{BlockNo, GroupNo};
use jbd2::Handle;

use super::Allocator;
use super::group::Group;
use super::orders::order_for;
use super::space::{Depth, Reservation};
use crate::error::{Error, Result};

/// What is wanted.
#[derive(Debug)]
pub struct BlockRequest<'a> {
    /// Where the first block had best lie.
    pub goal: BlockNo,
    /// How many; one run of fewer may be given.
    pub want: u32,
    /// Whether the goal continues an extent, so that even a short run there is better than a
    /// long one elsewhere.
    pub continues: bool,
    /// Who asks, when nothing was promised.
    pub depth: Depth,
    /// The promise that the blocks are counted against, as far as it reaches.
    pub reserved: Option<&'a mut Reservation>,
}

impl BlockRequest<'_> {
    /// One block near `goal`.
    #[must_use]
    pub fn one(goal: BlockNo, depth: Depth) -> Self {
        BlockRequest { goal, want: 1, continues: false, depth, reserved: None }
    }
}

/// Blocks that lie one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first.
    pub start: BlockNo,
    /// How many, at least 1.
    pub len: u32,
}

/// Which run of a group will do.
#[derive(Clone, Copy)]
enum Fit {
    /// All that is wanted, the nearest at or behind this block of the group.
    Whole { from: u32 },
    /// This block and what follows, if that is all or `continues`.
    At { index: u32, continues: bool },
    /// The longest.
    Longest,
}

impl Allocator {
    /// Hands out a run of up to `request.want` blocks within `handle` ([`super::ALLOC_CREDITS`]).
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the caller may not have a single block, or when the only free ones
    /// wait for a commit ([`Allocator::retry_after_commit`]).
    pub fn alloc_blocks(&self, handle: &Handle<'_>, mut request: BlockRequest<'_>) -> Result<Run> {
        let want = u64::from(request.want.max(1));
        let promised = request.reserved.as_mut().map_or(0, |r| r.redeem(want));
        let claimed = if promised > 0 { promised } else { self.space.claim(want, 1, request.depth) };
        if claimed == 0 {
            return Err(Error::NoSpace);
        }
        let found = self.search(handle, &request, claimed as u32);
        let used = found.as_ref().map_or(0, |run| u64::from(run.len));
        self.space.taken(used);
        match request.reserved {
            Some(reserved) if promised > 0 => reserved.refund(claimed - used),
            _ => self.space.unclaim(claimed - used),
        }
        found
    }

    fn search(&self, handle: &Handle<'_>, request: &BlockRequest<'_>, want: u32) -> Result<Run> {
        let geo = &self.vol.geo;
        let (no, index) = geo.locate_block(request.goal).unwrap_or((GroupNo(0), 0));
        let continues = request.continues;
        if self.orders.has_any(no.0) {
            let fits = [Fit::At { index, continues }, Fit::Whole { from: index }, Fit::Whole { from: 0 }];
            if let Some(run) = self.take_from(handle, no, want, &fits)? {
                return Ok(run);
            }
        }
        // In one piece, anywhere: these groups have it, unless somebody was faster.
        for no in self.orders.groups(order_for(want), no.0) {
            if let Some(run) = self.take_from(handle, GroupNo(no), want, &[Fit::Whole { from: 0 }])? {
                return Ok(run);
            }
        }
        // In pieces, the longest first. A group may turn out worse than was hoped; then its hint
        // is corrected and a later round comes back to it.
        for order in (0..order_for(want)).rev() {
            for no in self.orders.groups(order, no.0) {
                if let Some(run) = self.take_longest(handle, GroupNo(no), want, 1 << order)? {
                    return Ok(run);
                }
            }
        }
        Err(Error::NoSpace)
    }

    fn take_longest(&self, handle: &Handle<'_>, no: GroupNo, want: u32, least: u32) -> Result<Option<Run>> {
        let Some(mut group) = self.with_blocks_or_skip(no)? else { return Ok(None) };
        if group.longest() < least {
            return Ok(None);
        }
        self.take(handle, no, &mut group, want, &[Fit::Longest])
    }

    fn take_from(&self, handle: &Handle<'_>, no: GroupNo, want: u32, fits: &[Fit]) -> Result<Option<Run>> {
        let Some(mut group) = self.with_blocks_or_skip(no)? else { return Ok(None) };
        self.take(handle, no, &mut group, want, fits)
    }

    /// Group `no` ready for a search. One that turns out damaged is recorded and passed over, as
    /// long as the volume may still be written to.
    fn with_blocks_or_skip(&self, no: GroupNo) -> Result<Option<crate::sync::LockGuard<'_, Group>>> {
        match self.with_blocks(no) {
            Err(Error::Corrupt(_)) => self.vol.writable().map(|()| None),
            other => other,
        }
    }

    /// Takes the first of `fits` that the group has.
    fn take(
        &self,
        handle: &Handle<'_>,
        no: GroupNo,
        group: &mut Group,
        want: u32,
        fits: &[Fit],
    ) -> Result<Option<Run>> {
        let Some(map) = &group.blocks else { return Ok(None) };
        let runs = &map.runs;
        let found = fits.iter().find_map(|fit| match *fit {
            Fit::At { index, continues } => {
                let len = runs.run_at(index, want);
                (len == want || (continues && len > 0)).then_some((index, len))
            }
            Fit::Whole { from } => runs.find(from, want).map(|at| (at, want)),
            Fit::Longest => match runs.longest() {
                0 => None,
                longest => runs.find(0, longest).map(|at| (at, longest.min(want))),
            },
        });
        let Some((index, len)) = found else { return Ok(None) };
        self.mark_blocks(handle, no, group, index..index + len, true)?;
        if let Some(map) = &mut group.blocks {
            map.runs.set(index..index + len, false);
            self.orders.set(no.0, map.runs.longest());
        }
        Ok(Some(Run { start: BlockNo(self.vol.geo.group_first_block(no).0 + u64::from(index)), len }))
    }
}
