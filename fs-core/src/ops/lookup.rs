//! Finding a name.

use ext4_format::Ino;
use ext4_format::dirent::MAX_NAME;

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::types::Entry;

impl Filesystem {
    /// The child `name` of `parent`; one reference of the kernel comes with it. The dots are
    /// names too.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`, and those of a damaged directory.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Entry> {
        self.vol.alive()?;
        if name.len() > MAX_NAME {
            return Err(Posix::NameTooLong.into());
        }
        let parent = self.directory(parent)?;
        let _lock = parent.lock.read();
        let found = self.entries(&parent).find(name)?.ok_or(Posix::NotFound)?;
        let child = if found.ino == parent.ino && (name == b"." || name == b"..") {
            parent.clone()
        } else {
            self.child(&parent, &found)?
        };
        Ok(self.entry(&child))
    }
}
