//! Read-only mounts of devices that could be written, and remounts, beside the kernel: what is on the device after
//! each step.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount_remount};
use tests::oracle::{copy_image, e2fsck_is_clean, fingerprint, super_field};
use tests::run::{both, output, run, tool, umount};
use tests::scale::{Need, can_run, scratch};
use tests::system::{LoopDevice, Options, System, through_fuser};

const NEEDS: [Need; 3] = [Need::Root, Need::Fuse, Need::Loop];
const SIZE: u64 = 64 << 20;

/// An image that a crash has left with a log to replay, and with inodes to delete and to cut.
fn crashed(image: &Path) -> Result<()> {
    System::Rext4Image.mkfs(image, SIZE, &["-O", "orphan_file"])?;
    let mounted = System::Rext4Image.mount(image)?;
    let root = mounted.path();
    let open: Vec<File> = (0..20)
        .map(|n| {
            let file = File::create(root.join(format!("file {n}")))?;
            file.write_all_at(&[b'x'; 9000], 0)?;
            file.sync_all()?;
            Ok(file)
        })
        .collect::<Result<_>>()?;
    (0..20).step_by(2).try_for_each(|n| fs::remove_file(root.join(format!("file {n}"))))?;
    File::open(root)?.sync_all()?;
    mounted.crash()?;
    drop(open);
    ensure!(features(image)?.contains("needs_recovery"), "nothing to recover: the test shows nothing");
    Ok(())
}

fn features(device: &Path) -> Result<String> {
    super_field(device, "Filesystem features")
}

/// What a remount leaves on the device, once it has arrived there.
fn state(device: &Path, in_use: bool) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while features(device)?.contains("needs_recovery") != in_use && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let checked = output(tool("e2fsck").args(["-fn"]).arg(device))?;
    let of = |name| super_field(device, name);
    Ok(format!(
        "{} {} {} fsck {:?}",
        features(device)?.split(' ').filter(|f| ["needs_recovery", "orphan_present"].contains(f)).count(),
        of("Filesystem state")?,
        of("Mount count")?,
        checked.status.code().filter(|_| !in_use),
    ))
}

fn steps(system: System, image: &Path) -> Result<Vec<String>> {
    let mounted = system.mount_with(image, &Options::words(&["ro"]))?;
    let (root, device) = (mounted.path(), mounted.device().context("a loop device")?.to_owned());
    let mut seen = vec![state(&device, false)?];
    let mut look = |what: &str, in_use| -> Result<()> {
        seen.push(format!("{what}: {}", state(&device, in_use)?));
        Ok(())
    };
    let writes = |name: &str| fs::write(root.join(name), "written").map_err(|error| error.raw_os_error());
    ensure!(writes("early") == Err(Some(30)), "{system:?} wrote on a read-only mount");
    ensure!(fs::metadata(root.join("file 1"))?.len() == 9000 && !root.join("file 2").exists());
    mount_remount(root, MountFlags::empty(), c"")?;
    ensure!(writes("second") == Ok(()), "{system:?} cannot write after remount,rw");
    File::open(root.join("second"))?.sync_all()?;
    look("writable", true)?;
    mount_remount(root, MountFlags::RDONLY, c"")?;
    look("read-only again", false)?;
    ensure!(writes("late") == Err(Some(30)));
    let still = fingerprint(image)?;
    fs::read_dir(root)?.try_for_each(|entry| entry?.metadata().map(drop))?;
    ensure!(still == fingerprint(image)?, "{system:?} wrote while it was read-only");
    mounted.unmount()?;
    let mounted = system.mount_with(image, &Options::words(&["ro"]))?;
    ensure!(fs::read(mounted.path().join("second"))? == b"written");
    mounted.unmount()?;
    seen.push(format!("at the end: {}", state(image, false)?));
    Ok(seen)
}

#[test]
fn a_device_is_recovered_by_a_read_only_mount_and_remounted_as_by_the_kernel() -> Result<()> {
    let name = "a_device_is_recovered_by_a_read_only_mount_and_remounted_as_by_the_kernel";
    if !can_run(name, &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, copy) = (folder.path().join("image"), folder.path().join("copy"));
    crashed(&image)?;
    copy_image(&image, &copy)?;
    let theirs = steps(System::Kernel, &image)?;
    let ours = steps(System::Rext4Loop, &copy)?;
    ensure!(theirs == ours, "the kernel:\n{theirs:#?}\nhere:\n{ours:#?}");
    e2fsck_is_clean(&copy)
}

/// A read-only mount of an image file leaves every byte as it is; it cannot become writable, and says so.
#[test]
fn an_image_file_that_is_mounted_read_only_stays_as_it_is() -> Result<()> {
    if !can_run("an_image_file_that_is_mounted_read_only_stays_as_it_is", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    crashed(&image)?;
    let before = (fingerprint(&image)?, image.metadata()?.mtime());
    let mounted = System::Rext4Image.mount_with(&image, &Options::words(&["ro"]))?;
    ensure!(!mounted.path().join("file 2").exists());
    // The helper knows mounts of ours by their type, which that library does not give.
    if !through_fuser() {
        let mut command = System::Rext4Image.mount_command();
        let answer = output(command.arg(&image).arg(mounted.path()).args(["-o", "remount,rw"]))?;
        let said = both(&answer);
        ensure!(answer.status.code() == Some(32) && said.contains("for reading only"), "{said}");
    }
    ensure!(fs::write(mounted.path().join("new"), "new").is_err());
    mounted.unmount()?;
    ensure!(before == (fingerprint(&image)?, image.metadata()?.mtime()), "the image was changed");
    if through_fuser() {
        return Ok(());
    }
    // One that is mounted for writing follows the helper there and back.
    let mounted = System::Rext4Image.mount(&image)?;
    for (words, writable) in [("remount,ro", false), ("remount,rw", true)] {
        let mut command = System::Rext4Image.mount_command();
        run(command.arg(&image).arg(mounted.path()).args(["-o", words]))?;
        ensure!(fs::write(mounted.path().join("new"), "new").is_ok() == writable, "after {words}");
    }
    mounted.unmount()?;
    e2fsck_is_clean(&image)
}

#[test]
fn a_write_protected_device_is_mounted_read_only_with_a_warning() -> Result<()> {
    if !can_run("a_write_protected_device_is_mounted_read_only_with_a_warning", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Rext4Image.mkfs(&image, SIZE, &[])?;
    let device = LoopDevice::attach_read_only(&image)?;
    let point = tempfile::tempdir()?;
    for words in ["rw", "norecovery"] {
        let mut command = System::Rext4Image.mount_command();
        let answer = output(command.arg(device.path()).arg(point.path()).args(["-o", words]))?;
        ensure!(answer.status.success(), "{words}: {}", both(&answer));
        let wanted = format!(
            "mount.rext4: warning: {}: source write-protected, mounted read-only\n",
            device.path().display()
        );
        ensure!(both(&answer) == wanted, "{words}: {}", both(&answer));
        let made = File::create(point.path().join("new"));
        umount(point.path())?;
        ensure!(made.is_err_and(|error| error.raw_os_error() == Some(30)), "{words}: written");
    }
    let mut command = System::Rext4Image.mount_command();
    let answer = output(command.arg("-w").arg(device.path()).arg(point.path()))?;
    ensure!(!answer.status.success(), "-w was taken for a wish");
    Ok(())
}
