//! The file that shows that a server uses the volume (`lockfile=`, as with fuse2fs): made before anything is
//! opened, gone when everything is written. It keeps nobody out.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing::warn;

/// The file, which goes when this is dropped. A device or pipe of that name is none of ours and stays.
pub struct LockFile {
    path: PathBuf,
    opened: Metadata,
}

impl LockFile {
    /// Makes the file; one that a killed server has left serves again.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn create(path: &Path) -> Result<LockFile> {
        let name = || format!("lock file {}", path.display());
        // The server leaves its working directory.
        let path = std::path::absolute(path).with_context(name)?;
        let file = File::options().write(true).create(true).truncate(false).open(&path).with_context(name)?;
        let opened = file.metadata().with_context(name)?;
        Ok(LockFile { path, opened })
    }

    /// Whether the name still leads to the regular file that was opened, and not by a symbolic link.
    fn is_ours(&self) -> bool {
        let is_opened = |now: Metadata| (now.dev(), now.ino()) == (self.opened.dev(), self.opened.ino());
        self.opened.is_file() && fs::symlink_metadata(&self.path).is_ok_and(is_opened)
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if self.is_ours()
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(%error, "the lock file {} stays", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_and_what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        drop(LockFile::create(&file).unwrap());
        assert!(!file.exists());

        File::create(&file).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        drop(LockFile::create(&link).unwrap());
        assert!(file.exists() && link.exists());

        let lock = LockFile::create(&file).unwrap();
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        drop(lock);
        assert!(file.is_dir());

        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _reader = File::options().read(true).write(true).open(&fifo).unwrap();
        drop(LockFile::create(&fifo).unwrap());
        assert!(fifo.exists(), "no regular file, as /dev/null is none");
    }
}
