//! The threads behind a mounted volume: the commit timer, the conversion worker and the flusher of
//! write-behind. What each of them does in a round, the volume knows ([`Rounds`]). With [`Workers::Manual`]
//! there are none, and the test asks for rounds.

use std::sync::{Arc, Weak};
use std::time::Duration;

use blockdev::Workers;
use tracing::warn;

use crate::data::DataPath;
use crate::error::Result;
use crate::locks::{Condvar, Rank, RankedMutex};
use crate::threads::{self, Thread};

/// How long completions gather before the worker converts them: neighbours merge meanwhile.
const GATHER: Duration = Duration::from_millis(5);

/// How long a worker sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_secs(3600);

/// The work of each thread, a round of it.
pub(crate) trait Rounds: Send + Sync {
    /// Of the commit timer.
    fn commit(&self) -> Result<()>;
    /// Of the conversion worker.
    fn convert(&self);
    /// Of the flusher.
    fn flush(&self);
}

/// The threads of a volume.
pub(crate) struct Background {
    shared: Arc<Shared>,
    data: Arc<DataPath>,
    threads: RankedMutex<Vec<Thread>>,
}

struct Shared {
    stopping: RankedMutex<bool>,
    wake: Condvar,
}

impl Background {
    pub fn new(data: Arc<DataPath>) -> Background {
        let stopping = RankedMutex::new(Rank::Leaf, false);
        let shared = Arc::new(Shared { stopping, wake: Condvar::default() });
        Background { shared, data, threads: RankedMutex::new(Rank::Leaf, Vec::new()) }
    }

    /// Starts the threads; a commit comes every `interval`.
    pub fn start(&self, rounds: Weak<dyn Rounds>, workers: Workers, interval: Duration) {
        if workers == Workers::Manual {
            return;
        }
        let interval = interval.max(Duration::from_millis(10));
        let (volume, shared) = (rounds.clone(), self.shared.clone());
        self.spawn("rext4-commit", move || commit_timer(&volume, &shared, interval));
        let (volume, data) = (rounds.clone(), self.data.clone());
        self.spawn("rext4-convert", move || {
            while data.completed.wait(IDLE) {
                threads::sleep(GATHER);
                let Some(volume) = volume.upgrade() else { return };
                volume.convert();
            }
        });
        let data = self.data.clone();
        self.spawn("rext4-flush", move || {
            while data.dirty.wait(IDLE) {
                let Some(volume) = rounds.upgrade() else { return };
                volume.flush();
            }
        });
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) {
        match Thread::spawn(name, body) {
            Ok(thread) => self.threads.lock().push(thread),
            Err(error) => warn!(name, %error, "no background thread: work waits for fsync or unmount"),
        }
    }

    /// Asks for a round of the flusher. False when there is none.
    pub fn flush_soon(&self) -> bool {
        self.data.dirty.ring();
        !self.threads.lock().is_empty()
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

fn commit_timer(rounds: &Weak<dyn Rounds>, shared: &Shared, interval: Duration) {
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
        let Some(volume) = rounds.upgrade() else { return };
        if let Err(error) = volume.commit() {
            warn!(%error, "the periodic commit failed");
        }
    }
}
