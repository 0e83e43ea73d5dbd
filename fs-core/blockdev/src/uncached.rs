//! Reads and writes that pass by this host's caches, for what several hosts that share a medium tell each
//! other through it.
//!
//! A second descriptor of the same file with O_DIRECT does it, whatever the first one uses. Where that does not
//! work (the filesystem of an image has none, or wants more alignment than the request has), a write goes
//! through the page cache to the medium (RWF_DSYNC), and a read drops the pages first and opens the file anew,
//! which is when network filesystems ask their server.

use std::fs::File;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::{Errno, ReadWriteFlags};

use crate::aligned::{PAGE, PooledBuf};

/// The second descriptor.
pub(crate) struct Uncached {
    file: File,
    align: u64,
}

impl Uncached {
    /// Opens `file` once more with O_DIRECT, if requests work that way: tried with the sector at `probe`.
    pub fn of(file: &File, writable: bool, align: u32, probe: u64) -> Option<Uncached> {
        let twin = Uncached { file: again(file, writable, OFlags::DIRECT).ok()?, align: align.into() };
        let mut sector = PooledBuf::take(align as usize);
        let works = align as usize <= PAGE && probe.is_multiple_of(align.into());
        (works && rustix::io::pread(&twin.file, &mut sector[..], probe).is_ok()).then_some(twin)
    }

    /// Fills `buf` from byte `at` of the file, whatever their alignment.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let skip = (at % self.align) as usize;
        let mut bounce = PooledBuf::try_take((skip + buf.len()).next_multiple_of(self.align as usize))?;
        let mut got = 0;
        // The file may end inside the last sector.
        while got < skip + buf.len() {
            match rustix::io::pread(&self.file, &mut bounce[got..], at - skip as u64 + got as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => got += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        buf.copy_from_slice(&bounce[skip..skip + buf.len()]);
        Ok(())
    }

    /// Writes whole sectors; `false` when `buf` is none.
    pub fn write(&self, at: u64, buf: &[u8]) -> io::Result<bool> {
        if !at.is_multiple_of(self.align) || !(buf.len() as u64).is_multiple_of(self.align) {
            return Ok(false);
        }
        let mut bounce = PooledBuf::take_waiting(buf.len())?;
        bounce.copy_from_slice(buf);
        loop {
            match rustix::io::pwrite(&self.file, &bounce, at) {
                Ok(n) if n == buf.len() => return Ok(true),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn again(file: &File, writable: bool, flags: OFlags) -> io::Result<File> {
    let mut how = File::options();
    how.read(true).write(writable).custom_flags(flags.bits() as i32);
    how.open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Writes through the page cache to the medium.
pub(crate) fn write_through(file: &File, at: u64, buf: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let rest = [IoSlice::new(&buf[done..])];
        match rustix::io::pwritev2(file, &rest, at + done as u64, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    drop_pages(file, at, buf.len());
    Ok(())
}

/// Reads what lies beyond the page cache.
pub(crate) fn read_afresh(file: &File, at: u64, buf: &mut [u8]) -> io::Result<()> {
    drop_pages(file, at, buf.len());
    let fresh = again(file, false, OFlags::empty());
    let file = fresh.as_ref().unwrap_or(file);
    drop_pages(file, at, buf.len());
    std::os::unix::fs::FileExt::read_exact_at(file, buf, at)
}

/// Drops the pages of a range; those that are dirty are written first.
fn drop_pages(file: &File, at: u64, len: usize) {
    write_pages(std::os::fd::AsFd::as_fd(file), at, len);
    if let Some(len) = NonZeroU64::new(len as u64) {
        let _ =
            fadvise(file, at / PAGE as u64 * PAGE as u64, len.checked_add(2 * PAGE as u64), Advice::DontNeed);
    }
}

/// Writes the dirty pages of a range and waits for them. A failure shows in the next flush.
fn write_pages(file: BorrowedFd<'_>, at: u64, len: usize) {
    let how =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes numbers only, and the descriptor is open while it is borrowed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at as libc::off64_t, len as libc::off64_t, how) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn every_way_reads_and_writes_the_same_file() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(16384).unwrap();
        let file = image.as_file();
        let mut seen = [0; 1024];
        write_through(file, 3072, &[7; 1024]).unwrap();
        read_afresh(file, 3072, &mut seen).unwrap();
        assert_eq!(seen, [7; 1024]);
        let Some(twin) = Uncached::of(file, true, 512, 0) else {
            eprintln!("no O_DIRECT here");
            return;
        };
        twin.read(3072, &mut seen).unwrap();
        assert_eq!(seen, [7; 1024]);
        assert!(twin.write(4096, &[9; 1024]).unwrap());
        assert!(!twin.write(4096 + 8, &[9; 1024]).unwrap());
        file.read_exact_at(&mut seen, 4096).unwrap();
        assert_eq!(seen, [9; 1024]);
        twin.read(4096 + 100, &mut seen[..10]).unwrap();
        assert_eq!(seen[..10], [9; 10]);
        assert!(twin.read(16384, &mut seen).is_err());
    }
}
