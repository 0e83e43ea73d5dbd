//! What the threads behind a volume do, a round at a time; tests without threads ask for rounds themselves.

use blockdev::Timestamp;
use tracing::warn;

use crate::background::Rounds;
use crate::data::By;
use crate::error::Result;
use crate::fs::Filesystem;

impl Rounds for Filesystem {
    fn commit(&self) -> Result<()> {
        self.tick()
    }

    fn convert(&self) {
        self.step_convert();
    }

    fn flush(&self) {
        self.step_flush();
    }
}

impl Filesystem {
    /// One round of the commit timer: what became dirty an interval ago goes out, completions
    /// are converted, and the transaction commits.
    pub fn tick(&self) -> Result<()> {
        if !self.vol.is_active() {
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
    /// more than half of the write-behind is used. Then what was busy when it should have left may leave.
    pub fn step_flush(&self) {
        self.flush_due(Timestamp { sec: i64::MIN, nsec: 0 });
        while let Some((inode, wrote)) = self.data.relieve_memory() {
            self.done_with(inode);
            if !wrote {
                break;
            }
        }
        self.reap();
    }

    /// Writes out the files that became dirty before `before`, and those that were hastened.
    fn flush_due(&self, before: Timestamp) {
        for inode in self.data.dirty.due(before) {
            self.data.flush_all(&inode);
            self.done_with(inode);
        }
    }
}
