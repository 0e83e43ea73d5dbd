//! The differential fuzzer: one stream of random operations, done on two systems at once, errno for errno;
//! and every so often both trees must be the same.
//!
//! Everything follows from the seed, so that a difference is replayed by its seed and its number of
//! operations.

mod operation;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use crate::manifest::{Depth, Manifest};
use crate::oracle::e2fsck_is_clean;
use crate::system::{Mounted, Options, System};
pub use operation::{Answer, Operation, Side};

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Decides every operation.
    pub seed: u64,
    /// How many.
    pub operations: u64,
    /// The trees are compared after so many operations; nothing else follows from it.
    pub compare_every: u64,
    /// Prints every operation to standard error.
    pub trace: bool,
}

/// All files are closed, everything is removed, and both systems start over with an empty tree.
const START_OVER_EVERY: u64 = 4000;
/// Both systems unmount and mount again.
const REMOUNT_EVERY: u64 = 6000;
const IMAGE_BYTES: u64 = 512 << 20;

impl Run {
    /// A run with the usual rhythm.
    pub fn new(seed: u64, operations: u64) -> Run {
        Run { seed, operations, compare_every: 2000, trace: false }
    }

    /// Does it on fresh filesystems of both systems.
    pub fn compare(&self, reference: System, subject: System) -> Result<()> {
        let folder = tempfile::tempdir_in(crate::scale::scratch())?;
        let places = [(reference, folder.path().join("reference")), (subject, folder.path().join("subject"))];
        for (system, image) in &places {
            system.mkfs(image, IMAGE_BYTES, &[])?;
        }
        let mount = || -> Result<Vec<Mounted>> {
            places
                .iter()
                .map(|(system, image)| system.mount_with(image, &Options::for_all(*system)))
                .collect()
        };
        rustix::process::umask(rustix::fs::Mode::empty());
        let mut rng = Rng::with_seed(self.seed);
        let mut mounts = mount()?;
        let mut history = History::default();
        let mut sides: Option<[Side; 2]> = None;
        for done in 1..=self.operations {
            let open = sides.get_or_insert_with(|| [0, 1].map(|index| Side::new(mounts[index].path())));
            let operation = Operation::random(&mut rng);
            let [theirs, ours] = open.each_mut().map(|side| operation.run(side));
            let line = format!("{done}: {operation:?} = {}", words(&theirs));
            if self.trace {
                eprintln!("{line}");
            }
            history.push(line);
            let report = |what: String| format!("seed {}, operation {done}: {what}\n{history}", self.seed);
            let excused = || theirs == Err(Errno::PERM) && operation.may_find_another_reason(&open[0], &ours);
            ensure!(
                theirs == ours || excused(),
                report(format!(
                    "{} says {}, {} says {}",
                    reference.name(),
                    words(&theirs),
                    subject.name(),
                    words(&ours)
                ))
            );
            if done % self.compare_every == 0 || done == self.operations {
                let [theirs, ours] =
                    [0, 1].map(|index| Manifest::read(mounts[index].path(), Depth::Timeless));
                let names = format!("{} / {}", reference.name(), subject.name());
                theirs?.expect_same(&ours?, &names).with_context(|| report("the trees differ".to_owned()))?;
            }
            if done % START_OVER_EVERY == 0 {
                sides = None;
                mounts.iter().try_for_each(|mounted| wipe(mounted.path()))?;
            }
            if done % REMOUNT_EVERY == 0 {
                sides = None;
                mounts.into_iter().try_for_each(Mounted::unmount)?;
                mounts = mount()?;
            }
        }
        drop(sides);
        mounts.into_iter().try_for_each(Mounted::unmount)?;
        places.iter().try_for_each(|(_, image)| e2fsck_is_clean(image))
    }
}

/// An answer for people.
fn words(answer: &Answer) -> String {
    answer.as_ref().map_or_else(ToString::to_string, Clone::clone)
}

/// Removes everything, the immutable included.
fn wipe(root: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry?;
        if entry.file_type().is_file() || entry.file_type().is_dir() {
            let file = std::fs::File::open(entry.path())?;
            ioctl_setflags(&file, ioctl_getflags(&file)?.difference(IFlags::IMMUTABLE | IFlags::APPEND))?;
        }
    }
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        match std::fs::symlink_metadata(&path)?.is_dir() {
            true => std::fs::remove_dir_all(&path)?,
            false => std::fs::remove_file(&path)?,
        }
    }
    Ok(())
}

/// The last operations, for the report of a difference.
#[derive(Default)]
struct History(std::collections::VecDeque<String>);

impl History {
    fn push(&mut self, line: String) {
        if self.0.len() == 40 {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }
}

impl std::fmt::Display for History {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(to, "  {line}"))
    }
}
