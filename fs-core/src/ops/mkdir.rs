//! Making directories.

use ext4_format::Ino;
use ext4_format::inode::FileType;

use super::create::Content;
use crate::error::Result;
use crate::fs::Filesystem;
use crate::types::{Caller, Entry};

impl Filesystem {
    /// Makes the directory `name` in `parent` with the permissions `mode`, narrowed like those of
    /// any new file. One reference of the kernel comes with the answer.
    ///
    /// # Errors
    /// Those of [`Filesystem::mknod`], and `TooManyLinks` when `parent` cannot count one more.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u16) -> Result<Entry> {
        let mode = FileType::Directory.mode_bits() | mode & !FileType::MODE_MASK;
        self.create(caller, parent, name, mode, Content::Directory)
    }
}
