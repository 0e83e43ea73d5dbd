//! IO modes of one file: direct and cached openings, mappings of either, O_DIRECT switched on and off while
//! it is open, and two processes that share it.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blockdev::AlignedBuf;
use mmap_io::{MemoryMappedFile, MmapMode};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use tests::coherence;
use tests::oracle::e2fsck_is_clean;
use tests::run::{run, tool};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::System;

const NEEDS: [Need; 3] = [Need::Root, Need::Loop, Need::Fuse];
const PAGE: usize = 4096;

/// Runs `story` in the root of a fresh volume, which must be clean afterwards.
fn on_a_volume(story: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 256 << 20, &["-b", "4096"])?;
    let mounted = System::under_test().mount(&image)?;
    let told = story(mounted.path());
    mounted.unmount()?;
    told?;
    e2fsck_is_clean(&image)
}

fn open(path: &Path, flags: OFlags) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | flags;
    Ok(File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?))
}

fn write(file: &File, at: usize, byte: u8) -> Result<()> {
    let mut page = AlignedBuf::zeroed(PAGE);
    page.fill(byte);
    ensure!(rustix::io::pwrite(file.as_fd(), &page, at as u64)? == PAGE);
    Ok(())
}

fn sees(file: &File, at: usize, byte: u8) -> Result<()> {
    let mut page = AlignedBuf::zeroed(PAGE);
    ensure!(rustix::io::pread(file.as_fd(), &mut page[..], at as u64)? == PAGE, "a short read");
    ensure!(page.iter().all(|found| *found == byte), "{:#x} instead of {byte:#x} at {at}", page[0]);
    Ok(())
}

#[test]
fn o_direct_is_switched_on_and_off() -> Result<()> {
    if !can_run("o_direct_is_switched_on_and_off", &NEEDS) {
        return Ok(());
    }
    on_a_volume(|root| {
        let path = root.join("file");
        let witness = open(&path, OFlags::empty())?;
        for first in [OFlags::empty(), OFlags::DIRECT] {
            let file = open(&path, first)?;
            let plain = fcntl_getfl(&file)? - OFlags::DIRECT;
            for byte in 1..=20_u8 {
                let direct = byte % 2 == 0;
                fcntl_setfl(&file, if direct { plain | OFlags::DIRECT } else { plain })?;
                for at in [0, PAGE, 5 * PAGE] {
                    write(&file, at, byte)?;
                    sees(&witness, at, byte)?;
                    write(&witness, at, byte + 100)?;
                    sees(&file, at, byte + 100)?;
                }
                if byte % 5 == 0 {
                    file.sync_data()?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn mappings_of_direct_and_cached_openings_show_every_write() -> Result<()> {
    if !can_run("mappings_of_direct_and_cached_openings_show_every_write", &NEEDS) {
        return Ok(());
    }
    on_a_volume(|root| {
        let path = root.join("file");
        fs::write(&path, vec![0; 16 * PAGE])?;
        let (direct, cached) = (open(&path, OFlags::DIRECT)?, open(&path, OFlags::empty())?);
        let map = |flags| -> Result<MemoryMappedFile> {
            let file = open(&path, flags)?;
            MemoryMappedFile::from_file(file, MmapMode::ReadWrite, &path).context("mapping")
        };
        let maps = [map(OFlags::DIRECT)?, map(OFlags::empty())?];
        let mapped = |at: usize, byte: u8| -> Result<()> {
            for map in &maps {
                let mut page = vec![0; PAGE];
                map.read_into(at as u64, &mut page)?;
                ensure!(
                    page.iter().all(|found| *found == byte),
                    "a mapping shows {:#x}, not {byte:#x}",
                    page[0]
                );
            }
            Ok(())
        };
        for byte in 1..=60_u8 {
            let at = usize::from(byte) * 7 % 16 * PAGE;
            match byte % 4 {
                0 => write(&direct, at, byte)?,
                1 => write(&cached, at, byte)?,
                way => maps[usize::from(way) - 2].update_region(at as u64, &[byte; PAGE])?,
            }
            mapped(at, byte)?;
            sees(&direct, at, byte)?;
            sees(&cached, at, byte)?;
        }
        Ok(())
    })
}

/// Asynchronous direct writes of all of a file by fio, beside three readers through the page cache.
struct Both {
    bytes: usize,
    /// How much the readers take at a time.
    read: usize,
    /// Writes under way.
    depth: u32,
    /// How many of them are sent together.
    batch: u32,
    /// How often fio goes over the file.
    loops: u32,
}

impl Both {
    fn run(&self, path: &Path, cached: &File, round: u32) -> Result<()> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let done = &done;
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(reader);
                    let mut bytes = vec![0; self.read];
                    while !done.load(Ordering::Relaxed) {
                        let at = rng.usize(0..self.bytes / self.read) * self.read;
                        let _ = rustix::io::pread(cached.as_fd(), &mut bytes[..], at as u64);
                    }
                });
            }
            let mut fio = tool("fio");
            fio.args(["--name=aio", "--ioengine=libaio", "--direct=1", "--rw=randwrite", "--bs=4k"]);
            fio.args(["--invalidate=0", "--eta=never"]).arg(format!("--size={}", self.bytes));
            fio.arg(format!("--iodepth={}", self.depth)).arg(format!("--iodepth_batch={}", self.batch));
            fio.arg(format!("--loops={}", self.loops));
            fio.arg(format!("--filename={}", path.display())).arg(format!("--randseed={round}"));
            let wrote = run(fio.arg(format!("--buffer_pattern=0x{:02x}", round + 1)));
            done.store(true, Ordering::Relaxed);
            wrote.map(drop)
        })
    }

    /// Pages of the cache that differ from the file.
    fn stale(&self, direct: &File, cached: &File) -> Result<usize> {
        let whole = |file: &File| -> Result<AlignedBuf> {
            let mut bytes = AlignedBuf::zeroed(self.bytes);
            ensure!(rustix::io::pread(file.as_fd(), &mut bytes[..], 0)? == self.bytes, "a short read");
            Ok(bytes)
        };
        let (old, new) = (whole(cached)?, whole(direct)?);
        Ok(old.chunks(PAGE).zip(new.chunks(PAGE)).filter(|(old, new)| old != new).count())
    }
}

/// The kernel drops cached pages when it sends an asynchronous direct write, and they may be read again
/// before it ends.
#[test]
fn no_page_stays_older_than_an_asynchronous_direct_write() -> Result<()> {
    let needs = [&NEEDS[..], &[Need::Tool("fio")]].concat();
    if !can_run("no_page_stays_older_than_an_asynchronous_direct_write", &needs) {
        return Ok(());
    }
    let both = Both { bytes: 4 << 20, read: PAGE, depth: 16, batch: 1, loops: 2 };
    on_a_volume(|root| {
        let path = root.join("file");
        fs::write(&path, vec![0; both.bytes])?;
        let (direct, cached) = (open(&path, OFlags::DIRECT)?, open(&path, OFlags::empty())?);
        for round in 0..pick(6, 60) {
            both.run(&path, &cached, round)?;
            let stale = both.stale(&direct, &cached)?;
            ensure!(stale == 0, "round {round}: {stale} pages of the cache are stale");
        }
        Ok(())
    })
}

/// The kernel has 64 background requests under way: if all of them were writes that wait for READs, none
/// would come.
#[test]
fn more_direct_writes_than_the_kernel_lets_out_leave_room_for_reads() -> Result<()> {
    let needs = [&NEEDS[..], &[Need::Tool("fio")]].concat();
    if !can_run("more_direct_writes_than_the_kernel_lets_out_leave_room_for_reads", &needs) {
        return Ok(());
    }
    let both = Both { bytes: 1 << 20, read: 1 << 20, depth: 256, batch: 256, loops: pick(60, 1000) };
    on_a_volume(|root| {
        let path = root.join("file");
        fs::write(&path, vec![0; both.bytes])?;
        let (direct, cached) = (open(&path, OFlags::DIRECT)?, open(&path, OFlags::empty())?);
        both.run(&path, &cached, 1)?;
        // Of so many writes some were answered first, and their pages are dropped by and by.
        let deadline = Instant::now() + Duration::from_secs(60);
        while both.stale(&direct, &cached)? > 0 {
            ensure!(Instant::now() < deadline, "stale pages stay in the cache");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })
}

#[test]
fn two_processes_see_each_others_writes() -> Result<()> {
    if !can_run("two_processes_see_each_others_writes", &NEEDS) {
        return Ok(());
    }
    on_a_volume(|root| {
        let path = root.join("file");
        let mut other = Command::new(env!("CARGO_BIN_EXE_coherence"));
        other.args(["--cached", "--seed", "7"]).arg(&path);
        // The other process does half as many again: a million in a long run.
        let done = coherence::direct_side(&path, &mut other, 7, pick(16_000, 400_000))?;
        eprintln!("{done} operations with O_DIRECT, {} without", done + done / 2);
        Ok(())
    })
}
