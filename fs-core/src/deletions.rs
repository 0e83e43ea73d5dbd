//! Deletions under way. On the kernel's ext4 a deleted file's space is free when unlink(2) returns. Here
//! the file ends with a FORGET that nobody waits for; so whoever finds no space, or asks how much there is,
//! waits for the deletions that have begun, and before that, where FORGETs can be overtaken on their way, for
//! those that were sent.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use parking_lot::{Condvar, Mutex};

/// Returns when every FORGET that was sent before has been heard, or begun to be.
pub type Arrival = Box<dyn Fn() + Send + Sync>;

/// The deletions of a volume.
#[derive(Default)]
pub struct Deletions {
    arrival: OnceLock<Arrival>,
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

    /// From now on deletions may be on their way, and `arrival` waits for them.
    pub fn arrive_by(&self, arrival: Arrival) {
        // A volume is mounted once; a second door would have nothing to add.
        let _ = self.arrival.set(arrival);
    }

    /// How many have ended so far.
    pub fn ended(&self) -> u64 {
        self.running.lock().ended()
    }

    /// Waits for those that have begun, and for those on their way; says whether any has ended since there
    /// were `before` of them. Not inside a handle: they start their own.
    pub fn wait(&self, before: u64) -> bool {
        if let Some(arrival) = self.arrival.get() {
            arrival();
        }
        self.wait_for_running(before)
    }

    /// The same without those on their way.
    pub fn wait_for_running(&self, before: u64) -> bool {
        let mut running = self.running.lock();
        let later = running.next;
        while running.numbers.first().is_some_and(|number| *number < later) {
            self.ended.wait(&mut running);
        }
        running.ended() > before
    }
}

impl Running {
    fn ended(&self) -> u64 {
        self.next - self.numbers.len() as u64
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
        assert!(!all.wait(0));
        let (first, (tell, hear), waiter) = (all.begin(), channel(), all.clone());
        let thread = Thread::spawn("waiter", move || tell.send(waiter.wait(0)).unwrap()).unwrap();
        assert!(hear.recv_timeout(Duration::from_millis(50)).is_err());
        drop(first);
        assert!(hear.recv().unwrap());
        thread.join();
        // One that ended between an attempt and the wait counts; one from before the attempt does not.
        assert!(all.wait(0));
        assert!(!all.wait(all.ended()));
    }

    #[test]
    fn those_that_are_on_their_way_count() {
        let all = Arc::new(Deletions::default());
        let weak = Arc::downgrade(&all);
        all.arrive_by(Box::new(move || drop(weak.upgrade().unwrap().begin())));
        assert!(all.wait(0));
    }
}
