//! A mount that becomes read-only while it stays, and writable again.
//!
//! A suspended volume is clean on its device: a check or another mount finds nothing to recover. Whatever starts
//! a handle all the same (the end of an inode that was still open) wakes the journal, which marks the volume as
//! in use first; the next [`Filesystem::suspend`] marks it clean again.

use tracing::info;

use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::mount::{mark_clean, mark_mounted};
use crate::volume::{MayResume, VOLUME_EVENTS, Volume};

impl Filesystem {
    /// Writes everything out, marks the volume clean and refuses changes until [`Filesystem::resume`]. False when
    /// something is still under way, or an inode without a name in use: then nothing was marked.
    ///
    /// # Errors
    /// When something could not be written.
    pub fn suspend(&self) -> Result<bool> {
        self.vol.changeable()?;
        let was_active = self.vol.is_active();
        self.sync_all()?;
        self.reap();
        let rests = self.vol.journal.suspend(|| {
            if self.orphans.any() {
                return Ok(false);
            }
            mark_clean(&self.vol).map(|()| true).map_err(in_the_journal)
        })?;
        if rests {
            self.vol.suspend();
            if was_active {
                info!(target: VOLUME_EVENTS, "re-mounted {} ro", self.vol.uuid());
            }
        }
        Ok(rests)
    }

    /// Whether the volume is suspended and clean on its device.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        !self.vol.is_active() && self.vol.journal.is_suspended()
    }

    /// Allows changes again. The first one marks the volume as in use on the device.
    pub fn resume(&self) {
        if !self.vol.is_active() && self.vol.changeable().is_ok() {
            self.vol.resume();
            info!(target: VOLUME_EVENTS, "re-mounted {} r/w", self.vol.uuid());
        }
    }

    /// Has a suspended volume ask `may_resume` before it refuses a change, for a caller who learns late of a mount
    /// that is writable again. Takes effect once.
    pub fn set_may_resume(&self, may_resume: MayResume) {
        self.vol.set_may_resume(may_resume);
    }
}

/// A handle is about to start on a volume that says it is clean.
pub(crate) fn resuming(vol: &Volume) -> jbd2::Result<()> {
    mark_mounted(vol).map_err(in_the_journal)
}

fn in_the_journal(error: Error) -> jbd2::Error {
    match error {
        Error::Io(error) => jbd2::Error::Io(error),
        _ => jbd2::Error::ShutDown,
    }
}
