//! Requests about the content of files. No table of open files is kept: what a handle must
//! remember, which opening it is and whether it may write, fits into its number.

use std::collections::hash_map::Entry;
use std::os::fd::BorrowedFd;

use blockdev::PooledBuf;
use fs_core::{Attr, Error, FallocateMode, OpenId, ReadPlan, SeekWhence, WriteMode};

use super::attributes::Change;
use super::{Answer, Sender, Service, Writers, inode_of, node_of, refuse};

/// Largest read that is answered in one piece, in bytes.
const MAX_READ: u32 = 1 << 20;

/// What a door tells the kernel about an open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The handle's number.
    pub handle: u64,
    /// Bypass the page cache, with parallel writes (O_DIRECT); otherwise keep what is cached.
    pub direct: bool,
}

/// How a WRITE came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteHow {
    /// From the kernel's page cache (FUSE_WRITE_CACHE), at any time after the writer's call.
    pub from_cache: bool,
    /// Set-id bits are to be taken away (FUSE_WRITE_KILL_SUIDGID).
    pub kill_privileges: bool,
    /// Open flags of the handle at this moment (fcntl may have changed O_DIRECT).
    pub flags: i32,
    /// The handle's number.
    pub handle: u64,
}

/// The device of the volume as a file, for a door that moves bytes without reading them.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Byte of the file at which the device starts.
    pub start: u64,
    /// What offsets and lengths must be multiples of, in bytes.
    pub align: u64,
}

impl Service {
    /// OPEN, with O_TRUNC if it was asked for.
    pub fn open(&self, sender: Sender, node: u64, flags: i32) -> Answer<Opened> {
        let ino = inode_of(node)?;
        let id = self.fs.open(ino, open_flags(flags)).map_err(refuse)?;
        if flags & libc::O_TRUNC != 0 {
            let cut = Change { size: Some(0), ..Change::default() };
            if let Err(errno) = self.setattr(sender, node, &cut) {
                self.fs.release(ino);
                return Err(errno);
            }
        }
        Ok(self.opened(sender, node, id, flags))
    }

    /// The opening half of CREATE, after [`Service::mknod`]; gives the entry's reference back when
    /// it fails.
    pub fn open_created(&self, sender: Sender, entry: &Attr, flags: i32) -> Answer<Opened> {
        match self.fs.open(entry.ino, open_flags(flags & !libc::O_TRUNC)) {
            Ok(id) => Ok(self.opened(sender, node_of(entry.ino), id, flags)),
            Err(error) => {
                self.forget(node_of(entry.ino), 1);
                Err(refuse(error))
            }
        }
    }

    /// RELEASE.
    pub fn release(&self, node: u64, handle: u64) {
        if writes_through_cache(handle) {
            let mut writers = self.cached_writers.lock();
            if let Entry::Occupied(mut open) = writers.entry(node) {
                open.get_mut().handles -= 1;
                if open.get().handles == 0 {
                    open.remove();
                    self.starved.lock().remove(&node);
                }
            }
        }
        if let Ok(ino) = inode_of(node) {
            self.fs.release(ino);
        }
    }

    /// Whether the kernel may hold dirty pages of a file: whether a handle is open that writes
    /// through its page cache. A mapping keeps its handle open.
    pub fn may_be_dirty_in_kernel(&self, node: u64) -> bool {
        self.cached_writers.lock().contains_key(&node)
    }

    /// All files of which the kernel may hold dirty pages.
    pub fn all_maybe_dirty_in_kernel(&self) -> Vec<u64> {
        self.cached_writers.lock().keys().copied().collect()
    }

    fn opened(&self, sender: Sender, node: u64, id: OpenId, flags: i32) -> Opened {
        let opened = Opened { handle: handle_of(id, flags), direct: flags & libc::O_DIRECT != 0 };
        if writes_through_cache(opened.handle) {
            let mut all = self.cached_writers.lock();
            let writers =
                all.entry(node).or_insert(Writers { handles: 0, opener: sender, pages_cached: false });
            writers.handles += 1;
            if sender.uid == 0 {
                writers.opener = sender;
            }
        }
        opened
    }

    /// Whether the kernel may keep pages that this write, now done, has made old. For a synchronous direct
    /// write it drops those that somebody has read meanwhile; for an asynchronous one it does so when the
    /// request is sent, not when it ends. A write through the page cache that waits for its answer (from a
    /// file that loses set-id bits, say) has its pages locked: there dropping them would wait for ever.
    pub fn leaves_old_pages(&self, node: u64, how: WriteHow) -> bool {
        !how.from_cache
            && how.flags & libc::O_DIRECT != 0
            && self.cached_writers.lock().get(&node).is_some_and(|writers| writers.pages_cached)
    }

    fn pages_are_cached(&self, node: u64) {
        if let Some(writers) = self.cached_writers.lock().get_mut(&node) {
            writers.pages_cached = true;
        }
    }

    /// READ, for the kernel's page cache or past it; `reply` gets the bytes, fewer than asked for only at the
    /// end of the file.
    pub fn read<T>(
        &self,
        node: u64,
        offset: u64,
        size: u32,
        from_cache: bool,
        reply: impl FnOnce(Answer<&[u8]>) -> T,
    ) -> T {
        let mut buf = PooledBuf::take(size.min(MAX_READ) as usize);
        match self.read_into(node, offset, &mut buf, from_cache) {
            Ok(n) => reply(Ok(&buf[..n])),
            Err(errno) => reply(Err(errno)),
        }
    }

    /// READ into `buf`; gives the number of bytes, fewer than `buf` has only at the end of the file.
    pub fn read_into(&self, node: u64, offset: u64, buf: &mut [u8], from_cache: bool) -> Answer<usize> {
        let ino = inode_of(node)?;
        let read = if from_cache {
            self.pages_are_cached(node);
            self.fs.read(ino, offset, buf)
        } else {
            self.fs.read_direct(ino, offset, buf)
        };
        read.map_err(refuse)
    }

    /// Where the bytes that a READ for the page cache asks for are; what is not in memory is read
    /// from [`Service::device`]. The plan must not outlive the request.
    pub fn read_plan(&self, node: u64, offset: u64, size: u32) -> Answer<ReadPlan> {
        self.pages_are_cached(node);
        self.fs.read_plan(inode_of(node)?, offset, size.min(MAX_READ).into()).map_err(refuse)
    }

    /// The device as a file, if it is one.
    #[must_use]
    pub fn device(&self) -> Option<Source<'_>> {
        let device = self.fs.device();
        let (file, start) = device.descriptor()?;
        Some(Source { file, start, align: device.geometry().direct_align.max(1).into() })
    }

    /// WRITE; gives the number of bytes taken. When data of the kernel's page cache find no space
    /// the writer is long gone; the door then has the kernel forget the file's attributes, so that
    /// the next write(2) asks for them and is refused in [`Service::getattr`].
    pub fn write(&self, sender: Sender, node: u64, offset: u64, data: &[u8], how: WriteHow) -> Answer<u32> {
        let ino = inode_of(node)?;
        let mode = if how.from_cache {
            WriteMode::Writeback
        } else if how.flags & libc::O_DIRECT != 0 {
            WriteMode::Direct
        } else {
            WriteMode::Cached
        };
        let writer = match how.from_cache {
            true => self.cached_writers.lock().get(&node).map_or(sender, |writers| writers.opener),
            false => sender,
        };
        if how.from_cache {
            self.pages_are_cached(node);
        }
        let caller = self.caller(writer, 0);
        if how.kill_privileges && !self.fake_root {
            self.fs.kill_privileges(&caller, ino).map_err(refuse)?;
        }
        let taken = match self.fs.write(&caller, ino, offset, data, mode) {
            Err(Error::NoSpace) if how.from_cache => 0,
            taken => taken.map_err(refuse)?,
        };
        if how.from_cache && taken < data.len() {
            self.starved.lock().insert(node, self.fs.space_for(&caller));
            return Err(libc::ENOSPC);
        }
        if how.flags & (libc::O_DSYNC | libc::O_SYNC) != 0 && !how.from_cache {
            let data_only = how.flags & libc::O_SYNC != libc::O_SYNC;
            self.fs.fsync_opened(ino, opening_of(how.handle), data_only).map_err(refuse)?;
        }
        Ok(taken as u32)
    }

    /// FSYNC.
    pub fn fsync(&self, node: u64, handle: u64, datasync: bool) -> Answer<()> {
        self.fs.fsync_opened(inode_of(node)?, opening_of(handle), datasync).map_err(refuse)
    }

    /// SYNCFS: everything that was answered before is durable after it.
    pub fn syncfs(&self) -> Answer<()> {
        self.fs.syncfs().map_err(refuse)
    }

    /// FALLOCATE, with the mode bits of fallocate(2).
    pub fn fallocate(&self, sender: Sender, node: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        let mode = FallocateMode::from_bits(mode).ok_or(libc::EOPNOTSUPP)?;
        let caller = self.caller(sender, 0);
        self.fs.fallocate(&caller, inode_of(node)?, offset, len, mode).map_err(refuse)
    }

    /// LSEEK for SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
    pub fn lseek(&self, node: u64, offset: i64, whence: i32) -> Answer<i64> {
        let whence = match whence {
            libc::SEEK_DATA => SeekWhence::Data,
            libc::SEEK_HOLE => SeekWhence::Hole,
            _ => return Err(libc::EINVAL),
        };
        let offset = u64::try_from(offset).map_err(|_| libc::ENXIO)?;
        let found = self.fs.seek(inode_of(node)?, offset, whence).map_err(refuse)?;
        i64::try_from(found).map_err(|_| libc::EOVERFLOW)
    }

    /// BMAP: the block of the device, in units of `unit` bytes, that holds such a block of the file;
    /// 0 where there are no data.
    pub fn bmap(&self, node: u64, block: u64, unit: u32) -> Answer<u64> {
        let (unit, size) = (u64::from(unit), u64::from(self.fs.block_size()));
        let byte = block.checked_mul(unit).ok_or(libc::EFBIG)?;
        let found = self.fs.bmap(inode_of(node)?, byte / size).map_err(refuse)?;
        let Some(place) = found.map(|found| found * size + byte % size) else { return Ok(0) };
        if unit == 0 || !place.is_multiple_of(unit) { Err(libc::EINVAL) } else { Ok(place / unit) }
    }

    /// COPY_FILE_RANGE; gives the number of bytes copied.
    pub fn copy_file_range(&self, sender: Sender, from: (u64, u64), to: (u64, u64), len: u64) -> Answer<u64> {
        let caller = self.caller(sender, 0);
        let (from, to) = ((inode_of(from.0)?, from.1), (inode_of(to.0)?, to.1));
        self.fs.copy_range(&caller, from, to, len).map_err(refuse)
    }
}

fn open_flags(flags: i32) -> fs_core::OpenFlags {
    fs_core::OpenFlags {
        write: flags & libc::O_ACCMODE != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        append: flags & libc::O_APPEND != 0,
    }
}

/// The number of a handle: which opening it is, and in the two lowest bits its access mode.
fn handle_of(id: OpenId, flags: i32) -> u64 {
    id.0 << 2 | (flags & libc::O_ACCMODE) as u64
}

fn opening_of(handle: u64) -> OpenId {
    OpenId(handle >> 2)
}

/// Whether this handle can leave dirty pages in the kernel. One opened with
/// O_DIRECT may lose that by fcntl, so it counts too.
fn writes_through_cache(handle: u64) -> bool {
    handle as i32 & libc::O_ACCMODE != libc::O_RDONLY
}
