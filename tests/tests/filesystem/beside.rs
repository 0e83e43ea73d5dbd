//! One image twice, mounted by the kernel and by the system under test, to be asked the same questions. An
//! answer is text, so that a difference shows itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::oracle::{copy_image, e2fsck_is_clean};
use tests::scale::scratch;
use tests::system::{Mounted, Options, System};

/// The two mounts. The images go with it.
pub struct Pair {
    folder: tempfile::TempDir,
    kernel: Option<Mounted>,
    ours: Option<Mounted>,
}

impl Pair {
    /// An image that `make` makes, twice, not mounted yet.
    pub fn of(make: impl FnOnce(&Path) -> Result<()>) -> Result<Pair> {
        let folder = tempfile::tempdir_in(scratch())?;
        let pair = Pair { folder, kernel: None, ours: None };
        make(&pair.image("kernel"))?;
        copy_image(&pair.image("kernel"), &pair.image("ours"))?;
        Ok(pair)
    }

    /// Formats an image of `bytes` as `mke2fs` is told and mounts it twice with the same options; all users
    /// are let in.
    pub fn new(bytes: u64, mke2fs: &str, words: &[&str]) -> Result<Pair> {
        let args: Vec<&str> = mke2fs.split_whitespace().collect();
        let mut pair = Pair::of(|image| System::Kernel.mkfs(image, bytes, &args))?;
        pair.mount(words).with_context(|| format!("mke2fs {mke2fs}, -o {words:?}"))?;
        Ok(pair)
    }

    /// Mounts both with the same options, for the first time or after [`Pair::unmount`].
    pub fn mount(&mut self, words: &[&str]) -> Result<()> {
        let system = System::under_test();
        let mut options = Options::for_all(system);
        options.words.extend(words.iter().map(|word| (*word).to_owned()));
        self.kernel = Some(System::Kernel.mount_with(&self.image("kernel"), &Options::words(words))?);
        self.ours = Some(system.mount_with(&self.image("ours"), &options)?);
        Ok(())
    }

    /// The image `kernel` or `ours`.
    pub fn image(&self, whose: &str) -> PathBuf {
        self.folder.path().join(whose)
    }

    /// The kernel's mount and ours.
    pub fn both(&self) -> Result<[&Mounted; 2]> {
        Ok([self.kernel.as_ref().context("mounted")?, self.ours.as_ref().context("mounted")?])
    }

    /// Asks both, and gives the kernel's answer; an error when the other one is different.
    pub fn ask(&self, what: &str, question: impl Fn(&Path) -> Result<String>) -> Result<String> {
        let [kernel, ours] = self.both()?;
        let (theirs, ours) = (question(kernel.path())?, question(ours.path())?);
        ensure!(
            theirs == ours,
            "{what}:\n--- the kernel\n{theirs}\n--- here\n{ours}\n{}",
            differing(&theirs, &ours)
        );
        Ok(theirs)
    }

    /// Unmounts both.
    pub fn unmount(&mut self) -> Result<()> {
        [self.kernel.take(), self.ours.take()].into_iter().flatten().try_for_each(Mounted::unmount)
    }

    /// Unmounts both and has both checked.
    pub fn finish(mut self) -> Result<()> {
        self.unmount()?;
        e2fsck_is_clean(&self.image("kernel")).context("the kernel's")?;
        e2fsck_is_clean(&self.image("ours")).context("ours")
    }
}

/// The lines that differ, one above the other.
fn differing(theirs: &str, ours: &str) -> String {
    let mut said = String::new();
    for (one, other) in theirs.lines().zip(ours.lines()).filter(|(one, other)| one != other) {
        let _ = writeln!(said, "- {one}\n+ {other}");
    }
    said
}
