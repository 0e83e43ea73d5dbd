//! Making symbolic links: short ones (up to 59 bytes) lie in the inode, others in a block.

use ext4_format::inode::FileType;

use super::create::Content;
use crate::error::{Posix, Result};
use crate::node::{Dir, Node};
use crate::types::Credentials;

impl Dir {
    /// Makes `name` a symbolic link to `target`, owned by root.
    ///
    /// # Errors
    /// Those of [`Dir::symlink_as`].
    pub fn symlink(&self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Result<Node> {
        self.symlink_as(&Credentials::root(), name, target)
    }

    /// Makes `name` a symbolic link to `target`, owned by `caller`.
    ///
    /// # Errors
    /// Those of [`Dir::mknod_as`], `NotFound` for an empty target, `NameTooLong` for one that
    /// does not fit a block with its terminating zero.
    pub fn symlink_as(
        &self,
        caller: &Credentials,
        name: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
    ) -> Result<Node> {
        let target = target.as_ref();
        if target.is_empty() {
            return Err(Posix::NotFound.into());
        }
        if target.len() >= self.filesystem().block_size() as usize {
            return Err(Posix::NameTooLong.into());
        }
        let mode = FileType::Symlink.mode_bits() | 0o777;
        self.make(caller, name.as_ref(), mode, Content::Target(target))
    }
}
