//! What the kernel holds: which handle a node number stands for and how many lookups of it have not been
//! forgotten, and which open file a handle number stands for.
//!
//! A node number is the inode number, but for the root. The kernel uses a number only while it has references
//! to it, so the inode that it stands for cannot change meanwhile: its handle is in this table. A request that
//! uses a node keeps it, whatever is forgotten in the meantime.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fs_core::{Dir, Filesystem, Ino, Node, OpenFile};
use parking_lot::{Condvar, Mutex};

use crate::service::{Answer, Sender, refuse};

/// The protocol's number for the root directory; ext4's is 2.
pub const ROOT_NODE: u64 = 1;

const SHARDS: usize = 64;

/// How long a file that has lost its last name is taken for one that was closed before: the kernel tells of a
/// close by a RELEASE, and of the end by a FORGET, which nobody waits for.
const CLOSING: Duration = Duration::from_millis(100);

/// The node number that stands for an inode.
#[must_use]
pub fn node_of(ino: Ino) -> u64 {
    if ino == Ino::ROOT { ROOT_NODE } else { ino.get().into() }
}

/// A node that the kernel has references to.
pub struct Known {
    /// Taken by the drop only.
    handle: Option<Handle>,
    closing: Arc<Closing>,
    /// What the kernel's page cache may hold of it.
    pub pages: Mutex<Pages>,
}

/// Nodes that have lost their last name lately, by number, and when.
#[derive(Default)]
struct Closing {
    nodes: Mutex<HashMap<u64, Instant>>,
    gone: Condvar,
}

impl Closing {
    /// Waits until they are gone, or have been there for too long.
    fn wait(&self) {
        let mut nodes = self.nodes.lock();
        loop {
            nodes.retain(|_, since| since.elapsed() < CLOSING);
            let Some(oldest) = nodes.values().min().copied() else { return };
            self.gone.wait_until(&mut nodes, oldest + CLOSING);
        }
    }
}

enum Handle {
    Dir(Dir),
    Other(Node),
}

/// What is known of the kernel's page cache of a file.
#[derive(Default)]
pub struct Pages {
    /// Who writes the file through the page cache; `None` without such a handle. A mapping keeps its handle open.
    pub writers: Option<Writers>,
    /// Cached data have found no space, and so many blocks were left then, which were too few: until there are
    /// more, write(2) shall fail.
    pub too_few: Option<u64>,
}

/// Who writes a file through the kernel's page cache.
pub struct Writers {
    /// Number of handles.
    pub handles: u32,
    /// The writer with the most rights: pages that are written back say nothing of their writer,
    /// but whether they may take the last blocks depends on it.
    pub opener: Sender,
    /// Whether pages came into the page cache since the first of the handles was opened.
    pub pages_cached: bool,
}

impl Known {
    fn new(node: Node, closing: Arc<Closing>) -> Known {
        let handle = Dir::try_from(node).map_or_else(Handle::Other, Handle::Dir);
        Known { handle: Some(handle), closing, pages: Mutex::default() }
    }

    fn handle(&self) -> &Handle {
        self.handle.as_ref().expect("there until the drop")
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        match self.handle() {
            Handle::Dir(dir) => dir,
            Handle::Other(node) => node,
        }
    }

    /// The node as a directory.
    ///
    /// # Errors
    /// ENOTDIR.
    pub fn dir(&self) -> Answer<&Dir> {
        match self.handle() {
            Handle::Dir(dir) => Ok(dir),
            Handle::Other(_) => Err(libc::ENOTDIR),
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let number = node_of(self.node().ino());
        // The last handle of a file without a name deletes it; then whoever waits for that goes on.
        drop(self.handle.take());
        if self.closing.nodes.lock().remove(&number).is_some() {
            self.closing.gone.notify_all();
        }
    }
}

/// An open file of the kernel's.
pub struct Opened {
    /// The open file.
    pub file: OpenFile,
    /// Its node.
    pub known: Arc<Known>,
}

struct Entry {
    known: Arc<Known>,
    lookups: u64,
}

/// The nodes and open files of a mount.
pub struct Nodes {
    fs: Arc<Filesystem>,
    nodes: Vec<Mutex<HashMap<u64, Entry>>>,
    files: Vec<Mutex<HashMap<u64, Arc<Opened>>>>,
    next_file: AtomicU64,
    closing: Arc<Closing>,
}

impl Nodes {
    /// Of a mount that begins.
    #[must_use]
    pub fn new(fs: Arc<Filesystem>) -> Nodes {
        let (nodes, files, closing) = (shards(), shards(), Arc::default());
        Nodes { fs, nodes, files, next_file: AtomicU64::new(1), closing }
    }

    /// The node of a request.
    ///
    /// # Errors
    /// ESTALE for a number that the kernel has no reference to.
    pub fn get(&self, number: u64) -> Answer<Arc<Known>> {
        if let Some(entry) = self.shard(number).lock().get(&number) {
            return Ok(entry.known.clone());
        }
        if number != ROOT_NODE {
            return Err(libc::ESTALE);
        }
        // The kernel's reference to the root comes with the mount, and is never forgotten.
        let root = self.fs.root().map_err(refuse)?;
        let mut shard = self.shard(number).lock();
        let known = || self.first(root.into());
        Ok(shard.entry(number).or_insert_with(known).known.clone())
    }

    /// Counts a reference that the kernel gets with a reply.
    pub fn remember(&self, node: Node) {
        let number = node_of(node.ino());
        let mut shard = self.shard(number).lock();
        let surplus = match shard.get_mut(&number) {
            Some(entry) => {
                entry.lookups += 1;
                Some(node)
            }
            None => {
                shard.insert(number, self.first(node));
                None
            }
        };
        drop(shard);
        // Not under the lock.
        drop(surplus);
    }

    /// Takes `count` references of the kernel back.
    pub fn forget(&self, number: u64, count: u64) {
        if number == ROOT_NODE {
            return;
        }
        let mut shard = self.shard(number).lock();
        let Some(entry) = shard.get_mut(&number) else { return };
        entry.lookups = entry.lookups.saturating_sub(count);
        let gone = if entry.lookups == 0 { shard.remove(&number) } else { None };
        drop(shard);
        // Not under the lock: the last handle of a file without a name deletes it.
        drop(gone);
    }

    fn first(&self, node: Node) -> Entry {
        Entry { known: Arc::new(Known::new(node, self.closing.clone())), lookups: 1 }
    }

    /// A name of `node` was removed.
    pub fn unlinked(&self, node: &Node) {
        let number = node_of(node.ino());
        let is_unlinked = node.attributes().is_ok_and(|attr| attr.links == 0);
        // Under the shard's lock: a node that is known is not forgotten meanwhile.
        let shard = self.shard(number).lock();
        if is_unlinked && shard.contains_key(&number) {
            self.closing.nodes.lock().insert(number, Instant::now());
        }
    }

    /// Returns a wait for those files that have lost their last name a moment ago, and whose end the kernel may have
    /// yet to tell of.
    pub fn wait_for_closing(&self) -> impl Fn() + Send + Sync + use<> {
        let closing = self.closing.clone();
        move || closing.wait()
    }

    /// The numbers of all nodes for which `is_wanted` holds.
    pub fn all_with(&self, is_wanted: impl Fn(&Known) -> bool) -> Vec<u64> {
        let wanted = |shard: &Mutex<HashMap<u64, Entry>>| -> Vec<u64> {
            let shard = shard.lock();
            shard.iter().filter(|(_, entry)| is_wanted(&entry.known)).map(|(number, _)| *number).collect()
        };
        self.nodes.iter().flat_map(wanted).collect()
    }

    /// Gives an open file a number.
    pub fn open(&self, opened: Opened) -> u64 {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.file_shard(number).lock().insert(number, Arc::new(opened));
        number
    }

    /// The open file of a number.
    ///
    /// # Errors
    /// EBADF for one that is not open.
    pub fn opened(&self, number: u64) -> Answer<Arc<Opened>> {
        self.file_shard(number).lock().get(&number).cloned().ok_or(libc::EBADF)
    }

    /// Takes the number of an open file back.
    pub fn close(&self, number: u64) -> Option<Arc<Opened>> {
        self.file_shard(number).lock().remove(&number)
    }

    fn shard(&self, number: u64) -> &Mutex<HashMap<u64, Entry>> {
        &self.nodes[number as usize % SHARDS]
    }

    fn file_shard(&self, number: u64) -> &Mutex<HashMap<u64, Arc<Opened>>> {
        &self.files[number as usize % SHARDS]
    }
}

fn shards<T>() -> Vec<Mutex<HashMap<u64, T>>> {
    (0..SHARDS).map(|_| Mutex::default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_two_numbers() {
        assert_eq!(node_of(Ino::ROOT), 1);
        assert_eq!(Ino::new(12).map(node_of), Some(12));
    }
}
