//! From a parsed request to the service and back to a reply's bytes; shared by our own doors. Knows
//! no transport: the door has brought the request, provides the room for the reply, and sends it.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use fs_core::{Attr, DirItem, FileType, SetTime, Shutdown, Time};
use zerocopy::IntoBytes;

use super::wire::abi::{self, fattr};
use super::wire::{NewName, Operation, Reply, Request};
use crate::service::attributes::Change;
use crate::service::{
    Answer as Served, EXT4_IOC_SHUTDOWN, FOR_EVER, Opened, Sender, Service, WriteHow, changes_attributes,
    encode_device, is_immutable, native, node_of, shutdown_asked, wants_cached_data,
};

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The protocol has no reply to it.
    Silence,
    /// So many bytes of the reply's buffer, or an errno.
    Reply(Result<usize, i32>),
    /// ENOSPC for data of the kernel's page cache: once that is sent, the kernel is to forget the
    /// attributes of this node, so that the writer hears of it ([`Service::write`]).
    Starved(u64),
}

/// What answering may need of the kernel.
pub trait Kernel {
    /// Has the kernel forget its pages of `len` bytes of a file from `offset` on (0: to the end),
    /// which writes the dirty ones to us, and waits until it has: these requests come in through
    /// other threads of the door.
    fn forget_pages(&self, node: u64, offset: u64, len: u64);

    /// The same, but does not wait when there are too many already that do: for pages that only others read.
    fn forget_old_pages(&self, node: u64, offset: u64, len: u64);

    /// Has the kernel forget a file's attributes.
    fn forget_attributes(&self, node: u64);

    /// The word at `address` in the memory of the calling thread. Waits for no more than a moment.
    ///
    /// # Errors
    /// EFAULT where nothing is; others when it stays unknown.
    fn word_of_caller(&self, thread: u32, address: u64) -> io::Result<u32>;
}

/// Ends the filesystem behind the doors, before DESTROY is answered.
pub type OnDestroy = Box<dyn Fn() + Send + Sync>;

/// Answers requests.
pub struct Dispatch {
    service: Arc<Service>,
    on_destroy: OnDestroy,
}

impl Dispatch {
    /// Answers from `service`.
    #[must_use]
    pub fn new(service: Arc<Service>, on_destroy: OnDestroy) -> Dispatch {
        Dispatch { service, on_destroy }
    }

    /// The service behind it.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Does what `request` asks for; `out` takes the reply and has room for the largest.
    pub fn answer(&self, request: &Request<'_>, out: &mut [u8], kernel: &dyn Kernel) -> Answer {
        let (node, service) = (request.header.nodeid, &self.service);
        match &request.operation {
            Operation::Forget(count) => service.forget(node, *count),
            Operation::BatchForget(all) => all.iter().for_each(|one| service.forget(one.nodeid, one.nlookup)),
            // Nothing here waits for long without an end of its own.
            Operation::Interrupt => {}
            Operation::Write { how, data } => {
                let at = how.offset;
                let how = WriteHow {
                    from_cache: how.write_flags & abi::WRITE_CACHE != 0,
                    kill_privileges: how.write_flags & abi::WRITE_KILL_SUIDGID != 0,
                    flags: how.flags as i32,
                    handle: how.fh,
                };
                let written = service.write(sender(request), at, data, how);
                if how.kill_privileges {
                    privileges_are_gone(node, kernel);
                }
                return match written {
                    Ok(size) => {
                        if service.leaves_old_pages(node, how) {
                            kernel.forget_old_pages(node, at, size.into());
                        }
                        let mut reply = Reply::new(out);
                        let sent = reply.structure(&abi::WriteOut { size, padding: 0 });
                        Answer::Reply(sent.map(|()| reply.len()))
                    }
                    Err(libc::ENOSPC) if how.from_cache => Answer::Starved(node),
                    Err(errno) => Answer::Reply(Err(errno)),
                };
            }
            _ => {
                let mut reply = Reply::new(out);
                let done = self.reply(request, &mut reply, kernel);
                return Answer::Reply(done.map(|()| reply.len()));
            }
        }
        Answer::Silence
    }

    fn reply(&self, request: &Request<'_>, reply: &mut Reply<'_>, kernel: &dyn Kernel) -> Served<()> {
        let (node, from, service) = (request.header.nodeid, sender(request), &self.service);
        match &request.operation {
            Operation::Lookup(name) => self.entry(reply, guarded(&service.lookup(node, name)?, kernel)),
            Operation::Getattr(how) => {
                let for_write = how.getattr_flags & abi::GETATTR_FH != 0;
                self.attributes(reply, guarded(&service.getattr(from, node, for_write)?, kernel))
            }
            Operation::Statx(how) => {
                let for_write = how.getattr_flags & abi::GETATTR_FH != 0;
                let attr = service.getattr(from, node, for_write)?;
                reply.structure(&statx(guarded(&attr, kernel), service.block_size()))
            }
            Operation::Setattr(how) => self.attributes(reply, &service.setattr(from, node, &change(how))?),
            Operation::Readlink => reply.bytes(&service.readlink(node)?),
            Operation::Symlink { new, target } => {
                self.made(reply, node, new, service.symlink(from, node, new.name, target)?)
            }
            Operation::Mknod { how, new } => {
                let made = service.mknod(from, node, new.name, how.mode, how.umask, how.rdev)?;
                self.made(reply, node, new, made)
            }
            Operation::Mkdir { how, new } => {
                self.made(reply, node, new, service.mkdir(from, node, new.name, how.mode, how.umask)?)
            }
            Operation::Create { how, new } => {
                let made = service.mknod(from, node, new.name, how.mode, how.umask, 0)?;
                self.label(node, new, &made)?;
                let opened = service.open_created(from, &made, how.flags as i32)?;
                self.entry(reply, &made)?;
                reply.structure(&open_out(opened))
            }
            Operation::Tmpfile { how, new } => {
                let made = service.tmpfile(from, node, how.mode, how.umask)?;
                let labelled = new.labels.iter().try_for_each(|l| service.label(&made, l.name, l.value));
                if let Err(errno) = labelled {
                    service.forget(node_of(made.ino), 1);
                    return Err(errno);
                }
                let opened = service.open_created(from, &made, how.flags as i32)?;
                self.entry(reply, &made)?;
                reply.structure(&open_out(opened))
            }
            Operation::Unlink(name) => service.unlink(node, name),
            Operation::Rmdir(name) => service.rmdir(node, name),
            Operation::Rename { name, to, new_name, flags } => {
                service.rename(from, (node, name), (*to, new_name), *flags)
            }
            Operation::Link { node: linked, name } => {
                self.entry(reply, guarded(&service.link(from, *linked, node, name)?, kernel))
            }
            Operation::Open(how) => {
                let opened = service.open(from, node, how.flags as i32);
                if how.flags as i32 & libc::O_TRUNC != 0 && from.uid != 0 {
                    privileges_are_gone(node, kernel);
                }
                reply.structure(&open_out(opened?))
            }
            Operation::Read(how) => {
                let room = reply.room(how.size as usize);
                let from_cache = how.read_flags & abi::READ_LOCKOWNER == 0;
                let len = service.read_into(how.fh, how.offset, room, from_cache)?;
                reply.filled(len);
                Ok(())
            }
            Operation::Release(how) => {
                service.release(how.fh);
                Ok(())
            }
            Operation::Fsync(how) => service.fsync(how.fh, how.fsync_flags & abi::FSYNC_FDATASYNC != 0),
            Operation::Fsyncdir(how) => service.fsyncdir(node, how.fsync_flags & abi::FSYNC_FDATASYNC != 0),
            Operation::Syncfs => service.syncfs(),
            Operation::Statfs => {
                let s = service.statfs()?;
                reply.structure(&abi::StatfsOut {
                    blocks: s.blocks,
                    bfree: s.blocks_free,
                    bavail: s.blocks_available,
                    files: s.files,
                    ffree: s.files_free,
                    bsize: s.block_size,
                    namelen: s.name_max,
                    frsize: s.block_size,
                    ..abi::StatfsOut::default()
                })
            }
            Operation::Readdir(how) => service.readdir(node, how.offset, |item| {
                listed(reply.entry(&[], &dirent(item), item.name, how.size as usize))
            }),
            Operation::Readdirplus(how) => service.readdir_plus(node, how.offset, |item, attr| {
                let prefix =
                    attr.map_or_else(|| dot_entry(item), |attr| self.entry_out(guarded(attr, kernel)));
                listed(reply.entry(prefix.as_bytes(), &dirent(item), item.name, how.size as usize))
            }),
            Operation::Setxattr { name, value, flags, kill_sgid } => {
                self.changing_xattrs(node, kernel, || {
                    service.setxattr(from, node, name, value, *flags as i32, *kill_sgid)
                })
            }
            Operation::Getxattr { name, room } => attribute(reply, *room, &service.getxattr(node, name)?),
            Operation::Listxattr { room } => attribute(reply, *room, &service.listxattr(from, node)?),
            Operation::Removexattr(name) => {
                self.changing_xattrs(node, kernel, || service.removexattr(from, node, name))
            }
            Operation::Ioctl { how, input } => {
                let command = native(how.cmd, how.flags & abi::IOCTL_COMPAT != 0);
                service.may_ioctl(from, node, command)?;
                if command == EXT4_IOC_SHUTDOWN {
                    let asked = shutdown_asked(kernel.word_of_caller(from.thread, how.arg))?;
                    if asked == Shutdown::Sync {
                        let dirty = service.all_maybe_dirty_in_kernel();
                        dirty.into_iter().for_each(|node| kernel.forget_pages(node, 0, 0));
                    }
                    service.shut_down(asked)?;
                    return reply.structure(&abi::IoctlOut::default());
                }
                if wants_cached_data(command) && service.may_be_dirty_in_kernel(node) {
                    kernel.forget_pages(node, 0, 0);
                }
                let out = service.ioctl(from, node, command, input)?;
                if changes_attributes(command) {
                    kernel.forget_attributes(node);
                }
                reply.structure(&abi::IoctlOut::default())?;
                reply.bytes(&out[..out.len().min(how.out_size as usize)])
            }
            Operation::Bmap(how) => {
                // The kernel may not have written its dirty pages.
                if service.may_be_dirty_in_kernel(node) {
                    kernel.forget_pages(node, 0, 0);
                }
                let block = service.bmap(node, how.block, how.blocksize)?;
                reply.structure(&abi::BmapOut { block })
            }
            Operation::Fallocate(how) => {
                let done = service.fallocate(from, how.fh, how.offset, how.length, how.mode as i32);
                if from.uid != 0 {
                    privileges_are_gone(node, kernel);
                }
                done
            }
            Operation::Lseek(how) => {
                // The kernel asks without having written its dirty pages, which nobody here knows of.
                if service.may_be_dirty_in_kernel(node) {
                    kernel.forget_pages(node, 0, 0);
                }
                let found = service.lseek(how.fh, how.offset as i64, how.whence as i32)?;
                reply.structure(&abi::LseekOut { offset: found as u64 })
            }
            Operation::CopyFileRange(how) => {
                // The reply counts in 32 bits.
                let size = self.copy(request, how, u64::from(u32::MAX) & !0xffff, kernel)? as u32;
                reply.structure(&abi::WriteOut { size, padding: 0 })
            }
            Operation::CopyFileRange64(how) => {
                let bytes_copied = self.copy(request, how, u64::MAX, kernel)?;
                reply.structure(&abi::CopyFileRangeOut { bytes_copied })
            }
            Operation::Destroy => {
                (self.on_destroy)();
                Ok(())
            }
            // FLUSH, OPENDIR and others that this filesystem leaves to the kernel: asked once.
            Operation::Unknown(_) => Err(libc::ENOSYS),
            // A connection is opened once.
            Operation::Init(_) => Err(libc::EIO),
            Operation::Write { .. }
            | Operation::Forget(_)
            | Operation::BatchForget(_)
            | Operation::Interrupt => Err(libc::EIO),
        }
    }

    /// A change of extended attributes: the kernel does not expect that it may move the file's count of
    /// blocks, nor, where it keeps no access control lists itself, its mode.
    fn changing_xattrs(
        &self,
        node: u64,
        kernel: &dyn Kernel,
        change: impl FnOnce() -> Served<()>,
    ) -> Served<()> {
        let before = self.service.aside_of_xattrs(node)?;
        change()?;
        if self.service.aside_of_xattrs(node)? != before {
            kernel.forget_attributes(node);
        }
        Ok(())
    }

    fn copy(
        &self,
        request: &Request<'_>,
        how: &abi::CopyFileRangeIn,
        most: u64,
        kernel: &dyn Kernel,
    ) -> Served<u64> {
        let (source, target) = ((how.fh_in, how.off_in), (how.fh_out, how.off_out));
        let copied = self.service.copy_file_range(sender(request), source, target, how.len.min(most));
        if request.header.uid != 0 {
            privileges_are_gone(how.nodeid_out, kernel);
        }
        copied
    }

    fn entry_out(&self, attr: &Attr) -> abi::EntryOut {
        let node = node_of(attr.ino);
        abi::EntryOut {
            nodeid: node,
            generation: attr.generation.into(),
            entry_valid: FOR_EVER.as_secs(),
            attr_valid: FOR_EVER.as_secs(),
            attr: abi::Attr { ino: node, ..self.attr(attr) },
            ..abi::EntryOut::default()
        }
    }

    fn entry(&self, reply: &mut Reply<'_>, attr: &Attr) -> Served<()> {
        reply.structure(&self.entry_out(attr))
    }

    /// The answer for a name that was just made in `parent`, once its file has its labels.
    fn made(&self, reply: &mut Reply<'_>, parent: u64, new: &NewName<'_>, made: Attr) -> Served<()> {
        self.label(parent, new, &made)?;
        self.entry(reply, &made)
    }

    /// Gives a new file its labels. Without them it may not stay.
    fn label(&self, parent: u64, new: &NewName<'_>, made: &Attr) -> Served<()> {
        let labelled = new.labels.iter().try_for_each(|l| self.service.label(made, l.name, l.value));
        if labelled.is_err() {
            let _ = match FileType::from_mode(made.mode) {
                Some(FileType::Directory) => self.service.rmdir(parent, new.name),
                _ => self.service.unlink(parent, new.name),
            };
            self.service.forget(node_of(made.ino), 1);
        }
        labelled
    }

    fn attributes(&self, reply: &mut Reply<'_>, attr: &Attr) -> Served<()> {
        let (attr_valid, attr) = (FOR_EVER.as_secs(), self.attr(attr));
        reply.structure(&abi::AttrOut { attr_valid, attr_valid_nsec: 0, dummy: 0, attr })
    }

    /// Attributes with ext4's own number, which only GETATTR and its like show of the root.
    fn attr(&self, attr: &Attr) -> abi::Attr {
        abi::Attr {
            ino: attr.ino.get().into(),
            size: attr.size,
            blocks: attr.sectors,
            atime: attr.atime.sec as u64,
            mtime: attr.mtime.sec as u64,
            ctime: attr.ctime.sec as u64,
            atimensec: attr.atime.nsec,
            mtimensec: attr.mtime.nsec,
            ctimensec: attr.ctime.nsec,
            mode: attr.mode.into(),
            nlink: attr.links,
            uid: attr.uid,
            gid: attr.gid,
            rdev: encode_device(attr),
            blksize: self.service.block_size(),
            flags: 0,
        }
    }
}

/// Whoever is not root takes set-id bits off a file that he changes, and has done so when the change itself fails.
/// The kernel leaves that to us and goes on with the mode that it knows, in execve(2) too.
fn privileges_are_gone(node: u64, kernel: &dyn Kernel) {
    kernel.forget_attributes(node);
}

/// `attr`, about to be sent. If the file is immutable the kernel forgets them before it hears them: so it
/// asks for them again before each write(2), and then only.
fn guarded<'a>(attr: &'a Attr, kernel: &dyn Kernel) -> &'a Attr {
    if is_immutable(attr) {
        kernel.forget_attributes(node_of(attr.ino));
    }
    attr
}

fn sender(request: &Request<'_>) -> Sender {
    Sender { uid: request.header.uid, gid: request.header.gid, thread: request.header.pid }
}

fn change(how: &abi::SetattrIn) -> Change {
    let set = |bit: u32| how.valid & bit != 0;
    let time = |sec: u64, nsec: u32| Time { sec: sec as i64, nsec: nsec.min(999_999_999) };
    let moved = |bit: u32, now: u32, at: Time| match (set(bit), set(now)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(at)),
    };
    Change {
        mode: set(fattr::MODE).then_some(how.mode),
        uid: set(fattr::UID).then_some(how.uid),
        gid: set(fattr::GID).then_some(how.gid),
        size: set(fattr::SIZE).then_some(how.size),
        atime: moved(fattr::ATIME, fattr::ATIME_NOW, time(how.atime, how.atimensec)),
        mtime: moved(fattr::MTIME, fattr::MTIME_NOW, time(how.mtime, how.mtimensec)),
        ctime: set(fattr::CTIME).then(|| time(how.ctime, how.ctimensec)),
        names_handle: set(fattr::FH),
    }
}

fn open_out(opened: Opened) -> abi::OpenOut {
    let open_flags = match opened.direct {
        true => abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES,
        false => abi::FOPEN_KEEP_CACHE,
    };
    abi::OpenOut { fh: opened.handle, open_flags, padding: 0 }
}

fn statx(attr: &Attr, block_size: u32) -> abi::StatxOut {
    let time = |t: Time| abi::StatxTime { sec: t.sec, nsec: t.nsec, reserved: 0 };
    let birth = if attr.crtime.is_some() { abi::STATX_BTIME } else { 0 };
    abi::StatxOut {
        attr_valid: FOR_EVER.as_secs(),
        stat: abi::Statx {
            mask: abi::STATX_BASIC_STATS | birth,
            blksize: block_size,
            nlink: attr.links,
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode,
            ino: attr.ino.get().into(),
            size: attr.size,
            blocks: attr.sectors,
            atime: time(attr.atime),
            btime: time(attr.crtime.unwrap_or_default()),
            ctime: time(attr.ctime),
            mtime: time(attr.mtime),
            rdev_major: attr.rdev.0,
            rdev_minor: attr.rdev.1,
            ..abi::Statx::default()
        },
        ..abi::StatxOut::default()
    }
}

fn listed(added: bool) -> ControlFlow<()> {
    if added { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// The type as `d_type` has it: the upper four bits of a mode.
fn type_of(item: &DirItem<'_>) -> u32 {
    item.kind.map_or(0, |kind| u32::from(kind.mode_bits()) >> 12)
}

fn dirent(item: &DirItem<'_>) -> abi::Dirent {
    let (off, namelen) = (item.next, item.name.len() as u32);
    abi::Dirent { ino: item.ino.get().into(), off, namelen, kind: type_of(item) }
}

/// What READDIRPLUS shows of a dot: number and type; the kernel takes no more from it.
fn dot_entry(item: &DirItem<'_>) -> abi::EntryOut {
    let attr = abi::Attr { ino: item.ino.get().into(), mode: type_of(item) << 12, ..abi::Attr::default() };
    abi::EntryOut { attr, ..abi::EntryOut::default() }
}

/// A value as large as it is, or only its size when `room` is zero.
fn attribute(reply: &mut Reply<'_>, room: u32, value: &[u8]) -> Served<()> {
    match room {
        0 => reply.structure(&abi::GetxattrOut { size: value.len() as u32, padding: 0 }),
        room if value.len() <= room as usize => reply.bytes(value),
        _ => Err(libc::ERANGE),
    }
}
