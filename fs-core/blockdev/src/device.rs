//! The contract between the filesystem and whatever keeps its bytes.

use std::io;
use std::os::fd::BorrowedFd;

/// What was being done to the device when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Opening or measuring the device.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Forcing completed writes to stable storage.
    Flush,
    /// Telling the device that a range is no longer needed.
    Discard,
    /// Zeroing a range.
    WriteZeroes,
}

/// A failed request: what, where, why.
#[derive(Debug, thiserror::Error)]
#[error("{op:?} of {len} bytes at byte {offset} failed: {source}")]
pub struct Error {
    /// The request.
    pub op: Op,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes.
    pub len: u64,
    /// The operating system's reason.
    pub source: io::Error,
}

/// Result of a device request.
pub type Result<T> = std::result::Result<T, Error>;

/// What a device is like. Sizes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceGeometry {
    /// Size of the device (after an `offset=` has been taken off).
    pub size: u64,
    /// Smallest unit that is written atomically across a power cut.
    pub logical_sector: u32,
    /// Offset, length and memory alignment at which a request needs no bounce copy.
    pub direct_align: u32,
    /// Whether writing is impossible or was not asked for.
    pub read_only: bool,
    /// Whether discard reaches the medium.
    pub discard: bool,
}

impl DeviceGeometry {
    /// Whether a request stays inside the device and may be made at all.
    ///
    /// # Errors
    /// `ReadOnlyFilesystem` for a change of a read-only device, `InvalidInput` beyond the end.
    pub fn check(&self, op: Op, offset: u64, len: u64) -> Result<()> {
        let changes = matches!(op, Op::Write | Op::Discard | Op::WriteZeroes);
        let kind = if changes && self.read_only {
            io::ErrorKind::ReadOnlyFilesystem
        } else if offset.checked_add(len).is_none_or(|end| end > self.size) {
            io::ErrorKind::InvalidInput
        } else {
            return Ok(());
        };
        Err(Error { op, offset, len, source: kind.into() })
    }
}

/// A device of bytes.
///
/// 1. A request that returns `Ok` was done in full; there are no short reads or writes.
/// 2. A write that has returned is seen by every later read, whatever thread issues it.
/// 3. A write that has returned survives a power cut only after a later `flush` has returned `Ok`.
/// 4. Until then any subset of its sectors may survive; each `logical_sector` is old or new, never mixed.
/// 5. Overlapping requests in flight at the same time have no order; callers do not issue them.
/// 6. A failed write leaves each of its sectors old or new. A failed flush promises nothing about
///    any write since the last good one.
/// 7. Any alignment and length inside the device is accepted; `direct_align` only says what is cheap.
pub trait BlockDevice: Send + Sync {
    /// What the device is like; constant while it is open.
    fn geometry(&self) -> DeviceGeometry;

    /// Fills `buf` from byte `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// The same past every cache of this host: shows what another host that shares the medium has written.
    fn read_past_cache(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_at(offset, buf)
    }

    /// Says that a range will be read soon, so that it may be fetched meanwhile. Nothing is promised, and a
    /// range that does not exist is no error.
    fn will_need(&self, _offset: u64, _len: u64) {}

    /// Writes `buf` at byte `offset`.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// The same past every cache of this host: another host that shares the medium reads it from here on.
    fn write_past_cache(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_at(offset, buf)?;
        self.flush()
    }

    /// Writes `bufs` one after the other from byte `offset`, as one request where the device can.
    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        let mut at = offset;
        for buf in bufs {
            self.write_at(at, buf)?;
            at += buf.len() as u64;
        }
        Ok(())
    }

    /// Makes every write that has returned before this call survive a power cut.
    fn flush(&self) -> Result<()>;

    /// Gives a range back. Its bytes are undefined afterwards until written.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes a range read as zeros, by the cheapest means.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// The descriptor behind the device and the byte at which the device starts in it, for
    /// transfers that stay in the kernel (splice). `None` for simulated devices.
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, u64)> {
        None
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for std::sync::Arc<D> {
    fn geometry(&self) -> DeviceGeometry {
        (**self).geometry()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buf)
    }
    fn read_past_cache(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_past_cache(offset, buf)
    }
    fn will_need(&self, offset: u64, len: u64) {
        (**self).will_need(offset, len)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        (**self).write_at(offset, buf)
    }
    fn write_past_cache(&self, offset: u64, buf: &[u8]) -> Result<()> {
        (**self).write_past_cache(offset, buf)
    }
    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        (**self).write_vectored_at(offset, bufs)
    }
    fn flush(&self) -> Result<()> {
        (**self).flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        (**self).discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        (**self).write_zeroes(offset, len)
    }
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, u64)> {
        (**self).descriptor()
    }
}
