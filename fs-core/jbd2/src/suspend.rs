//! A journal that rests: everything is written back, the log is empty, and the volume may say that it needs no
//! recovery. The next handle wakes it up, after the observer has taken that word back.
//!
//! `Core::suspended` is set and cleared under `Core`'s lock, and read by whoever starts a handle; `suspending`
//! keeps a second one from starting before the observer is done.

use crate::error::Result;
use crate::journal::{Core, Journal};

impl Journal {
    /// Commits, writes everything back and marks the log empty; then calls `mark`, while no handle can start. Gives
    /// whether the journal rests: not while handles are open or something changes, and not when `mark` says no.
    ///
    /// # Errors
    /// Those of a commit, a checkpoint, and of `mark`; the journal is aborted then.
    pub fn suspend(&self, mark: impl FnOnce() -> Result<bool>) -> Result<bool> {
        let _turn = self.suspending.lock();
        if self.is_suspended() {
            return Ok(true);
        }
        self.close()?;
        {
            let mut core = self.core.lock();
            core.check_alive()?;
            if !core.is_settled() {
                return Ok(false);
            }
            core.suspended = true;
        }
        let marked = mark().map_err(|e| self.die(e));
        if !matches!(marked, Ok(true)) {
            self.core.lock().suspended = false;
        }
        marked
    }

    /// Whether the journal rests.
    pub fn is_suspended(&self) -> bool {
        self.core.lock().suspended
    }

    /// Wakes the journal up for a handle. Called without locks of this crate.
    pub(crate) fn resume(&self) -> Result<()> {
        let _turn = self.suspending.lock();
        if !self.is_suspended() {
            return Ok(());
        }
        let observer = self.observer.read().clone();
        if let Some(observer) = observer {
            observer.resuming().map_err(|e| self.die(e))?;
        }
        self.core.lock().suspended = false;
        Ok(())
    }
}

impl Core {
    /// Whether everything is written back: no handle open, nothing to commit, nothing in the log.
    pub(crate) fn is_settled(&self) -> bool {
        let idle = self.running.as_ref().is_none_or(|r| r.handles == 0 && r.tx.work.lock().is_empty());
        idle && self.leading.is_none() && self.space.logged.is_empty()
    }
}
