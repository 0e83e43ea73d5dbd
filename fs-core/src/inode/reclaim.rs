//! Inodes on their way out: deletions under way, and inodes that have no handle any more but are kept by
//! work pending on them. One lock and one condition variable, so that whoever finds no space can wait for both.
//!
//! Invariant: an inode without a name and without handles is on one of the two lists until its space is free.
//! So whoever takes one out of the table begins a deletion before, and takes it off the waiting ones after.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ext4_format::Ino;

use crate::locks::{Condvar, Rank, RankedMutex};

/// The inodes of a volume that are on their way out.
pub struct Reclaim {
    state: RankedMutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Deletions begun so far, those included that find nothing to delete.
    begun: u64,
    /// The numbers of those under way.
    running: BTreeSet<u64>,
    /// Inodes deleted so far.
    ended: u64,
    /// Inodes that wait for the work pending on them.
    waiting: BTreeMap<Ino, Waiting>,
    /// How often one was added or taken off.
    changes: u64,
}

/// An inode that waits.
#[derive(Clone, Copy)]
struct Waiting {
    /// Whether it has no name.
    unlinked: bool,
    /// Tells it from the next inode of its number.
    ticket: u64,
}

impl State {
    fn begin(&mut self) -> u64 {
        let number = self.begun;
        self.begun += 1;
        self.running.insert(number);
        number
    }
}

/// A deletion under way, until it is dropped.
pub struct Deletion<'a> {
    reclaim: &'a Reclaim,
    number: u64,
}

impl Default for Reclaim {
    fn default() -> Self {
        Reclaim { state: RankedMutex::keyed(Rank::Leaf, 3, State::default()), changed: Condvar::default() }
    }
}

impl Reclaim {
    /// Begins a deletion.
    pub fn begin(&self) -> Deletion<'_> {
        Deletion { reclaim: self, number: self.state.lock().begin() }
    }

    /// Inodes deleted so far.
    pub fn ended(&self) -> u64 {
        self.state.lock().ended
    }

    /// One more was deleted.
    pub fn count(&self) {
        self.state.lock().ended += 1;
    }

    /// The inode `ino` waits for the work pending on it; gives its ticket.
    pub fn add(&self, ino: Ino, unlinked: bool) -> u64 {
        let mut state = self.state.lock();
        state.changes += 1;
        let ticket = state.changes;
        state.waiting.insert(ino, Waiting { unlinked, ticket });
        ticket
    }

    /// The ticket of `ino`, if it waits.
    pub fn ticket(&self, ino: Ino) -> Option<u64> {
        self.state.lock().waiting.get(&ino).map(|waiting| waiting.ticket)
    }

    /// All that wait, and their tickets.
    pub fn tickets(&self) -> Vec<(Ino, u64)> {
        self.state.lock().waiting.iter().map(|(ino, waiting)| (*ino, waiting.ticket)).collect()
    }

    /// The inode `ino` does not wait any more, unless it was added again since it got `ticket`.
    pub fn remove(&self, ino: Ino, ticket: u64) {
        let mut state = self.state.lock();
        if state.waiting.get(&ino).is_some_and(|waiting| waiting.ticket == ticket) {
            state.waiting.remove(&ino);
            state.changes += 1;
            self.changed.notify_all();
        }
    }

    /// Waits until the deletions under way have ended. They need nobody else for that, so there is no limit. The
    /// caller has no journal handle: they start their own.
    pub fn wait_for_deletions(&self) {
        let mut state = self.state.lock();
        let begun = state.begun;
        while state.running.first().is_some_and(|number| *number < begun) {
            self.changed.wait(&mut state);
        }
    }

    /// Counts what could matter to [`Reclaim::wait_for_change`].
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Waits until something has changed since `seen`. False when `deadline` has passed, or no inode without
    /// a name waits.
    pub fn wait_for_change(&self, seen: u64, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while state.changes == seen {
            let any = state.waiting.values().any(|waiting| waiting.unlinked);
            if !any || self.changed.wait_until(&mut state, deadline) {
                return false;
            }
        }
        true
    }
}

impl Drop for Deletion<'_> {
    fn drop(&mut self) {
        let mut state = self.reclaim.state.lock();
        state.running.remove(&self.number);
        self.reclaim.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::threads::Thread;

    #[test]
    fn deletions_that_have_begun_are_waited_for() {
        let all = Arc::new(Reclaim::default());
        all.wait_for_deletions();
        let (first, (tell, hear), waiter) = (all.begin(), channel(), all.clone());
        let body = move || {
            waiter.wait_for_deletions();
            tell.send(()).unwrap();
        };
        let thread = Thread::spawn("waiter", body).unwrap();
        assert!(hear.recv_timeout(Duration::from_millis(50)).is_err());
        drop(first);
        hear.recv().unwrap();
        thread.join();
    }

    #[test]
    fn a_change_between_the_look_and_the_wait_is_not_missed() {
        let all = Reclaim::default();
        let long = Instant::now() + Duration::from_secs(60);
        let ino = Ino::new(12).unwrap();
        assert!(!all.wait_for_change(all.changes(), long), "nothing waits");
        all.add(ino, false);
        assert!(!all.wait_for_change(all.changes(), long), "what has a name makes no space");
        all.add(ino, true);
        let other = all.add(Ino::new(13).unwrap(), true);
        let seen = all.changes();
        all.remove(Ino::new(13).unwrap(), other);
        assert!(all.wait_for_change(seen, long));
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(!all.wait_for_change(all.changes(), soon));
    }

    #[test]
    fn a_ticket_takes_no_later_inode_of_the_number_off() {
        let all = Reclaim::default();
        let ino = Ino::new(12).unwrap();
        let first = all.add(ino, true);
        let second = all.add(ino, true);
        all.remove(ino, first);
        assert_eq!(all.ticket(ino), Some(second));
        all.remove(ino, second);
        assert_eq!(all.ticket(ino), None);
    }
}
