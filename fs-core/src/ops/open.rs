//! Opening and closing regular files.

use std::sync::Arc;

use ext4_format::inode::flag;

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::{Node, OpenFile};

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenFlags {
    /// For writing.
    pub write: bool,
    /// [`std::io::Write`] writes at the end. (Writes at a given position do as they are told.)
    pub append: bool,
    /// The content is dropped.
    pub truncate: bool,
}

impl Node {
    /// Opens a regular file.
    ///
    /// # Errors
    /// `IsDirectory`, `Invalid` for what is no regular file, `NotPermitted` for what the inode's flags forbid,
    /// `ReadOnly`.
    pub fn open(&self, flags: OpenFlags) -> Result<OpenFile> {
        let fs = self.filesystem();
        fs.vol.alive()?;
        self.inode().expect_file()?;
        if flags.write || flags.truncate {
            fs.vol.writable()?;
            let marks = self.inode().core.read().disk.flags;
            let append_only = marks & flag::APPEND != 0 && (!flags.append || flags.truncate);
            if marks & flag::IMMUTABLE != 0 || append_only {
                return Err(Posix::NotPermitted.into());
            }
        }
        if flags.truncate {
            fs.truncate(self.inode(), 0)?;
        }
        Ok(OpenFile::new(self.clone(), flags.write, flags.append))
    }
}

impl Filesystem {
    /// An open file description of `inode` ends. A file that was cut to nothing and written again starts on
    /// its way to the device, so that a crash does not leave it empty.
    pub(crate) fn close_file(&self, inode: &Arc<Inode>, may_write: bool) {
        let (last_writer, rewritten) = {
            let mut io = inode.io.lock();
            io.writers -= u32::from(may_write);
            let rewritten = self.vol.opts.auto_da_alloc && std::mem::take(&mut io.rewritten);
            (may_write && io.writers == 0, rewritten)
        };
        if last_writer {
            self.alloc.close_stream(inode.ino);
        }
        if rewritten {
            self.data.hasten(inode);
        }
    }
}
