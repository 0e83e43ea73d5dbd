//! The differential fuzzer: one stream of random operations, done on two systems at once, errno for errno; and every
//! so often both trees must be the same.
//!
//! Everything follows from the seed, so that a difference is replayed by its seed and its number of operations.

mod operation;

use std::path::Path;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::manifest::{Depth, Manifest};
use crate::oracle::e2fsck_is_clean;
use crate::system::{Mounted, Options, System};
pub use operation::{Operation, Side};

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Decides every operation.
    pub seed: u64,
    /// How many.
    pub operations: u64,
    /// The trees are compared after so many operations.
    pub compare_every: u64,
    /// Both systems unmount and mount again after so many comparisons.
    pub remount_every: u64,
    /// Prints every operation to standard error.
    pub trace: bool,
    /// Size of both images.
    pub bytes: u64,
}

impl Run {
    /// A run with the usual rhythm.
    pub fn new(seed: u64, operations: u64) -> Run {
        Run { seed, operations, compare_every: 2000, remount_every: 4, trace: false, bytes: 512 << 20 }
    }

    /// Does it on fresh filesystems of both systems.
    pub fn compare(&self, reference: System, subject: System) -> Result<()> {
        let folder = tempfile::tempdir_in(crate::scale::scratch())?;
        let places = [(reference, folder.path().join("reference")), (subject, folder.path().join("subject"))];
        for (system, image) in &places {
            system.mkfs(image, self.bytes, &[])?;
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
        let mut done = 0;
        for session in 0.. {
            if done >= self.operations {
                break;
            }
            if session % self.remount_every == self.remount_every - 1 {
                mounts.into_iter().try_for_each(Mounted::unmount)?;
                mounts = mount()?;
            }
            let mut sides = [Side::new(mounts[0].path()), Side::new(mounts[1].path())];
            for _ in 0..self.compare_every.min(self.operations - done) {
                let operation = Operation::random(&mut rng);
                let [theirs, ours] = sides.each_mut().map(|side| operation.run(side));
                if self.trace {
                    eprintln!("{done}: {operation:?} = {theirs}");
                }
                history.push(format!("{done}: {operation:?} = {theirs}"));
                done += 1;
                if theirs != ours {
                    bail!(
                        "seed {}, operation {done}: {} says {theirs}, {} says {ours}; before it:\n{history}",
                        self.seed,
                        reference.name(),
                        subject.name()
                    );
                }
            }
            drop(sides);
            let [theirs, ours] = [0, 1].map(|index| Manifest::read(mounts[index].path(), Depth::Timeless));
            theirs?.expect_same(&ours?, &format!("{} / {}", reference.name(), subject.name())).with_context(
                || format!("seed {}, after operation {done}; before it:\n{history}", self.seed),
            )?;
            // Names that became files, and immutable ones, would leave less and less to do.
            if session % 2 == 1 {
                mounts.iter().try_for_each(|mounted| wipe(mounted.path()))?;
            }
        }
        mounts.into_iter().try_for_each(Mounted::unmount)?;
        places.iter().try_for_each(|(_, image)| e2fsck_is_clean(image))
    }
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
