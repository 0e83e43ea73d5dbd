//! Finding, removing and repointing entries.

use ext4_format::casefold;
use ext4_format::dirent::{DirBlock, DirBlockMut, DirEntry, DirFormat};
use ext4_format::inode::FileType;
use ext4_format::{Corruption, Fault, FileBlock, Ino, What};
use jbd2::{Buffer, Handle};

use super::blocks::Role;
use super::index::Path;
use super::{Dir, Found};
use crate::error::{Error, Result};
use crate::inode::Core;

impl Dir<'_> {
    /// The entry of `name`. The dots are entries too.
    pub fn find(&self, name: &[u8]) -> Result<Option<Found>> {
        let core = self.inode.core.read();
        if !self.is_indexed(&core) || self.folds(&core) || matches!(name, b"." | b"..") {
            return self.find_linear(&core, name);
        }
        let found = self
            .probe(&core, name)
            .and_then(|(hash, mut path)| self.find_below(&core, &mut path, hash.major, name));
        match found {
            // An index that makes no sense leaves the entries themselves readable.
            Err(Error::Corrupt(c)) if is_bad_index(&c) => self.find_linear(&core, name),
            other => other,
        }
    }

    /// The inode that `..` names.
    pub fn parent(&self) -> Result<Ino> {
        Ok(self.find_dotdot()?.ino)
    }

    /// Lets `..` name another directory (one credit).
    pub fn set_parent(&self, handle: &Handle<'_>, parent: Ino) -> Result<()> {
        let found = self.find_dotdot()?;
        self.repoint(handle, &found, parent, FileType::Directory)
    }

    /// Whether there are no entries but the dots.
    pub fn is_empty(&self) -> Result<bool> {
        let core = self.inode.core.read();
        for at in (0..self.block_count(&core)).map(FileBlock) {
            if Self::read_ahead_due(at) {
                self.read_ahead(&core, at);
            }
            let (buffer, format) = self.read_any(&core, at)?;
            let Some(format) = format else { continue };
            for entry in DirBlock::new(&buffer.data(), format).entries() {
                let entry = entry.map_err(|c| self.corrupt(&buffer, c))?;
                if entry.ino.is_some() && !matches!(entry.name, b"." | b"..") {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Takes the entry out (one credit).
    pub fn remove(&self, handle: &Handle<'_>, found: &Found) -> Result<()> {
        self.inode.dir.changed();
        let format = self.settings.format;
        let removed =
            self.edit_leaf(handle, &found.buffer, |bytes| DirBlockMut::new(bytes, format).remove(found.at))?;
        match removed {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.damaged(What::DirBlock, "entry moved", found.at.offset as u64, 0)),
            Err(c) => Err(self.corrupt(&found.buffer, c)),
        }
    }

    /// Lets the entry name another inode (one credit).
    pub fn repoint(&self, handle: &Handle<'_>, found: &Found, ino: Ino, kind: FileType) -> Result<()> {
        self.inode.dir.changed();
        let mut bytes = handle.write(&found.buffer)?;
        // Only `..` of an indexed directory lies in a block that is not a leaf.
        let root = found.is_in_root(&bytes);
        let format = DirFormat { tail: self.settings.format.tail && !root, ..self.settings.format };
        let done = DirBlockMut::new(&mut bytes, format).set_target(found.at, ino, kind);
        if root {
            self.seal_index(&mut bytes, ext4_format::htree::Kind::Root);
        } else {
            self.seal_leaf(&mut bytes);
        }
        if done {
            Ok(())
        } else {
            Err(self.damaged(What::DirBlock, "entry moved", found.at.offset as u64, 0))
        }
    }

    /// Looks for `name` in the leaf that `path` leads to and in those that continue its hash.
    pub(super) fn find_below(
        &self,
        core: &Core,
        path: &mut Path,
        hash: u32,
        name: &[u8],
    ) -> Result<Option<Found>> {
        loop {
            let buffer = self.read(core, path.leaf, Role::Leaf)?;
            if let Some(found) = self.find_in(&buffer, self.settings.format, name)? {
                return Ok(Some(found));
            }
            if self.next_start(path)? != Some(hash | 1) || !self.next_leaf(core, path)? {
                return Ok(None);
            }
        }
    }

    pub(super) fn find_in(&self, buffer: &Buffer, format: DirFormat, name: &[u8]) -> Result<Option<Found>> {
        let data = buffer.data();
        let entry = DirBlock::new(&data, format).find(name).map_err(|c| self.corrupt(buffer, c))?;
        Ok(entry.and_then(|entry| Found::new(&entry, buffer)))
    }

    pub(super) fn find_linear(&self, core: &Core, name: &[u8]) -> Result<Option<Found>> {
        for at in (0..self.block_count(core)).map(FileBlock) {
            if at.0 > 0 && Self::read_ahead_due(at) {
                self.read_ahead(core, at);
            }
            let (buffer, format) = self.read_any(core, at)?;
            let Some(format) = format else { continue };
            let found = match self.folds(core) {
                true => self.find_folded_in(&buffer, format, name)?,
                false => self.find_in(&buffer, format, name)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn find_folded_in(&self, buffer: &Buffer, format: DirFormat, name: &[u8]) -> Result<Option<Found>> {
        let (data, wanted) = (buffer.data(), casefold::folded(name));
        for entry in DirBlock::new(&data, format).entries() {
            let entry = entry.map_err(|c| self.corrupt(buffer, c))?;
            if entry.ino.is_some() && casefold::folded(entry.name) == wanted {
                return Ok(Found::new(&entry, buffer));
            }
        }
        Ok(None)
    }

    fn find_dotdot(&self) -> Result<Found> {
        let core = self.inode.core.read();
        let (buffer, format) = self.read_any(&core, FileBlock(0))?;
        let found = match format {
            Some(format) => self.find_in(&buffer, format, b"..")?,
            None => None,
        };
        found.ok_or_else(|| self.damaged(What::DirBlock, "no ..", 0, 0))
    }
}

/// Whether it is the index that is no index. One that only fails its checksum is an error, as in the kernel.
pub(super) fn is_bad_index(c: &Corruption) -> bool {
    c.what == What::HtreeBlock && c.fault == Fault::Structure
}

impl Found {
    pub(super) fn new(entry: &DirEntry<'_>, buffer: &Buffer) -> Option<Found> {
        Some(Found { ino: entry.ino?, buffer: buffer.clone(), at: entry.at })
    }

    fn is_in_root(&self, bytes: &[u8]) -> bool {
        self.at.offset == 12 && super::blocks::hides_root(bytes)
    }
}
