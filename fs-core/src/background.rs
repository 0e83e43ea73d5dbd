//! The threads behind a mounted volume: the commit timer, the conversion worker and the flusher of
//! write-behind. With [`Workers::Manual`] there are none, and the test calls the step functions
//! of [`Filesystem`] instead.

use std::sync::{Arc, Weak};
use std::time::Duration;

use blockdev::{Timestamp, Workers};
use parking_lot::{Condvar, Mutex};
use tracing::warn;

use crate::data::{By, DataPath};
use crate::error::Result;
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::threads::{self, Thread};

/// How long completions gather before the worker converts them: neighbours merge meanwhile.
const GATHER: Duration = Duration::from_millis(5);

/// How long a worker sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_secs(3600);

/// The threads of a volume.
pub(crate) struct Background {
    shared: Arc<Shared>,
    data: Arc<DataPath>,
    threads: Mutex<Vec<Thread>>,
}

#[derive(Default)]
struct Shared {
    stopping: Mutex<bool>,
    wake: Condvar,
}

impl Background {
    pub fn new(data: Arc<DataPath>) -> Background {
        Background { shared: Arc::default(), data, threads: Mutex::new(Vec::new()) }
    }

    /// Starts the threads.
    pub fn start(&self, fs: &Arc<Filesystem>) {
        if fs.vol.env.workers == Workers::Manual {
            return;
        }
        let interval = fs.vol.opts.commit_interval.max(Duration::from_millis(10));
        let (weak, shared) = (Arc::downgrade(fs), self.shared.clone());
        self.spawn("rext4-commit", move || commit_timer(&weak, &shared, interval));
        let (weak, data) = (Arc::downgrade(fs), self.data.clone());
        self.spawn("rext4-convert", move || {
            while data.completed.wait(IDLE) {
                threads::sleep(GATHER);
                let Some(fs) = weak.upgrade() else { return };
                fs.step_convert();
            }
        });
        let (weak, data) = (Arc::downgrade(fs), self.data.clone());
        self.spawn("rext4-flush", move || {
            while data.dirty.wait(IDLE) {
                let Some(fs) = weak.upgrade() else { return };
                fs.step_flush();
            }
        });
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) {
        match Thread::spawn(name, body) {
            Ok(thread) => self.threads.lock().push(thread),
            Err(error) => warn!(name, %error, "no background thread: work waits for fsync or unmount"),
        }
    }

    /// Ends the threads and waits for them.
    pub fn stop(&self) {
        *self.shared.stopping.lock() = true;
        self.shared.wake.notify_all();
        self.data.completed.stop();
        self.data.dirty.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        threads.into_iter().for_each(Thread::join);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
    }
}

fn commit_timer(fs: &Weak<Filesystem>, shared: &Shared, interval: Duration) {
    loop {
        {
            let mut stopping = shared.stopping.lock();
            if !*stopping {
                shared.wake.wait_for(&mut stopping, interval);
            }
            if *stopping {
                return;
            }
        }
        let Some(fs) = fs.upgrade() else { return };
        if let Err(error) = fs.tick() {
            warn!(%error, "the periodic commit failed");
        }
    }
}

impl Filesystem {
    /// One round of the commit timer: what became dirty an interval ago goes out, completions
    /// are converted, and the transaction commits.
    pub fn tick(&self) -> Result<()> {
        if self.vol.writable().is_err() {
            return Ok(());
        }
        let now = self.vol.env.clock.now();
        let interval = i64::try_from(self.vol.opts.commit_interval.as_secs()).unwrap_or(i64::MAX);
        self.flush_due(Timestamp { sec: now.sec.saturating_sub(interval), ..now });
        self.step_convert();
        self.vol.journal.commit_running()?;
        self.vol.journal.checkpoint(jbd2::Checkpoint::Some)?;
        self.reap();
        Ok(())
    }

    /// One round of the commit timer without the rest of it: whatever runs is committed.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn step_commit(&self) -> Result<()> {
        Ok(self.vol.journal.commit_running()?)
    }

    /// One round of the conversion worker: converts what has completed.
    pub fn step_convert(&self) {
        for inode in self.data.completed.all() {
            if let Err(error) = self.data.convert(&inode, By::Worker) {
                warn!(ino = %inode.ino, %error, "completed writes could not be converted");
            }
            self.done_with(inode);
        }
    }

    /// One round of the flusher: writes out files that are in a hurry, and the oldest ones while
    /// more than half of the write-behind is used.
    pub fn step_flush(&self) {
        self.flush_due(Timestamp { sec: i64::MIN, nsec: 0 });
        while let Some(inode) = self.data.relieve_memory() {
            self.done_with(inode);
        }
    }

    /// Writes out the files that became dirty before `before`, and those that were hastened.
    fn flush_due(&self, before: Timestamp) {
        for inode in self.data.dirty.due(before) {
            self.data.flush_all(&inode);
            self.done_with(inode);
        }
    }

    /// Lets an inode leave if only the work that was done on it has kept it.
    fn done_with(&self, inode: Arc<Inode>) {
        let ino = inode.ino;
        drop(inode);
        if self.leaving.lock().remove(&ino) {
            self.let_go(ino);
        }
    }
}
