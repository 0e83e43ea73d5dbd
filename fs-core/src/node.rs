//! Handles: what the callers of this crate hold of a file. A handle keeps its inode, with a name or without;
//! dropped, it gives it back, and the last one of an inode that has no name any more deletes it
//! ([`crate::ops`], `evict`).
//!
//! A handle must not be dropped by a thread inside one of its own journal handles, since deleting starts another.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use ext4_format::Ino;
use ext4_format::inode::FileType;

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::inode::{ErrorCursor, Inode};
use crate::locks::{Rank, RankedMutex};

/// An inode that is held by a counted handle, for as long as an operation takes or until its owner drops it.
pub(crate) struct Held<F: Deref<Target = Filesystem>> {
    fs: F,
    /// Taken by the drop and by [`Held::keep`] only.
    inode: Option<Arc<Inode>>,
}

/// An inode held for the time of an operation.
pub(crate) type Hold<'a> = Held<&'a Filesystem>;

impl<F: Deref<Target = Filesystem>> Held<F> {
    /// Takes over a handle that the table has counted.
    pub fn new(fs: F, inode: Arc<Inode>) -> Held<F> {
        Held { fs, inode: Some(inode) }
    }
}

impl Hold<'_> {
    /// The same handle, to be kept beyond the operation.
    pub fn keep(mut self, fs: &Arc<Filesystem>) -> Node {
        let inode = self.inode.take();
        Node(Held { fs: fs.clone(), inode })
    }
}

impl<F: Deref<Target = Filesystem>> Deref for Held<F> {
    type Target = Arc<Inode>;
    fn deref(&self) -> &Arc<Inode> {
        self.inode.as_ref().expect("there until the handle is dropped")
    }
}

impl<F: Deref<Target = Filesystem>> Drop for Held<F> {
    fn drop(&mut self) {
        if let Some(inode) = self.inode.take() {
            self.fs.release(inode);
        }
    }
}

/// A file of any type: a handle of its inode. It stays valid when the file is renamed or loses its name.
///
/// Cloning gives another handle of the same inode.
pub struct Node(Held<Arc<Filesystem>>);

/// A directory.
#[derive(Clone, Debug)]
pub struct Dir(Node);

/// An open regular file.
///
/// Reading and writing at a position of the caller's own takes `&self`, from any number of threads.
/// [`std::io::Read`], [`std::io::Write`] and [`std::io::Seek`] use and move a position that is the handle's.
pub struct OpenFile {
    node: Node,
    pub(crate) may_write: bool,
    pub(crate) append: bool,
    /// Up to where this open file description knows the file's write errors.
    pub(crate) seen: RankedMutex<ErrorCursor>,
    pub(crate) position: u64,
}

impl Node {
    /// The filesystem that the file belongs to.
    #[must_use]
    pub fn filesystem(&self) -> &Arc<Filesystem> {
        &self.0.fs
    }

    /// The inode number.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.0.ino
    }

    /// Distinguishes successive files of one inode number.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.0.generation
    }

    /// The type of the file.
    #[must_use]
    pub fn kind(&self) -> FileType {
        self.0.kind
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.0.is_dir()
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.0.is_file()
    }

    /// The file as a directory.
    ///
    /// # Errors
    /// `NotDirectory` for anything else.
    pub fn into_dir(self) -> Result<Dir> {
        Dir::try_from(self).map_err(|_| Posix::NotDirectory.into())
    }

    pub(crate) fn inode(&self) -> &Arc<Inode> {
        &self.0
    }
}

impl Clone for Node {
    fn clone(&self) -> Node {
        let fs = self.0.fs.clone();
        let inode = fs.inodes.hold(&self.0);
        Node(Held::new(fs, inode))
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("ino", &self.ino()).field("kind", &self.kind()).finish()
    }
}

impl Deref for Dir {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.0
    }
}

impl TryFrom<Node> for Dir {
    /// The node, when it is no directory.
    type Error = Node;
    fn try_from(node: Node) -> std::result::Result<Dir, Node> {
        if node.is_dir() { Ok(Dir(node)) } else { Err(node) }
    }
}

impl From<Dir> for Node {
    fn from(dir: Dir) -> Node {
        dir.0
    }
}

impl OpenFile {
    pub(crate) fn new(node: Node, may_write: bool, append: bool) -> OpenFile {
        let cursor = {
            let mut io = node.inode().io.lock();
            io.writers += u32::from(may_write);
            io.failures.cursor()
        };
        // Taken while the inode's IO state is held, which is a leaf as well.
        let seen = RankedMutex::keyed(Rank::Leaf, 1, cursor);
        OpenFile { node, may_write, append, seen, position: 0 }
    }

    /// Whether it was opened for writing.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.may_write
    }
}

impl Deref for OpenFile {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.node
    }
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFile").field("node", &self.node).field("may_write", &self.may_write).finish()
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.node.filesystem().close_file(self.node.inode(), self.may_write);
    }
}
