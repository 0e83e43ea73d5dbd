//! The way to the device: sectors of 512 and of 4096 bytes, past the host's page cache or through it, and
//! requests aligned to nothing. What was chosen is logged and shown.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use blockdev::AlignedBuf;
use fastrand::Rng;
use rustix::fs::{Mode, OFlags};
use tests::oracle::e2fsck_is_clean;
use tests::run::run;
use tests::scale::{Need, can_run, scratch};
use tests::system::{LoopDevice, Mounted, Options, System, binary};
use tests::tree::fill;

const NEEDS: [Need; 3] = [Need::Root, Need::Loop, Need::Fuse];
const SIZE: usize = 1 << 20;

/// Reads and writes with O_DIRECT whose offset, length and place in memory are whatever the dice say.
fn odd_requests(path: &Path, seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?);
    let mut model: Vec<u8> = Vec::new();
    for _ in 0..400 {
        let unit = *rng.choose_multiple([1, 512, 4096], 1).first().context("one of three")?;
        let at = rng.usize(0..SIZE) / unit * unit;
        let length = (rng.usize(1..100_000) / unit * unit).max(unit);
        let skew = rng.usize(0..4096);
        let mut memory = AlignedBuf::zeroed(skew + length);
        let buffer = &mut memory[skew..];
        if rng.bool() {
            fill(rng.u64(..), at as u64, buffer);
            let wrote = rustix::io::pwrite(file.as_fd(), buffer, at as u64)?;
            ensure!(wrote == length, "a write of {length} at {at} wrote {wrote}");
            model.resize(model.len().max(at + length), 0);
            model[at..at + length].copy_from_slice(buffer);
        } else {
            let read = rustix::io::pread(file.as_fd(), &mut *buffer, at as u64)?;
            let right = model.get(at..).unwrap_or_default();
            let right = &right[..right.len().min(length)];
            ensure!(buffer[..read] == *right, "a read of {length} at {at} gave {read} bytes, or wrong ones");
        }
    }
    file.sync_all()?;
    ensure!(std::fs::read(path)? == model, "the page cache shows other bytes");
    Ok(())
}

fn check(device: &Path, words: &[&str], alignment: u64, said: &str) -> Result<()> {
    run(binary("mkfs-rext4").args(["-q", "-F", "-b", "4096"]).arg(device))?;
    let words = [&["stats"], words].concat();
    let options = Options { verbose: true, ..Options::words(&words) };
    let mount = || -> Result<Mounted> { System::Rext4Image.mount_with(device, &options) };
    let mounted = mount()?;
    ensure!(mounted.log().contains(said), "the log does not say '{said}': {}", mounted.log());
    let shown = mounted.counter("device_io_alignment")?;
    ensure!(shown == alignment, "an alignment of {shown}");
    odd_requests(&mounted.path().join("file"), 1)?;
    let before = std::fs::read(mounted.path().join("file"))?;
    mounted.unmount()?;
    e2fsck_is_clean(device)?;
    let mounted = mount()?;
    let after = std::fs::read(mounted.path().join("file"))?;
    mounted.unmount()?;
    ensure!(before == after, "other bytes after a remount");
    Ok(())
}

#[test]
fn every_kind_of_sector_takes_every_request() -> Result<()> {
    if !System::under_test().is_rext4() || !can_run("every_kind_of_sector_takes_every_request", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    File::create(&image)?.set_len(64 << 20)?;
    for sector in [512, 4096] {
        let device = LoopDevice::attach_with_sectors(&image, sector)?;
        let cases: [(&[&str], u64, &str); 3] = [
            (&[], sector.into(), "O_DIRECT"),
            (&["dio=always"], sector.into(), "O_DIRECT"),
            (&["dio=never"], 1, "through the host's page cache"),
        ];
        for (words, alignment, said) in cases {
            check(device.path(), words, alignment, said)
                .with_context(|| format!("sectors of {sector}, {words:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn image_files_are_reached_as_asked_for() -> Result<()> {
    if !System::under_test().is_rext4() || !can_run("image_files_are_reached_as_asked_for", &NEEDS) {
        return Ok(());
    }
    // Not in memory: whether O_DIRECT works is the host filesystem's answer, and a disk's is yes.
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("image");
    File::create(&image)?.set_len(64 << 20)?;
    check(&image, &[], 1, "through the host's page cache")?;
    let probe = rustix::fs::open(&image, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
    let said = if probe.is_ok() { "O_DIRECT" } else { "does not work here" };
    let options = Options { verbose: true, ..Options::words(&["dio=always", "stats"]) };
    let mounted = System::Rext4Image.mount_with(&image, &options)?;
    ensure!(mounted.log().contains(said), "the log does not say '{said}': {}", mounted.log());
    odd_requests(&mounted.path().join("file2"), 2)?;
    mounted.unmount()?;
    e2fsck_is_clean(&image)
}
