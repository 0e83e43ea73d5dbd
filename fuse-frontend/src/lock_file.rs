//! The file that shows that a server uses the volume (`lockfile=`, as with fuse2fs): made before anything is
//! opened, gone when everything is written. It keeps nobody out.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing::warn;

/// The file, which goes when this is dropped.
pub struct LockFile(PathBuf);

impl LockFile {
    /// Makes the file; one that a killed server has left serves again.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn create(path: &Path) -> Result<LockFile> {
        let name = || format!("lock file {}", path.display());
        // The server leaves its working directory.
        let path = std::path::absolute(path).with_context(name)?;
        File::options().write(true).create(true).truncate(false).open(&path).with_context(name)?;
        Ok(LockFile(path))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            warn!(%error, "the lock file {} stays", self.0.display());
        }
    }
}
