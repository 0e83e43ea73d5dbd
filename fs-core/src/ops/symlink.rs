//! Making symbolic links: short ones (up to 59 bytes) lie in the inode, others in a block.

use ext4_format::Ino;
use ext4_format::inode::FileType;
use ext4_format::inode::mode::S_IRWXUGO;

use super::create::Content;
use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::types::{Caller, Entry};

impl Filesystem {
    /// Makes `name` in `parent` a symbolic link to `target`. One reference of the kernel comes
    /// with the answer.
    ///
    /// # Errors
    /// Those of [`Filesystem::mknod`], `NotFound` for an empty target, `NameTooLong` for one that
    /// does not fit a block with its terminating zero.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Entry> {
        if target.is_empty() {
            return Err(Posix::NotFound.into());
        }
        if target.len() >= self.vol.block_size() as usize {
            return Err(Posix::NameTooLong.into());
        }
        let mode = FileType::Symlink.mode_bits() | S_IRWXUGO;
        self.create(caller, parent, name, mode, Content::Target(target))
    }
}
