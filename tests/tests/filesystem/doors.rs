//! What our own doors promise beyond fuser: an umount that waits, a sync that arrives, files without a name,
//! birth times; and that no end of a server, however rude, leaves a hang, a mount or a loop device.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::process::Signal;
use tests::load::Storm;
use tests::oracle::{copy_image, e2fsck_is_clean, e2fsck_replays};
use tests::run::{run, tool, umount};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::{LoopDevice, Mounted, Options, System, is_mounted, the_only_mounts};

const NEEDS: [Need; 3] = [Need::Root, Need::Fuse, Need::Loop];

/// Our own doors, by the option's words.
fn own() -> Vec<&'static str> {
    if can_run("a test of the ring door", &[Need::Rings]) { vec!["dev", "ring"] } else { vec!["dev"] }
}

/// The one that `REXT4_TRANSPORT` names, or all.
fn all() -> Vec<&'static str> {
    let doors = [own(), vec!["fuser"]].concat();
    let chosen = std::env::var("REXT4_TRANSPORT").ok();
    doors.into_iter().filter(|&door| chosen.as_deref().is_none_or(|chosen| chosen == door)).collect()
}

fn image(folder: &Path) -> Result<PathBuf> {
    let image = folder.join("image");
    System::Rext4Image.mkfs(&image, 64 << 20, &[])?;
    Ok(image)
}

fn through(door: &str, system: System, image: &Path) -> Result<Mounted> {
    system.mount_with(image, &Options::words(&[&format!("transport={door}"), "allow_other"]))
}

/// Runs `load` on a mount while `end` ends it.
fn under_load(mounted: &Mounted, seed: u64, end: impl FnOnce() -> Result<()>) -> Result<()> {
    let storm = Storm { seed, threads: 3, time: Duration::from_secs(2), may_fill_up: true };
    let root = mounted.path().to_owned();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| storm.run(&root, true));
        std::thread::sleep(Duration::from_millis(50 + seed * 37 % 200));
        let ended = end();
        // The end may come before the load has so much as a folder, which is an error like any other.
        let _ = load.join().expect("no panic");
        ended
    })
}

#[test]
fn after_umount_the_device_is_free_and_clean() -> Result<()> {
    if !can_run("after_umount_the_device_is_free_and_clean", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let device = LoopDevice::attach(&image)?;
    for door in own() {
        for round in 0..pick(10, 200) {
            let mounted = through(door, System::Rext4Image, device.path())?;
            let storm =
                Storm { seed: round, threads: 3, time: Duration::from_millis(200), may_fill_up: true };
            storm.run(mounted.path(), false)?;
            let point = mounted.path().to_owned();
            let _lock = the_only_mounts()?;
            // Not a word to the server: umount(8) itself has to wait.
            umount(&point)?;
            let checked = e2fsck_is_clean(device.path()).with_context(|| format!("{door}, round {round}"));
            drop(mounted);
            checked?;
        }
    }
    Ok(())
}

#[test]
fn sync_reaches_the_device() -> Result<()> {
    if !can_run("sync_reaches_the_device", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, copy) = (image(folder.path())?, folder.path().join("copy"));
    for door in own() {
        let mounted = through(door, System::Rext4Loop, &image)?;
        for round in 0..5 {
            let name = mounted.path().join(format!("{door}{round}"));
            fs::write(&name, format!("written in round {round}"))?;
            run(&mut tool("sync"))?;
            copy_image(&image, &copy)?;
            e2fsck_replays(&copy)?;
            let after = System::Kernel.mount(&copy)?;
            let found = fs::read_to_string(after.path().join(format!("{door}{round}")));
            after.unmount()?;
            ensure!(found? == format!("written in round {round}"), "{door}: sync came back too early");
        }
        mounted.unmount()?;
    }
    Ok(())
}

fn link_to(file: &File, name: &Path) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, path, CWD, name, AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn files_without_a_name() -> Result<()> {
    if !can_run("files_without_a_name", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    for door in own() {
        let mounted = through(door, System::Rext4Image, &image)?;
        let make = |flags: OFlags| -> Result<File> {
            let flags = flags | OFlags::TMPFILE | OFlags::RDWR;
            Ok(rustix::fs::open(mounted.path(), flags, Mode::from_raw_mode(0o640))?.into())
        };
        let free = rustix::fs::statvfs(mounted.path())?.f_ffree;
        let file = make(OFlags::empty())?;
        ensure!(file.metadata()?.nlink() == 0 && file.metadata()?.mode() & 0o7777 == 0o640);
        file.write_all_at(&[7; 100_000], 0)?;
        let name = mounted.path().join(format!("{door}-named"));
        link_to(&file, &name)?;
        ensure!(file.metadata()?.nlink() == 1 && fs::read(&name)? == [7; 100_000]);
        let second = make(OFlags::EXCL)?;
        ensure!(link_to(&second, &mounted.path().join("no")).is_err(), "O_EXCL forbids a name");
        second.write_all_at(&[8; 50_000], 0)?;
        drop((file, second));
        // A file that has lost its name gets none again.
        let lost = File::create(mounted.path().join("lost"))?;
        fs::remove_file(mounted.path().join("lost"))?;
        ensure!(link_to(&lost, &mounted.path().join("found")) == Err(rustix::io::Errno::NOENT));
        drop(lost);
        run(&mut tool("sync"))?;
        ensure!(rustix::fs::statvfs(mounted.path())?.f_ffree + 1 == free, "inodes were not given back");
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
        // Killed with one open: recovery takes it away.
        let mounted = through(door, System::Rext4Image, &image)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let file: File = rustix::fs::open(mounted.path(), flags, Mode::from_raw_mode(0o600))?.into();
        file.write_all_at(&[9; 10_000], 0)?;
        file.sync_all()?;
        mounted.crash()?;
        drop(file);
        let mounted = through(door, System::Rext4Image, &image)?;
        ensure!(fs::read(mounted.path().join(format!("{door}-named")))? == [7; 100_000]);
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
    }
    Ok(())
}

#[test]
fn birth_times_are_shown() -> Result<()> {
    if !can_run("birth_times_are_shown", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    for door in own() {
        let mounted = through(door, System::Rext4Image, &image)?;
        let name = mounted.path().join(format!("{door}-file"));
        fs::write(&name, "born")?;
        let born = |name: &Path| rustix::fs::statx(CWD, name, AtFlags::empty(), StatxFlags::ALL);
        let told = born(&name)?;
        ensure!(told.stx_mask & StatxFlags::BTIME.bits() != 0, "no birth time");
        mounted.unmount()?;
        let kernel = System::Kernel.mount(&image)?;
        let known = born(&kernel.path().join(format!("{door}-file")))?;
        kernel.unmount()?;
        let time = |s: &rustix::fs::Statx| (s.stx_btime.tv_sec, s.stx_btime.tv_nsec);
        ensure!(time(&told) == time(&known), "another birth time than the kernel reads");
    }
    Ok(())
}

/// Such a write goes through the page cache and waits for its answer, with its pages locked: a server that
/// asks the kernel for these pages before it answers would wait for ever.
#[test]
fn a_write_that_takes_set_id_bits_away_ends() -> Result<()> {
    if !can_run("a_write_that_takes_set_id_bits_away_ends", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    for door in all() {
        let words = [&format!("transport={door}"), "allow_other"];
        let options = Options { time_limit: Duration::from_secs(60), ..Options::words(&words) };
        let mounted = System::Rext4Image.mount_with(&image, &options)?;
        let name = mounted.path().join(format!("{door}-file"));
        fs::write(&name, vec![1; 1 << 16])?;
        fs::set_permissions(&name, fs::Permissions::from_mode(0o6777))?;
        let script = r#"
            open F, "+<", $ARGV[0] or die; sysread F, $x, 65536;
            sysseek F, 0, 0; syswrite F, "x" x 8192 or die; close F or die"#;
        run(&mut tests::system::as_user(
            {
                let mut perl = tool("perl");
                perl.args(["-e", script]).arg(&name);
                perl
            },
            (1234, 1234),
        ))?;
        ensure!(
            fs::metadata(&name)?.mode() & 0o6000 == 0,
            "{door}: set-id bits survive a write by somebody else"
        );
        ensure!(fs::read(&name)?.starts_with(&[b'x'; 8192]));
        mounted.unmount()?;
    }
    Ok(())
}

/// The connection's folder below a mounted fusectl filesystem.
fn abort(mounted: &Mounted, control: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let point = mounted.path().to_string_lossy().into_owned();
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&point)).context("its own mount")?;
    let number = line.split(' ').nth(2).and_then(|n| n.split_once(':')).context("major:minor")?;
    // The kernel names a connection by its own form of the mount's device number.
    let (major, minor): (u32, u32) = (number.0.parse()?, number.1.parse()?);
    let connection = major << 20 | minor;
    Ok(fs::write(control.join(connection.to_string()).join("abort"), "1")?)
}

#[test]
fn rude_ends_leave_nothing_behind() -> Result<()> {
    if !can_run("rude_ends_leave_nothing_behind", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let control = tempfile::tempdir()?;
    run(tool("mount").args(["-t", "fusectl", "none"]).arg(control.path()))?;
    let outcome = all().iter().try_for_each(|door| {
        (0..pick(9, 100)).try_for_each(|round| {
            let system = if round % 2 == 0 { System::Rext4Loop } else { System::Rext4Image };
            end_rudely(door, system, &image, control.path(), round)
                .with_context(|| format!("{door}, {}, round {round}", system.name()))
        })
    });
    umount(control.path())?;
    outcome
}

fn end_rudely(door: &str, system: System, image: &Path, control: &Path, round: u64) -> Result<()> {
    let mut mounted = through(door, system, image)?;
    let (point, device) = (mounted.path().to_owned(), mounted.device().map(Path::to_owned));
    match round % 3 {
        0 => {
            under_load(&mounted, round, || mounted.signal(Signal::KILL))?;
            mounted.crash()?;
        }
        1 => {
            under_load(&mounted, round, || abort(&mounted, control))?;
            // The server notices, writes out what it has, and takes its mount away.
            let _ = mounted.end_of_server();
            drop(mounted);
        }
        _ => {
            under_load(&mounted, round, || mounted.signal(Signal::TERM))?;
            mounted.end_of_server()?;
            drop(mounted);
            e2fsck_is_clean(image)?;
        }
    }
    ensure!(!is_mounted(&point)?, "the mount is still there");
    if let Some(device) = device {
        let backing =
            Path::new("/sys/block").join(device.file_name().context("a name")?).join("loop/backing_file");
        let is_there =
            || fs::read_to_string(&backing).is_ok_and(|file| file.trim() == image.to_string_lossy());
        // The kernel lets go of an aborted mount's device at a time of its own.
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_there() {
            ensure!(Instant::now() < deadline, "the loop device is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    // Whatever was left, the next mount recovers.
    through(door, System::Rext4Image, image)?.unmount()?;
    e2fsck_is_clean(image)
}
