//! Where the contents of archives wait that cannot be read twice: a file without a name, which goes away with
//! the process. Memory stays bounded, whatever the archive holds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Error, Result};

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;
/// A content of at least this many bytes starts at a multiple of [`ALIGN`], so that it can be cloned.
const LARGE: u64 = 64 << 10;
const ALIGN: u64 = 4096;

/// The spool of one archive.
pub struct Spool {
    file: Arc<File>,
    folder: PathBuf,
    /// Where `pending` belongs.
    at: u64,
    pending: Vec<u8>,
}

impl Spool {
    /// An empty spool in a folder.
    pub fn new(folder: &Path) -> Result<Spool> {
        let file = tempfile::tempfile_in(folder).map_err(|source| Error::write(folder, source))?;
        let pending = Vec::with_capacity(BUFFER);
        Ok(Spool { file: Arc::new(file), folder: folder.to_owned(), at: 0, pending })
    }

    /// The file behind it.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Where a content of `len` bytes starts that is appended next.
    pub fn start(&mut self, len: u64) -> Result<u64> {
        let end = self.at + self.pending.len() as u64;
        if len < LARGE || end.is_multiple_of(ALIGN) {
            return Ok(end);
        }
        self.flush()?;
        self.at = end.next_multiple_of(ALIGN);
        Ok(self.at)
    }

    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.pending.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            return self.write(bytes);
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Hands everything to the file.
    pub fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.write(&pending)?;
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.at).map_err(|source| Error::write(&self.folder, source))?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}
