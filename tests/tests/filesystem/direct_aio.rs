//! Asynchronous direct IO: results as the caller of libaio gets them, requests side by side, and what a
//! failure leaves.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::fs::OFlags;
use tests::aio::{Done, Request, submit};
use tests::oracle::e2fsck_is_clean;
use tests::run::tool;
use tests::scale::{Need, can_run, scratch};
use tests::system::{Mounted, Options, System};

const MIB: u64 = 1 << 20;
const NEEDS: [Need; 4] = [Need::Root, Need::Loop, Need::Fuse, Need::Tool("perl")];

/// A mounted volume of `bytes`; ours shows its counters.
fn mounted(folder: &Path, bytes: u64, words: &[&str]) -> Result<Mounted> {
    let image = folder.join("image");
    let system = System::under_test();
    system.mkfs(&image, bytes, &["-b", "4096"])?;
    let words = if system.is_rext4() { [&["stats"], words].concat() } else { Vec::new() };
    system.mount_with(&image, &Options::words(&words))
}

fn finish(mounted: Mounted, folder: &Path) -> Result<()> {
    mounted.unmount()?;
    e2fsck_is_clean(&folder.join("image"))
}

#[test]
fn a_request_larger_than_fuse_takes_is_one_result() -> Result<()> {
    if !can_run("a_request_larger_than_fuse_takes_is_one_result", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let mounted = mounted(folder.path(), 256 << 20, &[])?;
    let path = mounted.path().join("file");
    File::create(&path)?.set_len(5 * MIB + 4096)?;
    let length = 5 * MIB + 4096;
    let wrote = submit(&path, OFlags::DIRECT, &[Request::Write { offset: 0, length, byte: 3 }])?;
    ensure!(wrote == [Done { result: length as i64, sum: 0 }], "{wrote:?}");
    ensure!(fs::read(&path)? == vec![3; length as usize], "other bytes");
    // Of a read beyond the end, the part that is in the file; of one behind it, nothing.
    let read = |offset, length| Request::Read { offset, length };
    let done =
        submit(&path, OFlags::DIRECT, &[read(0, 4 * MIB), read(2 * MIB, 7 * MIB), read(6 * MIB, 3 * MIB)])?;
    let expected = [4 * MIB, 3 * MIB + 4096, 0].map(|n| Done { result: n as i64, sum: 3 * n });
    ensure!(done == expected, "{done:?}");
    finish(mounted, folder.path())
}

#[test]
fn a_failed_extending_write_gives_the_old_size_back() -> Result<()> {
    if !can_run("a_failed_extending_write_gives_the_old_size_back", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let mounted = mounted(folder.path(), 64 << 20, &[])?;
    let path = mounted.path().join("file");
    fs::write(&path, vec![1; MIB as usize])?;
    File::open(&path)?.sync_all()?;
    let free = || -> Result<u64> {
        let space = rustix::fs::statvfs(mounted.path())?;
        Ok(space.f_bfree * space.f_frsize)
    };
    let before = free()?;
    let done =
        submit(&path, OFlags::DIRECT, &[Request::Write { offset: MIB, length: before + 8 * MIB, byte: 2 }])?;
    // A part that is done by half would make it EIO.
    ensure!(done[0].result == -28, "{done:?}");
    ensure!(fs::read(&path)? == vec![1; MIB as usize], "the file is not what it was");
    let after = free()?;
    ensure!(after + MIB > before, "{before} bytes were free, then {after}");
    fs::write(mounted.path().join("other"), vec![4; 8 * MIB as usize])?;
    finish(mounted, folder.path())
}

/// Into holes, where the kernel lets the parts of a request run side by side, and all of one size.
#[test]
fn a_request_that_finds_no_space_is_told_so() -> Result<()> {
    if !can_run("a_request_that_finds_no_space_is_told_so", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 64 << 20, &["-b", "4096", "-m", "0"])?;
    let mounted = System::under_test().mount(&image)?;
    let path = mounted.path().join("file");
    for size in [0, 64 * MIB] {
        File::create(&path)?.set_len(size)?;
        let space = rustix::fs::statvfs(mounted.path())?;
        let fill = File::create(mounted.path().join("fill"))?;
        let filled = space.f_bavail * space.f_frsize - 600 * 1024;
        rustix::fs::fallocate(&fill, rustix::fs::FallocateFlags::empty(), 0, filled)?;
        for length in [MIB, 4 * MIB] {
            let done = submit(&path, OFlags::DIRECT, &[Request::Write { offset: 0, length, byte: 2 }])?;
            ensure!(done[0].result == -28, "a file of {size} bytes, {length} more: {done:?}");
            ensure!(fs::metadata(&path)?.len() == size, "its size has changed");
        }
        fs::remove_file(&path)?;
        fs::remove_file(mounted.path().join("fill"))?;
    }
    finish(mounted, folder.path())
}

/// fio's requests, all of one file, and the most direct writes under way at one time.
fn most_in_flight(mounted: &Mounted, engine: &str) -> Result<u64> {
    let path = mounted.path().join("file");
    let mut fio = tool("fio");
    fio.args([
        "--name=depth",
        "--thread",
        "--size=32m",
        "--bs=1m",
        "--rw=write",
        "--direct=1",
        "--iodepth=16",
    ]);
    fio.args(["--loops=100", "--runtime=20", "--time_based", "--eta=never", "--output=/dev/null"]);
    let mut fio =
        fio.arg(format!("--filename={}", path.display())).arg(format!("--ioengine={engine}")).spawn()?;
    let mut most = 0;
    for _ in 0..2000 {
        most = most.max(mounted.counter("direct_writes_in_flight")?);
        if most > 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    fio.kill()?;
    fio.wait()?;
    ensure!(most > 1 || mounted.counter("direct_writes")? > 10, "fio wrote hardly anything");
    Ok(most)
}

#[test]
fn requests_of_one_file_are_served_side_by_side() -> Result<()> {
    let name = "requests_of_one_file_are_served_side_by_side";
    if !System::under_test().is_rext4() || !can_run(name, &[&NEEDS[..], &[Need::Tool("fio")]].concat()) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let with = mounted(folder.path(), 256 << 20, &[])?;
    for engine in ["libaio", "io_uring"] {
        let most = most_in_flight(&with, engine)?;
        ensure!(most > 1, "{engine}: never more than {most} at once");
    }
    finish(with, folder.path())?;
    let without = mounted(folder.path(), 256 << 20, &["noasync_dio"])?;
    let most = most_in_flight(&without, "libaio")?;
    ensure!(most <= 1, "{most} at once in spite of noasync_dio");
    finish(without, folder.path())
}
