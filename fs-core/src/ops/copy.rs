//! Copying between files of the volume without a round trip through the caller.

use blockdev::PooledBuf;
use ext4_format::Ino;

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::ops::write::WriteMode;
use crate::types::Caller;

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

impl Filesystem {
    /// Copies `len` bytes of `from` at `from_offset` to `to` at `to_offset`; gives the number of
    /// bytes copied, fewer at the end of `from`.
    ///
    /// # Errors
    /// `Invalid` for overlapping ranges of one file, and those of read and write when nothing
    /// was copied yet.
    pub fn copy_range(&self, caller: &Caller, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        let ((from, from_offset), (to, to_offset)) = (from, to);
        if from == to && from_offset.abs_diff(to_offset) < len {
            return Err(Posix::Invalid.into());
        }
        // What the copy itself adds to the file is not copied again.
        let size = self.getattr(from)?.size;
        let len = len.min(size.saturating_sub(from_offset));
        if len > 0 {
            self.kill_privileges_for(caller, to)?;
        }
        let mut buf = PooledBuf::try_take(len.min(CHUNK) as usize).map_err(|_| Posix::NoMemory)?;
        let mut copied = 0;
        while copied < len {
            let want = (len - copied).min(CHUNK) as usize;
            let chunk = self
                .read(from, from_offset + copied, &mut buf[..want])
                .and_then(|got| self.write(caller, to, to_offset + copied, &buf[..got], WriteMode::Cached));
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
