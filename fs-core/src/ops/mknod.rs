//! Making files that are neither directories nor symbolic links.

use ext4_format::inode::FileType;

use super::create::Content;
use crate::error::{Posix, Result};
use crate::node::{Dir, Node, OpenFile};
use crate::ops::OpenFlags;
use crate::types::Credentials;

impl Dir {
    /// Makes the regular file `name` with the permissions `mode`, owned by root, and opens it for writing.
    ///
    /// # Errors
    /// Those of [`Dir::mknod_as`]; `Exists` whatever it is that has the name.
    pub fn create(&self, name: impl AsRef<[u8]>, mode: u16) -> Result<OpenFile> {
        self.create_as(&Credentials::root(), name, mode)
    }

    /// The same for `caller`.
    ///
    /// # Errors
    /// Those of [`Dir::create`].
    pub fn create_as(&self, caller: &Credentials, name: impl AsRef<[u8]>, mode: u16) -> Result<OpenFile> {
        let mode = FileType::Regular.mode_bits() | mode & !FileType::MODE_MASK;
        let made = self.mknod_as(caller, name, mode, (0, 0))?;
        made.open(OpenFlags { write: true, ..OpenFlags::default() })
    }

    /// Makes `name`, owned by `caller`: a regular file, a pipe, a socket or a device, as the type in `mode`
    /// says; `rdev` are a device's major and minor number. The caller's umask, or the directory's default
    /// access control list, narrows the permissions.
    ///
    /// # Errors
    /// `Exists`, `NotFound` in a directory that was removed, `NotPermitted` for a
    /// directory or a link in `mode` or when inode flags forbid it, `NoSpace`.
    pub fn mknod_as(
        &self,
        caller: &Credentials,
        name: impl AsRef<[u8]>,
        mode: u16,
        rdev: (u32, u32),
    ) -> Result<Node> {
        let content = match FileType::from_mode(mode) {
            Some(FileType::Regular | FileType::Fifo | FileType::Socket) => Content::Nothing,
            Some(FileType::CharDevice | FileType::BlockDevice) => Content::Device(rdev.0, rdev.1),
            Some(FileType::Directory | FileType::Symlink) => return Err(Posix::NotPermitted.into()),
            None => return Err(Posix::Invalid.into()),
        };
        self.make(caller, name.as_ref(), mode, content)
    }
}
