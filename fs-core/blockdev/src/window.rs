//! A part of a device as a device: a partition of an image, or all but what belongs to others.

use std::os::fd::BorrowedFd;

use crate::{BlockDevice, DeviceGeometry, Error, Op, Result};

/// The bytes of a device from a start on, so many of them.
pub struct Window<D> {
    inner: D,
    start: u64,
    len: u64,
}

impl<D: BlockDevice> Window<D> {
    /// The `len` bytes of `inner` from byte `start` on; with `None` those up to its end.
    ///
    /// # Errors
    /// `InvalidInput` when they do not lie inside the device, or are none.
    pub fn new(inner: D, start: u64, len: Option<u64>) -> Result<Window<D>> {
        let size = inner.geometry().size;
        let rest = size.checked_sub(start).filter(|rest| *rest > 0);
        match (rest, len) {
            (Some(rest), None) => Ok(Window { inner, start, len: rest }),
            (Some(rest), Some(len)) if (1..=rest).contains(&len) => Ok(Window { inner, start, len }),
            (_, len) => {
                let source = std::io::ErrorKind::InvalidInput.into();
                Err(Error { op: Op::Open, offset: start, len: len.unwrap_or(0), source })
            }
        }
    }

    /// The byte of the device that is `offset` here.
    fn at(&self, op: Op, offset: u64, len: u64) -> Result<u64> {
        self.geometry().check(op, offset, len)?;
        Ok(self.start + offset)
    }
}

impl<D: BlockDevice> BlockDevice for Window<D> {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry { size: self.len, ..self.inner.geometry() }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(self.at(Op::Read, offset, buf.len() as u64)?, buf)
    }

    fn will_need(&self, offset: u64, len: u64) {
        if let Ok(at) = self.at(Op::Read, offset, len) {
            self.inner.will_need(at, len);
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_at(self.at(Op::Write, offset, buf.len() as u64)?, buf)
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.inner.write_vectored_at(self.at(Op::Write, offset, len)?, bufs)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(self.at(Op::Discard, offset, len)?, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.write_zeroes(self.at(Op::WriteZeroes, offset, len)?, len)
    }

    fn descriptor(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.inner.descriptor().map(|(file, start)| (file, start + self.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Fill, MemDevice};

    #[test]
    fn only_its_own_bytes_are_seen_and_changed() {
        let disk = std::sync::Arc::new(MemDevice::new(4096, Fill::Zero));
        let window = Window::new(disk.clone(), 1024, Some(512)).unwrap();
        assert_eq!(window.geometry().size, 512);
        window.write_at(0, &[1; 256]).unwrap();
        window.write_vectored_at(256, &[&[2; 128], &[3; 128]]).unwrap();
        let mut all = [9; 4096];
        disk.read_at(0, &mut all).unwrap();
        assert!(all[..1024].iter().chain(&all[1536..]).all(|byte| *byte == 0));
        assert_eq!((all[1024], all[1280], all[1535]), (1, 2, 3));
        window.write_zeroes(0, 256).unwrap();
        window.read_at(128, &mut all[..256]).unwrap();
        assert_eq!((all[0], all[255]), (0, 2));
        for (offset, len) in [(0, 513), (512, 1), (u64::MAX, 2)] {
            assert!(window.read_at(offset, &mut vec![0; len]).is_err());
            assert!(window.write_at(offset, &vec![0; len]).is_err());
            assert!(window.discard(offset, len as u64).is_err());
        }
    }

    #[test]
    fn what_lies_outside_the_device_is_no_window() {
        let disk = || MemDevice::new(4096, Fill::Zero);
        assert_eq!(Window::new(disk(), 4000, None).unwrap().geometry().size, 96);
        for (start, len) in [(4096, None), (u64::MAX, None), (0, Some(4097)), (4000, Some(97)), (0, Some(0))]
        {
            assert!(Window::new(disk(), start, len).is_err());
        }
    }
}
