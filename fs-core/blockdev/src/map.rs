//! A read-only view of a whole device, for scans that touch most of it (fsck).
//!
//! Never a write: a mapping has no ordering and turns an IO error into SIGBUS. A reader of a medium
//! that may fail uses `read_at`, which returns the error.

use std::io;
use std::ops::Deref;

use crate::FileDevice;

/// The device's bytes, paged in on demand.
pub struct ReadOnlyMap {
    map: memmap2::Mmap,
}

impl ReadOnlyMap {
    /// Maps `device` from its first to its last byte.
    ///
    /// # Errors
    /// What mmap(2) says, or `InvalidInput` for a device that does not fit the address space.
    pub fn of(device: &FileDevice) -> io::Result<ReadOnlyMap> {
        let (file, start, size) = device.backing();
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the mapping is private to this process and read only. Bytes that another writer
        // changes under us are plain data to every user, who parse them as hostile input; the open
        // options' exclusive claim keeps our own tools from shrinking the file under the mapping.
        let map = unsafe { memmap2::MmapOptions::new().offset(start).len(len).map(file) }?;
        Ok(ReadOnlyMap { map })
    }
}

impl Deref for ReadOnlyMap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}
