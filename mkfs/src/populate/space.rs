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
    /// What was taken, merged.
    pub taken: Vec<Range<u64>>,
}

impl Space {
    /// What is free on a volume.
    pub fn new(volume: &Volume) -> Space {
        let runs = volume.free_runs();
        let mut most = 0;
        let mut longest: Vec<u64> = Vec::with_capacity(runs.len());
        for run in runs.iter().rev() {
            most = most.max(run.end - run.start);
            longest.push(most);
        }
        longest.reverse();
        Space { runs, at: 0, longest, taken: Vec::new() }
    }

    /// Blocks left in the run that is being filled.
    pub fn here(&self) -> u64 {
        self.runs.get(self.at).map_or(0, |run| run.end - run.start)
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

    /// Takes blocks; pieces in order.
    ///
    /// # Errors
    /// How many are missing; those there were are gone.
    pub fn take(&mut self, count: u64) -> Result<Vec<Range<u64>>, u64> {
        let mut pieces = Vec::with_capacity(1);
        let mut missing = count;
        while missing > 0 {
            let run = self.runs.get_mut(self.at).ok_or(missing)?;
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
        Ok(pieces)
    }
}
