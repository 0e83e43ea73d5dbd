//! Making directories.

use ext4_format::inode::FileType;

use super::create::Content;
use crate::error::Result;
use crate::node::Dir;
use crate::types::Credentials;

impl Dir {
    /// Makes the directory `name` with the permissions `mode`, owned by root.
    ///
    /// # Errors
    /// Those of [`Dir::create_dir_as`].
    pub fn create_dir(&self, name: impl AsRef<[u8]>, mode: u16) -> Result<Dir> {
        self.create_dir_as(&Credentials::root(), name, mode)
    }

    /// Makes the directory `name`, owned by `caller`, with the permissions `mode`, narrowed like those of any
    /// new file.
    ///
    /// # Errors
    /// Those of [`Dir::mknod_as`], and `TooManyLinks` when the directory cannot count one more.
    pub fn create_dir_as(&self, caller: &Credentials, name: impl AsRef<[u8]>, mode: u16) -> Result<Dir> {
        let mode = FileType::Directory.mode_bits() | mode & !FileType::MODE_MASK;
        self.make(caller, name.as_ref(), mode, Content::Directory)?.into_dir()
    }
}
