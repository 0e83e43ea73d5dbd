//! A device behind a file descriptor: an image file or a block device.
//!
//! One descriptor serves all IO, so direct and buffered requests never mix: it is opened with O_DIRECT
//! or without, for its whole life. With O_DIRECT, a request whose offset, length and memory are aligned
//! goes as it is. Any other passes through an aligned buffer, and a write's partial sectors at its ends
//! are read, changed and written back. Two such writes may meet in one sector without overlapping, so
//! each holds the locks of its end sectors meanwhile; a write of whole sectors can only meet them by
//! overlapping, which the device contract forbids. Without O_DIRECT the kernel's page cache does all this.

use std::fs::File;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, fdatasync, flock};
use rustix::io::Errno;

use crate::aligned::PooledBuf;
use crate::open::direct_align;
use crate::uncached::{self, Uncached};
use crate::{BlockDevice, DeviceGeometry, Error, Op, Result, discard};

/// Most bytes that go through one bounce buffer; more is cut into several requests.
const BOUNCE: usize = 1 << 20;

/// Locks for partial sectors; a sector's number picks one.
const EDGE_LOCKS: usize = 64;

/// What kind of file the descriptor names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Image,
    Block,
}

/// An image file or a block device; made by [`crate::open`].
pub struct FileDevice {
    file: File,
    /// The image file behind a loop device, held for its lock.
    backing: Option<File>,
    kind: Kind,
    /// Byte in the file at which the device starts.
    start: u64,
    /// Whether the descriptor bypasses the page cache; `geometry.direct_align` then binds.
    direct: bool,
    geometry: DeviceGeometry,
    edges: [Mutex<()>; EDGE_LOCKS],
    /// For requests past the page cache, opened with the first; none where O_DIRECT does not work.
    uncached: OnceLock<Option<Uncached>>,
}

impl FileDevice {
    pub(crate) fn new(
        file: File,
        backing: Option<File>,
        kind: Kind,
        start: u64,
        direct: bool,
        geometry: DeviceGeometry,
    ) -> FileDevice {
        let edges = std::array::from_fn(|_| Mutex::new(()));
        FileDevice { file, backing, kind, start, direct, geometry, edges, uncached: OnceLock::new() }
    }

    /// Whether requests bypass the host's page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Lets others lock the image file, before the device is dropped: its user has written all it will.
    pub fn give_up_lock(&self) {
        // Without a lock there is nothing to give up, and nobody to tell.
        let _ = flock(self.backing.as_ref().unwrap_or(&self.file), FlockOperation::Unlock);
    }

    /// Whether it is a block device rather than an image file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.kind == Kind::Block
    }

    /// The file, the device's first byte in it and its size.
    pub(crate) fn backing(&self) -> (&File, u64, u64) {
        (&self.file, self.start, self.geometry.size)
    }

    fn uncached(&self) -> Option<&Uncached> {
        let open = || {
            let align = direct_align(&self.file, self.geometry.logical_sector)?;
            Uncached::of(&self.file, !self.geometry.read_only, align, self.start)
        };
        self.uncached.get_or_init(open).as_ref()
    }

    fn align(&self) -> u64 {
        u64::from(self.geometry.direct_align)
    }

    /// Whether the descriptor takes this request without a bounce.
    fn fits(&self, offset: u64, buf: &[u8]) -> bool {
        let align = self.align();
        !self.direct
            || (offset.is_multiple_of(align)
                && (buf.len() as u64).is_multiple_of(align)
                && (buf.as_ptr().addr() as u64).is_multiple_of(align))
    }

    /// After a short transfer: how much of `done` bytes to keep so that the rest starts aligned.
    fn keep(&self, done: usize) -> usize {
        if self.direct { done - done % self.geometry.direct_align as usize } else { done }
    }

    fn pread(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&self.file, &mut buf[done..], self.start + offset + done as u64) {
                Ok(n) if n == buf.len() - done => return Ok(()),
                Ok(n) if self.keep(n) > 0 => done += self.keep(n),
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn pwritev(&self, offset: u64, mut bufs: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut at = self.start + offset;
        IoSlice::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            let left: usize = bufs.iter().map(|buf| buf.len()).sum();
            match rustix::io::pwritev(&self.file, bufs, at) {
                Ok(n) if n == left => return Ok(()),
                Ok(n) if self.keep(n) > 0 => {
                    at += self.keep(n) as u64;
                    IoSlice::advance_slices(&mut bufs, self.keep(n));
                }
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn read_bounced(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let align = self.align();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let skip = (at % align) as usize;
            let len = (buf.len() - done).min(BOUNCE - skip);
            let mut bounce = PooledBuf::try_take((skip + len).next_multiple_of(align as usize))?;
            self.pread(at - skip as u64, &mut bounce)?;
            buf[done..done + len].copy_from_slice(&bounce[skip..skip + len]);
            done += len;
        }
        Ok(())
    }

    /// Locks the partial sectors at the ends of `offset..end`, in ascending order of their locks.
    fn lock_edges(&self, offset: u64, end: u64) -> [Option<MutexGuard<'_, ()>>; 2] {
        let align = self.align();
        let lock_of =
            |byte: u64| (!byte.is_multiple_of(align)).then(|| ((byte / align) % EDGE_LOCKS as u64) as usize);
        let (head, tail) = (lock_of(offset), lock_of(end));
        let lock = |index: usize| self.edges[index].lock();
        match (head, tail) {
            (Some(a), Some(b)) if a != b => {
                let low = lock(a.min(b));
                [Some(low), Some(lock(a.max(b)))]
            }
            (head, tail) => [head.or(tail).map(lock), None],
        }
    }

    fn write_bounced(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        let align = self.align();
        let end = offset + bufs.iter().map(|buf| buf.len() as u64).sum::<u64>();
        let _edges = self.lock_edges(offset, end);
        let mut source = bufs.iter();
        let mut unread: &[u8] = &[];
        let mut at = offset;
        while at < end {
            let skip = (at % align) as usize;
            let len = ((end - at) as usize).min(BOUNCE - skip);
            let span = (skip + len).next_multiple_of(align as usize);
            let mut bounce = PooledBuf::take_waiting(span)?;
            let first = at - skip as u64;
            let sector = align as usize;
            let tail_is_partial = skip + len < span;
            if skip > 0 || (tail_is_partial && span == sector) {
                self.pread(first, &mut bounce[..sector])?;
            }
            if tail_is_partial && span > sector {
                self.pread(first + (span - sector) as u64, &mut bounce[span - sector..])?;
            }
            let mut filled = skip;
            while filled < skip + len {
                if unread.is_empty() {
                    unread = source.next().copied().unwrap_or_default();
                    continue;
                }
                let n = unread.len().min(skip + len - filled);
                bounce[filled..filled + n].copy_from_slice(&unread[..n]);
                unread = &unread[n..];
                filled += n;
            }
            self.pwritev(first, &mut [IoSlice::new(&bounce)])?;
            at += len as u64;
        }
        Ok(())
    }

    fn write(&self, offset: u64, bufs: &[&[u8]]) -> io::Result<()> {
        let mut at = offset;
        let fits = bufs.iter().all(|buf| {
            let fits = self.fits(at, buf);
            at += buf.len() as u64;
            fits
        });
        if !fits {
            return self.write_bounced(offset, bufs);
        }
        match bufs {
            [one] => self.pwritev(offset, &mut [IoSlice::new(one)]),
            many => self.pwritev(offset, &mut many.iter().map(|buf| IoSlice::new(buf)).collect::<Vec<_>>()),
        }
    }

    /// Whole sectors inside `offset..offset + len`, if any.
    fn whole_sectors(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let unit = u64::from(self.geometry.logical_sector.max(self.geometry.direct_align));
        let first = offset.checked_next_multiple_of(unit)?;
        let end = (offset + len) / unit * unit;
        (first < end).then_some((first, end))
    }

    /// Asks the kernel to zero whole sectors. `false`: it cannot.
    fn zero_sectors(&self, first: u64, end: u64) -> io::Result<bool> {
        // A hole costs nothing to make and nothing to keep, so it is tried first.
        for how in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
            let how = how | FallocateFlags::KEEP_SIZE;
            loop {
                match fallocate(&self.file, how, self.start + first, end - first) {
                    Ok(()) => return Ok(true),
                    Err(Errno::INTR) => {}
                    Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(false)
    }

    fn zero_by_writing(&self, offset: u64, end: u64) -> io::Result<()> {
        let zeros = PooledBuf::take_zeroed(BOUNCE.min((end - offset) as usize));
        let mut at = offset;
        while at < end {
            // The first piece ends aligned, so that the rest needs no bounce.
            let piece = (BOUNCE as u64 - at % self.align()).min(zeros.len() as u64).min(end - at);
            self.write(at, &[&zeros[..piece as usize]])?;
            at += piece;
        }
        Ok(())
    }
}

/// To close the file is not enough: a child that was forked a moment ago has a copy of the descriptor until
/// it runs its program, and with it the lock.
impl Drop for FileDevice {
    fn drop(&mut self) {
        self.give_up_lock();
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> DeviceGeometry {
        self.geometry
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        self.geometry.check(Op::Read, offset, len)?;
        let read =
            if self.fits(offset, buf) { self.pread(offset, buf) } else { self.read_bounced(offset, buf) };
        read.map_err(|source| Error { op: Op::Read, offset, len, source })
    }

    fn read_past_cache(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.direct {
            return self.read_at(offset, buf);
        }
        let len = buf.len() as u64;
        self.geometry.check(Op::Read, offset, len)?;
        let read = match self.uncached() {
            Some(twin) => twin.read(self.start + offset, buf),
            None => uncached::read_afresh(&self.file, self.start + offset, buf),
        };
        read.map_err(|source| Error { op: Op::Read, offset, len, source })
    }

    fn write_past_cache(&self, offset: u64, buf: &[u8]) -> Result<()> {
        if self.direct {
            return self.write_at(offset, buf);
        }
        let len = buf.len() as u64;
        self.geometry.check(Op::Write, offset, len)?;
        let write = || match self.uncached().map(|twin| twin.write(self.start + offset, buf)) {
            Some(Ok(false)) | None => uncached::write_through(&self.file, self.start + offset, buf),
            Some(done) => done.map(drop),
        };
        write().map_err(|source| Error { op: Op::Write, offset, len, source })
    }

    fn will_need(&self, offset: u64, len: u64) {
        // With O_DIRECT there is no page cache to fetch into.
        if !self.direct
            && let Some(len) = NonZeroU64::new(len)
        {
            let _ = fadvise(&self.file, self.start.saturating_add(offset), Some(len), Advice::WillNeed);
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_vectored_at(offset, &[buf])
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        let len = bufs.iter().fold(0u64, |sum, buf| sum.saturating_add(buf.len() as u64));
        self.geometry.check(Op::Write, offset, len)?;
        self.write(offset, bufs).map_err(|source| Error { op: Op::Write, offset, len, source })
    }

    fn flush(&self) -> Result<()> {
        if self.geometry.read_only {
            return Ok(());
        }
        fdatasync(&self.file).map_err(|errno| Error {
            op: Op::Flush,
            offset: 0,
            len: 0,
            source: errno.into(),
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.geometry.check(Op::Discard, offset, len)?;
        let Some((first, end)) = self.whole_sectors(offset, len) else { return Ok(()) };
        let result = match self.kind {
            Kind::Block => discard::discard(&self.file, self.start + first, end - first),
            Kind::Image => self.zero_sectors(first, end).map(|_| ()),
        };
        match result {
            // A device without discard keeps the bytes, which the contract allows.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(()),
            result => result.map_err(|source| Error { op: Op::Discard, offset, len, source }),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.geometry.check(Op::WriteZeroes, offset, len)?;
        let end = offset + len;
        let zero = || -> io::Result<()> {
            match self.whole_sectors(offset, len) {
                Some((first, last)) if self.zero_sectors(first, last)? => {
                    self.zero_by_writing(offset, first)?;
                    self.zero_by_writing(last, end)
                }
                _ => self.zero_by_writing(offset, end),
            }
        };
        zero().map_err(|source| Error { op: Op::WriteZeroes, offset, len, source })
    }

    fn descriptor(&self) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.file.as_fd(), self.start))
    }
}

#[cfg(test)]
mod tests {
    use crate::{OpenOptions, open};

    #[test]
    fn a_copy_of_the_descriptor_keeps_no_lock() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let device = open(image.path(), &OpenOptions::default()).unwrap();
        let _copy = device.file.try_clone().unwrap();
        assert!(open(image.path(), &OpenOptions::default()).is_err());
        drop(device);
        open(image.path(), &OpenOptions::default()).unwrap();
    }
}
