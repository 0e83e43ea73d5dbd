//! The disks that a power cut could have left, made from a recording.
//!
//! A cut falls between two events. What a completed flush covers is on the medium. Everything since, and
//! what was in flight at the cut, is *open*: each open change may be whole, lost (the old bytes stay) or
//! torn between sectors, independently of the others, and those that stay apply in their order. After a
//! failed flush the changes since the last good one stay open for ever.
//!
//! [`Walk`] goes through the cuts from left to right and keeps the settled part as one image, so that a
//! state costs a shallow copy and its open sectors. A state's [`StateName`] is enough to build it again.
//! Its fingerprint is the exclusive or of a hash of every sector that differs from the base, so equal
//! disks have equal fingerprints whatever way they came about.

use std::fmt;
use std::str::FromStr;

use super::dice::Dice;
use super::image::Image;
use super::record::{Change, Event, Recording};

/// Which open changes reach the medium.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Keep {
    /// All of them.
    All,
    /// None of them.
    Nothing,
    /// The n-th open change if bit n is set; those past 63 are lost.
    Chosen(u64),
    /// All but the n-th.
    AllBut(u32),
    /// The changes before the n-th, and its sectors before the given one.
    Torn(u32, u32),
    /// By the dice: whole changes, or sectors of them.
    Seeded(u64),
}

/// Names one crash state of a recording.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StateName {
    /// Number of events before the cut.
    pub cut: usize,
    /// What survived of the open changes.
    pub keep: Keep,
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.cut)?;
        match self.keep {
            Keep::All => write!(f, "all"),
            Keep::Nothing => write!(f, "none"),
            Keep::Chosen(mask) => write!(f, "m{mask:x}"),
            Keep::AllBut(lost) => write!(f, "l{lost}"),
            Keep::Torn(change, sectors) => write!(f, "t{change}.{sectors}"),
            Keep::Seeded(seed) => write!(f, "s{seed:x}"),
        }
    }
}

impl FromStr for StateName {
    type Err = String;

    fn from_str(name: &str) -> Result<StateName, String> {
        let parse = || -> Option<StateName> {
            let (cut, keep) = name.split_once(':')?;
            let keep = match (keep, keep.split_at_checked(1)?) {
                ("all", _) => Keep::All,
                ("none", _) => Keep::Nothing,
                (_, ("m", mask)) => Keep::Chosen(u64::from_str_radix(mask, 16).ok()?),
                (_, ("l", lost)) => Keep::AllBut(lost.parse().ok()?),
                (_, ("t", torn)) => {
                    let (change, sectors) = torn.split_once('.')?;
                    Keep::Torn(change.parse().ok()?, sectors.parse().ok()?)
                }
                (_, ("s", seed)) => Keep::Seeded(u64::from_str_radix(seed, 16).ok()?),
                _ => return None,
            };
            Some(StateName { cut: cut.parse().ok()?, keep })
        };
        parse().ok_or_else(|| {
            format!("{name:?} is no state name; like 17:all, 17:none, 17:m5, 17:l3, 17:t2.1, 17:s1f")
        })
    }
}

/// A disk after a cut.
#[derive(Clone)]
pub struct CrashState {
    /// Its content.
    pub image: Image,
    /// Equal for equal contents of states of one recording, or of two with the same base.
    pub fingerprint: u64,
}

impl CrashState {
    /// Applies the sectors of a change that `keep_sector` wants, by their number within it.
    fn apply(
        &mut self,
        recording: &Recording,
        offset: u64,
        change: &Change,
        keep_sector: impl Fn(u64) -> bool,
    ) {
        let unit = u64::from(recording.sector);
        let (mut old, mut new) = (vec![0; unit as usize], vec![0; unit as usize]);
        let end = offset + change.len();
        let mut at = offset;
        while at < end {
            let home = at / unit * unit;
            let stop = (home + unit).min(end).min(self.image.size());
            let first = offset / unit * unit;
            // Sectors that are never torn apart share the fate of the first of them.
            let fate = if recording.whole.contains(&home) { recording.whole.start.max(first) } else { home };
            if keep_sector((fate - first) / unit) {
                let whole = (unit.min(self.image.size() - home)) as usize;
                self.image.read(home, &mut old[..whole]);
                match change {
                    Change::Write(data) => {
                        self.image.write(at, &data[(at - offset) as usize..(stop - offset) as usize]);
                    }
                    Change::Fill(_, fill) => self.image.fill(at, stop - at, *fill),
                }
                self.image.read(home, &mut new[..whole]);
                if old[..whole] != new[..whole] {
                    self.fingerprint ^= hash(home, &old[..whole]) ^ hash(home, &new[..whole]);
                }
            }
            at = stop;
        }
    }
}

fn hash(place: u64, bytes: &[u8]) -> u64 {
    let mut sum = place ^ 0x51_7c_c1_b7_27_22_0a_95;
    for word in bytes.chunks(8) {
        let mut le = [0; 8];
        le[..word.len()].copy_from_slice(word);
        let product = u128::from(sum ^ u64::from_le_bytes(le)) * 0x9e37_79b9_7f4a_7c15;
        sum = (product as u64) ^ ((product >> 64) as u64);
    }
    sum
}

/// A walk over the cuts of a recording, from left to right.
pub struct Walk<'a> {
    recording: &'a Recording,
    cut: usize,
    /// The base with all events before `settled_to` applied; none of them is open.
    settled: CrashState,
    settled_to: usize,
    /// Per event: a failed flush leaves it open for ever.
    lost_hold: Vec<bool>,
    /// Per event: the smallest `issued` from it on, which bounds the search for changes in flight.
    issued_from: Vec<usize>,
}

impl<'a> Walk<'a> {
    /// Starts at the cut before the first event.
    #[must_use]
    pub fn new(recording: &'a Recording) -> Walk<'a> {
        let mut lost_hold = vec![false; recording.events.len()];
        let mut good = 0;
        for (i, event) in recording.events.iter().enumerate() {
            match event {
                Event::Flushed { covers } => good = good.max(*covers),
                Event::FlushFailed => lost_hold[good..i].fill(true),
                Event::Changed { .. } | Event::Mark(_) => {}
            }
        }
        let mut issued_from = vec![usize::MAX; recording.events.len()];
        let mut smallest = usize::MAX;
        for (i, event) in recording.events.iter().enumerate().rev() {
            if let Event::Changed { issued, .. } = event {
                smallest = smallest.min(*issued);
            }
            issued_from[i] = smallest;
        }
        let settled = CrashState { image: recording.base.clone(), fingerprint: 0 };
        Walk { recording, cut: 0, settled, settled_to: 0, lost_hold, issued_from }
    }

    /// Moves to the cut after `cut` events.
    ///
    /// # Panics
    /// When that lies to the left or beyond the log.
    pub fn go_to(&mut self, cut: usize) {
        assert!(self.cut <= cut && cut <= self.recording.events.len(), "a walk goes to the right");
        self.cut = cut;
        let covered = self.covered();
        while self.settled_to < covered && !self.lost_hold[self.settled_to] {
            if let Event::Changed { offset, change, .. } = &self.recording.events[self.settled_to] {
                self.settled.apply(self.recording, *offset, change, |_| true);
            }
            self.settled_to += 1;
        }
    }

    /// The number of events before the cut.
    #[must_use]
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Position up to which completed flushes before the cut hold.
    fn covered(&self) -> usize {
        let flushes =
            self.recording.events[self.settled_to..self.cut].iter().filter_map(|event| match event {
                Event::Flushed { covers } => Some(*covers),
                _ => None,
            });
        flushes.max().unwrap_or(0)
    }

    /// Changes not yet settled, in order: offset, change, and whether it is open.
    fn unsettled(&self) -> impl Iterator<Item = (u64, &'a Change, bool)> + '_ {
        let covered = self.covered();
        let events = self.recording.events.iter().enumerate().skip(self.settled_to);
        let reached = events.take_while(|&(i, _)| i < self.cut || self.issued_from[i] < self.cut);
        reached.filter_map(move |(i, event)| match event {
            Event::Changed { offset, change, issued } if i < self.cut || *issued < self.cut => {
                Some((*offset, change, i >= covered || self.lost_hold[i]))
            }
            _ => None,
        })
    }

    /// Sector counts of the open changes, in order.
    #[must_use]
    pub fn open(&self) -> Vec<u32> {
        let unit = u64::from(self.recording.sector);
        let sectors = |offset: u64, len: u64| ((offset + len).div_ceil(unit) - offset / unit) as u32;
        self.unsettled().filter(|(_, _, open)| *open).map(|(offset, c, _)| sectors(offset, c.len())).collect()
    }

    /// What to try at this cut: every subset of up to `exhaustive` open changes; of more, all, nothing, each
    /// lost alone, each kept alone. And in both cases the last change torn, and `sampled` by `seed`.
    #[must_use]
    pub fn keeps(&self, exhaustive: u32, sampled: u32, seed: u64) -> Vec<Keep> {
        let open = self.open();
        let n = open.len() as u32;
        let mut keeps = vec![Keep::All];
        if n == 0 {
            return keeps;
        }
        keeps.push(Keep::Nothing);
        if n <= exhaustive.min(16) {
            keeps.extend((1..(1u64 << n) - 1).map(Keep::Chosen));
        } else {
            keeps.extend((0..n).map(Keep::AllBut));
            keeps.extend((0..n.min(64)).map(|kept| Keep::Chosen(1 << kept)));
        }
        let last = n - 1;
        let sectors = open[last as usize];
        keeps.extend(
            [1, sectors / 2, sectors - 1]
                .iter()
                .filter(|&&s| 0 < s && s < sectors)
                .map(|&s| Keep::Torn(last, s)),
        );
        let mut dice = Dice::new(seed ^ self.cut as u64);
        keeps.extend((0..sampled).map(|_| Keep::Seeded(dice.roll())));
        keeps
    }

    /// The disk at this cut if `keep` survived.
    #[must_use]
    pub fn build(&self, keep: Keep) -> CrashState {
        let mut state = self.settled.clone();
        let mut chooser = Chooser::new(keep);
        let mut nth = 0;
        for (offset, change, open) in self.unsettled() {
            let survives = if open { chooser.next(nth) } else { Survives::Whole };
            nth += u32::from(open);
            match survives {
                Survives::Whole => state.apply(self.recording, offset, change, |_| true),
                Survives::Lost => {}
                Survives::First(sectors) => {
                    state.apply(self.recording, offset, change, |i| i < u64::from(sectors))
                }
                Survives::Sectors(seed) => {
                    state.apply(self.recording, offset, change, |i| Dice::new(seed ^ (i << 20)).one_in(2));
                }
            }
        }
        state
    }
}

impl Recording {
    /// Builds a state by its name.
    ///
    /// # Panics
    /// When the cut lies beyond the log.
    #[must_use]
    pub fn build(&self, name: StateName) -> CrashState {
        let mut walk = Walk::new(self);
        walk.go_to(name.cut);
        walk.build(name.keep)
    }
}

enum Survives {
    Whole,
    Lost,
    First(u32),
    Sectors(u64),
}

/// Decides change by change.
struct Chooser {
    keep: Keep,
    dice: Dice,
    /// Seeded: how many in eight are lost, and how many in eight are torn.
    lost: u64,
    torn: u64,
}

impl Chooser {
    fn new(keep: Keep) -> Chooser {
        let mut dice = Dice::new(if let Keep::Seeded(seed) = keep { seed } else { 0 });
        // From nearly all kept to nearly all lost; half of the seeds tear nothing.
        let lost = 1 + dice.below(7);
        let torn = if dice.one_in(2) { 0 } else { 1 + dice.below(4) };
        Chooser { keep, dice, lost, torn }
    }

    fn next(&mut self, nth: u32) -> Survives {
        let whole_if = |survives: bool| if survives { Survives::Whole } else { Survives::Lost };
        match self.keep {
            Keep::All => Survives::Whole,
            Keep::Nothing => Survives::Lost,
            Keep::Chosen(mask) => whole_if(nth < 64 && mask >> nth & 1 == 1),
            Keep::AllBut(lost) => whole_if(nth != lost),
            Keep::Torn(change, sectors) if nth == change => Survives::First(sectors),
            Keep::Torn(change, _) => whole_if(nth < change),
            Keep::Seeded(_) => {
                let (torn, lost) = (self.dice.below(8), self.dice.below(8));
                if torn < self.torn {
                    Survives::Sectors(self.dice.roll())
                } else {
                    whole_if(lost >= self.lost)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sim::Fill;

    fn write(sector: u64, byte: u8, issued: usize) -> Event {
        let data: Arc<[u8]> = vec![byte; 512].into();
        Event::Changed { offset: sector * 512, change: Change::Write(data), issued }
    }

    fn recording(events: Vec<Event>) -> Recording {
        Recording { base: Image::new(4096, Fill::Zero), events, sector: 512, whole: 512..1536 }
    }

    fn first_bytes(recording: &Recording, name: StateName) -> [u8; 3] {
        let image = recording.build(name).image;
        [0, 512, 1024].map(|at| {
            let mut byte = [0];
            image.read(at, &mut byte);
            byte[0]
        })
    }

    #[test]
    fn a_flush_covers_nothing_that_raced_with_it() {
        let events = vec![
            write(0, 1, 0),
            // Issued after one event, when the second write was still in flight.
            write(1, 2, 1),
            Event::Flushed { covers: 1 },
            // In flight since before the flush.
            write(2, 3, 0),
        ];
        let recording = recording(events);
        let at = |cut, keep| first_bytes(&recording, StateName { cut, keep });
        assert_eq!(at(3, Keep::Nothing), [1, 0, 0], "the covered write stays");
        assert_eq!(at(3, Keep::All), [1, 2, 3], "the write in flight may have arrived");
        assert_eq!(at(3, Keep::Chosen(0b10)), [1, 0, 3]);
        assert_eq!(at(1, Keep::All), [1, 0, 3], "the second was not issued yet");
    }

    #[test]
    fn after_a_failed_flush_a_good_one_does_not_help() {
        let events = vec![
            write(0, 1, 0),
            Event::Flushed { covers: 1 },
            write(1, 2, 2),
            Event::FlushFailed,
            write(2, 3, 4),
            write(1, 4, 5),
            Event::Flushed { covers: 6 },
        ];
        let recording = recording(events);
        let at = |keep| first_bytes(&recording, StateName { cut: 7, keep });
        assert_eq!(at(Keep::Nothing), [1, 4, 3]);
        assert_eq!(at(Keep::All), [1, 4, 3], "the doubtful write lies below the later good one");
        let mut walk = Walk::new(&recording);
        walk.go_to(7);
        assert_eq!(walk.open().len(), 1);
    }

    #[test]
    fn what_is_whole_is_not_torn() {
        let data: Arc<[u8]> = vec![7; 2048].into();
        let events = vec![Event::Changed { offset: 0, change: Change::Write(data), issued: 0 }];
        let recording = recording(events);
        for sectors in 1..4 {
            let bytes = first_bytes(&recording, StateName { cut: 1, keep: Keep::Torn(0, sectors) });
            assert_eq!(bytes[1], bytes[2], "{sectors} sectors");
        }
        for seed in 0..50 {
            let bytes = first_bytes(&recording, StateName { cut: 1, keep: Keep::Seeded(seed) });
            assert_eq!(bytes[1], bytes[2], "seed {seed}");
        }
    }
}
