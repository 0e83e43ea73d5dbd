//! Deletions under way. On the kernel's ext4 a deleted file's space is free when unlink(2) returns. Here
//! the file ends with a FORGET that nobody waits for; so whoever finds no space, or asks how much there is,
//! waits for the deletions that have begun.

use std::collections::BTreeSet;

use parking_lot::{Condvar, Mutex};

/// The deletions of a volume.
#[derive(Default)]
pub struct Deletions {
    running: Mutex<Running>,
    ended: Condvar,
}

#[derive(Default)]
struct Running {
    next: u64,
    numbers: BTreeSet<u64>,
}

/// One deletion, until it is dropped.
pub struct Deletion<'a> {
    all: &'a Deletions,
    number: u64,
}

impl Deletions {
    /// Begins one.
    pub fn begin(&self) -> Deletion<'_> {
        let mut running = self.running.lock();
        let number = running.next;
        running.next += 1;
        running.numbers.insert(number);
        Deletion { all: self, number }
    }

    /// Waits for those that have begun; says whether there were any. Not inside a handle: they start
    /// their own.
    pub fn wait(&self) -> bool {
        let mut running = self.running.lock();
        let (any, later) = (!running.numbers.is_empty(), running.next);
        while running.numbers.first().is_some_and(|number| *number < later) {
            self.ended.wait(&mut running);
        }
        any
    }
}

impl Drop for Deletion<'_> {
    fn drop(&mut self) {
        self.all.running.lock().numbers.remove(&self.number);
        self.all.ended.notify_all();
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
    fn those_that_have_begun_are_waited_for() {
        let all = Arc::new(Deletions::default());
        assert!(!all.wait());
        let (first, (tell, hear), waiter) = (all.begin(), channel(), all.clone());
        let thread = Thread::spawn("waiter", move || tell.send(waiter.wait()).unwrap()).unwrap();
        assert!(hear.recv_timeout(Duration::from_millis(50)).is_err());
        drop(first);
        assert!(hear.recv().unwrap());
        thread.join();
        assert!(!all.wait());
    }
}
