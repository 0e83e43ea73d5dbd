//! Checking and repairing volumes, independently of the engine that writes them.
//!
//! [`check`] takes any device, [`check_file`](crate::check) only looks, [`check_path`] does what its [`Options`] say:
//!
//! ```
//! use rext4::{fsck, mkfs};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let image = folder.path().join("disk.img");
//! # mkfs::format_file(&image, 16 << 20, &mkfs::Options::default())?;
//! let options = fsck::Options { mode: fsck::Mode::Yes, force: true, ..Default::default() };
//! let report = fsck::check_path(&image, &options)?;
//! assert_eq!((report.count, report.changed), (0, false));
//! # Ok(())
//! # }
//! ```

use std::path::Path;

#[doc(inline)]
pub use ::fsck::{
    Answer, Code, Error, Finding, Mode, Options, Preen, Problem, Question, Report, Result, Row, Silent, Ui,
    UndoLog, Usage, check, check_with, undo,
};

#[doc(inline)]
pub use ext4_format::{BlockNo, GroupNo, Ino};

use crate::device;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The image file or block device could not be opened.
    #[error(transparent)]
    Open(#[from] device::OpenError),
    /// The check did not come to its end.
    #[error(transparent)]
    Check(#[from] Error),
}

/// Checks the volume in an image file or on a block device, all of it, and changes nothing.
///
/// # Errors
/// [`CheckError`]. What is wrong with the volume is no error but in the report.
pub fn check_file(path: impl AsRef<Path>) -> std::result::Result<Report, CheckError> {
    check_path(path, &Options { force: true, ..Options::default() })
}

/// Checks the volume in an image file or on a block device, and repairs it as the options say. The device is opened
/// for reading only where they forbid repairs.
///
/// # Errors
/// [`CheckError`]; a device that is in use cannot be opened.
pub fn check_path(path: impl AsRef<Path>, options: &Options) -> std::result::Result<Report, CheckError> {
    let how = device::OpenOptions {
        read_only: !options.may_write(),
        direct: device::Direct::Never,
        ..device::OpenOptions::default()
    };
    Ok(check(device::open(path, &how)?, options)?)
}
