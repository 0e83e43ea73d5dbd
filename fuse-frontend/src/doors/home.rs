//! Where a ring's thread runs.
//!
//! At home, which is the processor that its queue's requests come from, a request is two switches between
//! client and thread, and no other processor has to be woken. But where requests come faster than that
//! processor serves them beside its client, others idle. Then a thread leaves home, for wherever the
//! scheduler has room, and comes back when requests come one at a time again.
//!
//! There are two signs of it. Who waits for each reply has to run before the next request, and so the thread
//! has to be switched away from: more than one request is under way when a thread gets them without that. And
//! where a request waits for the device, which is a switch too, most of the queue's threads have one in hand.

use std::io;

use nix::sys::resource::{UsageWho, getrusage};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Requests between two looks.
const LOOK: u64 = 64;
/// Requests in a rush between two looks with which a thread leaves home.
const MANY: u64 = LOOK / 8;
/// With no more than these it comes back.
const FEW: u64 = LOOK / 16;

/// The place of one thread, which alone may use it.
pub struct Home {
    home: CpuSet,
    anywhere: CpuSet,
    is_away: bool,
    /// Requests since the last look that somebody waited for, and those that came in a crowd.
    awaited: u64,
    crowded: u64,
    /// Switches until the last look, in all the thread's life.
    switches: u64,
}

impl Home {
    /// Sends the calling thread there.
    ///
    /// # Errors
    /// Those of sched_setaffinity(2): the processor is off, or not for us. The thread runs where it may then.
    /// Those of getrusage(2).
    pub fn settle(processor: u16) -> io::Result<Home> {
        let (home, anywhere, switches) = (only(processor), sched_getaffinity(None)?, switches()?);
        sched_setaffinity(None, &home)?;
        Ok(Home { home, anywhere, is_away: false, awaited: 0, crowded: 0, switches })
    }

    /// One more request that somebody waits for has been served, with most of the queue's other threads at
    /// work or not.
    pub fn served(&mut self, in_a_crowd: bool) {
        self.awaited += 1;
        self.crowded += u64::from(in_a_crowd);
        if self.awaited == LOOK {
            // Not told: as if it had slept after each request.
            let switches = switches().unwrap_or(self.switches + LOOK);
            let unswitched = LOOK.saturating_sub(switches.saturating_sub(self.switches));
            // The crowd of a short moment is none.
            let crowded = self.crowded.saturating_sub(LOOK / 2);
            self.look(unswitched.max(crowded));
            (self.awaited, self.crowded, self.switches) = (0, 0, switches);
        }
    }

    fn look(&mut self, rushed: u64) {
        let leaves = rushed > if self.is_away { FEW } else { MANY };
        if leaves != self.is_away {
            let place = if leaves { &self.anywhere } else { &self.home };
            // A place that was taken from us: the thread stays where it is, and looks again.
            if sched_setaffinity(None, place).is_ok() {
                self.is_away = leaves;
            }
        }
    }
}

/// The set of one processor.
pub fn only(processor: u16) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor.into());
    set
}

/// How often the calling thread's processor has gone on with something else.
fn switches() -> io::Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    Ok(usage.voluntary_context_switches() as u64 + usage.involuntary_context_switches() as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn place() -> CpuSet {
        sched_getaffinity(None).unwrap()
    }

    fn settled() -> (CpuSet, Home) {
        let before = place();
        let first = (0..CpuSet::MAX_CPU).find(|&number| before.is_set(number)).unwrap();
        (before, Home::settle(first as u16).unwrap())
    }

    /// Until the next look with these requests alone.
    fn wait_and_serve(home: &mut Home, in_a_crowd: bool) {
        for _ in 0..2 * LOOK {
            std::thread::sleep(Duration::from_micros(1));
            home.served(in_a_crowd);
        }
    }

    /// On a busy machine it may be switched away from now and then, and so it has many tries.
    #[test]
    fn who_always_has_a_request_leaves_and_who_waits_comes_back() {
        let (anywhere, mut home) = settled();
        for _ in 0..2 {
            assert_eq!(place(), home.home);
            while !home.is_away {
                home.served(false);
            }
            assert_eq!(place(), anywhere);
            wait_and_serve(&mut home, false);
        }
    }

    #[test]
    fn who_waits_in_a_crowd_leaves_until_it_is_gone() {
        let (anywhere, mut home) = settled();
        wait_and_serve(&mut home, true);
        assert_eq!(place(), anywhere);
        wait_and_serve(&mut home, false);
        assert_eq!(place(), home.home);
    }

    #[test]
    fn what_is_between_changes_nothing() {
        let (anywhere, mut home) = settled();
        home.look(MANY);
        assert_eq!(place(), home.home);
        home.look(MANY + 1);
        home.look(FEW + 1);
        assert_eq!(place(), anywhere);
        home.look(FEW);
        assert_eq!(place(), home.home);
    }

    #[test]
    fn a_processor_that_is_not_there_is_an_error() {
        let before = place();
        assert!(Home::settle(CpuSet::MAX_CPU as u16 - 1).is_err());
        assert_eq!(place(), before);
    }
}
