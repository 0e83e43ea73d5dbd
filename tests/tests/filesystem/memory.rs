//! How much memory the server takes: no more for the millionth file than for the thousandth, and no more
//! metadata than `cache=` allows.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::oracle::e2fsck_is_clean;
use tests::scale::{Need, can_run, duration, is_long, pick, scratch};
use tests::system::{Options, System};

const NEEDS: [Need; 2] = [Need::Root, Need::Fuse];

/// What the server may take beside the cache of metadata.
const WITHOUT_CACHE_KIB: u64 = 96 << 10;

fn create_and_unlink(folder: &Path, round: u64) -> Result<()> {
    const FILES: u64 = 500;
    for file in 0..FILES {
        let content = vec![1; (file % 7 * 1500) as usize];
        fs::write(folder.join(format!("{round}-{file}")), content)?;
    }
    (0..FILES).try_for_each(|file| Ok(fs::remove_file(folder.join(format!("{round}-{file}")))?))
}

#[test]
fn files_that_come_and_go_leave_nothing_behind() -> Result<()> {
    if !can_run("files_that_come_and_go_leave_nothing_behind", &NEEDS) {
        return Ok(());
    }
    const CACHE_KIB: u64 = 8 << 10;
    let system = System::under_test();
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    system.mkfs(&image, 256 << 20, &[])?;
    let mounted = system.mount_with(&image, &Options::words(&["cache=8M"]))?;
    // The first third of an hour fills caches, pools and the log; the rest may not add to that.
    let time = duration(Duration::from_secs(6), 60);
    let start = Instant::now();
    let (mut rounds, mut filled) = (0, None);
    while start.elapsed() < time || rounds < 6 {
        create_and_unlink(mounted.path(), rounds)?;
        rounds += 1;
        if filled.is_none() && rounds >= 2 && start.elapsed() > time / 3 {
            filled = Some(mounted.server_memory_kib("VmRSS"));
        }
        std::thread::sleep(pick(Duration::ZERO, Duration::from_millis(200)));
    }
    let (filled, end) = (filled.unwrap_or(0), mounted.server_memory_kib("VmRSS"));
    let peak = mounted.server_memory_kib("VmHWM");
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    eprintln!("{rounds} rounds: {filled} KiB after a third, {end} KiB at the end, {peak} KiB at most");
    ensure!(!is_long() || end < filled + (8 << 10), "from {filled} to {end} KiB in {rounds} rounds");
    ensure!(peak < WITHOUT_CACHE_KIB + CACHE_KIB, "{peak} KiB");
    Ok(())
}

#[test]
fn the_cache_is_as_large_as_it_may_be() -> Result<()> {
    if !can_run("the_cache_is_as_large_as_it_may_be", &NEEDS) {
        return Ok(());
    }
    const FILES: usize = 40_000;
    let system = System::under_test();
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    system.mkfs(&image, 512 << 20, &["-N", "200000"])?;
    let mounted = system.mount(&image)?;
    for file in 0..FILES {
        fs::File::create_new(mounted.path().join(format!("{file:0>200}")))?;
    }
    mounted.unmount()?;
    // Ten MiB of inodes and eight of names, seen through caches of two sizes.
    let mut peaks = [0; 2];
    for (peak, cache_mib) in peaks.iter_mut().zip([2, 64]) {
        let mounted = system.mount_with(&image, &Options::words(&[&format!("cache={cache_mib}M")]))?;
        for entry in fs::read_dir(mounted.path())? {
            entry?.metadata()?;
        }
        mounted.drop_caches()?;
        *peak = mounted.server_memory_kib("VmHWM");
        mounted.unmount()?;
        ensure!(*peak < WITHOUT_CACHE_KIB + (cache_mib << 10), "{peak} KiB with cache={cache_mib}M");
    }
    e2fsck_is_clean(&image)?;
    ensure!(peaks[0] + (6 << 10) < peaks[1], "the option changes nothing: {peaks:?} KiB");
    Ok(())
}
