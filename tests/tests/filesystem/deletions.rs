//! What a deleted file took is free for whoever asks next, as it is on the kernel's ext4.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blockdev::sim::{Fill, MemDevice};
use blockdev::{Op, OpenOptions};
use fs_core::{Credentials, OpenFile, WriteKind};
use fuse_frontend::options::Options;
use fuse_frontend::service::{ROOT_NODE, Sender, Service, node_of};
use tests::gate::{Gate, Gated, Opening};
use tests::oracle::e2fsck_is_clean;
use tests::scale::{Need, can_run, scratch};
use tests::system::System;

const O_RDWR: i32 = 2;

/// Much shorter than anybody's patience, on a busy machine as well.
const WHILE: Duration = Duration::from_millis(50);

/// The commit timer writes two files out, one after the other, and holds the second one while the first one's
/// data wait for the device. Then the second one loses its name and its last handle.
#[test]
fn space_is_there_although_a_worker_holds_the_file() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 64 << 20, &[])?;
    let gate = Arc::new(Gate::default());
    let device = Gated { inner: blockdev::open(&image, &OpenOptions::default())?, gate: gate.clone() };
    let options = fs_core::OpenOptions::new().commit_interval(Duration::from_millis(50));
    let fs = options.open_device(Arc::new(device))?;
    let root = fs.root()?;
    let file = |name: &str| -> Result<OpenFile> {
        let file = root.create(name, 0o644)?;
        file.write_as(&Credentials::root(), &[7; 8192], 0, WriteKind::Direct)?;
        Ok(file)
    };
    let slow = file("slow")?;
    let free = || -> Result<_> {
        let found = fs.statfs()?;
        Ok((found.files_free, found.blocks_free))
    };
    let before = free()?;
    for round in 0..3 {
        let gone = file("gone")?;
        fs.sync()?;
        gate.close(Op::Write);
        let opening = Opening(&gate);
        slow.write_at(&[8; 4096], 0)?;
        gone.write_at(&[8; 4096], 0)?;
        ensure!(gate.holds(1, Duration::from_secs(60)), "the timer writes nothing");
        root.unlink("gone")?;
        drop(gone);
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
    fs.close()?;
    e2fsck_is_clean(&image)
}

/// A thread has taken the file out of the table of inodes and waits for a block of its map while the volume is
/// closed.
#[test]
fn a_deletion_under_way_ends_before_the_volume_is_clean() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 64 << 20, &[])?;
    let gate = Arc::new(Gate::default());
    let open = || -> Result<_> {
        let device = Gated { inner: blockdev::open(&image, &OpenOptions::default())?, gate: gate.clone() };
        Ok(fs_core::OpenOptions::new().open_device(Arc::new(device))?)
    };
    let fs = open()?;
    let free = fs.statfs()?.files_free;
    let file = fs.create_file("file")?;
    // More extents than the inode holds itself.
    for hole in 0..20 {
        file.write_as(&Credentials::root(), &[7; 4096], hole << 16, WriteKind::Direct)?;
    }
    fs.close()?;
    drop((file, fs));
    let fs = open()?;
    let file = fs.lookup("file")?;
    fs.remove_file("file")?;
    gate.close(Op::Read);
    let opening = Opening(&gate);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| drop(file));
        ensure!(gate.holds(1, Duration::from_secs(60)), "the deletion reads nothing");
        scope.spawn(move || {
            std::thread::sleep(WHILE);
            drop(opening);
        });
        Ok(fs.close()?)
    })?;
    drop(fs);
    e2fsck_is_clean(&image)?;
    let fs = open()?;
    ensure!(fs.statfs()?.files_free == free, "the inode is lost");
    Ok(fs.close()?)
}

/// close(2), unlink(2), fallocate(2): the kernel tells of the close, and then of the end of the file, whenever it
/// likes.
#[test]
fn space_of_a_file_that_is_being_closed_is_waited_for() -> Result<()> {
    let disk = MemDevice::new(64 << 20, Fill::Zero);
    mkfs::format(&disk, &mkfs::Options::new(mkfs::Kind::Ext4, 1_700_000_000)).context("mkfs")?;
    let fs = fs_core::OpenOptions::new().open_device(Arc::new(disk))?;
    let service = Service::new(fs.clone(), &Options::default());
    let size = fs.statfs()?.blocks_available * 3 / 4 * u64::from(fs.block_size());
    let sender = Sender { uid: 0, gid: 0, thread: 0 };
    let refused = |errno| std::io::Error::from_raw_os_error(errno);
    let fill = |name: &str| -> std::io::Result<(u64, u64)> {
        let made = service.mknod(sender, ROOT_NODE, name.as_bytes(), 0o100_644, 0, 0).map_err(refused)?;
        let opened = service.open_created(sender, &made, O_RDWR).map_err(refused)?;
        service.fallocate(sender, opened.handle, 0, size, 0).map_err(refused)?;
        Ok((node_of(made.ino), opened.handle))
    };
    for round in 0..3 {
        let (node, handle) = fill("file")?;
        service.unlink(ROOT_NODE, b"file").map_err(refused)?;
        let next = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(WHILE / 2);
                service.release(handle);
                service.forget(node, 1);
            });
            fill("next")
        });
        let (node, handle) = next.with_context(|| format!("round {round}"))?;
        service.unlink(ROOT_NODE, b"next").map_err(refused)?;
        service.release(handle);
        service.forget(node, 1);
    }
    Ok(fs.close()?)
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
