//! The checker: an independent judge of ext2, ext3 and ext4 volumes.
//!
//! It shares the format and the journal's replay with the rest of rext4, and recomputes every relation
//! itself. The passes are e2fsck's: (1) inodes and blocks, (2) directories, (3) connectivity, (4) links, (5)
//! bitmaps and counts. Each parallel pass runs twice over its subject with the same code: all of it with a
//! prober that stops at the first problem, then what was suspicious with the judge, who reports, asks and
//! repairs. Repairs write at once; after a round with repairs another round follows, until one finds nothing.

mod alloc;
mod ask;
mod context;
mod disk;
mod error;
mod external;
mod finish;
mod journal;
mod journal_backup;
mod map;
mod mmp;
mod options;
mod orphans;
mod parallel;
mod pass1;
mod pass1b;
mod pass2;
mod pass3;
mod pass4;
mod pass5;
mod paths;
mod problem;
mod quota;
mod rehash;
mod relocate;
mod replay;
mod report;
mod scratch;
mod undo;
mod volume;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::BlockDevice;

pub use ask::{Answer, Silent, Ui};
pub use error::{Error, Result};
pub use mmp::{Protection, protect};
pub use options::{Mode, Options};
pub use problem::{Code, Preen, Problem, Question, Row};
pub use report::{Finding, Report, Usage};
pub use undo::{UndoLog, undo};

use ask::Judge;
use disk::Disk;

/// Rounds of repair before giving up on a volume that never becomes clean.
const ROUNDS: u32 = 8;

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
    let undo = match &options.undo {
        Some(path) if options.may_write() => Some(Arc::new(UndoLog::create(path, device.geometry().size)?)),
        _ => None,
    };
    let mut options = options.clone();
    let mut total: Option<Report> = None;
    for _ in 0..ROUNDS {
        let changed = Arc::new(AtomicBool::new(false));
        let disk = Disk::new(Arc::clone(&device), undo.clone(), Arc::clone(&changed));
        let mut judge = Judge::new(&options, ui);
        match finish::round(disk, &options, &mut judge) {
            Err(Error::Cancelled { .. }) => {
                let now = changed.load(Ordering::Relaxed);
                let changed = now || total.is_some_and(|earlier| earlier.changed);
                if changed {
                    let disk = Disk::new(Arc::clone(&device), undo, Arc::default());
                    volume::mark_unfinished(&disk)?;
                }
                return Err(Error::Cancelled { changed });
            }
            other => other?,
        }
        let restart = judge.restart;
        let mode = judge.mode();
        let report = judge.report;
        let again = report.changed && report.count > 0;
        let left = report.left;
        total = Some(match total {
            None => report,
            Some(earlier) => earlier.then(report),
        });
        if !again || left > 0 && options.mode == Mode::Ask && !restart {
            break;
        }
        // What follows looks at the repaired volume, whatever it says of itself and wherever it was found.
        options.force = true;
        options.superblock = None;
        options.mode = mode;
    }
    Ok(total.unwrap_or_default())
}
