//! /dev/fuse beside rings. FORGETs come by it one after the other, and the space of removed files with them,
//! while requests on a ring overtake them: who finds no space waits here until those that were sent have been
//! heard.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// How often is looked whether all has been heard; others may go on sending.
const LOOKS: usize = 4_000;
const PAUSE: Duration = Duration::from_micros(50);

/// The one thread's way to requests, and others' view of how far it is.
pub struct Ear {
    device: Arc<File>,
    /// Held by the thread from before it takes a request until it has dealt with it.
    busy: Mutex<()>,
}

impl Ear {
    /// On the connection `device`, which from now on does not wait to be read.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(device: Arc<File>) -> io::Result<Ear> {
        fcntl_setfl(&device, fcntl_getfl(&device)? | OFlags::NONBLOCK)?;
        Ok(Ear { device, busy: Mutex::new(()) })
    }

    /// Waits until something can be read; to be kept until that has been dealt with.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        // Interrupted or not, reading shows whether there is something.
        let _ = self.is_readable(None);
        self.busy.lock()
    }

    /// Returns when all that the kernel had sent has been dealt with. Never for the thread itself.
    pub fn has_heard(&self) {
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        for _ in 0..LOOKS {
            let idle = self.busy.lock();
            if !self.is_readable(Some(&none)) {
                return;
            }
            drop(idle);
            std::thread::sleep(PAUSE);
        }
    }

    fn is_readable(&self, time: Option<&Timespec>) -> bool {
        let mut device = [PollFd::new(&*self.device, PollFlags::IN)];
        poll(&mut device, time).is_ok() && device[0].revents().contains(PollFlags::IN)
    }
}
