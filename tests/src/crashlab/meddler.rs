//! A device that lets something else happen in the middle of file data's way to the disk, where another
//! thread might do it: what a commit must not depend on shows up then.

use std::sync::{Arc, OnceLock};

use blockdev::sim::Dice;
use blockdev::{BlockDevice, DeviceGeometry, Result};
use parking_lot::Mutex;

use super::ops::CELL;

/// A device with an interruption before some of the data writes.
pub struct Meddler {
    inner: Arc<dyn BlockDevice>,
    interruption: OnceLock<Box<dyn Fn() + Send + Sync>>,
    dice: Mutex<Dice>,
}

impl Meddler {
    /// Does nothing until it knows what.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, seed: u64) -> Meddler {
        Meddler { inner, interruption: OnceLock::new(), dice: Mutex::new(Dice::new(seed)) }
    }

    /// From here on, one data write in two is interrupted by this.
    pub fn meddle_with(&self, interruption: impl Fn() + Send + Sync + 'static) {
        self.interruption.get_or_init(|| Box::new(interruption));
    }

    /// Only file data begin with a cell of one tag: the journal must not be entered from its own writes.
    fn before(&self, bytes: &[u8]) {
        let cell = &bytes[..bytes.len().min(CELL as usize)];
        let is_data = (1..128).contains(&cell[0]) && cell.iter().all(|byte| *byte == cell[0]);
        if !is_data || !self.dice.lock().one_in(2) {
            return;
        }
        if let Some(interruption) = self.interruption.get() {
            interruption();
        }
    }
}

impl BlockDevice for Meddler {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.before(buf);
        self.inner.write_at(offset, buf)
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        if let Some(first) = bufs.first() {
            self.before(first);
        }
        self.inner.write_vectored_at(offset, bufs)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.write_zeroes(offset, len)
    }
}
