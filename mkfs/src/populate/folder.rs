//! A folder of the host as a source. Threads list and look at its files; the caller's puts them into the tree.
//!
//! What a file holds is read later, when its place in the image is known; here only its holes are looked for.
//! All of it goes through libc, so that a process under fakeroot sees fakeroot's owners, modes and devices.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use ext4_format::inode::{FileType, Time};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::attributes::NamedValue;
use super::content::{SparseMap, host_path};
use super::error::{Error, Result};
use super::layer::Merge;
use super::tree::{Body, Content, Folder, Inode, Meta, NodeId, ROOT, Tree};

/// Names looked at in one piece of work.
const BATCH: usize = 512;
/// A file of this size is asked for its holes even when its blocks say that it has none.
const WORTH_SEEKING: u64 = 128 << 10;
/// Longest path given to one system call.
const PATH_LIMIT: usize = 4000;

/// A piece of work.
enum Task {
    /// List a directory: its node, and its path below the folder.
    List(NodeId, Vec<u8>),
    /// Look at some names of a directory.
    Look(NodeId, Arc<Listed>, Vec<CString>),
}

/// A directory that is being listed.
struct Listed {
    fd: OwnedFd,
    path: Vec<u8>,
}

/// One file, looked at.
struct Found {
    name: CString,
    stat: Stat,
    attributes: Vec<NamedValue>,
    target: Vec<u8>,
    map: Option<SparseMap>,
}

/// What a thread has to say.
enum Message {
    /// Some entries of a directory.
    Entries(NodeId, Vec<Found>),
    /// One more piece of work, for whoever has time.
    More(Task),
    /// A piece of work is done.
    Finished,
    /// It failed.
    Failed(Error),
}

/// Reads a folder into the tree. `skip` are files that are not taken: device and inode number.
pub fn read(merge: &mut Merge<'_>, path: &Path, threads: usize, skip: &[(u64, u64)]) -> Result<()> {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, how, Mode::empty()).map_err(|errno| Error::read(path, errno))?;
    let stat = rustix::fs::fstat(&fd).map_err(|errno| Error::read(path, errno))?;
    let attributes =
        attributes_of(path.join(".").as_os_str().as_bytes()).map_err(|errno| Error::read(path, errno))?;
    let attributes = merge.attributes(attributes, b"/")?;
    merge.put_root(meta(&stat), attributes)?;
    let number = merge.tree.folders.len() as u16;
    let walk = Walk { root: fd.try_clone().map_err(|source| Error::read(path, source))?, path };
    merge.tree.folders.push(Folder { fd, path: path.to_owned() });

    let (tasks, work) = bounded::<Task>(64);
    let (tell, messages) = bounded::<Message>(64);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (work, tell) = (work.clone(), tell.clone());
            let walk = &walk;
            scope.spawn(move || walk.serve(&work, &tell));
        }
        drop((work, tell));
        let result = collect(merge, number, skip, &tasks, &messages);
        // Threads that wait for work, or to tell something, end.
        drop((tasks, messages));
        result
    })
}

/// Puts what the threads find into the tree, and hands out the directories among it.
fn collect(
    merge: &mut Merge<'_>,
    folder: u16,
    skip: &[(u64, u64)],
    tasks: &Sender<Task>,
    messages: &Receiver<Message>,
) -> Result<()> {
    let mut links = std::collections::HashMap::new();
    // Deepest first, so that few directories wait.
    let mut waiting = vec![Task::List(ROOT, Vec::new())];
    let mut under_way = 0_u64;
    loop {
        while let Some(task) = waiting.pop() {
            match tasks.try_send(task) {
                Ok(()) => under_way += 1,
                Err(refused) => {
                    waiting.push(refused.into_inner());
                    break;
                }
            }
        }
        if under_way == 0 {
            return Ok(());
        }
        match messages.recv() {
            Ok(Message::Entries(parent, entries)) => {
                let inner = merge.tree.path(parent);
                for found in entries {
                    if skip.contains(&(found.stat.st_dev, found.stat.st_ino)) {
                        continue;
                    }
                    put(merge, folder, parent, &inner, found, &mut links, &mut waiting)?;
                }
            }
            Ok(Message::More(task)) => waiting.push(task),
            Ok(Message::Finished) => under_way -= 1,
            Ok(Message::Failed(error)) => return Err(error),
            Err(_) => return Ok(()),
        }
    }
}

fn put(
    merge: &mut Merge<'_>,
    folder: u16,
    parent: NodeId,
    inner: &[u8],
    found: Found,
    links: &mut std::collections::HashMap<(u64, u64), u32>,
    waiting: &mut Vec<Task>,
) -> Result<()> {
    let Found { name, stat, attributes, target, map } = found;
    let name = name.to_bytes();
    let path = || {
        let mut path = inner.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    };
    let file_type = FileType::from_mode(stat.st_mode as u16);
    let linked =
        (stat.st_nlink > 1 && file_type != Some(FileType::Directory)).then_some((stat.st_dev, stat.st_ino));
    if let Some(first) = linked.and_then(|key| links.get(&key)) {
        return merge.link(parent, name, *first);
    }
    let attributes = if attributes.is_empty() { 0 } else { merge.attributes(attributes, &path())? };
    let device = |kind| Body::Device(kind, rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let body = match file_type {
        Some(FileType::Directory) => Body::Directory(0),
        // The node it is found under is known when it is in the tree.
        Some(FileType::Regular) => Body::File(Content::Folder { folder, node: ROOT }),
        Some(FileType::Symlink) => merge.tree.symlink(&target).map_err(|_| {
            Error::entry(path(), "a symbolic link whose target is empty or longer than 4095 bytes")
        })?,
        Some(kind @ (FileType::CharDevice | FileType::BlockDevice)) => device(kind),
        Some(FileType::Fifo) => Body::Fifo,
        Some(FileType::Socket) => Body::Socket,
        None => {
            return Err(Error::entry(path(), format!("a file of unknown type (mode {:o})", stat.st_mode)));
        }
    };
    let mut inode = Inode { attributes, source_time: true, ..Inode::new(meta(&stat), body) };
    if file_type == Some(FileType::Regular) {
        inode.size = stat.st_size as u64;
        inode.map = map.and_then(|map| merge.keep_map(map, inode.size));
    }
    let Some(node) = merge.put(parent, name, inode)? else { return Ok(()) };
    let id = merge.tree.inode_of(node);
    if let Body::File(_) = body {
        merge.tree.inode_mut(id).body = Body::File(Content::Folder { folder, node });
    }
    if let Some(key) = linked {
        links.insert(key, id);
    }
    if matches!(body, Body::Directory(_)) {
        waiting.push(Task::List(node, path()));
    }
    Ok(())
}

fn meta(stat: &Stat) -> Meta {
    let nsec = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Meta {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { sec: stat.st_mtime, nsec },
    }
}

/// What the threads share.
struct Walk<'a> {
    root: OwnedFd,
    path: &'a Path,
}

impl Walk<'_> {
    fn serve(&self, work: &Receiver<Task>, tell: &Sender<Message>) {
        while let Ok(task) = work.recv() {
            let done = match task {
                Task::List(node, path) => self.list(node, path, tell),
                Task::Look(node, listed, names) => self.look(node, &listed, names, tell),
            };
            let message = done.map_or_else(Message::Failed, |()| Message::Finished);
            if tell.send(message).is_err() {
                return;
            }
        }
    }

    fn list(&self, node: NodeId, path: Vec<u8>, tell: &Sender<Message>) -> Result<()> {
        let failed = |errno: Errno| Error::read(host_path(self.path, &path), errno);
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = open_beneath(self.root.as_fd(), &path, how).map_err(failed)?;
        let entries = Dir::read_from(&fd).map_err(failed)?;
        let listed = Arc::new(Listed { fd, path: path.clone() });
        let mut names = Vec::new();
        let mut mine = false;
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            names.push(name.to_owned());
            if names.len() == BATCH {
                let full = std::mem::take(&mut names);
                // Every other part of a large directory is for the other threads.
                if mine {
                    self.look(node, &listed, full, tell)?;
                } else {
                    let _ = tell.send(Message::More(Task::Look(node, listed.clone(), full)));
                }
                mine = !mine;
            }
        }
        self.look(node, &listed, names, tell)
    }

    fn look(&self, node: NodeId, listed: &Listed, names: Vec<CString>, tell: &Sender<Message>) -> Result<()> {
        let mut entries = Vec::with_capacity(names.len());
        // A path is quicker than the detour through /proc, but has a largest length.
        let folder = host_path(self.path, &listed.path);
        let folder = folder.as_os_str().as_bytes();
        let mut path = if folder.len() < PATH_LIMIT - 256 { folder.to_vec() } else { proc_path(&listed.fd) };
        path.push(b'/');
        let stem = path.len();
        for name in names {
            path.truncate(stem);
            path.extend_from_slice(name.to_bytes());
            match look_at(&listed.fd, &name, &path) {
                Ok(found) => entries.push(Found { name, ..found }),
                Err(errno) => {
                    let inner = [&listed.path[..], name.to_bytes()].join(&b'/');
                    let inner = inner.strip_prefix(b"/").unwrap_or(&inner);
                    return Err(Error::read(host_path(self.path, inner), errno));
                }
            }
        }
        // Nobody listens any more when another thread has failed.
        let _ = tell.send(Message::Entries(node, entries));
        Ok(())
    }
}

fn look_at(dir: &OwnedFd, name: &CString, path: &[u8]) -> std::result::Result<Found, Errno> {
    let stat = rustix::fs::statat(dir, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
    let attributes = attributes_of(path)?;
    let mut target = Vec::new();
    let mut map = None;
    match FileType::from_mode(stat.st_mode as u16) {
        Some(FileType::Symlink) => {
            target = rustix::fs::readlinkat(dir, name.as_c_str(), Vec::new())?.into_bytes();
        }
        Some(FileType::Regular) => {
            let size = stat.st_size as u64;
            if size > 0 && (size >= WORTH_SEEKING || (stat.st_blocks as u64) * 512 < size) {
                map = Some(data_of(dir, name, size)?);
            }
        }
        _ => {}
    }
    Ok(Found { name: CString::default(), stat, attributes, target, map })
}

/// Where a file has data. A filesystem that knows no holes has data everywhere.
fn data_of(dir: &OwnedFd, name: &CString, size: u64) -> std::result::Result<SparseMap, Errno> {
    let how = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(dir, name.as_c_str(), how, Mode::empty())?;
    let mut map = SparseMap::default();
    let mut at = 0;
    while at < size {
        let (start, end) = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) => (start, rustix::fs::seek(&file, SeekFrom::Hole(start))?),
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, size),
            Err(errno) => return Err(errno),
        };
        let end = end.min(size);
        if start >= size || end <= start || !map.push(start, end - start) {
            break;
        }
        at = end;
    }
    Ok(map)
}

/// A path by which an open directory can be given to calls that take only paths.
fn proc_path(dir: &OwnedFd) -> Vec<u8> {
    format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes()
}

/// All extended attributes behind a path.
fn attributes_of(path: &[u8]) -> std::result::Result<Vec<NamedValue>, Errno> {
    let mut small = [0_u8; 1024];
    let names = match rustix::fs::llistxattr(path, &mut small) {
        Ok(len) => small[..len].to_vec(),
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            let mut large = vec![0_u8; 65536];
            let len = rustix::fs::llistxattr(path, &mut large)?;
            large.truncate(len);
            large
        }
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 65536];
        match rustix::fs::lgetxattr(path, name, &mut value) {
            Ok(len) => {
                value.truncate(len);
                value.shrink_to_fit();
                found.push((name.to_vec(), value));
            }
            // It went away, or a security module shows the name only.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Opens a path below a folder, however long it is. No component is a symbolic link: a folder that changes
/// meanwhile does not lead elsewhere.
pub fn open_beneath(
    root: std::os::fd::BorrowedFd<'_>,
    path: &[u8],
    how: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    let mut left = path;
    while left.len() > PATH_LIMIT {
        let cut = left[..PATH_LIMIT].iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let part = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let next = open_part(held.as_ref().map_or(root, AsFd::as_fd), &left[..cut], part)?;
        held = Some(next);
        left = &left[cut + 1..];
    }
    let last: &[u8] = if left.is_empty() { b"." } else { left };
    open_part(held.as_ref().map_or(root, AsFd::as_fd), last, how)
}

fn open_part(
    dir: std::os::fd::BorrowedFd<'_>,
    path: &[u8],
    how: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    match rustix::fs::openat2(
        dir,
        path,
        how,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH,
    ) {
        // Kernels before 5.6, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::fs::openat(dir, path, how | OFlags::NOFOLLOW, Mode::empty())
        }
        other => other,
    }
}

/// Opens files of source folders for reading, and keeps the last directory open: the next file mostly lies in
/// it, too.
#[derive(Default)]
pub struct Opener {
    last: Option<(u16, NodeId, OwnedFd)>,
}

impl Opener {
    /// The file at a node of a folder. Whether it is still the file that was listed is for
    /// [`is_as_listed`] to say, when it has been read.
    pub fn open(&mut self, tree: &Tree, number: u16, node: NodeId) -> Result<File> {
        let folder = &tree.folders[usize::from(number)];
        let failed = |errno: Errno| {
            let path = host_path(&folder.path, &tree.path(node));
            match errno {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Error::Changed { path },
                errno => Error::read(path, errno),
            }
        };
        let parent = tree.parent(node);
        let dir = match self.last.take().filter(|last| (last.0, last.1) == (number, parent)) {
            Some((.., dir)) => dir,
            None => {
                let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                open_beneath(folder.fd.as_fd(), &tree.path(parent), how).map_err(failed)?
            }
        };
        let how = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&dir, tree.name(node), how, Mode::empty()).map_err(failed)?;
        self.last = Some((number, parent, dir));
        Ok(file.into())
    }
}

/// Whether a file has still the size and time it was listed with.
pub fn is_as_listed(file: &File, inode: &Inode) -> std::result::Result<bool, Errno> {
    let stat = rustix::fs::fstat(file)?;
    let is_file = FileType::from_mode(stat.st_mode as u16) == Some(FileType::Regular);
    let time = meta(&stat).mtime == inode.meta.mtime || !inode.source_time;
    Ok(is_file && stat.st_size as u64 == inode.size && time)
}
