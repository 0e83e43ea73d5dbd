//! Second opinions: the kernel's replay by a loop mount, and e2fsck's replay, each on a copy of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use blockdev::OpenOptions;
use blockdev::sim::{Fill, Image};
use tempfile::TempDir;

use super::model::Tree;
use super::observe;
use crate::run::{both, output, run, tool, umount};

/// Whether loop mounts can be made here at all.
#[must_use]
pub fn available() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists()
}

/// Writes the disk into a sparse file.
pub fn save(image: &Image, path: &Path) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(image.size())?;
    let mut buf = vec![0; 1 << 16];
    let mut at = 0;
    while at < image.size() {
        let len = (buf.len() as u64).min(image.size() - at) as usize;
        image.read(at, &mut buf[..len]);
        file.write_all_at(&buf[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// A folder in memory where there is one: syncing it costs nothing.
pub fn scratch() -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    Ok(if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? })
}

/// The disk that a file holds.
fn load(path: &Path) -> Result<Image> {
    let bytes = std::fs::read(path)?;
    let mut image = Image::new(bytes.len() as u64, Fill::Zero);
    image.write(0, &bytes);
    Ok(image)
}

/// Lets the kernel and e2fsck recover a copy each; both must end clean. Returns the tree that the kernel
/// shows, and the disk that e2fsck has made if it has an opinion.
pub fn opinions(image: &Image) -> Result<(Tree, Option<Image>)> {
    let dir = scratch()?;
    let disk = dir.path().join("disk");
    save(image, &disk)?;
    let by_kernel = mounted(&disk, dir.path(), observe::by_kernel).context("the kernel's replay")?;
    is_clean(&disk).context("after the kernel's replay")?;

    save(image, &disk)?;
    let by_e2fsck = if replayed_by_e2fsck(&disk)? { Some(load(&disk)?) } else { None };
    Ok((by_kernel, by_e2fsck))
}

/// Lets e2fsck replay the journal and clear the orphans, which must be all that it finds, and must leave a
/// clean disk.
///
/// It has no opinion (`false`) where it cut an orphan that goes on living and has its attributes in a block
/// of their own: it frees that block with the rest (seen in 1.47.0, and after a crash of the kernel, too:
/// docs/TESTING.md), and corrects the file's block count after it.
pub fn replayed_by_e2fsck(disk: &Path) -> Result<bool> {
    // Exit status 1: errors corrected, which replaying a journal and clearing orphans counts as.
    let replayed = output(tool("e2fsck").arg("-fy").arg(disk))?;
    let text = both(&replayed);
    ensure!(matches!(replayed.status.code(), Some(0 | 1)), "e2fsck -fy: {}\n{text}", replayed.status);
    if text.contains("Truncating orphaned inode") && text.contains("i_blocks is") {
        return Ok(false);
    }
    if let Some(fixed) = text.lines().find(|line| line.contains("FIXED") || line.contains("Fix? yes")) {
        bail!("e2fsck had to repair more than the journal and the orphans: {fixed}\n{text}");
    }
    is_clean(disk).context("after e2fsck's replay")?;
    Ok(true)
}

/// What the kernel shows of a disk that has been repaired and that e2fsck finds in order.
pub fn opinion_on_repaired(image: &Image) -> Result<Tree> {
    let dir = scratch()?;
    let disk = dir.path().join("disk");
    save(image, &disk)?;
    is_clean(&disk).context("e2fsck after fsck.rext4")?;
    mounted(&disk, dir.path(), observe::by_kernel)
}

/// A disk after e2fsck has repaired whatever it found. None where a name leads to an inode behind those that
/// the group has ever used, where nothing but stale bytes lies, and e2fsck (1.47.0) gave up, or left errors that
/// only its next run mends.
pub fn repaired_by_e2fsck(image: &Image) -> Result<Option<Image>> {
    let dir = scratch()?;
    let disk = dir.path().join("disk");
    save(image, &disk)?;
    let repaired = output(tool("e2fsck").arg("-fy").arg(&disk))?;
    let (text, done) = (both(&repaired), matches!(repaired.status.code(), Some(0 | 1)));
    if text.contains("e2fsck: aborted") || (!done && text.contains("unused inodes area")) {
        return Ok(None);
    }
    ensure!(done, "e2fsck -fy: {text}");
    is_clean(&disk).context("after e2fsck's repair")?;
    load(&disk).map(Some)
}

/// e2fsck finds nothing on a disk that has been recovered.
pub fn is_clean(disk: &Path) -> Result<()> {
    run(tool("e2fsck").arg("-fn").arg(disk)).map(drop)
}

/// Mounts a disk through a loop device below `dir` for the time of `f`.
pub fn mounted<T>(disk: &Path, dir: &Path, f: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let at = dir.join("at");
    std::fs::create_dir_all(&at)?;
    run(tool("mount").args(["-t", "ext4", "-o", "loop"]).arg(disk).arg(&at))?;
    let answer = f(&at);
    umount(&at)?;
    released(disk)?;
    answer
}

/// Waits until no loop device stands on `disk` any more. A process that has made a mount namespace of its own
/// meanwhile holds copies of our mounts: the last of them writes the superblock.
fn released(disk: &Path) -> Result<()> {
    let mut tries = 0;
    while let Err(held) = blockdev::open(disk, &OpenOptions::default()) {
        tries += 1;
        ensure!(tries < 1000, held);
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
