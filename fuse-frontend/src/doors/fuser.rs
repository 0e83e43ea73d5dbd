//! The portable door: the crate `fuser`, which mounts, shakes hands, and reads and writes
//! /dev/fuse for us.

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_core::{Attr, FileType as Kind, SetTime, Time};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, Notifier, OpenFlags, RenameFlags, Request, TimeOrNow, WriteFlags,
};

use super::handshake::MAX_BACKGROUND;
use super::old_pages::{OldPages, Range};
use super::reserve::Reserve;
use crate::service::attributes::Change;
use crate::service::{
    Answer, FOR_EVER, Sender, Service, WriteHow, changes_attributes, encode_device, is_immutable, native,
    node_of,
};

/// Largest request, in bytes.
const MAX_WRITE: u32 = 1 << 20;

/// An offset that makes an invalidation leave the cached pages alone.
const ATTRIBUTES_ONLY: i64 = -1;

/// Adapts [`Service`] to [`fuser::Filesystem`].
pub struct Door {
    service: Arc<Service>,
    notifier: Arc<OnceLock<Notifier>>,
    old_pages: Arc<OldPages>,
    async_dio: bool,
}

impl Door {
    /// A door to `service`. The cell takes the session's notifier as soon as there is a session.
    ///
    /// # Errors
    /// When a thread that it needs cannot be started.
    pub fn new(service: Service, async_dio: bool) -> io::Result<(Door, Arc<OnceLock<Notifier>>)> {
        let notifier = Arc::new(OnceLock::new());
        let late = notifier.clone();
        let old_pages = OldPages::new(&Reserve::new(1)?, move |range| drop_pages(&late, range))?;
        let door = Door { service: Arc::new(service), notifier: notifier.clone(), old_pages, async_dio };
        Ok((door, notifier))
    }
}

fn drop_pages(notifier: &OnceLock<Notifier>, Range { node, offset, len }: Range) {
    if let Some(notifier) = notifier.get()
        && let Err(error) = notifier.inval_inode(INodeNo(node), offset as i64, len as i64)
    {
        tracing::debug!(node, %error, "no pages were dropped");
    }
}

fn sender(req: &Request) -> Sender {
    Sender { uid: req.uid(), gid: req.gid(), thread: req.pid() }
}

fn errno(code: i32) -> Errno {
    Errno::from_i32(code)
}

fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let second = if time.sec >= 0 { UNIX_EPOCH + whole } else { UNIX_EPOCH - whole };
    second + Duration::from_nanos(time.nsec.into())
}

/// A time of a request. fuser makes `EPOCH - Duration(-sec, nsec)` of one before 1970, which is
/// another time; the fields come back out as they went in.
fn time_of(time: SystemTime) -> Time {
    let whole = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { sec: whole(after), nsec: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { sec: -whole(before), nsec: before.subsec_nanos() }
        }
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time_of(time)),
    }
}

fn file_type(kind: Option<Kind>) -> FileType {
    match kind {
        Some(Kind::Directory) => FileType::Directory,
        Some(Kind::Symlink) => FileType::Symlink,
        Some(Kind::CharDevice) => FileType::CharDevice,
        Some(Kind::BlockDevice) => FileType::BlockDevice,
        Some(Kind::Fifo) => FileType::NamedPipe,
        Some(Kind::Socket) => FileType::Socket,
        Some(Kind::Regular) | None => FileType::RegularFile,
    }
}

/// fuser takes the node number of an entry from `ino`; `stat(2)` shows the same number.
fn file_attr(attr: &Attr, block_size: u32) -> FileAttr {
    FileAttr {
        ino: INodeNo(node_of(attr.ino)),
        size: attr.size,
        blocks: attr.sectors,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.crtime.unwrap_or_default()),
        kind: file_type(Kind::from_mode(attr.mode)),
        perm: attr.mode & !Kind::MODE_MASK,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_device(attr),
        blksize: block_size,
        flags: attr.flags,
    }
}

fn opened_flags(direct: bool) -> FopenFlags {
    if direct {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    } else {
        FopenFlags::FOPEN_KEEP_CACHE
    }
}

impl Door {
    fn attr(&self, attr: &Attr) -> FileAttr {
        file_attr(attr, self.service.block_size())
    }

    /// Answers a direct write of a file that the kernel may have read into its page cache meanwhile
    /// ([`Service::leaves_old_pages`]). Not in a thread of the door: dropping waits for READs of
    /// the same pages, and for dirty ones to be written.
    fn reply_without_old_pages(&self, ino: INodeNo, offset: u64, taken: u32, reply: fuser::ReplyWrite) {
        let range = Range { node: ino.0, offset, len: taken.into() };
        let Some(turn) = self.old_pages.turn() else {
            self.old_pages.later(range);
            return reply.written(taken);
        };
        let notifier = self.notifier.clone();
        std::thread::spawn(move || {
            drop_pages(&notifier, range);
            reply.written(taken);
            drop(turn);
        });
    }

    /// Has the kernel ask for the attributes of `ino` again.
    fn forget_attributes(&self, ino: INodeNo) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(ino, ATTRIBUTES_ONLY, 0)
        {
            tracing::debug!(node = ino.0, %error, "the kernel keeps old attributes");
        }
    }

    /// A change of extended attributes: the kernel does not expect that it may move the file's count of
    /// blocks, nor, where it keeps no access control lists itself, its mode.
    fn changing_xattrs(&self, ino: INodeNo, change: impl FnOnce() -> Answer<()>) -> Answer<()> {
        let before = self.service.aside_of_xattrs(ino.0)?;
        change()?;
        if self.service.aside_of_xattrs(ino.0)? != before {
            self.forget_attributes(ino);
        }
        Ok(())
    }

    /// Set-id bits go when somebody else than root changes a file, also when the change itself fails; the kernel
    /// leaves that to us and does not look again.
    fn privileges_are_gone(&self, req: &Request, ino: INodeNo) {
        if req.uid() != 0 {
            self.forget_attributes(ino);
        }
    }

    /// `attr`, about to be sent. If the file is immutable the kernel forgets them before it hears them: so it
    /// asks for them again before each write(2), and then only.
    fn guarded<'a>(&self, attr: &'a Attr) -> &'a Attr {
        if is_immutable(attr) {
            self.forget_attributes(INodeNo(node_of(attr.ino)));
        }
        attr
    }

    fn reply_entry(&self, reply: fuser::ReplyEntry, answer: Answer<Attr>) {
        match answer {
            Ok(attr) => {
                reply.entry(&FOR_EVER, &self.attr(self.guarded(&attr)), Generation(attr.generation.into()));
            }
            Err(code) => reply.error(errno(code)),
        }
    }

    fn reply_attr(&self, reply: fuser::ReplyAttr, answer: Answer<Attr>) {
        match answer {
            Ok(attr) => {
                let mut shown = self.attr(self.guarded(&attr));
                // Only here may the root show ext4's number for it.
                shown.ino = INodeNo(attr.ino.get().into());
                reply.attr(&FOR_EVER, &shown);
            }
            Err(code) => reply.error(errno(code)),
        }
    }
}

fn reply_empty(reply: fuser::ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(code) => reply.error(errno(code)),
    }
}

fn reply_xattr(reply: fuser::ReplyXattr, room: u32, answer: Answer<Vec<u8>>) {
    match answer {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= room as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(code) => reply.error(errno(code)),
    }
}

impl fuser::Filesystem for Door {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // POSIX locks and flock stay with the kernel: this is a local filesystem.
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_HAS_IOCTL_DIR,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_WRITEBACK_CACHE,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        let async_dio = self.async_dio.then_some(InitFlags::FUSE_ASYNC_DIO);
        // With these the kernel checks permissions, whatever the mount says.
        let acl = (!self.service.has_fake_root()).then_some(InitFlags::FUSE_POSIX_ACL);
        for flag in wanted.into_iter().chain(async_dio).chain(acl) {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel does not offer this");
            }
        }
        let clamped = |nearest| tracing::debug!(nearest, "the kernel allows less");
        let _ = config.set_max_write(MAX_WRITE).map_err(clamped);
        let _ = config.set_max_readahead(MAX_WRITE).map_err(clamped);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEntry) {
        self.reply_entry(reply, self.service.lookup(parent.0, name.as_bytes()));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.service.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: fuser::ReplyAttr) {
        self.reply_attr(reply, self.service.getattr(sender(req), ino.0, fh.is_some()));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: fuser::ReplyAttr,
    ) {
        let change = Change {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(time_of),
            names_handle: fh.is_some(),
        };
        self.reply_attr(reply, self.service.setattr(sender(req), ino.0, &change));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: fuser::ReplyData) {
        match self.service.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: fuser::ReplyEntry,
    ) {
        let made = self.service.mknod(sender(req), parent.0, name.as_bytes(), mode, umask, rdev);
        self.reply_entry(reply, made);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: fuser::ReplyEntry,
    ) {
        let made = self.service.mkdir(sender(req), parent.0, name.as_bytes(), mode, umask);
        self.reply_entry(reply, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        reply_empty(reply, self.service.unlink(parent.0, name.as_bytes()));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        reply_empty(reply, self.service.rmdir(parent.0, name.as_bytes()));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: fuser::ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let made = self.service.symlink(sender(req), parent.0, name.as_bytes(), target);
        self.reply_entry(reply, made);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: fuser::ReplyEmpty,
    ) {
        let (from, to) = ((parent.0, name.as_bytes()), (newparent.0, newname.as_bytes()));
        reply_empty(reply, self.service.rename(sender(req), from, to, flags.bits()));
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: fuser::ReplyEntry,
    ) {
        self.reply_entry(reply, self.service.link(sender(req), ino.0, newparent.0, newname.as_bytes()));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: fuser::ReplyOpen) {
        let opened = self.service.open(sender(req), ino.0, flags.0);
        if flags.0 & libc::O_TRUNC != 0 {
            self.privileges_are_gone(req, ino);
        }
        match opened {
            Ok(opened) => reply.opened(FileHandle(opened.handle), opened_flags(opened.direct)),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: fuser::ReplyCreate,
    ) {
        let made = self.service.mknod(sender(req), parent.0, name.as_bytes(), mode, umask, 0);
        let opened = made.and_then(|attr| {
            let opened = self.service.open_created(sender(req), &attr, flags)?;
            Ok((attr, opened))
        });
        match opened {
            Ok((attr, opened)) => reply.created(
                &FOR_EVER,
                &self.attr(&attr),
                Generation(attr.generation.into()),
                FileHandle(opened.handle),
                opened_flags(opened.direct),
            ),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: fuser::ReplyData,
    ) {
        // Only read(2) past the page cache has an owner.
        let from_cache = lock_owner.is_none();
        self.service.read(fh.0, offset, size, from_cache, |answer| match answer {
            Ok(bytes) => reply.data(bytes),
            Err(code) => reply.error(errno(code)),
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        let how = WriteHow {
            from_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            flags: flags.0,
            handle: fh.0,
        };
        let written = self.service.write(sender(req), offset, data, how);
        if how.kill_privileges {
            // The kernel leaves set-id bits to us and goes on with the mode that it knows, in execve(2) too.
            self.forget_attributes(ino);
        }
        match written {
            Ok(taken) if self.service.leaves_old_pages(ino.0, how) => {
                self.reply_without_old_pages(ino, offset, taken, reply);
            }
            Ok(taken) => reply.written(taken),
            Err(code) => {
                reply.error(errno(code));
                if how.from_cache && code == libc::ENOSPC {
                    self.forget_attributes(ino);
                }
            }
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: fuser::ReplyEmpty,
    ) {
        // Asked once: closing needs nothing from us, locks are the kernel's.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: fuser::ReplyEmpty,
    ) {
        self.service.release(fh.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: fuser::ReplyEmpty) {
        reply_empty(reply, self.service.fsync(fh.0, datasync));
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: fuser::ReplyOpen) {
        // With FUSE_NO_OPENDIR_SUPPORT this is asked once: listings keep no state, and the kernel
        // caches them until it changes the directory.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: fuser::ReplyDirectory,
    ) {
        let add = |item: &fs_core::DirItem<'_>| {
            let name = OsStr::from_bytes(item.name);
            match reply.add(INodeNo(item.ino.get().into()), item.next, file_type(item.kind), name) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        match self.service.readdir(ino.0, offset, add) {
            Ok(()) => reply.ok(),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: fuser::ReplyDirectoryPlus,
    ) {
        let add = |item: &fs_core::DirItem<'_>, attr: Option<&Attr>| {
            let name = OsStr::from_bytes(item.name);
            let full = match attr {
                Some(attr) => {
                    let (shown, generation) =
                        (self.attr(self.guarded(attr)), Generation(attr.generation.into()));
                    reply.add(shown.ino, item.next, name, &FOR_EVER, &shown, generation)
                }
                None => {
                    let shown = dot_attr(item);
                    reply.add(INodeNo(0), item.next, name, &Duration::ZERO, &shown, Generation(0))
                }
            };
            if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match self.service.readdir_plus(ino.0, offset, add) {
            Ok(()) => reply.ok(),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: fuser::ReplyEmpty,
    ) {
        reply_empty(reply, self.service.fsyncdir(ino.0, datasync));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: fuser::ReplyStatfs) {
        match self.service.statfs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.files,
                s.files_free,
                s.block_size,
                s.name_max,
                s.block_size,
            ),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: fuser::ReplyEmpty,
    ) {
        let set = || self.service.setxattr(sender(req), ino.0, name.as_bytes(), value, flags, None);
        reply_empty(reply, self.changing_xattrs(ino, set));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: fuser::ReplyXattr) {
        reply_xattr(reply, size, self.service.getxattr(ino.0, name.as_bytes()));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: fuser::ReplyXattr) {
        reply_xattr(reply, size, self.service.listxattr(sender(req), ino.0));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        let remove = || self.service.removexattr(sender(req), ino.0, name.as_bytes());
        reply_empty(reply, self.changing_xattrs(ino, remove));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: fuser::ReplyEmpty,
    ) {
        let done = self.service.fallocate(sender(req), fh.0, offset, length, mode);
        self.privileges_are_gone(req, ino);
        reply_empty(reply, done);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        flags: fuser::IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        let cmd = native(cmd, flags.contains(fuser::IoctlFlags::FUSE_IOCTL_COMPAT));
        let answer = self.service.ioctl(sender(req), ino.0, cmd, in_data);
        if answer.is_ok() && changes_attributes(cmd) {
            self.forget_attributes(ino);
        }
        match answer {
            Ok(out) => reply.ioctl(0, &out[..out.len().min(out_size as usize)]),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: fuser::ReplyLseek,
    ) {
        let service = self.service.clone();
        let answer = move || match service.lseek(fh.0, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(code) => reply.error(errno(code)),
        };
        if !self.service.may_be_dirty_in_kernel(ino.0) {
            return answer();
        }
        // The kernel asks without having written its dirty pages, which nobody here knows of.
        // Invalidating writes them, and these requests come in on the other threads meanwhile:
        // no thread of the door may wait for that.
        let notifier = self.notifier.clone();
        std::thread::spawn(move || {
            if let Some(notifier) = notifier.get()
                && let Err(error) = notifier.inval_inode(ino, 0, 0)
            {
                tracing::debug!(node = ino.0, %error, "nothing was written out");
            }
            answer();
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: fuser::ReplyWrite,
    ) {
        // The reply counts in 32 bits.
        let len = len.min(u64::from(u32::MAX) & !0xffff);
        let copied =
            self.service.copy_file_range(sender(req), (fh_in.0, offset_in), (fh_out.0, offset_out), len);
        self.privileges_are_gone(req, ino_out);
        match copied {
            Ok(n) => reply.written(n as u32),
            Err(code) => reply.error(errno(code)),
        }
    }
}

/// What READDIRPLUS shows of a dot: number and type; the kernel takes no more from it.
fn dot_attr(item: &fs_core::DirItem<'_>) -> FileAttr {
    FileAttr {
        ino: INodeNo(item.ino.get().into()),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(item.kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_requests_are_the_ones_that_were_sent() {
        for (sec, nsec) in [(-1, 5), (-841_971_359, 893_890_118), (0, 0), (1 << 33, 7)] {
            let from_fuser = match sec {
                0.. => UNIX_EPOCH + Duration::new(sec as u64, nsec),
                _ => UNIX_EPOCH - Duration::new(-sec as u64, nsec),
            };
            assert_eq!(time_of(from_fuser), Time { sec, nsec });
        }
    }

    #[test]
    fn times_of_replies_are_real_times() {
        let shown = system_time(Time { sec: -2, nsec: 500_000_000 });
        assert_eq!(shown, UNIX_EPOCH - Duration::from_millis(1500));
    }
}
