//! Files with work pending, oldest first. An entry holds its inode in memory, so that what is
//! pending finds it; it is taken off by number as soon as the work is done or void, whoever did it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::Timestamp;

use crate::inode::Inode;
use crate::locks::{Condvar, Rank, RankedMutex};

#[derive(Default)]
struct State {
    /// By ticket, which is the order of coming.
    entries: BTreeMap<u64, (Timestamp, Arc<Inode>)>,
    next: u64,
    /// Tickets of files that are to be done at the next opportunity, whatever their age.
    urgent: Vec<u64>,
    woken: bool,
    stopped: bool,
}

/// A list of files with work pending, and the bell of the thread that does it.
pub struct WorkList {
    state: RankedMutex<State>,
    bell: Condvar,
}

impl Default for WorkList {
    fn default() -> Self {
        // Taken while an inode's IO state is held, which is a leaf as well.
        WorkList { state: RankedMutex::keyed(Rank::Leaf, 1, State::default()), bell: Condvar::default() }
    }
}

impl WorkList {
    /// Adds a file; the number takes it off again.
    pub fn add(&self, inode: &Arc<Inode>, since: Timestamp) -> u64 {
        let mut state = self.state.lock();
        let ticket = state.next;
        state.next += 1;
        state.entries.insert(ticket, (since, inode.clone()));
        ticket
    }

    /// Takes a file off.
    pub fn remove(&self, ticket: u64) {
        // The inode is dropped after the lock.
        let _gone = self.state.lock().entries.remove(&ticket);
    }

    /// Number of files on the list.
    pub fn count(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// The file that has waited longest.
    pub fn oldest(&self) -> Option<Arc<Inode>> {
        Some(self.state.lock().entries.first_key_value()?.1.1.clone())
    }

    /// The files that came before `before`, oldest first, and those that were hastened.
    pub fn due(&self, before: Timestamp) -> Vec<Arc<Inode>> {
        let mut state = self.state.lock();
        let urgent = std::mem::take(&mut state.urgent);
        let urgent = urgent.iter().filter_map(|ticket| state.entries.get(ticket));
        let old = state.entries.values().take_while(|(since, _)| *since < before);
        old.chain(urgent).map(|(_, inode)| inode.clone()).collect()
    }

    /// All files, oldest first.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.state.lock().entries.values().map(|(_, inode)| inode.clone()).collect()
    }

    /// Asks for a file to be done at the next opportunity, and wakes the worker.
    pub fn hasten(&self, ticket: u64) {
        self.state.lock().urgent.push(ticket);
        self.ring();
    }

    /// Wakes the worker.
    pub fn ring(&self) {
        let mut state = self.state.lock();
        if !state.woken {
            state.woken = true;
            self.bell.notify_one();
        }
    }

    /// Tells the worker to end.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.bell.notify_all();
    }

    /// Waits for the bell, at most `patience`. False when the worker is to end.
    pub fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while !state.woken && !state.stopped {
            if self.bell.wait_until(&mut state, until) {
                break;
            }
        }
        state.woken = false;
        !state.stopped
    }
}
