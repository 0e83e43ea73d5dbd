//! Making files that are neither directories nor symbolic links.

use ext4_format::Ino;
use ext4_format::inode::FileType;

use super::create::Content;
use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::types::{Caller, Entry};

impl Filesystem {
    /// Makes `name` in `parent`: a regular file, a pipe, a socket or a device, as the type in
    /// `mode` says. The caller's umask, or the directory's default access control list, narrows
    /// the permissions. One reference of the kernel comes with the answer.
    ///
    /// # Errors
    /// `Exists`, `NotDirectory`, `NotFound` in a directory that was removed, `NotPermitted` for a
    /// directory or a link in `mode` or when inode flags forbid it, `NoSpace`.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u16,
        rdev: (u32, u32),
    ) -> Result<Entry> {
        let content = match FileType::from_mode(mode) {
            Some(FileType::Regular | FileType::Fifo | FileType::Socket) => Content::Nothing,
            Some(FileType::CharDevice | FileType::BlockDevice) => Content::Device(rdev.0, rdev.1),
            Some(FileType::Directory | FileType::Symlink) => return Err(Posix::NotPermitted.into()),
            None => return Err(Posix::Invalid.into()),
        };
        self.create(caller, parent, name, mode, content)
    }
}
