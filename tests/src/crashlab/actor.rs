//! Carries operations out on a mounted filesystem, below a directory of its own, as a kernel would ask for
//! them: lookup by lookup, and every reference is given back.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ext4_format::Ino;
use fs_core::Filesystem;
use fs_core::ops::{FallocateMode, OpenFlags, RenameFlags, SetXattr, WriteMode};
use fs_core::types::{Caller, SetAttr};

use super::model::symlink_target;
use super::ops::{CELL, Falloc, Op, Persist, Way, parent};

/// Acts on a filesystem below `home`, a path without slashes at its ends; empty for the root.
pub struct Actor {
    /// The filesystem.
    pub fs: Arc<Filesystem>,
    /// Where the operations' names begin.
    pub home: String,
}

impl Actor {
    fn full(&self, path: &str) -> String {
        format!("{}/{path}", self.home)
    }

    /// Carries an operation out; a write fills the cells `written` with `tag`.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn execute(&self, op: &Op, written: Option<(u64, u64)>, tag: u8) -> Result<()> {
        let (fs, root) = (&self.fs, Caller::root());
        match *op {
            Op::Create(name) => self.in_parent(name, |dir, leaf| {
                let made = fs.mknod(&root, dir, leaf, 0o100_644, (0, 0))?;
                fs.forget(made.ino, 1);
                Ok(())
            })?,
            Op::Mkdir(name) => self.in_parent(name, |dir, leaf| {
                let made = fs.mkdir(&root, dir, leaf, 0o755)?;
                fs.forget(made.ino, 1);
                Ok(())
            })?,
            Op::Symlink(name, len) => self.in_parent(name, |dir, leaf| {
                let made = fs.symlink(&root, dir, leaf, symlink_target(len).as_bytes())?;
                fs.forget(made.ino, 1);
                Ok(())
            })?,
            Op::Rmdir(name) => self.in_parent(name, |dir, leaf| Ok(fs.rmdir(dir, leaf)?))?,
            Op::Unlink(name) => self.in_parent(name, |dir, leaf| Ok(fs.unlink(dir, leaf)?))?,
            Op::UnlinkOpen(name) => {
                let ino = lookup(fs, &self.full(name))?;
                fs.open(ino, OpenFlags::default())?;
                self.in_parent(name, |dir, leaf| Ok(fs.unlink(dir, leaf)?))?;
            }
            Op::Link(from, to) => self.with(from, |ino| {
                self.in_parent(to, |dir, leaf| {
                    let made = fs.link(&root, ino, dir, leaf)?;
                    fs.forget(made.ino, 1);
                    Ok(())
                })
            })?,
            Op::Rename(from, to) => self.rename(from, to, RenameFlags::default())?,
            Op::Exchange(a, b) => {
                self.rename(a, b, RenameFlags { exchange: true, ..RenameFlags::default() })?
            }
            Op::Write { file, way, .. } | Op::Append { file, way, .. } => {
                let (at, len) = written.context("a write has a range")?;
                let mode = if way == Way::Direct { WriteMode::Direct } else { WriteMode::Cached };
                let data = vec![tag; (len * CELL) as usize];
                let done = self.with(file, |ino| Ok(fs.write(&root, ino, at * CELL, &data, mode)?))?;
                ensure!(done == data.len(), "wrote {done} of {}", data.len());
            }
            Op::Truncate(file, size) => {
                let change = SetAttr { size: Some(size * CELL), ..SetAttr::default() };
                self.with(file, |ino| Ok(fs.setattr(ino, &change)?)).map(drop)?;
            }
            Op::Chmod(file, mode) => {
                let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
                self.with(file, |ino| Ok(fs.setattr(ino, &change)?)).map(drop)?;
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
                self.with(file, |ino| Ok(fs.fallocate(&root, ino, at * CELL, len * CELL, mode)?))?;
            }
            Op::SetXattr(file, attr, len) => {
                let value = vec![tag; len];
                self.with(file, |ino| {
                    Ok(fs.setxattr(&root, ino, attr.as_bytes(), &value, SetXattr::Any, false)?)
                })?;
            }
            Op::RemoveXattr(file, attr) => {
                self.with(file, |ino| Ok(fs.removexattr(&root, ino, attr.as_bytes())?))?;
            }
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<()> {
        self.in_parent(from, |from_dir, from_leaf| {
            self.in_parent(to, |to_dir, to_leaf| {
                Ok(self.fs.rename(&Caller::root(), (from_dir, from_leaf), (to_dir, to_leaf), flags)?)
            })
        })
    }

    /// Makes durable what `what` says after `op`; `data_only` decides whether a directory is fsynced or
    /// fdatasynced.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn persist(&self, op: &Op, what: Persist, data_only: bool) -> Result<()> {
        let fs = &self.fs;
        match what {
            Persist::No => Ok(()),
            Persist::Sync => Ok(fs.syncfs()?),
            Persist::FsyncParent => self.with(parent(op.target()), |ino| Ok(fs.fsyncdir(ino, data_only)?)),
            Persist::Fsync | Persist::Fdatasync => {
                self.with(op.target(), |ino| Ok(fs.fsync(ino, what == Persist::Fdatasync)?))
            }
        }
    }

    /// Looks `path` up, as a kernel does, for the time of `f`.
    pub fn with<T>(&self, path: &str, f: impl FnOnce(Ino) -> Result<T>) -> Result<T> {
        let ino = lookup(&self.fs, &self.full(path))?;
        let result = f(ino);
        if ino != self.fs.root() {
            self.fs.forget(ino, 1);
        }
        result
    }

    fn in_parent<T>(&self, path: &str, f: impl FnOnce(Ino, &[u8]) -> Result<T>) -> Result<T> {
        let leaf = path.rsplit('/').next().unwrap_or(path);
        self.with(parent(path), |dir| f(dir, leaf.as_bytes()))
    }
}

/// The inode of a path; takes a reference unless it is the root.
pub fn lookup(fs: &Filesystem, path: &str) -> Result<Ino> {
    let mut at = fs.root();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let next = fs.lookup(at, name.as_bytes()).with_context(|| format!("lookup of {path}"))?.ino;
        if at != fs.root() {
            fs.forget(at, 1);
        }
        at = next;
    }
    Ok(at)
}
