//! A user without any privilege formats, mounts, uses and unmounts an image of his own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Result, ensure};
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{Options, System, as_user, binary};

/// "nobody", whom every machine knows.
const NOBODY: (u32, u32) = (65534, 65534);

/// The programs where anyone may run them: the build folder may be closed to others.
fn publish(folder: &Path) -> Result<()> {
    for name in ["mkfs-rext4", "mount-rext4"] {
        fs::copy(binary(name).get_program(), folder.join(name))?;
    }
    Ok(())
}

fn shell(script: &str, folder: &Path) -> Result<String> {
    let mut command = tool("sh");
    command.args(["-ec", script, "sh"]).arg(folder);
    run(&mut as_user(command, NOBODY))
}

#[test]
fn a_user_without_privileges() -> Result<()> {
    if !can_run("a_user_without_privileges", &[Need::Root, Need::Fuse, Need::Tool("setpriv")]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    chown(folder.path(), Some(NOBODY.0), Some(NOBODY.1))?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    publish(folder.path())?;
    let said = shell(
        r#"cd "$1"; export PATH="$PATH:/usr/sbin:/sbin"
        mkdir point
        ./mkfs-rext4 -q -E root_owner=65534:65534 image 64M
        ./mount-rext4 image point
        trap 'fusermount3 -u -z point' EXIT
        mkdir point/folder
        cp /etc/passwd point/folder/passwd
        cmp /etc/passwd point/folder/passwd
        ln point/folder/passwd point/link
        mv point/folder/passwd point/moved
        stat -c '%u %h' point/moved
        trap - EXIT
        fusermount3 -u point"#,
        folder.path(),
    )?;
    ensure!(said.trim() == "65534 2", "{said}");
    let image = folder.path().join("image");
    ensure!(fs::metadata(&image)?.uid() == NOBODY.0);
    // The server may outlive fusermount3; the lock tells when it is gone.
    let mounted = loop {
        match System::Rext4Image.mount_with(&image, &Options::words(&["ro"])) {
            Err(error) if format!("{error:#}").contains("use") => std::thread::yield_now(),
            answer => break answer?,
        }
    };
    ensure!(fs::read(mounted.path().join("moved"))? == fs::read("/etc/passwd")?);
    mounted.unmount()?;
    e2fsck_is_clean(&image)
}

/// What fuse2fs's option is for: a tree with other owners and set-id bits, made by a user in a volume that
/// belongs to root. Nobody else gets in, root least of all, and nothing in it is a device or runs with
/// its owner's rights.
#[test]
fn with_fakeroot_a_user_builds_a_tree_of_others() -> Result<()> {
    if !can_run(
        "with_fakeroot_a_user_builds_a_tree_of_others",
        &[Need::Root, Need::Fuse, Need::Tool("setpriv")],
    ) {
        return Ok(());
    }
    for transport in ["dev", "fuser"] {
        let folder = tempfile::tempdir_in(scratch())?;
        chown(folder.path(), Some(NOBODY.0), Some(NOBODY.1))?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        publish(folder.path())?;
        let script = format!(
            r#"cd "$1"; export PATH="$PATH:/usr/sbin:/sbin"; umask 022
            mkdir point
            ./mkfs-rext4 -q image 64M
            ./mount-rext4 -o fakeroot,dev,suid,transport={transport} image point
            grep "$1/point " /proc/self/mountinfo
            cd point
            mkdir etc; echo secret >etc/shadow; cp /bin/true su; mkfifo pipe; ln -s su link
            chown 12:34 etc/shadow; chmod 600 etc/shadow; chown 0:5 su; chmod 6755 su; chown -h 7:8 link
            # Of others by now.
            echo more >>etc/shadow; cat etc/shadow >/dev/null; mv etc/shadow etc/gshadow; printf x >>su
            chown 3:4 etc; chmod 700 etc; touch etc/new; ls etc
            setfattr -n user.a -v b etc; rmdir lost+found
            stat -c '%n %u:%g %a' su etc etc/gshadow etc/new
            ./su && echo runs"#
        );
        let said = shell(&script, folder.path());
        let closed = fs::read_dir(folder.path().join("point"));
        let gone = shell(r#"fusermount3 -u "$1/point""#, folder.path());
        let said = said?;
        gone?;
        ensure!(closed.is_err(), "{transport}: root gets in");
        for wanted in [
            "nosuid,nodev",
            "su 0:5 6755",
            "etc 3:4 700",
            "etc/gshadow 12:34 600",
            "etc/new 65534:65534 644",
            "runs",
        ] {
            ensure!(said.contains(wanted), "{transport}: no {wanted}: {said}");
        }
        let image = folder.path().join("image");
        run(tool("flock").arg("-w30").arg(&image).arg("true"))?;
        let stat = run(tool("debugfs").args(["-R", "stat /su"]).arg(&image))?;
        ensure!(stat.contains("Mode:  06755") && stat.contains("Group:     5"), "{stat}");
        e2fsck_is_clean(&image)?;
    }
    Ok(())
}

#[test]
fn fakeroot_of_root_is_for_root_alone() -> Result<()> {
    if !can_run("fakeroot_of_root_is_for_root_alone", &[Need::Root, Need::Fuse, Need::Tool("setpriv")]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Rext4Image.mkfs(&image, 16 << 20, &[])?;
    for words in ["fakeroot,allow_other", "kernel,fakeroot", "allow_other,fakeroot,suid"] {
        let point = tempfile::tempdir()?;
        let answer = output(binary("mount-rext4").arg(&image).arg(point.path()).args(["-o", words]))?;
        ensure!(
            !answer.status.success() && both(&answer).contains("allow_other"),
            "{words}: {}",
            both(&answer)
        );
    }
    for transport in ["dev", "fuser"] {
        let words = ["fakeroot", "suid", "dev", &format!("transport={transport}")];
        let mounted = System::Rext4Image.mount_with(&image, &Options::words(&words))?;
        fs::set_permissions(mounted.path(), fs::Permissions::from_mode(0o777))?;
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let point = mounted.path().to_string_lossy().into_owned();
        let line = table.lines().find(|line| line.contains(&point)).unwrap_or_default().to_owned();
        let entered = shell(r#"cd "$1" && echo x >file"#, mounted.path());
        mounted.unmount()?;
        ensure!(line.contains("nosuid,nodev") && !line.contains("allow_other"), "{line}");
        ensure!(entered.is_err(), "somebody else got in");
    }
    e2fsck_is_clean(&image)
}
