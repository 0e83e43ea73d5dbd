//! Copies the files' data into the image. Every block has its place already, so threads copy in any order and
//! the result is the same.
//!
//! Small files that lie side by side are read into one buffer and written at once; large ones go in pieces.
//! Where the host's filesystem can share or copy extents by itself it is asked to.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::{BlockDevice, PAGE, PooledBuf};
use crossbeam::channel::{RecvTimeoutError, Sender, unbounded};
use ext4_format::extent::Extent;
use xxhash_rust::xxh3::Xxh3;

use super::content::{Reader, host_path};
use super::error::{Error, Result};
use super::folder::{self, Opener};
use super::order::Digest;
use super::plan::{Plan, map_of};
use super::tree::{Body, Content, InodeId, NodeId, ROOT, Tree};

/// Bytes read and written at a time.
const PIECE: u64 = 1 << 20;
/// Filesystems that share extents between files (`statfs` type): btrfs, xfs, bcachefs.
const SHARING: &[i64] = &[0x9123_683e, 0x5846_5342, 0xca45_1a4e];

/// A piece of work.
enum Job {
    /// Files side by side, by their places in the plan's list, and the block of the first.
    Row(std::ops::Range<usize>, u64),
    /// A part of one file.
    Part(InodeId, Extent),
}

/// What is left to copy.
struct Jobs<'p> {
    tree: &'p Tree,
    plan: &'p Plan,
    block_size: u64,
    next: usize,
    /// Parts of a file that is being cut up, the next one last.
    parts: Vec<Job>,
}

impl Jobs<'_> {
    fn next(&mut self) -> Option<Job> {
        if let Some(part) = self.parts.pop() {
            return Some(part);
        }
        let first = self.next;
        let mut end = 0;
        let mut start = 0;
        let mut bytes = 0;
        while let Some(id) = self.plan.files.get(self.next).copied() {
            let size = self.tree.inode(id).size;
            let place = self.plan.row(id).filter(|_| size <= PIECE);
            match place {
                Some(block) if bytes == 0 || (block == end && bytes + size <= PIECE) => {
                    let blocks = size.div_ceil(self.block_size);
                    if bytes == 0 {
                        start = block;
                    }
                    end = block + blocks;
                    bytes += blocks * self.block_size;
                    self.next += 1;
                }
                Some(_) => break,
                None if bytes > 0 => break,
                None => {
                    self.next += 1;
                    self.cut(id);
                    return self.parts.pop();
                }
            }
        }
        (bytes > 0).then_some(Job::Row(first..self.next, start))
    }

    fn cut(&mut self, id: InodeId) {
        let most = (PIECE / self.block_size) as u32;
        for extent in self.plan.extents(self.tree, id).0 {
            let mut left = extent;
            while left.len > 0 {
                let len = left.len.min(most);
                self.parts.push(Job::Part(id, Extent { len, ..left }));
                left.first.0 += len;
                left.start.0 += u64::from(len);
                left.len -= len;
            }
        }
        self.parts.reverse();
    }
}

/// A copy under way.
pub struct Copy<'p> {
    /// The tree.
    pub tree: &'p Tree,
    /// Where everything goes.
    pub plan: &'p Plan,
    /// The image.
    pub device: &'p dyn BlockDevice,
    /// Whether the data are part of the digest.
    pub digest: bool,
}

impl Copy<'_> {
    /// Copies everything. `watch` is told how many bytes are done. Returns the digest of the data.
    pub fn run(&self, threads: usize, watch: &mut dyn FnMut(u64)) -> Result<Digest> {
        let block_size = u64::from(self.plan.mapping.block_size);
        let jobs = Jobs { tree: self.tree, plan: self.plan, block_size, next: 0, parts: Vec::new() };
        let jobs = Mutex::new(jobs);
        let stop = AtomicBool::new(false);
        let (tell, told) = unbounded();
        let sharing = self.device.descriptor().filter(|_| self.device.geometry().direct_align == 1);
        let sharing = sharing
            .and_then(|(fd, _)| rustix::fs::fstatfs(fd).ok())
            .is_some_and(|stat| SHARING.contains(&stat.f_type));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    let (tell, jobs, stop) = (tell.clone(), &jobs, &stop);
                    scope.spawn(move || {
                        let worker = Worker { copy: self, block_size, sharing, opener: RefCell::default() };
                        let result = worker.work(jobs, stop, &tell);
                        if result.is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        result
                    })
                })
                .collect();
            drop(tell);
            let mut done = 0;
            loop {
                match told.recv_timeout(std::time::Duration::from_millis(100)) {
                    Ok(bytes) => done += bytes,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                watch(done);
            }
            let mut digest = Digest::default();
            let mut failed = None;
            for worker in workers {
                match worker.join() {
                    Ok(Ok(part)) => digest.merge(part),
                    Ok(Err(error)) => failed = failed.or(Some(error)),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            failed.map_or(Ok(digest), Err)
        })
    }
}

struct Worker<'c, 'p> {
    copy: &'c Copy<'p>,
    block_size: u64,
    sharing: bool,
    opener: RefCell<Opener>,
}

/// An open source file, and who it is.
struct Source<'t> {
    id: InodeId,
    file: Option<File>,
    stored: Option<(&'t File, u64)>,
}

impl Worker<'_, '_> {
    fn work(&self, jobs: &Mutex<Jobs<'_>>, stop: &AtomicBool, tell: &Sender<u64>) -> Result<Digest> {
        let mut digest = Digest::default();
        let mut buffer = PooledBuf::take(PIECE as usize + PAGE);
        let mut last: Option<Source<'_>> = None;
        while !stop.load(Ordering::Relaxed) {
            let job = match jobs.lock() {
                Ok(mut jobs) => jobs.next(),
                Err(_) => None,
            };
            let bytes = match job {
                None => break,
                Some(Job::Row(range, start)) => self.row(range, start, &mut buffer, &mut digest)?,
                Some(Job::Part(id, extent)) => {
                    let same = last.take().filter(|source| source.id == id);
                    let source = match same {
                        Some(source) => source,
                        None => self.open(id)?,
                    };
                    let bytes = self.part(&source, extent, &mut buffer, &mut digest)?;
                    last = Some(source);
                    bytes
                }
            };
            // The receiver outlives the workers.
            let _ = tell.send(bytes);
        }
        Ok(digest)
    }

    fn row(
        &self,
        range: std::ops::Range<usize>,
        start: u64,
        buffer: &mut PooledBuf,
        digest: &mut Digest,
    ) -> Result<u64> {
        let mut len = 0;
        for id in &self.copy.plan.files[range] {
            let size = self.copy.tree.inode(*id).size as usize;
            let end = len + (size as u64).next_multiple_of(self.block_size) as usize;
            let source = self.open(*id)?;
            self.read(&source, 0, &mut buffer[len..len + size])?;
            self.verify(&source)?;
            self.add(digest, *id, 0, &buffer[len..len + size]);
            buffer[len + size..end].fill(0);
            len = end;
        }
        self.copy.device.write_at(start * self.block_size, &buffer[..len])?;
        Ok(len as u64)
    }

    fn part(
        &self,
        source: &Source<'_>,
        extent: Extent,
        buffer: &mut PooledBuf,
        digest: &mut Digest,
    ) -> Result<u64> {
        let inode = self.copy.tree.inode(source.id);
        let at = u64::from(extent.first.0) * self.block_size;
        let to = extent.start.0 * self.block_size;
        let whole = u64::from(extent.len) * self.block_size;
        let len = whole.min(inode.size - at) as usize;
        let shared = self.sharing && len as u64 == whole && self.share(source, at, to, whole);
        if shared && !self.copy.digest {
            self.verify(source)?;
            return Ok(whole);
        }
        self.read(source, at, &mut buffer[..len])?;
        self.verify(source)?;
        self.add(digest, source.id, at, &buffer[..len]);
        if !shared {
            buffer[len..whole as usize].fill(0);
            self.copy.device.write_at(to, &buffer[..whole as usize])?;
        }
        Ok(whole)
    }

    /// Lets the host's filesystem copy a range, which it may do by sharing. False: it has to be done here.
    fn share(&self, source: &Source<'_>, at: u64, to: u64, len: u64) -> bool {
        let Some((fd, start)) = self.copy.device.descriptor() else { return false };
        let (file, mut from) = match (&source.file, source.stored) {
            (Some(file), _) => (file.as_fd(), at),
            (None, Some((file, start))) if self.copy.tree.inode(source.id).map.is_none() => {
                (file.as_fd(), start + at)
            }
            _ => return false,
        };
        if !from.is_multiple_of(PAGE as u64) || !(start + to).is_multiple_of(PAGE as u64) {
            return false;
        }
        let mut to = start + to;
        let mut left = len as usize;
        while left > 0 {
            match rustix::fs::copy_file_range(file, Some(&mut from), fd, Some(&mut to), left) {
                Ok(0) | Err(_) => return false,
                Ok(done) => left -= done.min(left),
            }
        }
        true
    }

    /// Adds a piece of a file to the digest, with its place.
    fn add(&self, digest: &mut Digest, id: InodeId, at: u64, bytes: &[u8]) {
        if self.copy.digest {
            let mut hash = Xxh3::with_seed(u64::from(self.copy.plan.order.number(id)));
            hash.update(&at.to_le_bytes());
            hash.update(bytes);
            digest.add(hash.digest128());
        }
    }

    fn open(&self, id: InodeId) -> Result<Source<'_>> {
        let tree = self.copy.tree;
        let inode = tree.inode(id);
        let source = Source { id, file: None, stored: None };
        Ok(match inode.body {
            Body::File(Content::Folder { folder, node }) => {
                let file = self.opener.borrow_mut().open(tree, folder, node)?;
                Source { file: Some(file), ..source }
            }
            Body::File(Content::Stored { file, at }) => {
                Source { stored: Some((&tree.files[usize::from(file)], at)), ..source }
            }
            Body::File(Content::Host(number)) => {
                let path = &tree.hosts[number as usize];
                let file = File::open(path).map_err(|source| Error::read(path, source))?;
                Source { file: Some(file), ..source }
            }
            _ => source,
        })
    }

    fn read(&self, source: &Source<'_>, at: u64, buf: &mut [u8]) -> Result<()> {
        let reader = match (&source.file, source.stored) {
            (Some(file), _) => Reader::Plain(file),
            (None, Some((file, start))) => Reader::Stored(file, start, map_of(self.copy.tree, source.id)),
            (None, None) => return Ok(()),
        };
        reader.read(at, buf).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Changed { path: self.path(source.id) },
            _ => Error::read(self.path(source.id), error),
        })
    }

    /// Fails when the file changed while it was read.
    fn verify(&self, source: &Source<'_>) -> Result<()> {
        let Some(file) = &source.file else { return Ok(()) };
        let inode = self.copy.tree.inode(source.id);
        match folder::is_as_listed(file, inode) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Changed { path: self.path(source.id) }),
            Err(errno) => Err(Error::read(self.path(source.id), errno)),
        }
    }

    /// The source file of an inode, for messages.
    fn path(&self, id: InodeId) -> std::path::PathBuf {
        let tree = self.copy.tree;
        match tree.inode(id).body {
            Body::File(Content::Folder { folder, node }) => {
                host_path(&tree.folders[usize::from(folder)].path, &tree.path(node))
            }
            Body::File(Content::Host(number)) => tree.hosts[number as usize].clone(),
            _ => {
                let nodes = 0..tree.node_count() as NodeId;
                let node = nodes.rev().find(|node| tree.inode_of(*node) == id).unwrap_or(ROOT);
                host_path(std::path::Path::new(""), &tree.path(node))
            }
        }
    }
}
