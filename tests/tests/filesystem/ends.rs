//! The end of a server, orderly or not, and what others see of it: the mount point, the lock file, the next mount,
//! a check, umount(8).

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, run, tool, umount};
use tests::scale::{Need, can_run, scratch};
use tests::system::{
    LoopDevice, Options, System, as_user, binary, is_mounted, through_fuser, with_own_mounts,
};

const NEEDS: [Need; 2] = [Need::Root, Need::Fuse];
const SIZE: u64 = 64 << 20;

fn image(folder: &Path) -> Result<std::path::PathBuf> {
    let image = folder.join("image");
    System::Rext4Image.mkfs(&image, SIZE, &[])?;
    Ok(image)
}

/// Mounts in the background; gives the server's number.
fn mount(source: &Path, point: &Path, words: &str, user: Option<(u32, u32)>) -> Result<Pid> {
    let mut command = System::Rext4Image.mount_command();
    command.arg(source).arg(point).args(["-o", words]);
    run(&mut user.map_or_else(|| rebuilt(&command), |user| as_user(rebuilt(&command), user)))?;
    server_of(source).context("no server")
}

fn rebuilt(command: &std::process::Command) -> std::process::Command {
    let mut again = std::process::Command::new(command.get_program());
    again.args(command.get_args()).env("LC_ALL", "C");
    again
}

fn server_of(source: &Path) -> Option<Pid> {
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(Pid::from_raw).find(|pid| {
        let of = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
        let line = fs::read(of("cmdline")).unwrap_or_default();
        fs::read_to_string(of("comm")).is_ok_and(|name| name.trim_end() == "mount-rext4")
            && line.split(|byte| *byte == 0).any(|word| word == source.as_os_str().as_encoded_bytes())
    })
}

fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
fn auto_unmount_takes_the_mount_of_a_killed_server_away() -> Result<()> {
    if !can_run("auto_unmount_takes_the_mount_of_a_killed_server_away", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let point = folder.path().join("point");
    fs::create_dir(&point)?;
    let kinds = if can_run("auto_unmount of a block device", &[Need::Loop]) { 2 } else { 1 };
    for kind in 0..kinds {
        let device = (kind == 1).then(|| LoopDevice::attach(&image)).transpose()?;
        let source = device.as_ref().map_or(image.as_path(), LoopDevice::path);
        let server = mount(source, &point, "auto_unmount", None)?;
        kill_process(server, Signal::KILL)?;
        eventually("the dead mount stays", || Ok(!is_mounted(&point)?))?;
        // An orderly end leaves nobody behind who could take the next mount away.
        mount(source, &point, "auto_unmount", None)?;
        umount(&point)?;
        eventually("the server stays", || Ok(server_of(source).is_none()))?;
    }
    for path in [folder.path(), &image, &point] {
        std::os::unix::fs::chown(path, Some(2), Some(2))?;
    }
    let server = mount(&image, &point, "auto_unmount", Some((2, 2)))?;
    kill_process(server, Signal::KILL)?;
    eventually("a user's dead mount stays", || Ok(!is_mounted(&point)?))?;
    run(tool("e2fsck").args(["-fp"]).arg(&image))
        .or_else(|_| run(tool("e2fsck").args(["-fn"]).arg(&image)))?;
    Ok(())
}

#[test]
fn a_dead_mount_point_is_mounted_on_again() -> Result<()> {
    // That library's mounts have no type by which they are known.
    if !can_run("a_dead_mount_point_is_mounted_on_again", &NEEDS) || through_fuser() {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let (point, lock) = (folder.path().join("point"), folder.path().join("lock"));
    fs::create_dir(&point)?;
    let words = format!("lockfile={}", lock.display());
    for _ in 0..2 {
        let server = mount(&image, &point, &words, None)?;
        kill_process(server, Signal::KILL)?;
        eventually("the server stays", || Ok(server_of(&image).is_none()))?;
        ensure!(is_mounted(&point)? && fs::metadata(&point).is_err(), "nothing is dead");
        ensure!(lock.exists(), "a killed server took its lock file away");
    }
    mount(&image, &point, &words, None)?;
    fs::write(point.join("alive"), "alive")?;
    ensure!(lock.exists());
    umount(&point)?;
    ensure!(!is_mounted(&point)?, "a mount was left below");
    eventually("the lock file stays", || Ok(!lock.exists()))?;
    eventually("the server stays", || Ok(server_of(&image).is_none()))?;
    e2fsck_is_clean(&image)
}

/// README's sequence of an ordinary user; and a check beside a mount.
#[test]
fn a_check_waits_for_the_server_that_is_ending() -> Result<()> {
    if !can_run("a_check_waits_for_the_server_that_is_ending", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let point = folder.path().join("point");
    fs::create_dir(&point)?;
    for round in 0..3 {
        mount(&image, &point, "rw", None)?;
        for n in 0..200 {
            fs::write(point.join(format!("file {round} {n}")), vec![b'x'; 20_000])?;
        }
        run(tool("fusermount3").arg("-u").arg(&point))?;
        let mut check = binary("fsck-rext4");
        let answer = output(check.arg("-fn").arg(&image))?;
        ensure!(answer.status.success(), "round {round}: {}", both(&answer));
    }
    mount(&image, &point, "rw", None)?;
    fs::write(point.join("beside"), "a check")?;
    let looked = output(binary("fsck-rext4").arg("-fn").arg(&image))?;
    let repaired = output(binary("fsck-rext4").arg("-fy").arg(&image))?;
    umount(&point)?;
    let said = format!("Warning!  {} is mounted.", image.display());
    ensure!(both(&looked).contains(&said), "{}", both(&looked));
    ensure!(
        repaired.status.code() == Some(8) && both(&repaired).contains("is in use"),
        "{}",
        both(&repaired)
    );
    eventually("the server stays", || Ok(server_of(&image).is_none()))?;
    e2fsck_is_clean(&image)
}

#[test]
fn a_mount_waits_for_the_unmount_under_way() -> Result<()> {
    if !can_run("a_mount_waits_for_the_unmount_under_way", &[Need::Root, Need::Fuse, Need::Loop]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let point = folder.path().join("point");
    fs::create_dir(&point)?;
    for kind in 0..2 {
        let device = (kind == 1).then(|| LoopDevice::attach(&image)).transpose()?;
        let source = device.as_ref().map_or(image.as_path(), LoopDevice::path);
        for round in 0..3 {
            let mounted = System::Rext4Image.mount(source)?;
            for n in 0..200 {
                fs::write(mounted.path().join(format!("file {n}")), vec![b'x'; 4096])?;
            }
            let mut unmount = tool("umount").arg(mounted.path()).stdin(Stdio::null()).spawn()?;
            std::thread::sleep(Duration::from_millis(10));
            let second = mount(source, &point, "rw", None);
            ensure!(unmount.wait()?.success());
            second.with_context(|| format!("round {round} on {}", source.display()))?;
            umount(&point)?;
            drop(mounted);
        }
        eventually("the server stays", || Ok(server_of(source).is_none()))?;
    }
    e2fsck_is_clean(&image)
}

/// Another tree of mounts keeps a mount, and with it the server: umount names who.
#[test]
fn umount_says_for_whom_it_waits() -> Result<()> {
    let needs = [Need::Root, Need::Fuse, Need::Tool("flock")];
    if !can_run("umount_says_for_whom_it_waits", &needs) || through_fuser() {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let point = folder.path().join("point");
    let helper = folder.path().join("umount.fuse.rext4");
    fs::create_dir(&point)?;
    std::os::unix::fs::symlink(fs::canonicalize(binary("mount-rext4").get_program())?, &helper)?;
    mount(&image, &point, "rw", None)?;
    let mut other = with_own_mounts().args(["sleep", "3"]).spawn()?;
    eventually("the other tree of mounts is not there", || {
        let line = fs::read(format!("/proc/{}/task/{0}/children", other.id())).unwrap_or_default();
        let child = String::from_utf8_lossy(&line).trim().to_owned();
        Ok(fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim_end() == "sleep"))
    })?;
    let mut unmount = tool(&helper.to_string_lossy()).arg(&point).stderr(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_millis(1500));
    let is_waiting = unmount.try_wait()?.is_none();
    other.wait()?;
    let answer = unmount.wait_with_output()?;
    let said = both(&answer);
    ensure!(answer.status.success() && is_waiting, "it did not wait: {said}");
    ensure!(said.contains("other mount namespaces") && said.contains("(sleep)"), "{said}");
    e2fsck_is_clean(&image)
}

/// Two of them with one image: each ends when its own mount does.
#[test]
fn the_watcher_leaves_the_next_mount_alone() -> Result<()> {
    if !can_run("the_watcher_leaves_the_next_mount_alone", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = image(folder.path())?;
    let mounted = System::Rext4Image.mount_with(&image, &Options::words(&["auto_unmount"]))?;
    let point = mounted.path().to_owned();
    run(tool("umount").arg(&point))?;
    mount(&image, &point, "rw", None)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(is_mounted(&point)?, "the watcher of the first mount took the second away");
    fs::write(point.join("alive"), "alive")?;
    umount(&point)?;
    drop(mounted);
    eventually("the server stays", || Ok(server_of(&image).is_none()))?;
    e2fsck_is_clean(&image)
}
