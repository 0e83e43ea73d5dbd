//! The order of everything, and the inode numbers: the order in which a walk of the finished image meets its
//! files. The kernel lists a directory by the hashes of its names, so an entry's neighbours in that order are
//! its neighbours on the disk. Nothing here depends on the order in which the sources named them.

use std::collections::HashMap;

use ext4_format::hash::{HashVersion, name_hash};
use xxhash_rust::xxh3::Xxh3;

use super::error::{Error, Result};
use super::tree::{Body, Inode, InodeId, NodeId, ROOT, Tree};

/// Inode number of the first file: behind the reserved ones, lost+found (11) and the orphan file (12).
pub const FIRST_INO: u32 = 13;
/// Inode number of lost+found.
pub const LOST_AND_FOUND_INO: u32 = 11;
/// Its name.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A directory and its entries in their order.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Its name.
    pub node: NodeId,
    /// Its entries in [`Order::entries`].
    pub entries: std::ops::Range<u32>,
    /// Its subdirectories.
    pub subdirectories: u32,
}

/// How names are hashed and listed.
#[derive(Clone, Copy, Debug)]
pub struct Hashing {
    /// `s_hash_seed`.
    pub seed: [u32; 4],
    /// Whether directories are listed by hash (feature `dir_index`).
    pub indexed: bool,
}

impl Hashing {
    /// The hash of a name: half-MD4 over signed bytes, which is what a new volume has.
    pub fn of(&self, name: &[u8]) -> (u32, u32) {
        name_hash(HashVersion::HalfMd4, self.seed, name).map_or((0, 0), |hash| (hash.major, hash.minor))
    }
}

/// Inode numbers and the order of directories, entries and files.
pub struct Order {
    /// How names are hashed.
    pub hashing: Hashing,
    /// Directories in the order of their numbers, the root first.
    pub directories: Vec<Directory>,
    /// The entries of all directories.
    pub entries: Vec<NodeId>,
    /// Inodes in the order of their numbers, from [`FIRST_INO`] on.
    pub inodes: Vec<InodeId>,
    numbers: Vec<u32>,
    places: HashMap<InodeId, u32>,
}

impl Order {
    /// Numbers everything in a tree that has a root and a lost+found.
    pub fn new(tree: &Tree, hashing: Hashing) -> Result<Order> {
        let mut order = Order {
            hashing,
            directories: Vec::new(),
            entries: Vec::new(),
            inodes: Vec::new(),
            numbers: vec![0; tree.inode_count()],
            places: HashMap::new(),
        };
        order.numbers[tree.inode_of(ROOT) as usize] = 2;
        if let Some(node) = tree.find(ROOT, LOST_AND_FOUND) {
            order.numbers[tree.inode_of(node) as usize] = LOST_AND_FOUND_INO;
        }
        let mut open = vec![order.enter(tree, ROOT)];
        while let Some((directory, at)) = open.last_mut() {
            let entries = order.directories[*directory].entries.clone();
            if *at == entries.end {
                open.pop();
                continue;
            }
            let node = order.entries[*at as usize];
            *at += 1;
            let id = tree.inode_of(node);
            if order.numbers[id as usize] == 0 {
                let next = u32::try_from(order.inodes.len()).ok().and_then(|n| n.checked_add(FIRST_INO));
                order.numbers[id as usize] = next.ok_or_else(|| Error::Options("too many inodes".into()))?;
                order.inodes.push(id);
            }
            if tree.inode(id).is_directory() {
                let entered = order.enter(tree, node);
                open.push(entered);
            }
        }
        Ok(order)
    }

    fn enter(&mut self, tree: &Tree, node: NodeId) -> (usize, u32) {
        let first = self.entries.len();
        if self.hashing.indexed {
            let mut keyed: Vec<((u32, u32), NodeId)> =
                tree.children(node).map(|child| (self.hashing.of(tree.name(child)), child)).collect();
            keyed.sort_unstable_by(|a, b| (a.0, tree.name(a.1)).cmp(&(b.0, tree.name(b.1))));
            self.entries.extend(keyed.into_iter().map(|(_, child)| child));
        } else {
            self.entries.extend(tree.children(node));
            self.entries[first..].sort_unstable_by(|a, b| tree.name(*a).cmp(tree.name(*b)));
        }
        let entries = first as u32..self.entries.len() as u32;
        let subdirectories =
            self.entries[first..].iter().filter(|child| tree.at(**child).is_directory()).count() as u32;
        self.places.insert(tree.inode_of(node), self.directories.len() as u32);
        self.directories.push(Directory { node, entries: entries.clone(), subdirectories });
        (self.directories.len() - 1, entries.start)
    }

    /// The number of an inode.
    pub fn number(&self, id: InodeId) -> u32 {
        self.numbers[id as usize]
    }

    /// The entries of a directory.
    pub fn entries_of(&self, directory: &Directory) -> &[NodeId] {
        &self.entries[directory.entries.start as usize..directory.entries.end as usize]
    }

    /// The place in [`Order::directories`] of a directory's inode.
    pub fn directory(&self, id: InodeId) -> usize {
        self.places.get(&id).map_or(0, |place| *place as usize)
    }
}

/// A digest of what a tree is like. It is a sum over its parts, so their order does not matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Digest(u128);

impl Digest {
    /// Adds a part.
    pub fn add(&mut self, part: u128) {
        self.0 = self.0.wrapping_add(part);
    }

    /// Adds the parts of another.
    pub fn merge(&mut self, other: Digest) {
        self.add(other.0);
    }

    /// Sixteen bytes of it, for one purpose.
    pub fn bytes(self, purpose: &str) -> [u8; 16] {
        let mut hash = Xxh3::new();
        hash.update(purpose.as_bytes());
        hash.update(&self.0.to_le_bytes());
        hash.digest128().to_le_bytes()
    }

    /// The same as a version 8 UUID, which is what an application makes by its own rule (RFC 9562).
    pub fn uuid(self, purpose: &str) -> [u8; 16] {
        *uuid::Builder::from_custom_bytes(self.bytes(purpose)).as_uuid().as_bytes()
    }
}

/// The digest of all paths.
pub fn names_digest(tree: &Tree) -> Digest {
    walk(tree, |_, _| {})
}

/// The digest of everything but the bytes of regular files.
pub fn metadata_digest(tree: &Tree, order: &Order, time: impl Fn(&Inode) -> (i64, u32)) -> Digest {
    walk(tree, |node, hash| {
        let inode = tree.at(node);
        let (sec, nsec) = time(inode);
        hash.update(&order.number(tree.inode_of(node)).to_le_bytes());
        hash.update(&[inode.file_type().dirent_code()]);
        hash.update(&inode.meta.mode.to_le_bytes());
        hash.update(&inode.meta.uid.to_le_bytes());
        hash.update(&inode.meta.gid.to_le_bytes());
        hash.update(&sec.to_le_bytes());
        hash.update(&nsec.to_le_bytes());
        hash.update(&inode.size.to_le_bytes());
        hash.update(tree.target(inode));
        if let Body::Device(_, major, minor) = inode.body {
            hash.update(&major.to_le_bytes());
            hash.update(&minor.to_le_bytes());
        }
        for attribute in tree.attributes.get(inode.attributes) {
            hash.update(&[attribute.index, attribute.name.len() as u8]);
            hash.update(&attribute.name);
            hash.update(&(attribute.value.len() as u64).to_le_bytes());
            hash.update(&attribute.value);
        }
    })
}

/// Sums the hashes of all nodes; each covers the names on the way to it and what `more` adds.
fn walk(tree: &Tree, more: impl Fn(NodeId, &mut Xxh3)) -> Digest {
    let mut digest = Digest::default();
    let mut open = vec![(ROOT, 0_u128)];
    while let Some((node, parent)) = open.pop() {
        let mut hash = Xxh3::new();
        hash.update(&parent.to_le_bytes());
        hash.update(tree.name(node));
        let path = hash.digest128();
        more(node, &mut hash);
        digest.add(hash.digest128());
        open.extend(tree.children(node).map(|child| (child, path)));
    }
    digest
}
