//! A device whose blocks fail when they are written: every opening of the file hears of it once from fsync, a
//! direct write at once, and what was durable stays.
//!
//! The device is an image in a folder of memory that is full: blocks of the image that have pages can be
//! written, the others fail with an error of the device.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use tests::oracle::e2fsck_is_clean;
use tests::run::{output, run, tool};
use tests::scale::{Need, can_run};
use tests::system::System;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;

/// A folder in memory of its own, with a bound.
struct Memory(tempfile::TempDir);

impl Memory {
    fn new(mebibytes: u64) -> Result<Memory> {
        let folder = tempfile::tempdir()?;
        let size = format!("size={mebibytes}m");
        run(tool("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()))?;
        Ok(Memory(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Gives the space back. A child that another thread has just forked may still hold the file open, so
    /// that its removal alone would not do it.
    fn empty(&self) -> Result<()> {
        Ok(File::options().write(true).open(self.path("ballast"))?.set_len(0)?)
    }

    /// Takes all the space that is left.
    fn fill(&self) -> Result<()> {
        let file = File::create(self.path("ballast"))?;
        let mut at = 0;
        while rustix::fs::fallocate(&file, FallocateFlags::empty(), at, BLOCK).is_ok() {
            at += BLOCK;
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A busy folder is taken away all the same; there is nobody to tell.
        let _ = output(tool("umount").arg("-l").arg(self.0.path()));
    }
}

/// Gives every block of the image a page, except those of `/file`.
fn only_blocks_of_file_fail(image: &Path) -> Result<()> {
    fs::write(image, fs::read(image)?)?;
    let said = run(tool("debugfs").args(["-R", "blocks /file"]).arg(image))?;
    let blocks: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    ensure!(blocks.len() as u64 == BLOCKS, "{} blocks: {said}", blocks.len());
    let file = File::options().write(true).open(image)?;
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    blocks.iter().try_for_each(|block| Ok(rustix::fs::fallocate(&file, how, block * BLOCK, BLOCK)?))
}

fn open(path: &Path, flags: OFlags) -> Result<File> {
    Ok(File::from(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty())?))
}

fn put(file: &File, block: u64, byte: u8) -> Result<(), Errno> {
    rustix::io::pwrite(file.as_fd(), &[byte; BLOCK as usize], block * BLOCK).map(drop)
}

fn told(file: &File) -> Result<(), Errno> {
    rustix::fs::fdatasync(file)
}

#[test]
fn fsync_tells_each_opening_of_a_lost_write_once() -> Result<()> {
    let name = "fsync_tells_each_opening_of_a_lost_write_once";
    let needs = [Need::Root, Need::Fuse, Need::Tool("debugfs")];
    if !System::under_test().is_rext4() || !can_run(name, &needs) {
        return Ok(());
    }
    let memory = Memory::new(80)?;
    let image = memory.path("image");
    File::create(&image)?.set_len(64 << 20)?;
    run(tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096"]).arg(&image))?;
    let system = System::Rext4Image;
    let mounted = system.mount(&image)?;
    let file = File::create(mounted.path().join("file"))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BLOCKS * BLOCK)?;
    drop(file);
    fs::write(mounted.path().join("durable"), [7; 10_000])?;
    mounted.unmount()?;
    only_blocks_of_file_fail(&image)?;

    let mounted = system.mount(&image)?;
    let path = mounted.path().join("file");
    let (first, second, direct) =
        (open(&path, OFlags::empty())?, open(&path, OFlags::empty())?, open(&path, OFlags::DIRECT)?);
    memory.fill()?;
    put(&first, 3, 1)?;
    ensure!(told(&second) == Err(Errno::IO), "the second opening was not told");
    ensure!(told(&second) == Ok(()), "the second opening was told twice");
    let late = open(&path, OFlags::empty())?;
    ensure!(told(&late) == Ok(()), "an opening after the news was told");
    ensure!(told(&first) == Err(Errno::IO) && told(&first) == Ok(()), "the first opening");
    ensure!(told(&direct) == Err(Errno::IO) && told(&direct) == Ok(()), "the direct opening");
    ensure!(put(&direct, 5, 2) == Err(Errno::IO), "a direct write is answered at once");
    let heard = [told(&direct), told(&direct)];
    ensure!(heard == [Err(Errno::IO), Ok(())], "its fsync: {heard:?}: {}", mounted.log());
    // Past the page cache, which keeps what it could not write, as with the kernel's ext4.
    let mut found = vec![1; (BLOCKS * BLOCK) as usize];
    ensure!(rustix::io::pread(direct.as_fd(), &mut found[..], 0)? == found.len());
    ensure!(found.iter().all(|byte| *byte == 0), "what was not written does not read as zeros");

    memory.empty()?;
    put(&direct, 5, 3)?;
    put(&first, 6, 4)?;
    ensure!(told(&direct) == Ok(()), "the device works again");

    // The first two blocks of four have pages: the device takes those, and no more.
    memory.fill()?;
    let wrote = rustix::io::pwrite(direct.as_fd(), &[9; 4 * BLOCK as usize], 5 * BLOCK);
    ensure!(wrote == Err(Errno::IO), "a short write of the device gave {wrote:?}");
    ensure!(told(&direct) == Err(Errno::IO) && told(&direct) == Ok(()), "its fsync");
    memory.empty()?;
    let expected = |bytes: &[u8]| -> Result<()> {
        let allowed = |block: u64, byte: u8| match block {
            5 => [3, 9].contains(&byte),
            6 => [4, 9].contains(&byte),
            _ => byte == 0,
        };
        let wrong = bytes.chunks(BLOCK as usize).zip(0..).find(|(b, block)| !allowed(*block, b[0]));
        ensure!(wrong.is_none(), "block {:?}", wrong.map(|(_, block)| block));
        Ok(())
    };
    rustix::io::pread(direct.as_fd(), &mut found[..], 0)?;
    expected(&found).context("before the remount")?;
    drop((first, second, direct, late));
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    let mounted = system.mount(&image)?;
    expected(&fs::read(mounted.path().join("file"))?).context("after the remount")?;
    ensure!(fs::read(mounted.path().join("durable"))? == [7; 10_000], "what was durable is gone");
    mounted.unmount()
}
