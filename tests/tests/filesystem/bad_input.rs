//! What cannot be mounted, formatted or checked is refused in one clear line, with a non-zero status, and not
//! a byte of it is changed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::oracle::{e2fsck_is_clean, fingerprint};
use tests::run::{both, output, run, spelled, tool, umount};
use tests::scale::{Need, can_run, scratch};
use tests::system::{System, binary, is_mounted};
use tests::tree::fill;

const MIB: u64 = 1 << 20;

/// One refusal: an image and a word that the answer must contain.
struct Case {
    what: &'static str,
    device: PathBuf,
    word: &'static str,
}

/// Runs the command, which must refuse in one line that holds `word`.
fn refuses(command: &mut Command, word: &str) -> Result<()> {
    let answer = output(command)?;
    let (command, said) = (spelled(command), both(&answer));
    ensure!(!answer.status.success(), "`{command}` succeeded: {said}");
    ensure!(answer.status.code().is_some(), "`{command}` died: {said}");
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(lines.len() == 1, "`{command}` said {} lines, not one: {said}", lines.len());
    ensure!(said.to_lowercase().contains(word), "`{command}` does not speak of {word:?}: {said}");
    ensure!(!said.contains("panicked"), "`{command}` panicked: {said}");
    Ok(())
}

/// A good image, changed by `spoil`.
fn spoilt(folder: &Path, name: &str, spoil: impl FnOnce(&File, &Path) -> Result<()>) -> Result<PathBuf> {
    let image = folder.join(name);
    System::Kernel.mkfs(&image, 16 * MIB, &[])?;
    spoil(&File::options().read(true).write(true).open(&image)?, &image)?;
    Ok(image)
}

fn debugfs(image: &Path, request: &str) -> Result<()> {
    run(tool("debugfs").args(["-w", "-R", request]).arg(image)).map(drop)
}

fn cases(folder: &Path) -> Result<Vec<Case>> {
    let random = folder.join("random");
    let mut bytes = vec![0; 4 << 20];
    fill(5, 0, &mut bytes);
    fs::write(&random, &bytes)?;
    let empty = folder.join("empty");
    File::create(&empty)?;
    let short = folder.join("short");
    fs::write(&short, [0; 1500])?;
    let case = |what, device, word| Case { what, device, word };
    Ok(vec![
        case("random bytes", random, "magic"),
        case("an empty file", empty, "empty"),
        case("a file of 1500 bytes", short, ""),
        case("a truncated image", spoilt(folder, "truncated", |file, _| Ok(file.set_len(8 * MIB)?))?, ""),
        case(
            "a wrong magic",
            spoilt(folder, "magic", |file, _| Ok(file.write_all_at(&[0, 0], 1024 + 56)?))?,
            "magic",
        ),
        case(
            "a broken superblock",
            spoilt(folder, "broken", |file, _| Ok(file.write_all_at(&[0xff; 16], 1024)?))?,
            "",
        ),
        case(
            "an unknown incompatible feature",
            spoilt(folder, "feature", |_, image| debugfs(image, "feature FEATURE_I30"))?,
            "feature_i30",
        ),
        case("an external journal", journal_device(folder)?, "journal"),
        case("a folder as device", folder.to_owned(), "directory"),
        case("a device that is not there", folder.join("nowhere"), "no such file"),
    ])
}

fn journal_device(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("journal-device");
    File::create(&path)?.set_len(8 * MIB)?;
    run(tool("mke2fs").args(["-q", "-F", "-O", "journal_dev", "-b", "4096"]).arg(&path))?;
    Ok(path)
}

#[test]
fn mount_refuses_what_it_cannot_mount() -> Result<()> {
    if !can_run("mount_refuses_what_it_cannot_mount", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let point = tempfile::tempdir()?;
    let mut faults = Vec::new();
    for case in cases(folder.path())? {
        let before = fingerprint(&case.device).ok();
        let mut command = System::under_test().mount_command();
        let mut verdict = refuses(command.arg(&case.device).arg(point.path()), case.word);
        if is_mounted(point.path())? {
            umount(point.path())?;
            verdict = verdict.context("it was mounted");
        }
        if before != fingerprint(&case.device).ok() {
            verdict = verdict.and(Err(anyhow::anyhow!("the device was changed")));
        }
        faults.extend(verdict.err().map(|error| format!("{}: {error:#}", case.what)));
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn mount_refuses_bad_places_and_options() -> Result<()> {
    if !can_run("mount_refuses_bad_places_and_options", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    let system = System::under_test();
    system.mkfs(&image, 16 * MIB, &[])?;
    let before = fingerprint(&image)?;
    let command = || system.mount_command();
    refuses(command().arg(&image).arg(folder.path().join("nowhere")), "nowhere")?;
    refuses(command().arg(&image).arg(&image), "directory")?;
    let point = tempfile::tempdir()?;
    for (words, about) in [
        ("data=journal", "data=journal"),
        ("dax", "dax"),
        ("no-such-option", "no-such-option"),
        ("commit=soon", "commit"),
        ("errors=perhaps", "errors"),
        ("offset=12", "offset"),
        ("prjquota", "quota"),
    ] {
        refuses(command().arg(&image).arg(point.path()).args(["-o", words]), about)?;
    }
    ensure!(before == fingerprint(&image)?, "a refused mount has changed the image");
    Ok(())
}

#[test]
fn nobody_takes_an_image_that_is_in_use() -> Result<()> {
    if !can_run("nobody_takes_an_image_that_is_in_use", &[Need::Root, Need::Fuse, Need::Loop]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, point) = (folder.path().join("image"), tempfile::tempdir()?);
    for system in [System::Rext4Image, System::Rext4Loop, System::Kernel] {
        system.mkfs(&image, 16 * MIB, &[])?;
        let mounted = system.mount(&image)?;
        fs::write(mounted.path().join("file"), "still here")?;
        // Over a loop device, that device is what is taken.
        let device = mounted.device().unwrap_or(&image).to_owned();
        refuses(binary("mount-rext4").arg(&device).arg(point.path()), "use").context(system.name())?;
        refuses(binary("mkfs-rext4").arg("-F").arg(&device), "use").context(system.name())?;
        let checked = output(binary("fsck-rext4").arg("-fy").arg(&device))?;
        ensure!(checked.status.code() == Some(8), "fsck of what is in use: {}", both(&checked));
        ensure!(fs::read_to_string(mounted.path().join("file"))? == "still here");
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
    }
    Ok(())
}

#[test]
fn mkfs_refuses_what_it_should_not_overwrite() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Kernel.mkfs(&image, 16 * MIB, &["-L", "precious"])?;
    let before = fingerprint(&image)?;
    refuses(binary("mkfs-rext4").arg(&image), "ext4")?;
    refuses(binary("mkfs-rext4").args(["-F", "-b", "3000"]).arg(&image), "3000")?;
    refuses(binary("mkfs-rext4").args(["-F", "-I", "100"]).arg(&image), "inode size")?;
    refuses(binary("mkfs-rext4").args(["-F", "-O", "no_such_feature"]).arg(&image), "no_such_feature")?;
    ensure!(before == fingerprint(&image)?, "a refused mkfs has changed the image");
    refuses(binary("mkfs-rext4").arg("-F").arg(folder.path()), "directory")?;
    refuses(binary("mkfs-rext4").arg("-F").arg(folder.path().join("nowhere")), "nowhere")?;
    let tiny = folder.path().join("tiny");
    File::create(&tiny)?.set_len(4096)?;
    refuses(binary("mkfs-rext4").arg("-F").arg(&tiny), "small")
}

#[test]
fn fsck_says_8_for_trouble_and_16_for_usage() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let answer = output(binary("fsck-rext4").arg("-n").arg(folder.path().join("nowhere")))?;
    ensure!(answer.status.code() == Some(8), "{answer:?}");
    let answer = output(binary("fsck-rext4").arg("--no-such-option"))?;
    ensure!(answer.status.code() == Some(16), "{answer:?}");
    Ok(())
}
