//! The life of a mount: in the foreground and the background, its ends by umount and by signals, read-only in
//! its several ways, and at an offset.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::Signal;
use tests::load::Storm;
use tests::manifest::{Depth, Manifest};
use tests::oracle::{copy_image, e2fsck_is_clean, fingerprint, super_field};
use tests::run::{both, output, run, tool, umount};
use tests::scale::{Need, can_run, scratch};
use tests::system::{LoopDevice, Options, System, as_user, is_mounted};

const SIZE: u64 = 64 << 20;

fn image(folder: &Path) -> Result<std::path::PathBuf> {
    let image = folder.join("image");
    System::under_test().mkfs(&image, SIZE, &[])?;
    Ok(image)
}

#[test]
fn a_signal_unmounts_cleanly() -> Result<()> {
    if !can_run("a_signal_unmounts_cleanly", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    for signal in [Signal::TERM, Signal::INT] {
        let mut mounted = System::under_test().mount(&image)?;
        let name = format!("before {signal:?}");
        fs::write(mounted.path().join(&name), "written")?;
        mounted.signal(signal)?;
        mounted.end_of_server()?;
        ensure!(!is_mounted(mounted.path())?, "{signal:?} left a mount");
        drop(mounted);
        e2fsck_is_clean(&image)?;
        let mounted = System::under_test().mount(&image)?;
        ensure!(fs::read_to_string(mounted.path().join(&name))? == "written");
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn a_signal_under_load_leaves_a_clean_image() -> Result<()> {
    if !can_run("a_signal_under_load_leaves_a_clean_image", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let mut mounted = System::under_test().mount(&image)?;
    let storm = Storm { seed: 3, threads: 4, time: Duration::from_secs(2), may_fill_up: true };
    let root = mounted.path().to_owned();
    std::thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| storm.run(&root, true));
        std::thread::sleep(Duration::from_millis(500));
        mounted.signal(Signal::TERM)?;
        load.join().expect("no panic")?;
        Ok(())
    })?;
    mounted.end_of_server()?;
    drop(mounted);
    e2fsck_is_clean(&image)
}

/// The processes whose command line names the image.
fn servers_of(image: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let line = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
        if name.parse::<u32>().is_ok() && String::from_utf8_lossy(&line).contains(&*image.to_string_lossy()) {
            found.push(name);
        }
    }
    Ok(found)
}

#[test]
fn in_the_background_it_answers_before_it_returns() -> Result<()> {
    if !can_run("in_the_background_it_answers_before_it_returns", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let point = tempfile::tempdir()?;
    run(System::under_test().mount_command().arg(&image).arg(point.path()))?;
    let written = fs::write(point.path().join("at once"), "and read");
    let read = fs::read_to_string(point.path().join("at once"));
    umount(point.path())?;
    written?;
    ensure!(read? == "and read");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !servers_of(&image)?.is_empty() {
        ensure!(Instant::now() < deadline, "the server goes on after umount");
        std::thread::sleep(Duration::from_millis(20));
    }
    e2fsck_is_clean(&image)
}

fn is_read_only(root: &Path) -> bool {
    let denied = |answer: std::io::Result<()>| answer.is_err_and(|error| error.raw_os_error() == Some(30));
    denied(File::create(root.join("new")).map(drop))
        && denied(fs::remove_file(root.join("kept")))
        && denied(fs::create_dir(root.join("folder")))
        && denied(fs::rename(root.join("kept"), root.join("other")))
}

#[test]
fn read_only_changes_nothing() -> Result<()> {
    if !can_run("read_only_changes_nothing", &[Need::Root, Need::Fuse, Need::Loop]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let mounted = System::under_test().mount(&image)?;
    fs::write(mounted.path().join("kept"), "kept")?;
    mounted.unmount()?;
    let before = fingerprint(&image)?;
    let mounted = System::under_test().mount_with(&image, &Options::words(&["ro"]))?;
    ensure!(fs::read_to_string(mounted.path().join("kept"))? == "kept");
    ensure!(is_read_only(mounted.path()), "a read-only mount was written to");
    mounted.unmount()?;
    ensure!(before == fingerprint(&image)?, "a read-only mount has changed the image");
    Ok(())
}

#[test]
fn remount_read_only_and_back() -> Result<()> {
    if !can_run("remount_read_only_and_back", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let mounted = System::under_test().mount(&image)?;
    fs::write(mounted.path().join("kept"), "kept")?;
    mount_remount(mounted.path(), MountFlags::RDONLY, c"")?;
    ensure!(is_read_only(mounted.path()), "remounted read-only, and written to");
    mount_remount(mounted.path(), MountFlags::empty(), c"")?;
    fs::write(mounted.path().join("kept"), "again")?;
    mounted.unmount()?;
    e2fsck_is_clean(&image)
}

/// A medium that cannot be written, with a journal that waits for its replay: shown as if replayed.
#[test]
fn a_dirty_image_on_a_read_only_device_shows_its_journal() -> Result<()> {
    let name = "a_dirty_image_on_a_read_only_device_shows_its_journal";
    let system = System::under_test();
    if !can_run(name, &[Need::Root, Need::Fuse, Need::Loop]) || system == System::Kernel {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let mounted = system.mount(&image)?;
    fs::create_dir(mounted.path().join("inner"))?;
    let file = File::create(mounted.path().join("inner/file"))?;
    file.write_all_at(b"promised", 0)?;
    file.sync_all()?;
    drop(file);
    mounted.crash()?;
    let copy = folder.path().join("copy");
    copy_image(&image, &copy)?;
    ensure!(e2fsck_is_clean(&copy).is_err(), "nothing to replay: the test shows nothing");
    let before = Manifest::read(&copy, Depth::Timeless)?;
    run(tool("chmod").arg("444").arg(&copy))?;
    let device = LoopDevice::attach_read_only(&copy)?;
    let mounted = System::Rext4Image.mount_with(device.path(), &Options::words(&["ro"]))?;
    ensure!(fs::read_to_string(mounted.path().join("inner/file"))? == "promised");
    mounted.unmount()?;
    drop(device);
    run(tool("chmod").arg("644").arg(&copy))?;
    before.expect_same(&Manifest::read(&copy, Depth::Timeless)?, "the image before and after")
}

#[test]
fn at_an_offset_in_a_larger_file() -> Result<()> {
    if !can_run("at_an_offset_in_a_larger_file", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    const START: u64 = 1 << 20;
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let disk = folder.path().join("disk");
    let file = File::create(&disk)?;
    file.set_len(START + SIZE + START)?;
    let guard = [0x5a; 4096];
    file.write_all_at(&guard, START - 4096)?;
    file.write_all_at(&guard, START + SIZE)?;
    let place = |input: &Path, output: &Path, from: u64, to: u64| {
        let count = |name: &str, bytes: u64| format!("{name}={}", bytes >> 20);
        run(tool("dd").args(["bs=1M", "conv=notrunc,sparse", "status=none"]).args([
            format!("if={}", input.display()),
            format!("of={}", output.display()),
            count("skip", from),
            count("seek", to),
            count("count", SIZE),
        ]))
    };
    place(&image, &disk, 0, START)?;
    let mounted = System::under_test().mount_with(&disk, &Options::words(&["offset=1048576"]))?;
    fs::write(mounted.path().join("file"), "inside")?;
    mounted.unmount()?;
    let out = folder.path().join("out");
    File::create(&out)?.set_len(SIZE)?;
    place(&disk, &out, START, 0)?;
    e2fsck_is_clean(&out).context("the partition")?;
    let mounted = System::Kernel.mount_with(&out, &Options::words(&["ro"]))?;
    ensure!(fs::read_to_string(mounted.path().join("file"))? == "inside");
    mounted.unmount()?;
    let file = File::open(&disk)?;
    for at in [START - 4096, START + SIZE] {
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, at)?;
        ensure!(bytes == guard, "written outside of the filesystem, at {at}");
    }
    Ok(())
}

#[test]
fn the_superblock_says_where_it_was_mounted_last() -> Result<()> {
    if !can_run("the_superblock_says_where_it_was_mounted_last", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let mounted = System::under_test().mount(&image)?;
    let point = mounted.path().to_string_lossy().into_owned();
    mounted.unmount()?;
    let said = super_field(&image, "Last mounted on")?;
    ensure!(said == point, "{said}");
    Ok(())
}

#[test]
fn groups_of_new_files_as_the_options_say() -> Result<()> {
    if !can_run("groups_of_new_files_as_the_options_say", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    for (word, group, is_inherited) in [("bsdgroups", 1000, true), ("sysvgroups", 0, false)] {
        let mounted = System::under_test().mount_with(&image, &Options::words(&[word]))?;
        let dir = mounted.path().join(word);
        fs::create_dir(&dir)?;
        std::os::unix::fs::chown(&dir, None, Some(1000))?;
        fs::create_dir(dir.join("inner"))?;
        let made = fs::metadata(dir.join("inner"))?;
        ensure!(made.gid() == group, "{word}: group {}", made.gid());
        ensure!(made.mode() & 0o2000 == 0, "{word}: set-group-id from nowhere ({is_inherited})");
        mounted.unmount()?;
    }
    e2fsck_is_clean(&image)
}

/// The reserve is for root and for those whom the options name; everybody else is told before.
#[test]
fn the_reserve_is_for_those_whom_the_options_name() -> Result<()> {
    if !can_run("the_reserve_is_for_those_whom_the_options_name", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let filled_by = |words: &[&str]| -> Result<u64> {
        let mounted = System::under_test().mount_with(&image, &Options::words(words))?;
        std::os::unix::fs::chown(mounted.path(), Some(1000), Some(1000))?;
        let script =
            format!("dd if=/dev/zero of={0}/big bs=64k conv=fsync status=none", mounted.path().display());
        let mut shell = tool("sh");
        shell.args(["-c", &script]);
        let answer = output(&mut as_user(shell, (1000, 1000)))?;
        ensure!(!answer.status.success(), "it never ended");
        let left = rustix::fs::statvfs(mounted.path())?.f_bfree;
        fs::remove_file(mounted.path().join("big"))?;
        mounted.unmount()?;
        Ok(left)
    };
    let ordinary = filled_by(&["allow_other"])?;
    let by_user = filled_by(&["allow_other", "resuid=1000"])?;
    let by_group = filled_by(&["allow_other", "resgid=1000"])?;
    let reserved: u64 = super_field(&image, "Reserved block count")?.parse()?;
    ensure!(ordinary >= reserved, "{ordinary} blocks left of a reserve of {reserved}");
    ensure!(by_user + reserved / 2 < ordinary, "resuid: {by_user} blocks left, {ordinary} without");
    ensure!(by_group + reserved / 2 < ordinary, "resgid: {by_group} blocks left, {ordinary} without");
    e2fsck_is_clean(&image)
}

/// What is refused is refused with a reason, before anything is written.
#[test]
fn options_that_cannot_be_honoured_are_refused_by_name() -> Result<()> {
    if !can_run("options_that_cannot_be_honoured_are_refused_by_name", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let before = fingerprint(&image)?;
    let point = tempfile::tempdir()?;
    for word in ["data=journal", "dax", "prjquota", "usrquota", "noacl", "journal_path=/dev/sdz", "nonsense"]
    {
        let mut command = System::Rext4Image.mount_command();
        let answer = output(command.arg(&image).arg(point.path()).args(["-o", word]))?;
        let name = word.split('=').next().unwrap_or(word);
        ensure!(answer.status.code() == Some(32), "{word}: {}", answer.status);
        ensure!(both(&answer).contains(name), "{word} is not named: {}", both(&answer));
    }
    ensure!(before == fingerprint(&image)?);
    Ok(())
}

#[test]
fn another_superblock_and_the_size_of_folders() -> Result<()> {
    if !can_run("another_superblock_and_the_size_of_folders", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let mounted = System::under_test().mount_with(&image, &Options::words(&["max_dir_size_kb=8"]))?;
    let full =
        (0..2000).find_map(|index| File::create(mounted.path().join(format!("a-longer-name-{index}"))).err());
    ensure!(full.as_ref().and_then(std::io::Error::raw_os_error) == Some(28), "{full:?}");
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    // The first copy of a volume of 1 KiB blocks lies in block 8193; mount(8) counts in 1 KiB.
    let words = ["ro,sb=8193"];
    let mounted = System::under_test().mount_with(&image, &Options::words(&words))?;
    ensure!(mounted.path().join("a-longer-name-0").exists());
    mounted.unmount()
}
