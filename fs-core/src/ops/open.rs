//! Opening and closing regular files. What keeps an open file without a name alive is the count of
//! open handles.

use std::sync::atomic::Ordering;

use ext4_format::Ino;
use ext4_format::inode::flag;

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::types::OpenId;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenFlags {
    /// For writing.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// The content is dropped (the frontend calls `setattr` for it).
    pub truncate: bool,
}

impl Filesystem {
    /// Opens `ino`; each success is paired with a [`Filesystem::release`]. The number is for
    /// [`Filesystem::fsync_opened`].
    ///
    /// # Errors
    /// `NotPermitted` for what the inode's flags forbid, `ReadOnly`.
    pub fn open(&self, ino: Ino, flags: OpenFlags) -> Result<OpenId> {
        self.vol.alive()?;
        let inode = self.inodes.get(ino)?;
        if flags.write || flags.truncate {
            self.vol.writable()?;
            let marks = inode.core.read().disk.flags;
            let append_only = marks & flag::APPEND != 0 && (!flags.append || flags.truncate);
            if marks & flag::IMMUTABLE != 0 || append_only {
                return Err(Posix::NotPermitted.into());
            }
        }
        inode.opens.fetch_add(1, Ordering::AcqRel);
        Ok(self.data.next_opening())
    }

    /// Closes a handle of `ino`. A file that was cut to nothing and written again starts on its
    /// way to the device, so that a crash does not leave it empty.
    pub fn release(&self, ino: Ino) {
        let Some(inode) = self.inodes.peek(ino) else { return };
        let take = |had: u32| Some(had.saturating_sub(1));
        if inode.opens.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok_and(|had| had <= 1) {
            self.alloc.close_stream(ino);
            inode.io.lock().failures.all_closed();
        }
        if self.vol.opts.auto_da_alloc && std::mem::take(&mut inode.io.lock().rewritten) {
            self.data.hasten(&inode);
        }
        let unused = inode.is_unused();
        drop(inode);
        if unused {
            self.let_go(ino);
        }
    }
}
