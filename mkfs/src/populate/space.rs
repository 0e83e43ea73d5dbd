//! Free blocks, taken one after the other, and how files are kept whole where something lies in between.

use std::ops::Range;

use crate::volume::Volume;

/// Up to this part of a run of free blocks may stay free, so that a file is not cut in two.
const WASTE: u64 = 256;

/// The free blocks of a volume, in order.
pub struct Space {
    runs: Vec<Range<u64>>,
    at: usize,
    /// The longest run from each on.
    longest: Vec<u64>,
    /// Free blocks from each run on.
    behind: Vec<u64>,
    /// What was taken, merged.
    pub taken: Vec<Range<u64>>,
}

impl Space {
    /// What is free on a volume.
    pub fn new(volume: &Volume) -> Space {
        let runs = volume.free_runs();
        let (mut most, mut sum) = (0, 0);
        let mut longest = Vec::new();
        let mut behind = Vec::new();
        for run in runs.iter().rev() {
            most = most.max(run.end - run.start);
            sum += run.end - run.start;
            longest.push(most);
            behind.push(sum);
        }
        longest.reverse();
        behind.reverse();
        Space { runs, at: 0, longest, behind, taken: Vec::new() }
    }

    /// Blocks left in the run that is being filled.
    pub fn here(&self) -> u64 {
        self.runs.get(self.at).map_or(0, |run| run.end - run.start)
    }

    /// Blocks left in all.
    pub fn left(&self) -> u64 {
        self.here() + self.behind.get(self.at + 1).copied().unwrap_or(0)
    }

    /// Whether a file of `count` blocks should rather start in a later run: it does not fit here, but there,
    /// and what stays free is little.
    pub fn should_wait(&self, count: u64) -> bool {
        let later = self.longest.get(self.at + 1).copied().unwrap_or(0);
        count > self.here() && count <= later
    }

    /// Whether what is left of this run is little enough to be left free.
    pub fn may_waste(&self) -> bool {
        self.here() <= 16 + self.longest.get(self.at + 1).copied().unwrap_or(0) / WASTE
    }

    /// Goes on to the next run.
    pub fn next_run(&mut self) {
        self.at += 1;
    }

    /// Takes blocks; pieces in order. `None`: there are not so many.
    pub fn take(&mut self, count: u64) -> Option<Vec<Range<u64>>> {
        if count > self.left() {
            return None;
        }
        let mut pieces = Vec::with_capacity(1);
        let mut missing = count;
        while missing > 0 {
            let run = self.runs.get_mut(self.at)?;
            let piece = run.start..run.end.min(run.start + missing);
            if piece.is_empty() {
                self.at += 1;
                continue;
            }
            run.start = piece.end;
            missing -= piece.end - piece.start;
            match self.taken.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => self.taken.push(piece.clone()),
            }
            pieces.push(piece);
        }
        Some(pieces)
    }
}
