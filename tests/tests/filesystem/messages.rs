//! What the tools say: one line, each reason once; and what a running volume logs, in the kernel's words.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::run::{output, run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{System, as_user, binary, with_own_mounts};

#[test]
fn a_reason_is_told_once_and_without_colours_or_times() -> Result<()> {
    if !can_run("a_reason_is_told_once_and_without_colours_or_times", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let (image, point) = (folder.path().join("image"), folder.path().join("point"));
    System::Rext4Image.mkfs(&image, 16 << 20, &[])?;
    fs::create_dir(&point)?;
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(&point, Some(2), Some(2))?;
    let refused = format!("cannot open {}: Permission denied", image.display());
    for (name, words) in [("mkfs-rext4", "-Fq"), ("fsck-rext4", "-fn"), ("mount-rext4", "-r")] {
        let mut command = binary(name);
        command.arg(words).arg(&image).args((name == "mount-rext4").then_some(&point));
        let answer = output(&mut as_user(command, (2, 2)))?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        let (tool, _) = name.split_once('-').unwrap_or_default();
        ensure!(said == format!("{tool}.rext4: {refused}\n"), "{said:?}");
    }
    // A warning of a mount: errors on record.
    run(tool("debugfs").args(["-w", "-R", "ssv state 3"]).arg(&image))?;
    let mut command = System::Rext4Image.mount_command();
    let answer = output(command.arg(&image).arg(&point))?;
    run(tool("umount").arg(&point))?;
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(
        said == "mount.rext4: warning: mounting fs with errors, running fsck.rext4 is recommended\n",
        "{said:?}"
    );
    Ok(())
}

/// What the kernel's log says from here on.
struct KernelLog(File);

impl KernelLog {
    fn from_now_on() -> Result<KernelLog> {
        let mut file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open("/dev/kmsg")?;
        drain(&mut file);
        Ok(KernelLog(file))
    }
}

fn drain(file: &mut File) -> String {
    let (mut text, mut record) = (String::new(), [0; 8192]);
    loop {
        match file.read(&mut record) {
            Ok(len) => text += &String::from_utf8_lossy(&record[..len]),
            // Records that were overwritten meanwhile are skipped.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            Err(_) => return text,
        }
    }
}

#[test]
fn errors_of_a_running_volume_are_logged_in_the_kernels_words() -> Result<()> {
    let needs = [Need::Root, Need::Fuse, Need::Tool("flock")];
    if !can_run("errors_of_a_running_volume_are_logged_in_the_kernels_words", &needs) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, point) = (folder.path().join("image"), folder.path().join("point"));
    fs::create_dir(&point)?;
    System::Rext4Image.mkfs(&image, 16 << 20, &[])?;
    let mounted = System::Rext4Image.mount(&image)?;
    fs::create_dir(mounted.path().join("folder"))?;
    let number = fs::symlink_metadata(mounted.path().join("folder"))
        .map(|m| std::os::unix::fs::MetadataExt::ino(&m))?;
    mounted.unmount()?;
    let block: u64 = run(tool("debugfs").args(["-R", "blocks /folder"]).arg(&image))?.trim().parse()?;
    let size: u64 = tests::oracle::super_field(&image, "Block size")?.parse()?;
    File::options().write(true).open(&image)?.write_all_at(&[0xa5; 512], block * size)?;

    let socket = folder.path().join("log");
    let syslog = UnixDatagram::bind(&socket)?;
    syslog.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut kernel = KernelLog::from_now_on()?;
    // Where there is a syslog it is ours.
    let script = r#"[ ! -e /dev/log ] || mount --bind "$3" /dev/log
        "$4" -o errors=remount-ro "$1" "$2"; for i in 1 2 3 4 5; do ls "$2/folder" || true; done; umount -i "$2"
        flock -x "$1" true"#;
    let mut command = with_own_mounts();
    command.args(["sh", "-ec", script, "sh"]).arg(&image).arg(&point).arg(&socket);
    output(command.arg(binary("mount-rext4").get_program()))?;
    let (mut said, mut message) = (drain(&mut kernel.0), [0; 8192]);
    while let Ok(len) = syslog.recv(&mut message) {
        said += &String::from_utf8_lossy(&message[..len]);
        said += "\n";
    }
    let name = image.display();
    let error = format!("rext4-fs error (device {name}): inode #{number}: block {block}: ");
    ensure!(said.matches(&error).count() == 1, "{error} in {said}");
    for words in ["mounted filesystem ", "Remounting filesystem read-only", "unmounting filesystem "] {
        ensure!(said.matches(&format!("rext4-fs ({name}): {words}")).count() == 1, "{words} in {said}");
    }
    Ok(())
}
