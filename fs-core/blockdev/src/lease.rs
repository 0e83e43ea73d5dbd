//! A device that may be written only while a lease on it holds.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::{BlockDevice, DeviceGeometry, Error, Op, Result};

/// The right to write to a device that others reach, too.
pub trait Lease: Send + Sync {
    /// Makes sure that it holds, by renewing it when that is due. Called before each change of the device.
    ///
    /// # Errors
    /// Why nothing may be written any more.
    fn hold(&self) -> io::Result<()>;
}

/// The device under the lease.
pub struct Leased {
    dev: Arc<dyn BlockDevice>,
    lease: Arc<dyn Lease>,
}

impl Leased {
    /// Writes to `dev` as long as `lease` holds.
    #[must_use]
    pub fn new(dev: Arc<dyn BlockDevice>, lease: Arc<dyn Lease>) -> Leased {
        Leased { dev, lease }
    }

    fn change(
        &self,
        (op, offset, len): (Op, u64, u64),
        change: impl FnOnce(&dyn BlockDevice) -> Result<()>,
    ) -> Result<()> {
        self.lease.hold().map_err(|source| Error { op, offset, len, source })?;
        change(self.dev.as_ref())
    }
}

impl BlockDevice for Leased {
    fn geometry(&self) -> DeviceGeometry {
        self.dev.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.dev.read_at(offset, buf)
    }

    fn read_past_cache(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.dev.read_past_cache(offset, buf)
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.dev.will_need(offset, len);
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.change((Op::Write, offset, buf.len() as u64), |dev| dev.write_at(offset, buf))
    }

    fn write_past_cache(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.change((Op::Write, offset, buf.len() as u64), |dev| dev.write_past_cache(offset, buf))
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.change((Op::Write, offset, len), |dev| dev.write_vectored_at(offset, bufs))
    }

    fn flush(&self) -> Result<()> {
        self.dev.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.change((Op::Discard, offset, len), |dev| dev.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.change((Op::WriteZeroes, offset, len), |dev| dev.write_zeroes(offset, len))
    }

    fn descriptor(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.dev.descriptor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Fill, MemDevice};
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Switch(AtomicBool);

    impl Lease for Switch {
        fn hold(&self) -> io::Result<()> {
            if self.0.load(Ordering::Relaxed) { Ok(()) } else { Err(io::Error::other("lost")) }
        }
    }

    #[test]
    fn nothing_changes_without_the_lease() {
        let switch = Arc::new(Switch(AtomicBool::new(true)));
        let dev = Leased::new(Arc::new(MemDevice::new(1 << 16, Fill::Zero)), switch.clone());
        dev.write_at(0, &[1; 512]).unwrap();
        switch.0.store(false, Ordering::Relaxed);
        assert!(dev.write_at(0, &[2; 512]).is_err());
        assert!(dev.write_past_cache(0, &[2; 512]).is_err());
        assert!(dev.write_vectored_at(0, &[&[2; 512]]).is_err());
        assert!(dev.discard(0, 4096).is_err());
        assert!(dev.write_zeroes(0, 4096).is_err());
        let mut seen = [0; 512];
        dev.read_at(0, &mut seen).unwrap();
        assert_eq!(seen, [1; 512]);
    }
}
