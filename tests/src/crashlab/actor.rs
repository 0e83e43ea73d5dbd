//! Carries operations out on a mounted filesystem, below a directory of its own.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fs_core::{
    Credentials, Dir, FallocateMode, Filesystem, Node, OpenFile, OpenFlags, RenameFlags, SetAttr, SetXattr,
    WriteKind,
};
use parking_lot::Mutex;

use super::model::symlink_target;
use super::ops::{CELL, Falloc, Op, Persist, Way, parent};

/// Acts on a filesystem below `home`, a path without slashes at its ends; empty for the root.
pub struct Actor {
    fs: Arc<Filesystem>,
    home: String,
    /// Files that were removed while they were open, and stay open.
    removed: Mutex<Vec<OpenFile>>,
}

impl Actor {
    /// On `fs` below `home`.
    #[must_use]
    pub fn new(fs: Arc<Filesystem>, home: String) -> Actor {
        Actor { fs, home, removed: Mutex::default() }
    }

    /// The filesystem.
    #[must_use]
    pub fn fs(&self) -> &Arc<Filesystem> {
        &self.fs
    }

    /// Where the operations' names begin.
    #[must_use]
    pub fn home(&self) -> &str {
        &self.home
    }

    /// Carries an operation out; a write fills the cells `written` with `tag`.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn execute(&self, op: &Op, written: Option<(u64, u64)>, tag: u8) -> Result<()> {
        match *op {
            Op::Create(name) => self.parent(name)?.create(leaf(name), 0o644).map(drop)?,
            Op::Mkdir(name) => self.parent(name)?.create_dir(leaf(name), 0o755).map(drop)?,
            Op::Symlink(name, len) => {
                self.parent(name)?.symlink(leaf(name), symlink_target(len)).map(drop)?;
            }
            Op::Rmdir(name) => drop(self.parent(name)?.rmdir(leaf(name))?),
            Op::Unlink(name) => drop(self.parent(name)?.unlink(leaf(name))?),
            Op::UnlinkOpen(name) => {
                let open = self.find(name)?.open(OpenFlags::default())?;
                self.removed.lock().push(open);
                self.parent(name)?.unlink(leaf(name))?;
            }
            Op::Link(from, to) => self.parent(to)?.link(leaf(to), &self.find(from)?)?,
            Op::Rename(from, to) => self.rename(from, to, RenameFlags::default())?,
            Op::Exchange(a, b) => {
                self.rename(a, b, RenameFlags { exchange: true, ..RenameFlags::default() })?
            }
            Op::Write { file, way, .. } | Op::Append { file, way, .. } => {
                let (at, len) = written.context("a write has a range")?;
                let kind = if way == Way::Direct { WriteKind::Direct } else { WriteKind::Cached };
                let data = vec![tag; (len * CELL) as usize];
                let done = self.open(file)?.write_as(&Credentials::root(), &data, at * CELL, kind)?;
                ensure!(done == data.len(), "wrote {done} of {}", data.len());
            }
            Op::Truncate(file, size) => {
                let change = SetAttr { size: Some(size * CELL), ..SetAttr::default() };
                self.find(file)?.set_attributes(&change).map(drop)?;
            }
            Op::Chmod(file, mode) => {
                let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
                self.find(file)?.set_attributes(&change).map(drop)?;
            }
            Op::Fallocate { file, how, at, len } => {
                let mode = match how {
                    Falloc::Allocate => FallocateMode::Allocate { keep_size: false },
                    Falloc::KeepSize => FallocateMode::Allocate { keep_size: true },
                    Falloc::Punch => FallocateMode::PunchHole,
                    Falloc::Zero => FallocateMode::ZeroRange { keep_size: false },
                    Falloc::ZeroKeepSize => FallocateMode::ZeroRange { keep_size: true },
                    Falloc::Collapse => FallocateMode::Collapse,
                    Falloc::Insert => FallocateMode::Insert,
                };
                self.open(file)?.fallocate(at * CELL, len * CELL, mode)?;
            }
            Op::SetXattr(file, attr, len) => {
                self.find(file)?.set_xattr(attr, vec![tag; len], SetXattr::Any)?;
            }
            Op::RemoveXattr(file, attr) => self.find(file)?.remove_xattr(attr)?,
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<()> {
        Ok(self.parent(from)?.rename(leaf(from), &self.parent(to)?, leaf(to), flags).map(drop)?)
    }

    /// Makes durable what `what` says after `op`; `data_only` decides whether a directory is fsynced or
    /// fdatasynced.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn persist(&self, op: &Op, what: Persist, data_only: bool) -> Result<()> {
        match what {
            Persist::No => Ok(()),
            Persist::Sync => Ok(self.fs.sync()?),
            Persist::FsyncParent => Ok(self.find(parent(op.target()))?.sync(data_only)?),
            Persist::Fsync | Persist::Fdatasync => {
                Ok(self.find(op.target())?.sync(what == Persist::Fdatasync)?)
            }
        }
    }

    /// Finds `path` from the home directory on, name by name.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn find(&self, path: &str) -> Result<Node> {
        let full = format!("{}/{path}", self.home);
        let mut at = Node::from(self.fs.root()?);
        for name in full.split('/').filter(|name| !name.is_empty()) {
            at = at.into_dir()?.lookup(name).with_context(|| format!("lookup of {full}"))?;
        }
        Ok(at)
    }

    fn open(&self, path: &str) -> Result<OpenFile> {
        Ok(self.find(path)?.open(OpenFlags { write: true, ..OpenFlags::default() })?)
    }

    fn parent(&self, path: &str) -> Result<Dir> {
        Ok(self.find(parent(path))?.into_dir()?)
    }
}

fn leaf(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
