//! A device one of whose writes or flushes fails under a mount, each in turn, and a power cut after that:
//! what was written before and synced is there, both openings of the file are told, nothing stale shows,
//! e2fsck has no complaint. And requests so large that they come in parts, one of which fails.
//!
//! The device is the crash lab's, served by threads of this process: a flush that fails leaves everything
//! since the last good one in doubt, for ever.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockdev::Op;
use blockdev::sim::{
    Dice, Fault, FaultDevice, Fill, Image, Keep, MemDevice, Recorder, Recording, StateName, When,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tests::aio::{Done, Request, submit};
use tests::crashlab::{kernel, programs, subject};
use tests::scale::{Need, can_run, pick, scratch};
use tests::served::Served;
use tests::system::System;

const BLOCK: usize = 4096;
/// What the first blocks of the file hold, durably, before the fault.
const OLD: u8 = 100;
const OLD_BLOCKS: u64 = 4;

/// One write and the fdatasync after it; its byte is its number, from 1 on.
struct Round {
    block: u64,
    direct: bool,
}

/// Overwrites, a hole, the end of the file; past the page cache and through it.
const ROUNDS: [Round; 6] = [
    Round { block: 0, direct: true },
    Round { block: 1, direct: false },
    Round { block: 8, direct: true },
    Round { block: 6, direct: false },
    Round { block: 12, direct: true },
    Round { block: 14, direct: false },
];

/// What a life on a failing device came to.
struct Life {
    recording: Recording,
    /// Rounds whose fdatasync said that all is well.
    synced: usize,
    struck: bool,
}

fn open(path: &Path, flags: OFlags) -> Result<File> {
    Ok(File::from(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty())?))
}

fn told(file: &File) -> Result<(), Errno> {
    rustix::fs::fdatasync(file)
}

fn live(base: &Image, fault: Fault) -> Result<Life> {
    let recorder = Recorder::with_whole(base.clone(), subject::SUPERBLOCK);
    let below = recorder.clone();
    let device = FaultDevice::with_failed_flush(recorder.clone(), 1, move || below.flush_failed());
    let device = Arc::new(device);
    let served = Served::start(device.clone(), "")?;
    let path = served.path().join("file");
    fs::write(&path, [OLD; OLD_BLOCKS as usize * BLOCK])?;
    fs::write(served.path().join("durable"), [OLD; 10_000])?;
    for name in ["file", "durable", "."] {
        File::open(served.path().join(name))?.sync_all()?;
    }
    let (cached, direct) = (open(&path, OFlags::empty())?, open(&path, OFlags::DIRECT)?);
    device.arm(fault);
    let mut synced = 0;
    for (round, byte) in ROUNDS.iter().zip(1..) {
        let (file, other) = if round.direct { (&direct, &cached) } else { (&cached, &direct) };
        let wrote = rustix::io::pwrite(file.as_fd(), &[byte; BLOCK], round.block * BLOCK as u64);
        let failure = wrote.err().or_else(|| told(file).err());
        if failure.is_none() {
            synced += 1;
            continue;
        }
        ensure!(device.struck() == 1 && failure == Some(Errno::IO), "round {byte}: {failure:?}");
        // A direct write has said it itself, and its fsync says it once more.
        ensure!(wrote.is_ok() || told(file).is_err(), "round {byte}: its own opening was not told");
        ensure!(told(other).is_err(), "round {byte}: the other opening was not told");
        // A volume whose journal had to stop goes on saying so.
        let (own, other) = (told(file), told(other));
        ensure!(own == other && [Ok(()), Err(Errno::ROFS)].contains(&own), "later: {own:?} {other:?}");
        break;
    }
    drop((cached, direct));
    let recording = recorder.recording();
    // The end of a server whose volume had to stop is an error.
    let ended = served.end();
    let struck = device.struck() > 0;
    ensure!(ended.is_ok() || struck, "nothing had failed: {ended:?}");
    Ok(Life { recording, synced, struck })
}

/// The file after a cut: synced rounds are there, the others are there or not, sector by sector.
fn check(root: &Path, synced: usize) -> Result<()> {
    ensure!(fs::read(root.join("durable"))? == [OLD; 10_000], "another file has changed");
    let found = fs::read(root.join("file"))?;
    let longest = ROUNDS.iter().take(synced).map(|round| round.block + 1).max().unwrap_or(0);
    ensure!(found.len() as u64 >= longest.max(OLD_BLOCKS) * BLOCK as u64, "{} bytes", found.len());
    for (block, bytes) in (0..).zip(found.chunks(BLOCK)) {
        let before = if block < OLD_BLOCKS { OLD } else { 0 };
        let round = ROUNDS.iter().position(|round| round.block == block);
        let after = round.map_or(before, |round| round as u8 + 1);
        let is_synced = round.is_some_and(|round| round < synced);
        let wrong = bytes.iter().find(|&&byte| byte != after && (is_synced || byte != before));
        ensure!(
            wrong.is_none(),
            "block {block}: {wrong:?}, before {before}, after {after}, synced {is_synced}"
        );
    }
    Ok(())
}

#[test]
fn what_was_synced_outlives_each_write_and_flush_that_fails() -> Result<()> {
    let name = "what_was_synced_outlives_each_write_and_flush_that_fails";
    if !can_run(name, &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let base = programs::base(BLOCK as u32)?;
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    for op in [Op::Flush, Op::Write] {
        let mut strikes = 0;
        for nth in 0..pick(10, 30) {
            let life = live(&base, Fault { op, when: When::Nth(nth), sticky: false, errno: 5 })
                .with_context(|| format!("{op:?} {nth}"))?;
            strikes += u32::from(life.struck);
            let mut dice = Dice::new(nth);
            for keep in [Keep::Nothing, Keep::All, Keep::Seeded(dice.roll())] {
                let cut = StateName { cut: life.recording.events().len(), keep };
                let judged = || -> Result<()> {
                    kernel::save(&life.recording.build(cut).image, &image)?;
                    let mounted = System::Rext4Image.mount(&image)?;
                    check(mounted.path(), life.synced)?;
                    mounted.unmount()?;
                    kernel::is_clean(&image)
                };
                judged().with_context(|| format!("{op:?} {nth}, {} synced, {cut}", life.synced))?;
            }
        }
        ensure!(strikes > 5, "{op:?}: hardly a fault has struck");
    }
    Ok(())
}

/// The kernel cuts a large request into parts that are served side by side: the caller gets one error, and a
/// file that would have grown has its old size.
#[test]
fn a_request_of_which_one_part_fails_is_one_error() -> Result<()> {
    const LENGTH: u64 = 4 << 20;
    let name = "a_request_of_which_one_part_fails_is_one_error";
    if !can_run(name, &[Need::Root, Need::Fuse, Need::Tool("perl")]) {
        return Ok(());
    }
    let disk = MemDevice::new(64 << 20, Fill::Stale(0x57a1));
    let mut options = mkfs::Options::new(mkfs::Kind::Ext4, 1_700_000_000);
    options.discard = false;
    mkfs::format(&disk, &options).context("mkfs")?;
    let device = Arc::new(FaultDevice::new(disk, 3));
    // No commit comes between the parts: its writes must not be the ones that fail.
    let served = Served::start(device.clone(), "commit=3600")?;
    let path = served.path().join("file");
    fs::write(&path, vec![1; LENGTH as usize])?;
    File::open(&path)?.sync_all()?;
    let fails = |op, request| -> Result<()> {
        device.arm(Fault { op, when: When::Nth(2), sticky: false, errno: 5 });
        let before = device.struck();
        let done = submit(&path, OFlags::DIRECT, &[request])?;
        ensure!(device.struck() == before + 1 && done[0].result == -5, "{request:?}: {done:?}");
        ensure!(fs::metadata(&path)?.len() == LENGTH, "{request:?}: the file has another size");
        Ok(())
    };
    let whole = Request::Read { offset: 0, length: LENGTH };
    fails(Op::Read, whole)?;
    let read = submit(&path, OFlags::DIRECT, &[whole])?;
    ensure!(read == [Done { result: LENGTH as i64, sum: LENGTH }], "{read:?}");
    fails(Op::Write, Request::Write { offset: LENGTH, length: LENGTH, byte: 3 })?;
    fails(Op::Write, Request::Write { offset: 0, length: LENGTH, byte: 2 })?;
    File::options().write(true).open(&path)?.set_len(2 * LENGTH)?;
    let found = fs::read(&path)?;
    let (old, grown) = found.split_at(LENGTH as usize);
    ensure!(old.iter().all(|byte| [1, 2].contains(byte)), "neither old nor new");
    ensure!(grown.iter().all(|&byte| byte == 0), "behind the old end there are bytes of the failed request");
    served.end()?;
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    kernel::save(&device.inner().snapshot(), &image)?;
    kernel::is_clean(&image)
}
