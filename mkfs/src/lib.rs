//! Makes an ext4 (ext3, ext2) volume, with the defaults and the layout of mke2fs 1.47; empty, or holding a tree.
//!
//! `layout` turns options into a superblock, purely; `volume` holds the volume that comes to be: which blocks
//! are taken, the inodes and the metadata blocks so far; `files` adds the root, lost+found, the resize inode,
//! the orphan file and the journal; `write` puts it on the device, the primary superblock last, so that a
//! format cut short leaves no filesystem. What must read as zeros is handed to the device's `write_zeroes`,
//! which costs a sparse image nothing. `populate` builds images that hold a tree:
//!
//! ```
//! # let folder = tempfile::tempdir()?;
//! # let (tree, image) = (folder.path().join("tree"), folder.path().join("root.img"));
//! # std::fs::create_dir(&tree)?;
//! # std::fs::write(tree.join("hello"), "hello")?;
//! let report = mkfs::ImageBuilder::new()
//!     .source(mkfs::Source::dir(&tree))
//!     .free(mkfs::Free::Bytes(10 << 20))
//!     .build(&image)?;
//! assert_eq!((report.files, report.size), (1, std::fs::metadata(&image)?.len()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod files;
mod layout;
mod mapping;
mod options;
mod parse;
mod populate;
pub mod probe;
mod volume;
mod write;

use blockdev::BlockDevice;
use ext4_format::superblock::SuperBlock;

pub use error::{Error, Result};
pub use layout::Layout;
pub use options::{Kind, Options, Usage};
pub use parse::{ParseError, size_in_bytes};
pub use populate::{BuildReport, Error as BuildError, Event, Free, IdRange, ImageBuilder, Platform, Source};

/// What is being done, for a progress display.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Giving the device's old blocks back.
    Discard,
    /// Zeroing inode tables.
    InodeTables,
    /// Copying the data of files, in bytes.
    Files,
    /// Making the journal of this many blocks.
    Journal(u32),
    /// Writing bitmaps, descriptors and superblocks.
    Accounting,
}

/// Told how far a step is: `done` of `total`, at its start, now and then, and at its end.
pub type Watch<'a> = dyn FnMut(Step, u64, u64) + 'a;

/// A finished volume.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its superblock.
    pub superblock: SuperBlock,
    /// What was decided and why, where the options left a choice or could not be met in full.
    pub layout: Layout,
    /// Bytes of metadata written to the device, zeroed ranges not counted.
    pub written: u64,
}

/// A path for messages.
fn show_path(path: &std::path::Path) -> std::path::Display<'_> {
    path.display()
}

/// Formats a device.
///
/// # Errors
/// Options that cannot be met (nothing was written), or a device that failed.
pub fn format(device: &dyn BlockDevice, options: &Options) -> Result<Report> {
    format_watched(device, options, &mut |_, _, _| {})
}

/// Formats a device and tells how far it is.
///
/// # Errors
/// As [`format()`].
pub fn format_watched(device: &dyn BlockDevice, options: &Options, watch: &mut Watch<'_>) -> Result<Report> {
    let geometry = device.geometry();
    if geometry.read_only {
        return Err(Error::ReadOnly);
    }
    let random = || Some(*uuid::Uuid::new_v4().as_bytes());
    let options = Options {
        uuid: options.uuid.or_else(random),
        hash_seed: options.hash_seed.or_else(random),
        ..options.clone()
    };
    let layout = Layout::new(&options, geometry.size, geometry.logical_sector)?;
    let volume = files::build(&layout, &options)?;
    write::prepare(device, &layout, &options, watch)?;
    let written = write::write(device, volume, &layout, &options, None, watch)?;
    Ok(Report { superblock: written.superblock, layout, written: written.bytes })
}
