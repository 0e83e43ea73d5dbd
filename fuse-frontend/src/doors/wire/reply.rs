//! Building replies: structures one behind the other in a buffer that the door provides.

use zerocopy::{Immutable, IntoBytes};

use super::abi::Dirent;

/// A reply under construction.
pub struct Reply<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl<'a> Reply<'a> {
    /// An empty reply that grows inside `buf`.
    pub fn new(buf: &'a mut [u8]) -> Reply<'a> {
        Reply { buf, len: 0 }
    }

    /// Number of bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a structure.
    ///
    /// # Errors
    /// EIO when there is no room: the kernel has asked for more than was agreed.
    pub fn structure(&mut self, value: &(impl IntoBytes + Immutable)) -> Result<(), i32> {
        self.bytes(value.as_bytes())
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// EIO when there is no room.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), i32> {
        let room = self.buf.get_mut(self.len..self.len + bytes.len()).ok_or(libc::EIO)?;
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Room for `len` bytes that the caller fills, to be followed by [`Reply::filled`].
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.buf.len() - self.len);
        &mut self.buf[self.len..self.len + len]
    }

    /// Counts `len` bytes of the last [`Reply::room`] in.
    pub fn filled(&mut self, len: usize) {
        self.len = (self.len + len).min(self.buf.len());
    }

    /// Adds a name of a listing, after `prefix` (READDIRPLUS) and padded to 8 bytes, unless the
    /// reply would grow beyond `limit`. Says whether it was added.
    pub fn entry(&mut self, prefix: &[u8], entry: &Dirent, name: &[u8], limit: usize) -> bool {
        let bare = prefix.len() + size_of::<Dirent>() + name.len();
        let padded = bare.next_multiple_of(8);
        if self.len + padded > limit.min(self.buf.len()) {
            return false;
        }
        let padding = [0; 8];
        let parts = [prefix, entry.as_bytes(), name, &padding[..padded - bare]];
        parts.iter().all(|part| self.bytes(part).is_ok())
    }
}
