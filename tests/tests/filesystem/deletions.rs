//! What a deleted file took is free for whoever asks next, as it is on the kernel's ext4.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use blockdev::{Env, Op, OpenOptions, Workers};
use ext4_format::Ino;
use fs_core::Filesystem;
use fs_core::ops::WriteMode;
use fs_core::types::{Caller, MountOptions};
use tests::gate::{Gate, Gated, Opening};
use tests::oracle::e2fsck_is_clean;
use tests::scale::{Need, can_run, scratch};
use tests::system::System;

/// Much shorter than anybody's patience, on a busy machine as well.
const WHILE: Duration = Duration::from_millis(50);

/// The commit timer writes two files out, one after the other, and holds the second one while the first one's
/// data wait for the device. Then the second one loses its name and its last reference.
#[test]
fn space_is_there_although_a_worker_holds_the_file() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 64 << 20, &[])?;
    let gate = Arc::new(Gate::default());
    let device = Gated { inner: blockdev::open(&image, &OpenOptions::default())?, gate: gate.clone() };
    let options = MountOptions { commit_interval: Duration::from_millis(50), ..MountOptions::default() };
    let env = Env { workers: Workers::Threads, ..Env::system() };
    let fs = Filesystem::mount(Arc::new(device), options, env)?;
    let root = Caller::root();
    let file = |name: &str| -> Result<Ino> {
        let ino = fs.mknod(&root, Ino::ROOT, name.as_bytes(), 0o100_644, (0, 0))?.ino;
        fs.write(&root, ino, 0, &[7; 8192], WriteMode::Direct)?;
        Ok(ino)
    };
    let slow = file("slow")?;
    let free = || -> Result<_> {
        let found = fs.statfs()?;
        Ok((found.files_free, found.blocks_free))
    };
    let before = free()?;
    for round in 0..3 {
        let gone = file("gone")?;
        fs.syncfs()?;
        gate.close(Op::Write);
        let opening = Opening(&gate);
        fs.write(&root, slow, 0, &[8; 4096], WriteMode::Cached)?;
        fs.write(&root, gone, 0, &[8; 4096], WriteMode::Cached)?;
        ensure!(gate.holds(1, Duration::from_secs(60)), "the timer writes nothing");
        fs.unlink(Ino::ROOT, b"gone")?;
        fs.forget(gone, 1);
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(move || {
                std::thread::sleep(WHILE);
                drop(opening);
            });
            let after = free()?;
            ensure!(after == before, "round {round}: {before:?} files and blocks before, {after:?} now");
            Ok(())
        })?;
    }
    fs.unmount()?;
    drop(fs);
    e2fsck_is_clean(&image)
}

/// A thread has taken the file out of the table of inodes and waits for a block of its map while the unmount
/// begins.
#[test]
fn a_deletion_under_way_ends_before_the_volume_is_clean() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 64 << 20, &[])?;
    let gate = Arc::new(Gate::default());
    let mount = || -> Result<_> {
        let device = Gated { inner: blockdev::open(&image, &OpenOptions::default())?, gate: gate.clone() };
        Ok(Filesystem::mount(Arc::new(device), MountOptions::default(), Env::system())?)
    };
    let (fs, root) = (mount()?, Caller::root());
    let free = fs.statfs()?.files_free;
    let file = fs.mknod(&root, Ino::ROOT, b"file", 0o100_644, (0, 0))?.ino;
    // More extents than the inode holds itself.
    for hole in 0..20 {
        fs.write(&root, file, hole << 16, &[7; 4096], WriteMode::Direct)?;
    }
    fs.unmount()?;
    drop(fs);
    let fs = mount()?;
    fs.lookup(Ino::ROOT, b"file")?;
    fs.unlink(Ino::ROOT, b"file")?;
    gate.close(Op::Read);
    let opening = Opening(&gate);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| fs.forget(file, 1));
        ensure!(gate.holds(1, Duration::from_secs(60)), "the deletion reads nothing");
        scope.spawn(move || {
            std::thread::sleep(WHILE);
            drop(opening);
        });
        Ok(fs.unmount()?)
    })?;
    drop(fs);
    e2fsck_is_clean(&image)?;
    let fs = mount()?;
    ensure!(fs.statfs()?.files_free == free, "the inode is lost");
    Ok(fs.unmount()?)
}

/// rm -rf of several trees at once, and an unmount that waits for nothing.
#[test]
fn an_unmount_right_behind_a_storm_of_deletions_loses_nothing() -> Result<()> {
    let needs = [Need::Root, Need::Loop, Need::Fuse];
    if !can_run("an_unmount_right_behind_a_storm_of_deletions_loses_nothing", &needs) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 128 << 20, &["-N", "8000"])?;
    for _ in 0..3 {
        let mounted = System::under_test().mount(&image)?;
        for tree in 0..4 {
            let tree = mounted.path().join(tree.to_string());
            std::fs::create_dir(&tree)?;
            for i in 0..300 {
                std::fs::write(tree.join(i.to_string()), [7; 9000])?;
            }
        }
        std::thread::scope(|scope| {
            for tree in 0..4 {
                let tree = mounted.path().join(tree.to_string());
                scope.spawn(move || std::fs::remove_dir_all(tree));
            }
        });
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
    }
    Ok(())
}
