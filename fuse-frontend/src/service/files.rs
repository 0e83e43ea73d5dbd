//! Requests about the content of files.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use blockdev::PooledBuf;
use fs_core::{Attr, Error, FallocateMode, OpenFile, ReadPlan, SeekWhence, WriteKind};

use super::attributes::Change;
use super::{Answer, Sender, Service, node_of, refuse};
use crate::nodes::{self, Known, Writers};

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
        let known = self.nodes.get(node)?;
        let file = known.node().open(open_flags(flags)).map_err(refuse)?;
        if flags & libc::O_TRUNC != 0 {
            let cut = Change { size: Some(0), ..Change::default() };
            self.setattr(sender, node, &cut)?;
        }
        Ok(self.opened(sender, nodes::Opened { file, known }, flags))
    }

    /// The opening half of CREATE, after [`Service::mknod`]; gives the entry's reference back when
    /// it fails.
    pub fn open_created(&self, sender: Sender, entry: &Attr, flags: i32) -> Answer<Opened> {
        let node = node_of(entry.ino);
        let opened = self.open(sender, node, flags & !libc::O_TRUNC);
        if opened.is_err() {
            self.forget(node, 1);
        }
        opened
    }

    /// RELEASE.
    pub fn release(&self, handle: u64) {
        let Some(opened) = self.nodes.close(handle) else { return };
        if opened.file.may_write() {
            let mut pages = opened.known.pages.lock();
            if let Some(writers) = &mut pages.writers {
                writers.handles -= 1;
                if writers.handles == 0 {
                    *pages = nodes::Pages::default();
                }
            }
        }
    }

    /// Whether the kernel may hold dirty pages of a file: whether a handle is open that writes
    /// through its page cache. A mapping keeps its handle open.
    pub fn may_be_dirty_in_kernel(&self, node: u64) -> bool {
        self.nodes.get(node).is_ok_and(|known| known.pages.lock().writers.is_some())
    }

    /// All files of which the kernel may hold dirty pages.
    pub fn all_maybe_dirty_in_kernel(&self) -> Vec<u64> {
        self.nodes.all_with(|known| known.pages.lock().writers.is_some())
    }

    fn opened(&self, sender: Sender, opened: nodes::Opened, flags: i32) -> Opened {
        // Opened with O_DIRECT it may lose that by fcntl, so it can leave dirty pages in the kernel, too.
        if opened.file.may_write() {
            let mut pages = opened.known.pages.lock();
            let none = || Writers { handles: 0, opener: sender, pages_cached: false };
            let writers = pages.writers.get_or_insert_with(none);
            writers.handles += 1;
            if sender.uid == 0 {
                writers.opener = sender;
            }
        }
        Opened { handle: self.nodes.open(opened), direct: flags & libc::O_DIRECT != 0 }
    }

    /// The open file of a handle's number.
    ///
    /// # Errors
    /// EBADF for one that is not open.
    pub fn open_file(&self, handle: u64) -> Answer<Arc<nodes::Opened>> {
        self.nodes.opened(handle)
    }

    /// Whether the kernel may keep pages that this write, now done, has made old. For a synchronous direct
    /// write it drops those that somebody has read meanwhile; for an asynchronous one it does so when the
    /// request is sent, not when it ends. A write through the page cache that waits for its answer (from a
    /// file that loses set-id bits, say) has its pages locked: there dropping them would wait for ever.
    pub fn leaves_old_pages(&self, node: u64, how: WriteHow) -> bool {
        !how.from_cache
            && how.flags & libc::O_DIRECT != 0
            && self.nodes.get(node).is_ok_and(|known| {
                known.pages.lock().writers.as_ref().is_some_and(|writers| writers.pages_cached)
            })
    }

    /// READ, for the kernel's page cache or past it; `reply` gets the bytes, fewer than asked for only at the
    /// end of the file.
    pub fn read<T>(
        &self,
        handle: u64,
        offset: u64,
        size: u32,
        from_cache: bool,
        reply: impl FnOnce(Answer<&[u8]>) -> T,
    ) -> T {
        let Ok(mut buf) = PooledBuf::try_take(size.min(MAX_READ) as usize) else {
            return reply(Err(libc::ENOMEM));
        };
        match self.read_into(handle, offset, &mut buf, from_cache) {
            Ok(n) => reply(Ok(&buf[..n])),
            Err(errno) => reply(Err(errno)),
        }
    }

    /// READ into `buf`; gives the number of bytes, fewer than `buf` has only at the end of the file.
    pub fn read_into(&self, handle: u64, offset: u64, buf: &mut [u8], from_cache: bool) -> Answer<usize> {
        let opened = self.open_file(handle)?;
        let read = if from_cache {
            pages_are_cached(&opened.known);
            opened.file.read_at(buf, offset)
        } else {
            opened.file.read_direct_at(buf, offset)
        };
        read.map_err(refuse)
    }

    /// Where the bytes that a READ for the page cache asks for are; what is not in memory is read
    /// from [`Service::device`]. The plan must not outlive the request.
    pub fn read_plan<'a>(&self, opened: &'a nodes::Opened, offset: u64, size: u32) -> Answer<ReadPlan<'a>> {
        pages_are_cached(&opened.known);
        opened.file.read_plan(offset, size.min(MAX_READ).into()).map_err(refuse)
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
    pub fn write(&self, sender: Sender, offset: u64, data: &[u8], how: WriteHow) -> Answer<u32> {
        let opened = self.open_file(how.handle)?;
        let nodes::Opened { file, known } = &*opened;
        let kind = if how.from_cache {
            WriteKind::Delayed
        } else if how.flags & libc::O_DIRECT != 0 {
            WriteKind::Direct
        } else {
            WriteKind::Cached
        };
        let mut writer = sender;
        if how.from_cache
            && let Some(writers) = &mut known.pages.lock().writers
        {
            writer = writers.opener;
            writers.pages_cached = true;
        }
        let caller = self.caller(writer, 0);
        if how.kill_privileges && !self.fake_root {
            file.kill_privileges(&caller).map_err(refuse)?;
        }
        let taken = match file.write_as(&caller, data, offset, kind) {
            Err(Error::NoSpace) if how.from_cache => 0,
            taken => taken.map_err(refuse)?,
        };
        if how.from_cache && taken < data.len() {
            known.pages.lock().too_few = Some(self.fs.available_blocks(&caller));
            return Err(libc::ENOSPC);
        }
        if how.flags & (libc::O_DSYNC | libc::O_SYNC) != 0 && !how.from_cache {
            sync(file, how.flags & libc::O_SYNC != libc::O_SYNC)?;
        }
        Ok(taken as u32)
    }

    /// FSYNC.
    pub fn fsync(&self, handle: u64, datasync: bool) -> Answer<()> {
        sync(&self.open_file(handle)?.file, datasync)
    }

    /// SYNCFS: everything that was answered before is durable after it.
    pub fn syncfs(&self) -> Answer<()> {
        self.fs.sync().map_err(refuse)
    }

    /// FALLOCATE, with the mode bits of fallocate(2).
    pub fn fallocate(&self, sender: Sender, handle: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        let mode = FallocateMode::from_bits(mode).ok_or(libc::EOPNOTSUPP)?;
        let (opened, caller) = (self.open_file(handle)?, self.caller(sender, 0));
        opened.file.fallocate_as(&caller, offset, len, mode).map_err(refuse)
    }

    /// LSEEK for SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
    pub fn lseek(&self, handle: u64, offset: i64, whence: i32) -> Answer<i64> {
        let whence = match whence {
            libc::SEEK_DATA => SeekWhence::Data,
            libc::SEEK_HOLE => SeekWhence::Hole,
            _ => return Err(libc::EINVAL),
        };
        let offset = u64::try_from(offset).map_err(|_| libc::ENXIO)?;
        let found = self.open_file(handle)?.file.seek_to(offset, whence).map_err(refuse)?;
        i64::try_from(found).map_err(|_| libc::EOVERFLOW)
    }

    /// BMAP: the block of the device, in units of `unit` bytes, that holds such a block of the file;
    /// 0 where there are no data.
    pub fn bmap(&self, node: u64, block: u64, unit: u32) -> Answer<u64> {
        let (unit, size) = (u64::from(unit), u64::from(self.fs.block_size()));
        let byte = block.checked_mul(unit).ok_or(libc::EFBIG)?;
        let found = self.nodes.get(node)?.node().bmap(byte / size).map_err(refuse)?;
        let Some(place) = found.map(|found| found * size + byte % size) else { return Ok(0) };
        if unit == 0 || !place.is_multiple_of(unit) { Err(libc::EINVAL) } else { Ok(place / unit) }
    }

    /// COPY_FILE_RANGE between two handles; gives the number of bytes copied.
    pub fn copy_file_range(&self, sender: Sender, from: (u64, u64), to: (u64, u64), len: u64) -> Answer<u64> {
        let (source, target) = (self.open_file(from.0)?, self.open_file(to.0)?);
        let caller = self.caller(sender, 0);
        source.file.copy_range_as(&caller, from.1, &target.file, to.1, len).map_err(refuse)
    }
}

fn open_flags(flags: i32) -> fs_core::OpenFlags {
    fs_core::OpenFlags {
        write: flags & libc::O_ACCMODE != libc::O_RDONLY,
        // By SETATTR, which takes set-id bits away.
        truncate: false,
        append: flags & libc::O_APPEND != 0,
    }
}

fn pages_are_cached(known: &Known) {
    if let Some(writers) = &mut known.pages.lock().writers {
        writers.pages_cached = true;
    }
}

fn sync(file: &OpenFile, data_only: bool) -> Answer<()> {
    let synced = if data_only { file.sync_data() } else { file.sync_all() };
    synced.map_err(refuse)
}
