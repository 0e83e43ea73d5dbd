//! What a disk may look like after a cut: the promises of docs/DURABILITY.md as code.
//!
//! The *namespace* (names, types, links, modes, attributes, targets) changes in order: after a cut it is
//! what it was after some operation, not before the last one that was made durable and not after the last
//! one that had begun. *Contents* follow file by file: a cell is what it was when the file was last made
//! durable or what some later operation made of it; zero where such an operation may have left a hole;
//! and never anything else. Sizes likewise.
//!
//! The model replays a workload beside the filesystem and keeps one [`Promise`] for each epoch; an epoch
//! ends when an operation begins or something has been made durable. It knows no filesystem.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ops::{CELL, Falloc, Op, Persist, Way, parent};

/// Names a file or directory for the length of a workload.
pub type NodeId = usize;

/// Cells of a page, which a mapping writes back as a whole.
const PAGE_CELLS: u64 = 4096 / CELL;

/// Room for the headers of a file's attributes, of which there are three at most, in bytes.
const XATTR_HEADERS: u64 = 128;

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(String),
}

/// The part of an inode that changes in the order of the operations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its type.
    pub kind: Kind,
    /// Its permission bits.
    pub mode: u16,
    /// Its extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// All names and what they stand for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Namespace {
    /// Path to node; the root is not listed.
    pub names: BTreeMap<String, NodeId>,
    /// Every node that has a name.
    pub nodes: BTreeMap<NodeId, Node>,
}

impl Namespace {
    fn node(&self, name: &str) -> Option<(NodeId, &Node)> {
        let id = *self.names.get(name)?;
        Some((id, self.nodes.get(&id)?))
    }

    fn is_dir(&self, name: &str) -> bool {
        name.is_empty() || self.node(name).is_some_and(|(_, node)| node.kind == Kind::Directory)
    }

    fn is_file(&self, name: &str) -> bool {
        self.node(name).is_some_and(|(_, node)| node.kind == Kind::File)
    }

    fn has_children(&self, name: &str) -> bool {
        self.names.keys().any(|other| parent(other) == name)
    }

    fn is_free(&self, name: &str) -> bool {
        !self.names.contains_key(name) && self.is_dir(parent(name))
    }

    fn drop_name(&mut self, name: &str) {
        if let Some(id) = self.names.remove(name)
            && !self.names.values().any(|other| *other == id)
        {
            self.nodes.remove(&id);
        }
    }

    /// Moves a name and all below it.
    fn move_name(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.names.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
        for name in moved {
            if let Some(id) = self.names.remove(&name) {
                self.names.insert(format!("{to}{}", &name[from.len()..]), id);
            }
        }
    }
}

/// A file's content: a tag per cell (0 is a hole or zeros) and the size in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// Tags of the cells below the size.
    pub cells: Vec<u8>,
}

/// What a file's content may be after a cut. Sets of tags are bit masks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Allowed {
    cells: Vec<u128>,
    /// In cells.
    sizes: BTreeSet<u64>,
}

const ZERO: u128 = 1;

impl Allowed {
    fn exactly(content: &Content) -> Allowed {
        Allowed {
            cells: content.cells.iter().map(|tag| 1 << tag).collect(),
            sizes: [content.cells.len() as u64].into(),
        }
    }

    fn at(&self, cell: usize) -> u128 {
        self.cells.get(cell).copied().unwrap_or(ZERO)
    }

    fn add(&mut self, cells: std::ops::Range<u64>, tag: u8) {
        for cell in cells {
            *self.cell(cell as usize) |= 1 << tag;
        }
    }

    fn cell(&mut self, cell: usize) -> &mut u128 {
        if self.cells.len() <= cell {
            self.cells.resize(cell + 1, ZERO);
        }
        &mut self.cells[cell]
    }

    /// Whether a file of `size` bytes with these tags is allowed; `block` is the filesystem's block size.
    fn check(&self, size: u64, found: &[u8], block: u64) -> Result<(), String> {
        let (low, high) = match (self.sizes.first(), self.sizes.last()) {
            (Some(low), Some(high)) => (low * CELL, high * CELL),
            _ => (0, 0),
        };
        let between = low < size && size < high && size.is_multiple_of(block);
        if !(between || (size.is_multiple_of(CELL) && self.sizes.contains(&(size / CELL)))) {
            let sizes: Vec<u64> = self.sizes.iter().map(|cells| cells * CELL).collect();
            return Err(format!("size {size}, allowed {sizes:?}"));
        }
        for (cell, tag) in found.iter().enumerate() {
            if *tag > 127 || self.at(cell) >> tag & 1 == 0 {
                let allowed: Vec<u8> = (0..128).filter(|tag| self.at(cell) >> tag & 1 == 1).collect();
                return Err(format!("byte {}: tag {tag}, allowed {allowed:?}", cell as u64 * CELL));
            }
        }
        Ok(())
    }
}

/// What had been made durable by a syncfs and was not touched since.
#[derive(Clone, Debug)]
pub struct Steady {
    name: String,
    id: NodeId,
    node: Node,
    cells: Vec<u8>,
}

/// What holds for a cut in one epoch.
#[derive(Clone, Debug, Default)]
pub struct Promise {
    /// The namespaces that may be found, oldest first.
    pub namespaces: Vec<Arc<Namespace>>,
    /// Per file that may be found, its contents.
    pub contents: BTreeMap<NodeId, Arc<Allowed>>,
    /// Without a journal, all that must be found.
    pub steady: Vec<Steady>,
}

/// A name found on a recovered disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Inode number.
    pub ino: u64,
    /// Type, mode and attributes.
    pub node: Node,
    /// Number of names the inode claims.
    pub links: u32,
    /// Size in bytes; zero for other than files.
    pub size: u64,
    /// Tags of the cells, or where one does not hold a single byte value.
    pub cells: Result<Vec<u8>, String>,
}

/// A recovered disk: all names below the root but `lost+found`.
pub type Tree = BTreeMap<String, Found>;

impl Promise {
    /// Whether `tree` keeps the promise; the reason if not.
    ///
    /// # Errors
    /// The difference to the allowed namespace that comes closest.
    pub fn check(&self, tree: &Tree, block: u64) -> Result<(), String> {
        let mut closest: Option<String> = None;
        for namespace in self.namespaces.iter().rev() {
            match self.check_against(namespace, tree, block) {
                Ok(()) => return Ok(()),
                Err(difference) => {
                    // A namespace that fits and a content that does not says more than the reverse.
                    if closest
                        .as_ref()
                        .is_none_or(|c| c.starts_with("names") && !difference.starts_with("names"))
                    {
                        closest = Some(difference);
                    }
                }
            }
        }
        Err(closest.unwrap_or_default())
    }

    /// Whether `tree` has what is steady; the reason if not.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_steady(&self, tree: &Tree) -> Result<(), String> {
        for Steady { name, node, cells, .. } in &self.steady {
            let found = tree.get(name).ok_or_else(|| format!("{name} is gone"))?;
            let same = found.node == *node && found.size == cells.len() as u64 * CELL;
            if !same || (node.kind == Kind::File && found.cells.as_ref() != Ok(cells)) {
                return Err(format!("{name} is {found:?}, was {node:?} with {cells:?}"));
            }
        }
        Ok(())
    }

    fn check_against(&self, namespace: &Namespace, tree: &Tree, block: u64) -> Result<(), String> {
        let expected: Vec<_> = namespace.names.keys().collect();
        let found: Vec<_> = tree.keys().collect();
        if expected != found {
            return Err(format!("names {found:?}, allowed {expected:?}"));
        }
        let mut inodes: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (name, found) in tree {
            let Some((id, node)) = namespace.node(name) else { return Err(format!("names: {name}")) };
            if *node != found.node {
                return Err(format!("names: {name} is {:?}, allowed {node:?}", found.node));
            }
            if *inodes.entry(id).or_insert(found.ino) != found.ino {
                return Err(format!("names: {name} is not the same file as its other name"));
            }
            let links = match node.kind {
                Kind::Directory => {
                    let dirs = namespace.names.keys().filter(|n| parent(n) == name && namespace.is_dir(n));
                    2 + dirs.count()
                }
                _ => namespace.names.values().filter(|other| **other == id).count(),
            };
            if links != found.links as usize {
                return Err(format!("names: {name} claims {} links, has {links}", found.links));
            }
            if node.kind == Kind::File {
                let allowed = self.contents.get(&id).map(|allowed| (**allowed).clone()).unwrap_or_default();
                let cells = found.cells.as_ref().map_err(|stranger| format!("{name}: {stranger}"))?;
                allowed.check(found.size, cells, block).map_err(|why| format!("{name}: {why}"))?;
            }
        }
        let distinct: BTreeSet<u64> = inodes.values().copied().collect();
        if distinct.len() != inodes.len() {
            return Err("names: two files share an inode".into());
        }
        Ok(())
    }
}

/// What a kind of volume can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    /// Block size in bytes.
    pub block: u64,
    /// Whether files are mapped by extents; without, fallocate only punches.
    pub extents: bool,
    /// Whether there is a journal; without, only what is [`Steady`] is promised.
    pub journal: bool,
}

/// The model of one run.
pub struct Model {
    now: Namespace,
    contents: BTreeMap<NodeId, Content>,
    allowed: BTreeMap<NodeId, Arc<Allowed>>,
    /// Every namespace since the start; the first ones are those that may still be found.
    versions: Vec<Arc<Namespace>>,
    /// The oldest version that may still be found.
    oldest: usize,
    /// Per node: the version that its last change of names, mode or attributes made.
    changed: BTreeMap<NodeId, usize>,
    /// Per directory name: the version that last changed its entries.
    entries_changed: BTreeMap<String, usize>,
    /// Per node: the version that made it.
    born: BTreeMap<NodeId, usize>,
    /// All there was at the last syncfs.
    synced: Vec<Steady>,
    /// What has changed since, in any way.
    touched: BTreeSet<NodeId>,
    format: Format,
    next_node: NodeId,
    next_tag: u8,
}

impl Model {
    /// A model of an empty filesystem, all of it durable.
    #[must_use]
    pub fn new(format: Format) -> Model {
        Model {
            now: Namespace::default(),
            contents: BTreeMap::new(),
            allowed: BTreeMap::new(),
            versions: vec![Arc::new(Namespace::default())],
            oldest: 0,
            changed: BTreeMap::new(),
            entries_changed: BTreeMap::new(),
            born: BTreeMap::new(),
            synced: vec![],
            touched: BTreeSet::new(),
            format,
            next_node: 0,
            next_tag: 1,
        }
    }

    /// The size of a file in cells.
    #[must_use]
    pub fn size(&self, file: &str) -> u64 {
        let content = self.now.names.get(file).and_then(|id| self.contents.get(id));
        content.map_or(0, |content| content.cells.len() as u64)
    }

    /// The tag that the next write will carry.
    #[must_use]
    pub fn next_tag(&self) -> u8 {
        self.next_tag
    }

    /// The cells that a write of this operation covers.
    #[must_use]
    pub fn written(&self, op: &Op) -> Option<(u64, u64)> {
        match *op {
            Op::Write { way: Way::Mapped, at, len, .. } => {
                let first = at / PAGE_CELLS * PAGE_CELLS;
                Some((first, (at + len).next_multiple_of(PAGE_CELLS) - first))
            }
            Op::Write { at, len, .. } => Some((at, len)),
            Op::Append { file, len, .. } => Some((self.size(file), len)),
            _ => None,
        }
    }

    /// Whether an operation would succeed now. Workloads with one that would not are not run.
    #[must_use]
    pub fn possible(&self, op: &Op) -> bool {
        let now = &self.now;
        match *op {
            Op::Create(name) | Op::Mkdir(name) | Op::Symlink(name, _) => now.is_free(name),
            Op::Rmdir(name) => now.is_dir(name) && !now.has_children(name),
            Op::Unlink(name) => now.names.contains_key(name) && !now.is_dir(name),
            Op::UnlinkOpen(name) | Op::Chmod(name, _) | Op::Truncate(name, _) => now.is_file(name),
            Op::SetXattr(name, attr, len) => now.node(name).is_some_and(|(_, node)| {
                // Attributes have one block; where they do not fit, the answer is ENOSPC.
                let others = node.xattrs.iter().filter(|(other, _)| *other != attr);
                let bytes: usize = others.map(|(_, value)| value.len()).sum();
                node.kind == Kind::File && (bytes + len) as u64 + XATTR_HEADERS <= self.format.block
            }),
            Op::Link(from, to) => now.is_file(from) && now.is_free(to),
            Op::Rename(from, to) => {
                let same = now.names.get(from) == now.names.get(to);
                let fits = if now.is_dir(from) {
                    now.is_free(to) || (now.is_dir(to) && !now.has_children(to))
                } else {
                    now.is_free(to) || (now.names.contains_key(to) && !now.is_dir(to))
                };
                now.names.contains_key(from) && !same && fits && !to.starts_with(&format!("{from}/"))
            }
            Op::Exchange(a, b) => now.is_file(a) && now.is_file(b) && now.names[a] != now.names[b],
            Op::Write { file, way, .. } => {
                let Some((at, len)) = self.written(op) else { return false };
                now.is_file(file) && (way != Way::Mapped || at + len <= self.size(file))
            }
            Op::Append { file, .. } => now.is_file(file),
            Op::Fallocate { file, how, at, len } => {
                let aligned = |cells: u64| (cells * CELL).is_multiple_of(self.format.block);
                now.is_file(file)
                    && (self.format.extents || how == Falloc::Punch)
                    && match how {
                        Falloc::Collapse => aligned(at) && aligned(len) && at + len < self.size(file),
                        Falloc::Insert => aligned(at) && aligned(len) && at < self.size(file),
                        _ => true,
                    }
            }
            Op::RemoveXattr(name, attr) => {
                now.node(name).is_some_and(|(_, node)| node.xattrs.contains_key(attr))
            }
        }
    }

    /// An operation begins: from here on its effect may be found.
    pub fn begin(&mut self, op: &Op) {
        let written = self.written(op);
        match *op {
            Op::Create(name) => {
                self.make(name, Kind::File, 0o644);
            }
            Op::Mkdir(name) => {
                self.make(name, Kind::Directory, 0o755);
            }
            Op::Symlink(name, len) => {
                self.make(name, Kind::Symlink(symlink_target(len)), 0o777);
            }
            Op::Rmdir(name) | Op::Unlink(name) | Op::UnlinkOpen(name) => {
                self.touch_name(name);
                self.now.drop_name(name);
            }
            Op::Link(from, to) => {
                let id = self.now.names[from];
                self.now.names.insert(to.into(), id);
                self.touch_name(to);
            }
            Op::Rename(from, to) => {
                self.touch_name(from);
                self.touch_name(to);
                self.now.drop_name(to);
                self.now.move_name(from, to);
            }
            Op::Exchange(a, b) => {
                self.touch_name(a);
                self.touch_name(b);
                let (first, second) = (self.now.names[a], self.now.names[b]);
                self.now.names.insert(a.into(), second);
                self.now.names.insert(b.into(), first);
            }
            Op::Chmod(name, mode) => self.edit(name, |node| node.mode = mode),
            Op::SetXattr(name, attr, len) => {
                let value = vec![self.next_tag; len];
                self.next_tag += 1;
                self.edit(name, |node| {
                    node.xattrs.insert(attr.into(), value);
                });
            }
            Op::RemoveXattr(name, attr) => self.edit(name, |node| {
                node.xattrs.remove(attr);
            }),
            Op::Write { file, .. } | Op::Append { file, .. } => {
                let (at, len) = written.unwrap_or_default();
                let tag = self.next_tag;
                self.next_tag += 1;
                self.data(file, |content, allowed| {
                    grow(content, at + len);
                    content.cells[at as usize..(at + len) as usize].fill(tag);
                    allowed.add(at..at + len, tag);
                });
            }
            Op::Truncate(file, size) => self.data(file, |content, allowed| {
                let old = content.cells.len() as u64;
                allowed.add(size..old.max(size), 0);
                content.cells.resize(size as usize, 0);
            }),
            Op::Fallocate { file, how, at, len } => {
                self.data(file, |content, allowed| fallocate(content, allowed, how, at, len));
            }
        }
        self.versions.push(Arc::new(self.now.clone()));
    }

    /// Something has been made durable: less may be found from here on.
    pub fn persisted(&mut self, op: &Op, what: Persist) {
        let name = op.target();
        let id = self.now.names.get(name).copied();
        match (what, id) {
            (Persist::No, _) => {}
            (Persist::Sync, _) => {
                self.oldest = self.versions.len() - 1;
                self.allowed =
                    self.contents.iter().map(|(id, c)| (*id, Arc::new(Allowed::exactly(c)))).collect();
                if !self.format.journal {
                    self.settle();
                }
            }
            (Persist::FsyncParent, _) => self.directory_durable(parent(name)),
            (Persist::Fsync, Some(_)) if self.now.is_dir(name) => self.directory_durable(name),
            (Persist::Fsync | Persist::Fdatasync, Some(id)) => {
                let mut versions = vec![self.born.get(&id)];
                if what == Persist::Fsync {
                    versions.push(self.changed.get(&id));
                }
                let version = versions.into_iter().flatten().max().copied().unwrap_or(0);
                self.oldest = self.oldest.max(version);
                if let Some(content) = self.contents.get(&id) {
                    self.allowed.insert(id, Arc::new(Allowed::exactly(content)));
                }
            }
            (Persist::Fsync | Persist::Fdatasync, None) => {}
        }
    }

    fn directory_durable(&mut self, name: &str) {
        let version = self.entries_changed.get(name).copied().unwrap_or(0);
        self.oldest = self.oldest.max(version);
    }

    /// What holds for a cut now.
    #[must_use]
    pub fn promise(&self) -> Promise {
        Promise {
            namespaces: self.versions[self.oldest..].to_vec(),
            contents: self.allowed.clone(),
            steady: self.steady(),
        }
    }

    fn settle(&mut self) {
        self.touched.clear();
        let names = self.now.names.iter().map(|(name, &id)| Steady {
            name: name.clone(),
            id,
            node: self.now.nodes[&id].clone(),
            cells: self.contents.get(&id).map_or(vec![], |content| content.cells.clone()),
        });
        self.synced = names.collect();
    }

    /// What was not touched since the last syncfs, and lies in no directory that was.
    fn steady(&self) -> Vec<Steady> {
        let moved: Vec<String> = self
            .synced
            .iter()
            .filter(|old| self.touched.contains(&old.id))
            .map(|old| format!("{}/", old.name))
            .collect();
        let steady = self.synced.iter().filter(|old| {
            !self.touched.contains(&old.id) && !moved.iter().any(|dir| old.name.starts_with(dir))
        });
        steady.cloned().collect()
    }

    fn make(&mut self, name: &str, kind: Kind, mode: u16) {
        let id = self.next_node;
        self.next_node += 1;
        if kind == Kind::File {
            self.contents.insert(id, Content::default());
            self.allowed.insert(id, Arc::new(Allowed::exactly(&Content::default())));
        }
        self.now.nodes.insert(id, Node { kind, mode, xattrs: BTreeMap::new() });
        self.now.names.insert(name.into(), id);
        self.born.insert(id, self.versions.len());
        self.touch_name(name);
    }

    /// The coming version changes a name: its directory, and the inode behind it.
    fn touch_name(&mut self, name: &str) {
        let version = self.versions.len();
        self.entries_changed.insert(parent(name).into(), version);
        if let Some(id) = self.now.names.get(name) {
            self.changed.insert(*id, version);
            self.touched.insert(*id);
        }
    }

    fn edit(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let id = self.now.names[name];
        if let Some(node) = self.now.nodes.get_mut(&id) {
            change(node);
        }
        self.changed.insert(id, self.versions.len());
        self.touched.insert(id);
    }

    fn data(&mut self, file: &str, change: impl FnOnce(&mut Content, &mut Allowed)) {
        let id = self.now.names[file];
        self.touched.insert(id);
        let content = self.contents.entry(id).or_default();
        let allowed = Arc::make_mut(self.allowed.entry(id).or_default());
        change(content, allowed);
        allowed.sizes.insert(content.cells.len() as u64);
    }
}

/// The target that a symbolic link of so many bytes gets.
#[must_use]
pub fn symlink_target(len: usize) -> String {
    "t".repeat(len)
}

fn grow(content: &mut Content, cells: u64) {
    if (content.cells.len() as u64) < cells {
        content.cells.resize(cells as usize, 0);
    }
}

fn fallocate(content: &mut Content, allowed: &mut Allowed, how: Falloc, at: u64, len: u64) {
    let end = at + len;
    let size = content.cells.len() as u64;
    match how {
        Falloc::Allocate => grow(content, end),
        Falloc::KeepSize => {}
        Falloc::Punch | Falloc::Zero | Falloc::ZeroKeepSize => {
            if how == Falloc::Zero {
                grow(content, end);
            }
            let stop = end.min(content.cells.len() as u64).max(at.min(content.cells.len() as u64));
            let start = at.min(stop);
            content.cells[start as usize..stop as usize].fill(0);
            allowed.add(start..stop, 0);
        }
        Falloc::Collapse => {
            content.cells.drain(at as usize..end as usize);
            for cell in at..size {
                let moved = allowed.at((cell + len) as usize);
                *allowed.cell(cell as usize) |= moved;
            }
        }
        Falloc::Insert => {
            let hole = std::iter::repeat_n(0, len as usize);
            content.cells.splice(at as usize..at as usize, hole);
            for cell in (at..size + len).rev() {
                let moved = if cell < end { ZERO } else { allowed.at((cell - len) as usize) };
                *allowed.cell(cell as usize) |= moved;
            }
        }
    }
}
