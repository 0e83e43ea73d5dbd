//! The image file: without a name until it is complete, so that nothing is left behind when something fails,
//! whatever ends the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockdev::FileDevice;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::error::{Error, Result};

/// A file that becomes the image.
pub struct Output {
    /// Where the image will be.
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    /// Has no name; goes away by itself.
    Nameless(OwnedFd),
    /// Where the host knows no such files: has another name, and is deleted when dropped.
    Named(tempfile::NamedTempFile),
}

impl Output {
    /// Creates the file, `size` bytes of nothing.
    pub fn create(path: &Path, size: u64) -> Result<Output> {
        // Through a symbolic link the file it leads to is replaced, not the link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let failed = |source: io::Error| Error::write(&path, source);
        if path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let kind = create(folder(&path)).map_err(failed)?;
        let output = Output { kind, path: path.clone() };
        output.file().map_err(failed)?.set_len(size).map_err(failed)?;
        Ok(output)
    }

    fn file(&self) -> io::Result<File> {
        match &self.kind {
            Kind::Nameless(fd) => Ok(File::from(fd.try_clone()?)),
            Kind::Named(file) => file.as_file().try_clone(),
        }
    }

    /// The file as a device.
    pub fn device(&self) -> Result<Arc<FileDevice>> {
        let path = match &self.kind {
            Kind::Nameless(fd) => PathBuf::from(proc_path(fd)),
            Kind::Named(file) => file.path().to_owned(),
        };
        Ok(blockdev::open(path, &blockdev::OpenOptions::default())?)
    }

    /// Gives the complete image its name; what was there is replaced.
    pub fn finish(self) -> Result<()> {
        let Output { path, kind } = self;
        let failed = |source: io::Error| Error::write(&path, source);
        let old = path.metadata().ok().filter(std::fs::Metadata::is_file);
        match kind {
            Kind::Nameless(fd) => {
                if let Some(old) = &old {
                    let mode = Mode::from_raw_mode(old.mode() & 0o7777);
                    rustix::fs::fchmod(&fd, mode).map_err(|errno| failed(errno.into()))?;
                }
                name(&fd, &path).map_err(failed)?;
            }
            Kind::Named(file) => {
                if let Some(old) = &old {
                    let mode = std::fs::Permissions::from_mode(old.mode() & 0o7777);
                    file.as_file().set_permissions(mode).map_err(failed)?;
                }
                file.persist(&path).map_err(|error| failed(error.error))?;
            }
        }
        // The name survives a power cut as well.
        let folder = File::open(folder(&path)).map_err(failed)?;
        match folder.sync_all() {
            Err(error) if error.raw_os_error() != Some(Errno::INVAL.raw_os_error()) => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

/// The folder that a file lies in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn create(folder: &Path) -> io::Result<Kind> {
    let how = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::open(folder, how, Mode::from_raw_mode(0o666))
        && Path::new(&proc_path(&fd)).exists()
    {
        return Ok(Kind::Nameless(fd));
    }
    let file = tempfile::Builder::new().prefix(".rext4-").make_in(folder, |path| {
        File::options().read(true).write(true).create_new(true).mode(0o666).open(path)
    })?;
    let (file, path) = file.into_parts();
    Ok(Kind::Named(tempfile::NamedTempFile::from_parts(file, path)))
}

/// Links a nameless file to a path, over what is there.
fn name(fd: &OwnedFd, path: &Path) -> io::Result<()> {
    let link = |to: &Path| rustix::fs::linkat(CWD, proc_path(fd), CWD, to, AtFlags::SYMLINK_FOLLOW);
    match link(path) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            // link(2) does not replace: another name first, which rename(2) moves over.
            for _ in 0..16 {
                let other = folder(path).join(format!(".rext4-{}", uuid::Uuid::new_v4().simple()));
                match link(&other) {
                    Ok(()) => {
                        let renamed = std::fs::rename(&other, path);
                        if renamed.is_err() {
                            let _ = std::fs::remove_file(&other);
                        }
                        return renamed;
                    }
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Device and inode number of the file at a path, when there is one.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}
