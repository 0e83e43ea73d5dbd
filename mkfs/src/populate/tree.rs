//! The tree to be written, in memory: names, and the inodes behind them. Compact, because a tree has millions
//! of them: names lie in one arena, children are a linked list, and the table that finds a name holds one
//! number an entry.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use ext4_format::inode::{FileType, Time};
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::attributes::AttributeSets;
use super::content::SparseMap;
use super::error::{Error, Result};

/// A name in the tree. 0 is the root, and, as a link to another node, "none".
pub type NodeId = u32;
/// An inode of the tree (not the number that it gets on disk).
pub type InodeId = u32;

/// The root directory.
pub const ROOT: NodeId = 0;
const NONE: NodeId = 0;

/// One name.
#[derive(Clone, Copy)]
struct Node {
    parent: NodeId,
    next: NodeId,
    inode: InodeId,
    name: u32,
    name_len: u8,
    alive: bool,
    /// The layer that set it last.
    layer: u16,
}

/// Where the bytes of a file come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// A file of a source folder, at the node's path below the folder.
    Folder {
        /// Which folder.
        folder: u16,
        /// The name it was found under.
        node: NodeId,
    },
    /// A range of a file that is open: an archive, or the spool.
    Stored {
        /// Which file.
        file: u16,
        /// The byte at which the data start.
        at: u64,
    },
    /// A file of the host that a specification names.
    Host(u32),
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// A directory and its first child.
    Directory(NodeId),
    /// A regular file.
    File(Content),
    /// A symbolic link and the place of its target in the arena.
    Symlink(u32, u16),
    /// A device: type, major and minor number.
    Device(FileType, u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Owner, mode and modification time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Permission bits, with set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
}

/// One inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Owner, mode and time.
    pub meta: Meta,
    /// Bytes of a regular file.
    pub size: u64,
    /// What it is.
    pub body: Body,
    /// Its extended attributes.
    pub attributes: u32,
    /// Where its data lie, unless everywhere.
    pub map: Option<std::num::NonZeroU32>,
    /// Names it has.
    pub links: u32,
    /// Whether `meta.mtime` is the source file's own, which tells whether it changed.
    pub source_time: bool,
}

impl Inode {
    /// An inode without data and attributes.
    pub fn new(meta: Meta, body: Body) -> Inode {
        Inode { meta, size: 0, body, attributes: 0, map: None, links: 0, source_time: false }
    }

    /// Its type.
    pub fn file_type(&self) -> FileType {
        match self.body {
            Body::Directory(_) => FileType::Directory,
            Body::File(_) => FileType::Regular,
            Body::Symlink(..) => FileType::Symlink,
            Body::Device(kind, ..) => kind,
            Body::Fifo => FileType::Fifo,
            Body::Socket => FileType::Socket,
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }
}

/// A source folder, for the files in it.
pub struct Folder {
    /// The folder, open.
    pub fd: OwnedFd,
    /// Its path, for messages.
    pub path: PathBuf,
}

/// The whole tree, and what its files' contents refer to.
pub struct Tree {
    nodes: Vec<Node>,
    inodes: Vec<Inode>,
    arena: Vec<u8>,
    table: HashTable<NodeId>,
    /// Sets of attributes that inodes share.
    pub attributes: AttributeSets,
    /// Maps of sparse files; inodes count from 1.
    pub maps: Vec<SparseMap>,
    /// Source folders.
    pub folders: Vec<Folder>,
    /// Archives and spools that hold file contents.
    pub files: Vec<Arc<File>>,
    /// Files of the host that specifications name.
    pub hosts: Vec<PathBuf>,
    /// Whether a source said what the root directory is like.
    pub has_root: bool,
}

impl Tree {
    /// A root directory with nothing in it.
    pub fn new() -> Tree {
        let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: Time::default() };
        let root = Node { parent: ROOT, next: NONE, inode: 0, name: 0, name_len: 0, alive: true, layer: 0 };
        Tree {
            nodes: vec![root],
            inodes: vec![Inode { links: 1, ..Inode::new(meta, Body::Directory(NONE)) }],
            arena: Vec::new(),
            table: HashTable::new(),
            attributes: AttributeSets::default(),
            maps: Vec::new(),
            folders: Vec::new(),
            files: Vec::new(),
            hosts: Vec::new(),
            has_root: false,
        }
    }

    /// How many nodes there ever were.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many inodes there ever were.
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// An inode.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id as usize]
    }

    /// An inode, to be changed.
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id as usize]
    }

    /// All inodes that have a name.
    pub fn live_inodes(&self) -> impl Iterator<Item = (InodeId, &Inode)> {
        (0..).zip(&self.inodes).filter(|(_, inode)| inode.links > 0)
    }

    /// The inode behind a name.
    pub fn inode_of(&self, node: NodeId) -> InodeId {
        self.nodes[node as usize].inode
    }

    /// The inode behind a name, itself.
    pub fn at(&self, node: NodeId) -> &Inode {
        self.inode(self.inode_of(node))
    }

    /// The directory that holds a name.
    pub fn parent(&self, node: NodeId) -> NodeId {
        self.nodes[node as usize].parent
    }

    /// The layer that set a name last.
    pub fn layer(&self, node: NodeId) -> u16 {
        self.nodes[node as usize].layer
    }

    /// Whether the name is still in the tree.
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.nodes[node as usize].alive
    }

    /// The name itself.
    pub fn name(&self, node: NodeId) -> &[u8] {
        let node = &self.nodes[node as usize];
        &self.arena[node.name as usize..node.name as usize + usize::from(node.name_len)]
    }

    /// The target of a symbolic link.
    pub fn target(&self, inode: &Inode) -> &[u8] {
        match inode.body {
            Body::Symlink(at, len) => &self.arena[at as usize..at as usize + usize::from(len)],
            _ => &[],
        }
    }

    /// The path of a node from the root, without a slash in front; empty for the root.
    pub fn path(&self, node: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = node;
        while at != ROOT {
            names.push(self.name(at));
            at = self.parent(at);
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The children of a directory, in no particular order.
    pub fn children(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let first = match self.at(node).body {
            Body::Directory(first) => first,
            _ => NONE,
        };
        let listed = |node: NodeId| (node != NONE).then_some(node);
        std::iter::successors(listed(first), move |node| listed(self.nodes[*node as usize].next))
            .filter(|node| self.is_alive(*node))
    }

    fn hash(parent: NodeId, name: &[u8]) -> u64 {
        xxh3_64_with_seed(name, u64::from(parent))
    }

    /// The child of this name.
    pub fn find(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let same = |node: &NodeId| self.parent(*node) == parent && self.name(*node) == name;
        self.table.find(Self::hash(parent, name), same).copied()
    }

    /// Keeps bytes in the arena.
    fn keep(&mut self, bytes: &[u8]) -> Result<u32> {
        let at = u32::try_from(self.arena.len() + bytes.len()).map(|end| end - bytes.len() as u32);
        let at = at.map_err(|_| Error::entry(bytes, "more than 4 GiB of names and link targets"))?;
        self.arena.extend_from_slice(bytes);
        Ok(at)
    }

    /// A symbolic link's body.
    pub fn symlink(&mut self, target: &[u8]) -> Result<Body> {
        let problem = if target.is_empty() {
            "a symbolic link without a target"
        } else if target.len() > 4095 {
            "a symbolic link whose target is longer than 4095 bytes"
        } else if target.contains(&0) {
            "a symbolic link whose target contains a zero byte"
        } else {
            return Ok(Body::Symlink(self.keep(target)?, target.len() as u16));
        };
        Err(Error::entry(target, problem))
    }

    /// Adds an inode that has no name yet.
    pub fn add_inode(&mut self, inode: Inode) -> Result<InodeId> {
        let id = u32::try_from(self.inodes.len()).ok().filter(|id| *id < u32::MAX - 64);
        let id = id.ok_or_else(|| Error::Options("more inodes than ext4 can count".into()))?;
        self.inodes.push(inode);
        Ok(id)
    }

    /// Gives `parent` a name that it does not have yet.
    pub fn insert(&mut self, parent: NodeId, name: &[u8], inode: InodeId, layer: u16) -> Result<NodeId> {
        let id = u32::try_from(self.nodes.len()).ok().filter(|id| *id < u32::MAX - 64);
        let id = id.ok_or_else(|| Error::Options("more names than ext4 can hold inodes".into()))?;
        let at = self.keep(name)?;
        let owner = self.inode_of(parent);
        let Body::Directory(first) = self.inodes[owner as usize].body else {
            return Err(Error::entry(self.path(parent), "is not a directory"));
        };
        let name_len = name.len() as u8;
        self.nodes.push(Node { parent, next: first, inode, name: at, name_len, alive: true, layer });
        self.inodes[owner as usize].body = Body::Directory(id);
        self.inodes[inode as usize].links += 1;
        let (nodes, arena) = (&self.nodes, &self.arena);
        self.table.insert_unique(Self::hash(parent, name), id, |node| {
            let node = &nodes[*node as usize];
            let name = &arena[node.name as usize..node.name as usize + usize::from(node.name_len)];
            Self::hash(node.parent, name)
        });
        Ok(id)
    }

    /// Marks a name as set by this layer.
    pub fn set_layer(&mut self, node: NodeId, layer: u16) {
        self.nodes[node as usize].layer = layer;
    }

    /// Lets a name that is no directory lead to another inode.
    pub fn point(&mut self, node: NodeId, inode: InodeId) {
        let old = std::mem::replace(&mut self.nodes[node as usize].inode, inode);
        self.inodes[inode as usize].links += 1;
        self.inodes[old as usize].links -= 1;
    }

    /// Takes out one name; a directory's children must be gone.
    fn kill(&mut self, node: NodeId) {
        let hash = Self::hash(self.parent(node), self.name(node));
        if let Ok(entry) = self.table.find_entry(hash, |other| *other == node) {
            entry.remove();
        }
        let Node { inode, alive, .. } = &mut self.nodes[node as usize];
        *alive = false;
        self.inodes[*inode as usize].links -= 1;
    }

    /// A node and everything below it, parents first.
    fn subtree(&self, node: NodeId) -> Vec<NodeId> {
        let mut all = vec![node];
        let mut at = 0;
        while at < all.len() {
            all.extend(self.children(all[at]));
            at += 1;
        }
        all
    }

    /// Takes out a name and everything below it.
    pub fn remove(&mut self, node: NodeId) {
        for node in self.subtree(node).into_iter().rev() {
            self.kill(node);
        }
    }

    /// Takes out what lower layers than `layer` put under a name, and the name itself when nothing remains.
    pub fn hide(&mut self, node: NodeId, layer: u16) {
        for node in self.subtree(node).into_iter().rev() {
            if self.layer(node) < layer && self.children(node).next().is_none() {
                self.kill(node);
            }
        }
    }

    /// Frees the table of names, when nothing is looked up any more.
    pub fn forget_names(&mut self) {
        self.table = HashTable::new();
    }
}
