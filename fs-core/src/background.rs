//! The thread that commits at least every `commit=` seconds: what was written longest ago goes
//! to the device, completed direct IO is converted, the transaction is committed, and the log is
//! kept from filling up. With [`Workers::Manual`] nobody runs it and the test calls
//! [`Filesystem::tick`].

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use blockdev::Workers;
use parking_lot::{Condvar, Mutex};
use tracing::warn;

use crate::error::Result;
use crate::fs::Filesystem;

/// The commit timer.
pub(crate) struct Background {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    stopping: Mutex<bool>,
    wake: Condvar,
}

impl Background {
    pub fn new() -> Background {
        Background { shared: Arc::default(), thread: Mutex::new(None) }
    }

    /// Starts the thread, and the data path's own.
    pub fn start(&self, fs: &Arc<Filesystem>) {
        if fs.vol.env.workers == Workers::Manual {
            return;
        }
        fs.data.start(fs);
        let (weak, shared) = (Arc::downgrade(fs), self.shared.clone());
        let interval = fs.vol.opts.commit_interval.max(Duration::from_millis(10));
        let spawned = std::thread::Builder::new()
            .name("rext4-commit".into())
            .spawn(move || run(&weak, &shared, interval));
        match spawned {
            Ok(thread) => *self.thread.lock() = Some(thread),
            Err(error) => warn!(%error, "no commit timer: changes wait for fsync, sync or unmount"),
        }
    }

    /// Ends the threads and waits for them.
    pub fn stop(&self) {
        *self.shared.stopping.lock() = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn run(fs: &Weak<Filesystem>, shared: &Shared, interval: Duration) {
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
    /// One round of the commit timer.
    pub fn tick(&self) -> Result<()> {
        if self.vol.writable().is_err() {
            return Ok(());
        }
        self.data.flush_aged(self)?;
        self.vol.journal.commit_running()?;
        self.vol.journal.checkpoint(jbd2::Checkpoint::Some)?;
        self.reap();
        Ok(())
    }
}
