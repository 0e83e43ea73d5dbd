//! Handing out blocks: at the goal, else near it in one piece, else in one piece anywhere, else
//! whatever there is. Only a group's own lock is taken, one at a time; which groups are worth
//! a look is known from the hints.

use ext4_format::{BlockNo, FileBlock, GroupNo};
use jbd2::Handle;

use super::Allocator;
use super::orders::order_for;
use super::runs::FreeRuns;
use super::space::{Depth, Reservation};
use super::stripe::Alignment;
use super::windows::Stream;
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
    /// The block of the file that the first one will be, which matters on a striped volume.
    pub at: FileBlock,
    /// The file that grows by it, if it is one that grows at its end step by step.
    pub stream: Option<Stream>,
    /// Who asks, when nothing was promised.
    pub depth: Depth,
    /// The promise that the blocks are counted against, as far as it reaches.
    pub reserved: Option<&'a mut Reservation>,
}

impl BlockRequest<'_> {
    /// One block near `goal`.
    #[must_use]
    pub fn one(goal: BlockNo, depth: Depth) -> Self {
        BlockRequest {
            goal,
            want: 1,
            continues: false,
            at: FileBlock(0),
            stream: None,
            depth,
            reserved: None,
        }
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
    /// The longest, if it has at least so many.
    Longest { least: u32 },
    /// This block and what follows, as far as all stripes but the last are full.
    Stripes { index: u32, alignment: Alignment },
    /// As much as is wanted with so many free ones behind it, where the alignment has it, at or behind this block
    /// of the group.
    Aligned { from: u32, ahead: u32, alignment: Alignment },
}

impl Allocator {
    /// Hands out a run of up to `request.want` blocks within `handle` ([`super::ALLOC_CREDITS`]).
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the caller may not have a single block, or when the only free ones
    /// wait for a commit ([`Allocator::should_retry`]).
    pub fn alloc_blocks(&self, handle: &Handle<'_>, mut request: BlockRequest<'_>) -> Result<Run> {
        let want = u64::from(request.want.max(1));
        let promised = request.reserved.as_mut().map_or(0, |r| r.redeem(want));
        let claimed = if promised > 0 { promised } else { self.space.claim(want, 1, request.depth) };
        if claimed == 0 {
            return Err(Error::NoSpace);
        }
        let mut found = self.search(handle, &request, claimed as u32);
        if matches!(found, Err(Error::NoSpace)) && self.give_up_all() {
            found = self.search(handle, &request, claimed as u32);
        }
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
        let (continues, stream) = (request.continues, request.stream);
        if let Some(run) = self.search_aligned(handle, request, want)? {
            return Ok(run);
        }
        let take = |no, fits: &[Fit]| self.take(handle, no, want, fits, stream);
        // A group that looks full may still hold the file's own window.
        if self.orders.has_any(no.0) || stream.is_some() {
            let fits = [Fit::At { index, continues }, Fit::Whole { from: index }, Fit::Whole { from: 0 }];
            if let Some(run) = take(no, &fits)? {
                return Ok(run);
            }
        }
        // In one piece, anywhere: these groups have it, unless somebody was faster.
        for no in self.orders.groups(order_for(want), no.0) {
            if let Some(run) = take(GroupNo(no), &[Fit::Whole { from: 0 }])? {
                return Ok(run);
            }
        }
        // In pieces, the longest first. A group may turn out worse than was hoped; then its hint
        // is corrected and a later round comes back to it.
        for order in (0..order_for(want)).rev() {
            for no in self.orders.groups(order, no.0) {
                if let Some(run) = take(GroupNo(no), &[Fit::Longest { least: 1 << order }])? {
                    return Ok(run);
                }
            }
        }
        Err(Error::NoSpace)
    }

    /// What will fill a stripe, where a stripe begins: in one piece, else in halves or quarters of it. With what is
    /// kept ahead for it a file that grows by little fills one, too.
    fn search_aligned(
        &self,
        handle: &Handle<'_>,
        request: &BlockRequest<'_>,
        want: u32,
    ) -> Result<Option<Run>> {
        let Some(stripe) = self.stripe else { return Ok(None) };
        let ahead = request.stream.map_or(0, |stream| stream.ahead);
        if want.saturating_add(ahead) < stripe {
            return Ok(None);
        }
        let (no, index) = self.vol.geo.locate_block(request.goal).unwrap_or((GroupNo(0), 0));
        let alignment = Alignment::of(stripe, request.at);
        if alignment.allows(request.goal) {
            let fits = match request.continues {
                true => [Fit::Stripes { index, alignment }],
                false => [Fit::At { index, continues: false }],
            };
            if let Some(run) = self.take(handle, no, want, &fits, request.stream)? {
                return Ok(Some(run));
            }
        }
        let ahead = stripe.saturating_sub(want);
        let parts = std::iter::successors(Some(want), |part| Some(alignment.whole(*part / 2)));
        for part in parts.take(3).take_while(|part| part + ahead >= stripe) {
            let fit = |from| Fit::Aligned { from, ahead, alignment };
            if let Some(run) = self.take(handle, no, part, &[fit(index), fit(0)], request.stream)? {
                return Ok(Some(run));
            }
            // With so much more a run has the place for it.
            for no in self.orders.groups(order_for(part + ahead + stripe - 1), no.0) {
                if let Some(run) = self.take(handle, GroupNo(no), part, &[fit(0)], request.stream)? {
                    return Ok(Some(run));
                }
            }
        }
        Ok(None)
    }

    /// Takes the first of `fits` that group `no` has. A group that turns out damaged is recorded
    /// and passed over, as long as the volume may still be written to.
    fn take(
        &self,
        handle: &Handle<'_>,
        no: GroupNo,
        want: u32,
        fits: &[Fit],
        stream: Option<Stream>,
    ) -> Result<Option<Run>> {
        let locked = match self.with_blocks(no) {
            Err(Error::Corrupt(_)) => self.vol.changeable().map(|()| None),
            other => other,
        }?;
        let Some(mut locked) = locked else { return Ok(None) };
        let group = &mut *locked;
        if let Some(stream) = stream {
            self.open_window(group, stream.owner);
        }
        let first = self.vol.geo.group_first_block(no);
        let found = group
            .blocks
            .as_ref()
            .and_then(|map| fits.iter().find_map(|fit| fit.find(&map.runs, first, want)));
        let mut given_up = None;
        if let Some((index, len)) = found {
            self.mark_blocks(handle, no, group, index..index + len, true)?;
            if let Some(map) = &mut group.blocks {
                map.runs.set(index..index + len, false);
            }
            given_up = stream.and_then(|stream| self.keep_window(no, group, stream, index + len));
        }
        self.orders.set(no.0, group.longest());
        drop(locked);
        if let Some((owner, elsewhere)) = given_up {
            self.give_up(owner, elsewhere);
        }
        let Some((index, len)) = found else { return Ok(None) };
        Ok(Some(Run { start: BlockNo(self.vol.geo.group_first_block(no).0 + u64::from(index)), len }))
    }
}

impl Fit {
    /// The first block and the length of the run that fits, in a group whose first block is `first`.
    fn find(self, runs: &FreeRuns, first: BlockNo, want: u32) -> Option<(u32, u32)> {
        match self {
            Fit::At { index, continues } => {
                let len = runs.run_at(index, want);
                (len == want || (continues && len > 0)).then_some((index, len))
            }
            Fit::Whole { from } => runs.find(from, want).map(|at| (at, want)),
            Fit::Longest { least } => match runs.longest() {
                longest if longest < least => None,
                longest => runs.find(0, longest).map(|at| (at, longest.min(want))),
            },
            Fit::Stripes { index, alignment } => {
                let len = runs.run_at(index, want);
                let len = if len == want { len } else { alignment.whole(len) };
                (len > 0).then_some((index, len))
            }
            Fit::Aligned { from, ahead, alignment } => {
                let long = want + ahead;
                let mut at = runs.find(from, long)?;
                loop {
                    let aligned = alignment.next(first, at);
                    if runs.run_at(aligned, long) == long {
                        return Some((aligned, want));
                    }
                    at = runs.find(aligned, long)?;
                }
            }
        }
    }
}
