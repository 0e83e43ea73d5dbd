//! Reading directories. What a cookie means is `dir`'s secret, except that 0 is the start.

use std::ops::ControlFlow;

use crate::dir::Item;
use crate::error::Result;
use crate::node::{Dir, Node};

impl Dir {
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
