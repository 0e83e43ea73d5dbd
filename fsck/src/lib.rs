//! The checker: an independent verifier of ext2, ext3 and ext4 volumes.
//!
//! It shares the format and the journal's replay with the rest of rext4, and recomputes every relation
//! itself. The passes are e2fsck's: (1) inodes and blocks, (2) directories, (3) connectivity, (4) links, (5)
//! bitmaps and counts. Each parallel pass runs twice over its subject with the same code: all of it with a
//! dry run that stops at the first problem, then what was suspicious with the prompter, which reports, asks and
//! repairs. Repairs write at once; after a round with repairs another round follows, until one finds nothing.

mod alloc;
mod bad_blocks;
mod context;
mod convergence;
mod disk;
mod due;
mod encryption;
mod error;
mod external;
mod inline_dir;
mod journal;
mod journal_backup;
mod map;
mod marks;
mod mmp;
mod optimize;
mod options;
mod orphans;
mod overlay;
mod parallel;
mod pass1;
mod pass1b;
mod pass2;
mod pass3;
mod pass4;
mod pass5;
mod paths;
mod problem;
mod prompt;
mod quota;
mod realign;
mod rehash;
mod release;
mod relocate;
mod replay;
mod report;
mod run;
mod scratch;
mod undo;
mod volume;

use std::sync::Arc;

use blockdev::BlockDevice;

pub use error::{Error, Result};
pub use mmp::{Protection, protect};
pub use options::{BadBlocks, Mode, Options};
pub use problem::{Code, Preen, Problem, Question, Row};
pub use prompt::{Answer, Silent, Ui};
pub use report::{Finding, Report, Usage};
pub use undo::{UndoLog, UndoOptions, Undone, undo};

/// Bytes of a block of the volume on a device.
///
/// # Errors
/// [`Error::Unusable`] when its superblock is no good, or the device's.
pub fn block_size(device: &dyn BlockDevice) -> Result<u32> {
    volume::block_size(device)
}

/// Checks the volume on a device, and repairs it as the options say.
///
/// # Errors
/// Whatever keeps the check from its end; what was found until then is lost to the caller, not to the device.
pub fn check(device: Arc<dyn BlockDevice>, options: &Options) -> Result<Report> {
    check_with(device, options, &mut Silent)
}

/// As [`check`], with somewhere to speak and someone to ask.
///
/// # Errors
/// As [`check`].
pub fn check_with(device: Arc<dyn BlockDevice>, options: &Options, ui: &mut dyn Ui) -> Result<Report> {
    run::check(device, options, ui)
}
