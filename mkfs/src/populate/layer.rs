//! How a source's entries come into the tree: owners mapped, names checked, older entries replaced, and, when
//! layers are stacked, what lower layers put there taken out again.
//!
//! A path is resolved inside the image: a symbolic link on the way leads to its target below the image's root,
//! as it would for a process that has the image as its root. The last component is never followed.
//! Whiteouts (OCI image specification, "Whiteouts"; AUFS before it): `.wh.NAME` takes NAME out,
//! `.wh..wh..opq` everything in its directory, both of lower layers only, and `.wh..wh.*` is AUFS's own.

use std::num::NonZeroU32;

use ext4_format::dirent::MAX_NAME;

use super::attributes::{self, ACL_ACCESS, ACL_DEFAULT, Attribute, NamedValue};
use super::content::SparseMap;
use super::error::{Error, Result};
use super::owners::Owners;
use super::tree::{Body, Inode, InodeId, Meta, NodeId, ROOT, Tree};

/// Symbolic links on the way to one entry: as Linux has it.
const MAX_LINKS: u32 = 40;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// What is wanted of all sources.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Owners.
    pub owners: Owners,
    /// Leave extended attributes of sources out.
    pub without_attributes: bool,
    /// Most bytes of file contents, names and inodes.
    pub max_size: Option<u64>,
}

/// A tree and what is wanted of it, while sources are read.
pub struct Merge<'r> {
    /// The tree.
    pub tree: Tree,
    /// What is wanted.
    pub rules: &'r Rules,
    /// Things that were left out, for the user.
    pub notes: Vec<String>,
    layer: u16,
    whiteouts: bool,
    /// The last directory that a path was resolved to.
    last: Option<(Vec<u8>, NodeId)>,
    used: u64,
    watch: Option<&'r mut dyn FnMut(u64)>,
}

impl<'r> Merge<'r> {
    /// An empty tree.
    pub fn new(rules: &'r Rules) -> Merge<'r> {
        let tree = Tree::new();
        Merge { tree, rules, notes: Vec::new(), layer: 0, whiteouts: false, last: None, used: 0, watch: None }
    }

    /// Lets somebody be told, now and then, how many names there are.
    #[must_use]
    pub fn watched(mut self, watch: &'r mut dyn FnMut(u64)) -> Merge<'r> {
        self.watch = Some(watch);
        self
    }

    /// The tree, and what was left out of it.
    pub fn finish(self) -> (Tree, Vec<String>) {
        (self.tree, self.notes)
    }

    /// Starts the next layer.
    pub fn next_layer(&mut self, whiteouts: bool) -> Result<()> {
        self.last = None;
        self.whiteouts = whiteouts;
        self.layer = self.layer.checked_add(1).ok_or_else(|| Error::Options("too many layers".into()))?;
        Ok(())
    }

    /// Counts bytes of the image against the limit.
    pub fn count(&mut self, bytes: u64, what: &str) -> Result<()> {
        self.check_room(bytes, what)?;
        self.used = self.used.saturating_add(bytes);
        let names = self.tree.node_count() as u64;
        if let Some(watch) = self.watch.as_mut().filter(|_| names.is_multiple_of(1024)) {
            watch(names);
        }
        Ok(())
    }

    /// Whether so many bytes more would still be within the limit.
    pub fn check_room(&self, bytes: u64, what: &str) -> Result<()> {
        match self.rules.max_size {
            Some(limit) if self.used.saturating_add(bytes) > limit => {
                Err(Error::TooLarge { what: what.to_owned(), limit })
            }
            _ => Ok(()),
        }
    }

    /// Keeps the map of a sparse file; nothing when the file has no hole.
    pub fn keep_map(&mut self, map: SparseMap, size: u64) -> Option<NonZeroU32> {
        if map.is_dense(size) {
            return None;
        }
        self.tree.maps.push(map);
        NonZeroU32::new(self.tree.maps.len() as u32)
    }

    /// Converts attributes and finds their set.
    pub fn attributes(&mut self, pairs: Vec<NamedValue>, path: &[u8]) -> Result<u32> {
        if pairs.is_empty() || self.rules.without_attributes {
            return Ok(0);
        }
        let (kept, foreign) = attributes::convert(pairs, &self.rules.owners, path)?;
        self.note_foreign(&foreign);
        Ok(self.tree.attributes.number(kept))
    }

    fn note_foreign(&mut self, names: &[Vec<u8>]) {
        for name in names {
            let note = format!("attributes {} are left out: ext4 has no place for them", name.escape_ascii());
            if !self.notes.contains(&note) && self.notes.len() < 100 {
                self.notes.push(note);
            }
        }
    }

    fn owned(&self, meta: Meta, path: &[u8]) -> Result<Meta> {
        let (uid, gid) = self.rules.owners.of(meta.uid, meta.gid, path)?;
        Ok(Meta { uid, gid, mode: meta.mode & 0o7777, ..meta })
    }

    /// Says what the root directory is like.
    pub fn put_root(&mut self, meta: Meta, attributes: u32) -> Result<()> {
        let meta = self.owned(meta, b"/")?;
        let root = self.tree.inode_of(ROOT);
        let inode = self.tree.inode_mut(root);
        inode.meta = meta;
        inode.attributes = attributes;
        self.tree.has_root = true;
        Ok(())
    }

    /// Puts an entry into a directory. `None`: it was a whiteout and is done.
    pub fn put(&mut self, parent: NodeId, name: &[u8], inode: Inode) -> Result<Option<NodeId>> {
        if self.whiteouts && name.starts_with(WHITEOUT) {
            self.white_out(parent, name);
            return Ok(None);
        }
        self.check_name(parent, name)?;
        let meta = self.owned(inode.meta, name)?;
        // What an inode and a directory entry take at the least.
        let data = inode.map.map_or(inode.size, |map| self.tree.maps[map.get() as usize - 1].data_len());
        self.count(data.saturating_add(256 + 8 + name.len() as u64), "the tree")?;
        let inode = Inode { meta, ..inode };
        let found = self.tree.find(parent, name);
        if let Some(node) = found {
            let old = self.tree.inode_of(node);
            self.tree.set_layer(node, self.layer);
            if let (Body::Directory(first), Body::Directory(_)) = (self.tree.inode(old).body, inode.body) {
                let links = self.tree.inode(old).links;
                *self.tree.inode_mut(old) = Inode { body: Body::Directory(first), links, ..inode };
                return Ok(Some(node));
            }
            if self.tree.inode(old).is_directory() || inode.is_directory() {
                self.take_out(node);
            } else {
                // The last path may have led through a symbolic link that goes away here.
                self.last = None;
                let id = self.tree.add_inode(inode)?;
                self.tree.point(node, id);
                return Ok(Some(node));
            }
        }
        let id = self.tree.add_inode(inode)?;
        Ok(Some(self.tree.insert(parent, name, id, self.layer)?))
    }

    /// Gives an inode one more name.
    pub fn link(&mut self, parent: NodeId, name: &[u8], inode: InodeId) -> Result<()> {
        if self.whiteouts && name.starts_with(WHITEOUT) {
            self.white_out(parent, name);
            return Ok(());
        }
        self.check_name(parent, name)?;
        self.count(8 + name.len() as u64, "the tree")?;
        match self.tree.find(parent, name) {
            Some(node) if self.tree.inode_of(node) == inode => self.tree.set_layer(node, self.layer),
            Some(node) if !self.tree.at(node).is_directory() => {
                self.last = None;
                self.tree.set_layer(node, self.layer);
                self.tree.point(node, inode);
            }
            found => {
                if let Some(node) = found {
                    self.take_out(node);
                }
                self.tree.insert(parent, name, inode, self.layer)?;
            }
        }
        Ok(())
    }

    fn take_out(&mut self, node: NodeId) {
        self.last = None;
        self.tree.remove(node);
    }

    fn white_out(&mut self, parent: NodeId, name: &[u8]) {
        self.last = None;
        if name == OPAQUE {
            let children: Vec<NodeId> = self.tree.children(parent).collect();
            for child in children {
                self.tree.hide(child, self.layer);
            }
        } else if !name.starts_with(AUFS)
            && let Some(node) = self.tree.find(parent, &name[WHITEOUT.len()..])
        {
            self.tree.hide(node, self.layer);
        }
    }

    fn check_name(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let problem = if name.is_empty() || name == b"." || name == b".." {
            "is no name for a file"
        } else if name.len() > MAX_NAME {
            "has a name of more than 255 bytes"
        } else if name.contains(&0) || name.contains(&b'/') {
            "has a zero byte or a slash in its name"
        } else {
            return Ok(());
        };
        let mut path = self.tree.path(parent);
        path.push(b'/');
        path.extend_from_slice(name);
        Err(Error::entry(path, problem))
    }

    /// The components of a path as archives spell it; the path itself in messages. Slashes in front are taken
    /// off.
    ///
    /// # Errors
    /// A `..`: it may lead out of the image.
    pub fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
        let parts: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        match parts.iter().any(|part| *part == b"..") {
            true => Err(Error::entry(path, "a path with .. may lead out of the image")),
            false => Ok(parts),
        }
    }

    /// The directory that these components lead to, made where it is missing. Its name is `path` in messages.
    pub fn directory(&mut self, parts: &[&[u8]], path: &[u8]) -> Result<NodeId> {
        let joined = parts.join(&b'/');
        if let Some((known, node)) = &self.last
            && *known == joined
        {
            return Ok(*node);
        }
        let node = self.walk(parts, path, true)?;
        self.last = Some((joined, node));
        Ok(node)
    }

    /// The node of a path; symbolic links on the way are followed, the last component is not.
    pub fn lookup(&mut self, path: &[u8]) -> Result<Option<NodeId>> {
        let parts = Self::components(path)?;
        let Some((name, parents)) = parts.split_last() else { return Ok(Some(ROOT)) };
        match self.walk(parents, path, false) {
            Ok(parent) => Ok(self.tree.find(parent, name)),
            Err(Error::Entry { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn walk(&mut self, parts: &[&[u8]], path: &[u8], create: bool) -> Result<NodeId> {
        // Components still to go, the next one last.
        let mut left: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut at = ROOT;
        let mut links = 0;
        while let Some(name) = left.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = self.tree.parent(at);
                    continue;
                }
                _ => {}
            }
            let Some(node) = self.tree.find(at, &name) else {
                if !create {
                    return Err(Error::entry(path, "is not there"));
                }
                at = self.implicit(at, &name, path)?;
                continue;
            };
            let inode = *self.tree.at(node);
            match inode.body {
                Body::Directory(_) => at = node,
                Body::Symlink(..) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::entry(path, "too many symbolic links on the way"));
                    }
                    let target = self.tree.target(&inode).to_vec();
                    if target.starts_with(b"/") {
                        at = ROOT;
                    }
                    left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    if left.len() > 1 << 16 {
                        return Err(Error::entry(path, "too many symbolic links on the way"));
                    }
                }
                _ => {
                    let inner = self.tree.path(node).escape_ascii().to_string();
                    return Err(Error::entry(path, format!("{inner} is not a directory")));
                }
            }
        }
        Ok(at)
    }

    /// A directory that no entry describes.
    fn implicit(&mut self, parent: NodeId, name: &[u8], path: &[u8]) -> Result<NodeId> {
        if self.whiteouts && name.starts_with(WHITEOUT) {
            return Err(Error::entry(path, "lies in a whiteout"));
        }
        self.check_name(parent, name)?;
        // Its time is that of the image, which is known when the tree is complete.
        let meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: IMPLICIT };
        let meta = Meta { mtime: IMPLICIT, ..self.owned(meta, path).unwrap_or(meta) };
        self.count(256 + 8 + name.len() as u64, "the tree")?;
        let id = self.tree.add_inode(Inode::new(meta, Body::Directory(0)))?;
        self.tree.insert(parent, name, id, self.layer)
    }

    /// Sets or replaces attributes of an inode.
    pub fn add_attributes(&mut self, inode: InodeId, pairs: Vec<NamedValue>, path: &[u8]) -> Result<()> {
        let (new, foreign) = attributes::convert(pairs, &self.rules.owners, path)?;
        self.note_foreign(&foreign);
        let old = self.tree.attributes.get(self.tree.inode(inode).attributes);
        let replaced = |a: &Attribute| new.iter().any(|b| (a.index, &a.name) == (b.index, &b.name));
        let mut all: Vec<Attribute> = old.iter().filter(|a| !replaced(a)).cloned().collect();
        all.extend(new);
        let set = self.tree.attributes.number(all);
        self.tree.inode_mut(inode).attributes = set;
        Ok(())
    }
}

/// The time of a directory that no entry describes.
pub const IMPLICIT: ext4_format::inode::Time = ext4_format::inode::Time { sec: i64::MIN, nsec: 0 };

/// An access control list of an archive's text, under the name that the system call has for it.
pub fn list_from_text(text: &str, default: bool) -> std::result::Result<NamedValue, String> {
    let list = super::acl::Acl::from_text(text)?;
    let name = if default { ACL_DEFAULT } else { ACL_ACCESS };
    Ok((name.to_vec(), list.to_wire()))
}
