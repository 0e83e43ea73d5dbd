//! Copying between files of the volume without a round trip through the caller.

use blockdev::PooledBuf;

use crate::error::{Posix, Result};
use crate::node::OpenFile;
use crate::ops::write::WriteKind;
use crate::types::Credentials;

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

impl OpenFile {
    /// Copies `len` bytes from byte `from_offset` on to `to_offset` of `to`, a file of the same filesystem;
    /// gives the number of bytes copied, fewer at the end of this file.
    ///
    /// # Errors
    /// Those of [`OpenFile::copy_range_as`].
    pub fn copy_range(&self, from_offset: u64, to: &OpenFile, to_offset: u64, len: u64) -> Result<u64> {
        self.copy_range_as(&Credentials::root(), from_offset, to, to_offset, len)
    }

    /// The same by somebody else, who takes privileges off `to` ([`crate::Node::kill_privileges`]) and may not take the
    /// blocks that are set aside.
    ///
    /// # Errors
    /// `Invalid` for overlapping ranges of one file, `CrossDevice` for one of another filesystem, and those of read and write when nothing
    /// was copied yet.
    pub fn copy_range_as(
        &self,
        caller: &Credentials,
        from_offset: u64,
        to: &OpenFile,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        to.same_filesystem(self)?;
        if self.ino() == to.ino() && from_offset.abs_diff(to_offset) < len {
            return Err(Posix::Invalid.into());
        }
        // What the copy itself adds to the file is not copied again.
        let size = self.attributes()?.size;
        let len = len.min(size.saturating_sub(from_offset));
        if len > 0 {
            to.kill_privileges_by(caller)?;
        }
        let mut buf = PooledBuf::try_take(len.min(CHUNK) as usize).map_err(|_| Posix::NoMemory)?;
        let mut copied = 0;
        while copied < len {
            let want = (len - copied).min(CHUNK) as usize;
            let chunk = self
                .read_at(&mut buf[..want], from_offset + copied)
                .and_then(|got| to.write_as(caller, &buf[..got], to_offset + copied, WriteKind::Cached));
            match chunk {
                Ok(0) => break,
                Ok(written) => copied += written as u64,
                Err(_) if copied > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }
}
