//! Reading directories. What a cookie means is `dir`'s secret, except that 0 is the start.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;

use ext4_format::Ino;
use ext4_format::inode::FileType;

use crate::dir::Item;
use crate::error::Result;
use crate::node::{Dir, Node};

/// Entries that [`ReadDir`] takes at a time.
const BATCH: usize = 256;

impl Dir {
    /// What the directory holds, without the dots. A name that is there all the time is given exactly once,
    /// whatever comes and goes meanwhile.
    #[must_use]
    pub fn read_dir(&self) -> ReadDir {
        ReadDir { dir: Arc::new(self.clone()), cookie: Some(0), batch: VecDeque::new() }
    }

    /// Gives the names from `cookie` on, the dots first, until there are no more or `emit` breaks; the item it
    /// breaks at counts as not given. A name that is there all the time is given exactly once, whatever happens
    /// to others between two calls. `emit` runs with the directory locked and must not use it.
    ///
    /// # Errors
    /// Those of a damaged directory.
    pub fn list(&self, cookie: u64, mut emit: impl FnMut(&Item<'_>) -> ControlFlow<()>) -> Result<()> {
        let (fs, inode) = (self.filesystem(), self.inode());
        fs.vol.alive()?;
        fs.data.touch_read(inode);
        let _lock = inode.lock.read();
        fs.entries(inode).list(cookie, &mut emit)
    }

    /// The same with each name's file. An item whose inode cannot be read has none.
    ///
    /// # Errors
    /// Those of [`Dir::list`].
    pub fn list_nodes(
        &self,
        cookie: u64,
        mut emit: impl FnMut(&Item<'_>, Option<Node>) -> ControlFlow<()>,
    ) -> Result<()> {
        let (fs, inode) = (self.filesystem(), self.inode());
        fs.vol.alive()?;
        fs.data.touch_read(inode);
        let _lock = inode.lock.read();
        fs.entries(inode).list(cookie, &mut |item| {
            let Ok(child) = fs.hold(item.ino) else {
                tracing::warn!(dir = %inode.ino, child = %item.ino, "an entry's inode cannot be read");
                return emit(item, None);
            };
            emit(item, Some(child.keep(fs)))
        })
    }
}

/// The entries of a directory; see [`Dir::read_dir`].
pub struct ReadDir {
    dir: Arc<Dir>,
    /// Where to read on; `None` at the end.
    cookie: Option<u64>,
    batch: VecDeque<DirEntry>,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    dir: Arc<Dir>,
    name: OsString,
    ino: Ino,
    kind: Option<FileType>,
}

impl ReadDir {
    fn read_on(&mut self) -> Result<()> {
        let Some(from) = self.cookie.take() else { return Ok(()) };
        self.dir.clone().list(from, |item| {
            if self.batch.len() == BATCH {
                return ControlFlow::Break(());
            }
            self.cookie = Some(item.next);
            if !matches!(item.name, b"." | b"..") {
                self.batch.push_back(DirEntry {
                    dir: self.dir.clone(),
                    name: OsString::from_vec(item.name.to_vec()),
                    ino: item.ino,
                    kind: item.kind,
                });
            }
            ControlFlow::Continue(())
        })
    }
}

impl Iterator for ReadDir {
    type Item = Result<DirEntry>;

    fn next(&mut self) -> Option<Result<DirEntry>> {
        // A batch may hold nothing but dots.
        while self.batch.is_empty() && self.cookie.is_some() {
            if let Err(error) = self.read_on() {
                self.cookie = None;
                return Some(Err(error));
            }
        }
        self.batch.pop_front().map(Ok)
    }
}

impl DirEntry {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// The number of the inode that it names.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// The recorded type of the file, where directories keep it (feature `filetype`).
    #[must_use]
    pub fn kind(&self) -> Option<FileType> {
        self.kind
    }

    /// The file that has the name now.
    ///
    /// # Errors
    /// Those of [`Dir::lookup`].
    pub fn node(&self) -> Result<Node> {
        self.dir.lookup(self.name.as_encoded_bytes())
    }
}
