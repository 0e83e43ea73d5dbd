//! The threads of a door, and the rule that one of them is always there for the next request.
//!
//! A handler may block its thread on the device; the others serve meanwhile. But some answers wait
//! for the kernel to send *more requests* (a write-back): if all threads waited so, none would be
//! left to take them, and the mount would hang. So a thread says so before it waits, and when it is
//! the last one that does not, another is started first. It stays until it is one too many.

use std::io;

use parking_lot::Mutex;

/// Does something to a door's threads.
pub type Act = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Counts the threads that take requests from one queue.
pub struct Crew {
    wanted: usize,
    count: Mutex<Count>,
    start: Act,
    rouse: Act,
}

#[derive(Debug, Default)]
struct Count {
    members: usize,
    waiting: usize,
}

impl Crew {
    /// Nobody yet; `start` starts one. There shall be `wanted` that do not wait. `rouse` has the requests
    /// that wait already given to a stand-in.
    #[must_use]
    pub fn new(wanted: usize, start: Act, rouse: Act) -> Crew {
        Crew { wanted, count: Mutex::default(), start, rouse }
    }

    /// Whether the calling thread is one too many; it then counts no longer and has to end.
    pub fn dismisses(&self) -> bool {
        let mut count = self.count.lock();
        let too_many = count.members - count.waiting > self.wanted;
        count.members -= usize::from(too_many);
        too_many
    }

    /// Starts one more thread.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn grow(&self) -> io::Result<()> {
        let mut count = self.count.lock();
        (self.start)()?;
        count.members += 1;
        Ok(())
    }

    /// The calling thread ends because the mount has; says whether it was the last one. Until then
    /// requests are still being answered.
    pub fn leaves_last(&self) -> bool {
        let mut count = self.count.lock();
        count.members -= 1;
        count.members == 0
    }

    /// Runs `wait`, which needs other requests to be served. When nobody would be left to serve
    /// them and nobody can be started or roused either, it is not run.
    ///
    /// # Errors
    /// Those of starting a thread, and of rousing it.
    pub fn wait_for_kernel(&self, wait: impl FnOnce()) -> io::Result<()> {
        {
            let mut count = self.count.lock();
            if count.waiting + 1 >= count.members {
                (self.start)()?;
                count.members += 1;
                (self.rouse)()?;
            }
            count.waiting += 1;
        }
        wait();
        self.count.lock().waiting -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_last_one_gets_a_stand_in() {
        let started = Arc::new(AtomicUsize::new(0));
        let counted = started.clone();
        let crew = Crew::new(
            2,
            Box::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }),
            Box::new(|| Ok(())),
        );
        crew.grow().unwrap();
        crew.grow().unwrap();
        let inside = || started.load(Ordering::SeqCst);
        crew.wait_for_kernel(|| {
            assert_eq!(inside(), 2);
            crew.wait_for_kernel(|| assert_eq!(inside(), 3)).unwrap();
        })
        .unwrap();
        crew.wait_for_kernel(|| assert_eq!(inside(), 3)).unwrap();
        assert!(crew.dismisses());
        assert!(!crew.dismisses());
    }

    #[test]
    fn without_a_stand_in_nobody_waits() {
        let refused = || Err(io::Error::from_raw_os_error(11));
        let crew = Crew::new(1, Box::new(refused), Box::new(|| Ok(())));
        assert!(crew.wait_for_kernel(|| panic!("nobody is left to serve")).is_err());
        let crew = Crew::new(1, Box::new(|| Ok(())), Box::new(refused));
        assert!(crew.wait_for_kernel(|| panic!("nobody serves what waits")).is_err());
        assert!(crew.leaves_last(), "the stand-in is there all the same");
    }
}
