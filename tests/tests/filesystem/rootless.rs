//! A user without any privilege formats, mounts, uses and unmounts an image of his own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Result, ensure};
use tests::oracle::e2fsck_is_clean;
use tests::run::{run, tool};
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
