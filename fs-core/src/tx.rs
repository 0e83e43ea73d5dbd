//! A journal handle that occupies its rank: log space is a lock like any other.

use std::ops::{Deref, DerefMut};

use jbd2::{Credits, Handle, Journal};

use crate::error::Result;
use crate::locks::{Held, Rank, hold};

/// An open handle of this thread. It derefs to [`jbd2::Handle`]; functions that write take that.
pub struct Tx<'j> {
    handle: Handle<'j>,
    _held: Held,
}

/// Starts a handle that may change `credits` blocks. Blocks while the log is full; nothing of
/// rank 50 or above may be held.
pub fn start(journal: &Journal, credits: Credits) -> Result<Tx<'_>> {
    let held = hold(Rank::Handle, 0);
    Ok(Tx { handle: journal.start(credits)?, _held: held })
}

impl Tx<'_> {
    /// Closes the handle. Its changes are durable once its transaction has committed.
    pub fn finish(self) -> Result<()> {
        Ok(self.handle.finish()?)
    }
}

impl<'j> Deref for Tx<'j> {
    type Target = Handle<'j>;
    fn deref(&self) -> &Handle<'j> {
        &self.handle
    }
}

impl<'j> DerefMut for Tx<'j> {
    fn deref_mut(&mut self) -> &mut Handle<'j> {
        &mut self.handle
    }
}
