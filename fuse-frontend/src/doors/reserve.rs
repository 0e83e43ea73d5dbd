//! Threads that are there before the mount is: a limit on them is met while there is nothing to undo yet.
//! (Taking an ordinary user's mount away again starts a program, for which such a limit leaves no room
//! either.)

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that wait for something to do, each once.
pub struct Reserve {
    idle: AtomicUsize,
    jobs: Sender<Job>,
}

impl Reserve {
    /// Starts `threads` of them. They end with it, if they were not needed.
    ///
    /// # Errors
    /// When one of them cannot be started.
    pub fn new(threads: usize) -> io::Result<Reserve> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = queue.clone();
            spawn(move || wait_for_one(&queue))?;
        }
        Ok(Reserve { idle: AtomicUsize::new(threads), jobs })
    }

    /// Runs `job` on a waiting thread, or on a new one when there is none left.
    ///
    /// # Errors
    /// When a new one cannot be started.
    pub fn run(&self, name: &'static str, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let named = move || {
            // A name is for whoever looks at the process.
            let _ = std::ffi::CString::new(name).map(|name| rustix::thread::set_name(&name));
            job();
        };
        let taken = self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, |idle| idle.checked_sub(1));
        match taken {
            Ok(_) => self.jobs.send(Box::new(named)).map_err(|_| io::ErrorKind::BrokenPipe.into()),
            Err(_) => spawn(named),
        }
    }

    /// Ends those that still wait.
    pub fn dismiss(&self) {
        for _ in 0..self.idle.swap(0, Ordering::AcqRel) {
            // Without a thread that listens there is none to end.
            let _ = self.jobs.send(Box::new(|| ()));
        }
    }
}

fn spawn(job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("rext4-reserve".into()).spawn(job).map(drop)
}

fn wait_for_one(queue: &Mutex<Receiver<Job>>) {
    let job = queue.lock().recv();
    if let Ok(job) = job {
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_dismissed_ends_and_another_is_started_when_needed() {
        let reserve = Reserve::new(3).unwrap();
        let (tell, told) = channel();
        reserve.dismiss();
        reserve.run("rext4-test", move || tell.send(()).unwrap()).unwrap();
        assert_eq!(told.recv(), Ok(()));
        assert_eq!(reserve.idle.load(Ordering::Acquire), 0);
    }

    #[test]
    fn more_jobs_than_threads_run_side_by_side() {
        let reserve = Reserve::new(2).unwrap();
        let all = Arc::new(std::sync::Barrier::new(5));
        for _ in 0..4 {
            let all = all.clone();
            let wait = move || {
                all.wait();
            };
            reserve.run("rext4-test", wait).unwrap();
        }
        all.wait();
    }
}
