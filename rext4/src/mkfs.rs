//! Making volumes, with the defaults and the layout of mke2fs.
//!
//! [`format()`] takes any device, and overwrites what is there; [`format_file`] makes a new image file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

#[doc(inline)]
pub use ::mkfs::{
    BuildError, BuildReport, Error, Free, ImageBuilder, Kind, Options, ParseError, Report, Result, Source,
    Step, Usage, Watch, format, format_watched, probe, size_in_bytes,
};

#[doc(inline)]
pub use ext4_format::superblock::{OnError, SuperBlock};

use crate::device;

/// Why no image file was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file could not be made; it may be there already.
    #[error("cannot create {}: {source}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file could not be opened as a device.
    #[error(transparent)]
    Open(#[from] device::OpenError),
    /// The volume could not be made.
    #[error(transparent)]
    Format(#[from] Error),
}

/// Makes a sparse image file of `size` bytes at `path`, and a volume in it. An image that is there is left alone.
///
/// # Errors
/// [`FormatError`]; no file is left then.
pub fn format_file(
    path: impl AsRef<Path>,
    size: u64,
    options: &Options,
) -> std::result::Result<Report, FormatError> {
    let path = path.as_ref();
    let failed = |source| FormatError::Create { path: path.to_owned(), source };
    let file = File::create_new(path).map_err(failed)?;
    let made = file.set_len(size).map_err(failed).and_then(|()| {
        let device = device::open(path, &device::OpenOptions::default())?;
        Ok(format(&*device, options)?)
    });
    if made.is_err() {
        // The error is what the caller has to know.
        let _ = std::fs::remove_file(path);
    }
    made
}
