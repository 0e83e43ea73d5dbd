//! Epochs of a recorded run, and the walk over its distinct crash states.
//!
//! An epoch is a stretch of the recording in which the same promise holds; the recorder's marks are the
//! numbers of the epochs that begin there. Two cuts with the same disk in one epoch are one state.

use std::collections::HashSet;

use blockdev::sim::{CrashState, Event, Recording, StateName, Walk};

/// How many states to make at each cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Density {
    /// Open writes up to which every subset is tried.
    pub exhaustive: u32,
    /// Further states drawn by the seed.
    pub sampled: u32,
    /// The seed.
    pub seed: u64,
}

/// The epoch that a cut falls in.
#[must_use]
pub fn epoch_at(recording: &Recording, cut: usize) -> u64 {
    let before = recording.events()[..cut].iter().rev();
    before
        .filter_map(|event| if let Event::Mark(epoch) = event { Some(*epoch) } else { None })
        .next()
        .unwrap_or(0)
}

/// Calls `judge` with every distinct state, until it fails. Returns how many there were.
///
/// # Errors
/// The first failure, with the state's name.
pub fn for_each_state<E>(
    recording: &Recording,
    density: Density,
    mut judge: impl FnMut(StateName, u64, CrashState) -> Result<(), E>,
) -> Result<u64, (StateName, E)> {
    let mut seen = HashSet::new();
    let mut walk = Walk::new(recording);
    let mut epoch = 0;
    let mut states = 0;
    for cut in 0..=recording.events().len() {
        if let Some(Event::Mark(next)) = cut.checked_sub(1).map(|last| &recording.events()[last]) {
            epoch = *next;
        }
        walk.go_to(cut);
        for keep in walk.keeps(density.exhaustive, density.sampled, density.seed) {
            let state = walk.build(keep);
            if seen.insert((epoch, state.fingerprint)) {
                states += 1;
                let name = StateName { cut, keep };
                judge(name, epoch, state).map_err(|why| (name, why))?;
            }
        }
    }
    Ok(states)
}
