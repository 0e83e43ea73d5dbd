//! Reading directories. What a cookie means is `dir`'s secret, except that 0 is the start.

use std::ops::ControlFlow;

use ext4_format::Ino;

use crate::dir::Item;
use crate::error::Result;
use crate::fs::Filesystem;
use crate::types::Attr;

impl Filesystem {
    /// Gives the names of `ino` from `cookie` on, the dots first, until there are no more or
    /// `emit` breaks; the item it breaks at counts as not given. A name that is there all the
    /// time is given exactly once, whatever happens to others between two calls.
    ///
    /// # Errors
    /// `NotDirectory`, and those of a damaged directory.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        mut emit: impl FnMut(&Item<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.vol.alive()?;
        let inode = self.directory(ino)?;
        self.data.touch_read(&inode);
        let _lock = inode.lock.read();
        self.entries(&inode).list(cookie, &mut emit)
    }

    /// The same with each name's attributes. One reference of the kernel comes with each item
    /// that was given, the dots excepted. An item whose inode cannot be read has none.
    pub fn readdir_plus(
        &self,
        ino: Ino,
        cookie: u64,
        mut emit: impl FnMut(&Item<'_>, Option<&Attr>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.vol.alive()?;
        let inode = self.directory(ino)?;
        self.data.touch_read(&inode);
        let _lock = inode.lock.read();
        self.entries(&inode).list(cookie, &mut |item| {
            let Ok(child) = self.inodes.get(item.ino) else {
                tracing::warn!(dir = %ino, child = %item.ino, "an entry's inode cannot be read");
                return emit(item, None);
            };
            let attr = child.attr(&child.core.read());
            let given = emit(item, Some(&attr));
            if given.is_continue() && !matches!(item.name, b"." | b"..") {
                self.inodes.reference(&child);
            }
            given
        })
    }
}
