//! The helper that umount(8) runs for mounts of image files: when umount returns, the server has written
//! everything and let go of the image. The installed helpers are shown to mount(8) and umount(8) in a mount
//! namespace of their own.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tests::oracle::{copy_image, e2fsck_is_clean};
use tests::run::{run, tool};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::{LoopDevice, System, binary, with_own_mounts};

const NEEDS: [Need; 4] = [Need::Root, Need::Fuse, Need::Loop, Need::Tool("flock")];
/// `bin`: fusermount3 wants a user with a name.
const USER: u32 = 2;

/// Runs a script where /sbin holds our helpers and nothing else; `$1` is the image, `$2` the mount point,
/// both absolute.
fn with_helpers(folder: &Path, script: &str) -> Result<String> {
    let sbin = folder.join("sbin");
    if !sbin.exists() {
        fs::create_dir(&sbin)?;
        let program = fs::canonicalize(binary("mount-rext4").get_program())?;
        for name in ["mount.rext4", "umount.fuse", "umount.fuse.rext4"] {
            symlink(&program, sbin.join(name))?;
        }
    }
    let script = format!("mount --bind {} /sbin || exit 9\n{script}", sbin.display());
    let mut command = tool("timeout");
    let within = with_own_mounts();
    command.args(["-k", "5", "120"]).arg(within.get_program()).args(within.get_args());
    command.args(["sh", "-ec", &script, "sh"]);
    run(command.arg(folder.join("image")).arg(folder.join("point")))
}

fn prepared() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, point) = (folder.path().join("image"), folder.path().join("point"));
    System::Rext4Image.mkfs(&image, 256 << 20, &["-E", &format!("root_owner={USER}:{USER}")])?;
    fs::create_dir(&point)?;
    for path in [folder.path(), &image, &point] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER))?;
    }
    Ok(folder)
}

#[test]
fn umount_waits_for_the_server_of_an_image() -> Result<()> {
    if !can_run("umount_waits_for_the_server_of_an_image", &NEEDS) {
        return Ok(());
    }
    let folder = prepared()?;
    let user = format!("setpriv --reuid={USER} --regid={USER} --clear-groups");
    let ways = [
        ("", "mount -t rext4", r#"umount "$2""#),
        // By a relative path libmount finds another helper.
        ("", "mount -t rext4", r#"cd "${2%/*}"; umount point"#),
        (user.as_str(), "mount.rext4", r#"$user umount "$2""#),
    ];
    for (user, mount, umount) in ways {
        for round in 0..pick(3, 30) {
            // A lock that can be had says that the server has none.
            let script = format!(
                r#"PATH=$PATH:/sbin; user="{user}"
                $user {mount} "$1" "$2"
                $user sh -c 'head -c 40000000 /dev/urandom > "$0/file{round}"; rm -f "$0"/file*0' "$2"
                {umount}
                flock -n -x "$1" true"#
            );
            with_helpers(folder.path(), &script).with_context(|| format!("{user} {umount}"))?;
            e2fsck_is_clean(&folder.path().join("image"))?;
        }
    }
    Ok(())
}

#[test]
fn the_helper_leaves_others_alone_and_says_what_it_cannot_do() -> Result<()> {
    if !can_run("the_helper_leaves_others_alone_and_says_what_it_cannot_do", &NEEDS) {
        return Ok(());
    }
    let folder = prepared()?;
    // In use, lazily, and what is no mount.
    let said = with_helpers(
        folder.path(),
        r#"exec 2>&1; mount -t rext4 "$1" "$2"
        (cd "$2"; umount "$2" && echo wrong) || true
        (cd "$2"; umount -l "$2" && echo lazily)
        /sbin/umount.fuse.rext4 "$2" && echo wrong || true"#,
    )?;
    ensure!(said.contains("lazily") && said.contains("not mounted") && !said.contains("wrong"), "{said}");
    // A FUSE filesystem of somebody else's goes as it always went.
    if can_run("a mount of fuse2fs's", &[Need::Tool("fuse2fs")]) {
        with_helpers(
            folder.path(),
            r#"while ! flock -n -x "$1" true; do sleep 0.1; done
            fuse2fs "$1" "$2"; umount "$2"; ! grep -q " $2 " /proc/self/mountinfo"#,
        )?;
    }
    Ok(())
}

/// One mount point whose name is no text hides neither itself nor others: ours, those of other FUSE filesystems,
/// and those of the kernel that keep a device busy.
#[test]
fn a_mount_point_of_any_bytes_hides_no_other() -> Result<()> {
    if !can_run("a_mount_point_of_any_bytes_hides_no_other", &NEEDS) {
        return Ok(());
    }
    let folder = prepared()?;
    let odd = folder.path().join(OsStr::from_bytes(b"image \xff\n\\040"));
    copy_image(&folder.path().join("image"), &odd)?;
    let device = LoopDevice::attach(&odd)?;
    symlink(device.path(), folder.path().join("device"))?;
    symlink(&odd, folder.path().join("behind"))?;
    with_helpers(
        folder.path(),
        r#"odd=$(printf '%s\377 \t\134x' "$2"); mkdir "$odd"; mount -t tmpfs odd "$odd"
        mount -t rext4 "$1" "$2"; touch "$2/file"; umount "$2"; flock -n -x "$1" true
        mkdir "$odd/point"; mount -t rext4 "$1" "$odd/point"; touch "$odd/point/other"
        umount "$odd/point"; flock -n -x "$1" true
        mount -t ext4 "${1%/*}/device" "$2"
        for what in device behind; do /sbin/mount.rext4 "${1%/*}/$what" "$odd/point" 2>>"$odd/said" && exit 8; done
        umount "$2"
        [ $(grep -c "mounted on $2" "$odd/said") = 2 ] || { cat "$odd/said"; exit 7; } >&2"#,
    )?;
    if can_run("beside a mount of fuse2fs's", &[Need::Tool("fuse2fs")]) {
        with_helpers(
            folder.path(),
            r#"odd=$(printf '%s\377' "$2"); mkdir -p "$odd"; mount -t tmpfs odd "$odd"
            fuse2fs "$1" "$2"; umount "$2"; ! grep -q " $2 " /proc/self/mountinfo"#,
        )?;
        // Words that we do not know are umount(8)'s own; so is what is no mount.
        with_helpers(
            folder.path(),
            r#"while ! flock -n -x "$1" true; do sleep 0.1; done
            fuse2fs "$1" "$2"; /sbin/umount.fuse "$2" -N 1 -t fuse.ext4 || /sbin/umount.fuse "$2" -i -q
            ! grep -q " $2 " /proc/self/mountinfo"#,
        )?;
    }
    e2fsck_is_clean(&folder.path().join("image"))
}

/// Type and source of a mount are an ordinary user's to choose: the helper, which is root, neither opens what
/// he names nor waits for who has it.
#[test]
fn the_helper_does_not_believe_what_a_mount_says() -> Result<()> {
    if !can_run("the_helper_does_not_believe_what_a_mount_says", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, pipe, point) =
        (folder.path().join("image"), folder.path().join("pipe"), folder.path().join("point"));
    System::Rext4Image.mkfs(&image, 16 << 20, &[])?;
    run(tool("mkfifo").arg(&pipe))?;
    fs::create_dir(&point)?;
    let locked = File::open(&image)?;
    flock(&locked, FlockOperation::LockExclusive)?;
    for source in [&image, &pipe, &point.join("unanswered/image")] {
        // A connection that nobody ever serves, of a user who is not here.
        let connection = File::options().read(true).write(true).open("/dev/fuse")?;
        let data = format!("fd={},rootmode=40000,user_id={USER},group_id={USER}\0", connection.as_raw_fd());
        let data = CStr::from_bytes_with_nul(data.as_bytes())?;
        mount(source, &point, "fuse.rext4", MountFlags::empty(), data)?;
        let begun = Instant::now();
        let program = fs::canonicalize(binary("mount-rext4").get_program())?;
        let mut helper = Command::new(program).arg0("umount.fuse.rext4").arg(&point).spawn()?;
        while helper.try_wait()?.is_none() && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = helper.try_wait()?;
        if ended.is_none() {
            helper.kill()?;
            let _ = unmount(&point, UnmountFlags::FORCE | UnmountFlags::DETACH);
        }
        ensure!(ended.is_some_and(|status| status.success()), "{}: {ended:?}", source.display());
    }
    Ok(())
}

/// What gives an image file the guarantees of a block device: mount(8)'s own loop device.
#[test]
fn mounted_with_the_option_loop_sync_arrives_and_umount_waits() -> Result<()> {
    if !can_run("mounted_with_the_option_loop_sync_arrives_and_umount_waits", &NEEDS) {
        return Ok(());
    }
    let folder = prepared()?;
    let said = with_helpers(
        folder.path(),
        r#"mount -t rext4 -o loop "$1" "$2"; grep " $2 " /proc/self/mountinfo
        echo arrived > "$2/file"; sync; cp "$1" "$1.copy"
        umount "$2"; flock -n -x "$1" true; losetup -j "$1" || true"#,
    )?;
    ensure!(said.contains("fuseblk.rext4 /dev/loop"), "{said}");
    let copy = folder.path().join("image.copy");
    let mounted = System::Rext4Image.mount(&copy)?;
    let found = fs::read_to_string(mounted.path().join("file"));
    mounted.unmount()?;
    ensure!(found? == "arrived\n");
    e2fsck_is_clean(&folder.path().join("image"))
}
