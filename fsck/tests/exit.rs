//! Exit codes that need a mount, a signal or a missing terminal, and devices that are in use.

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use assert_cmd::cargo::cargo_bin;
use blockdev::BlockDevice;
use blockdev::sim::{Fill, MemDevice};
use fsck::{Answer, Error, Mode, Options, Ui};
use support::{debugfs, e2fsck, ends_clean, run, volume_file};

/// Runs a script that mounts; `None` where that cannot be. It has no mount namespace of its own, which would
/// keep alive what others unmount meanwhile.
fn mounting(folder: &Path, script: &str) -> Option<(i32, String)> {
    let probe = Command::new("losetup").arg("-f").output();
    if !probe.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no loop devices");
        eprintln!("SKIPPED: no loop devices here");
        return None;
    }
    let output = Command::new("bash").args(["-ec", script]).current_dir(folder).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

/// The script's end: the program runs with the volume as its root, mounted read-only, and the machine's own
/// tree below /host.
fn as_root(checker: &str) -> String {
    format!(
        "dev=$(losetup -f --show image); trap 'umount -R mnt; losetup -d $dev' EXIT; mkdir -p mnt; mount -o ro $dev mnt; \
         mount --bind / mnt/host; mount -t proc proc mnt/proc; mount -t sysfs sys mnt/sys; mount --bind /dev mnt/dev; \
         status=0; ld=$(realpath /lib64/ld-linux-x86-64.so.2 || realpath /lib/ld-linux-aarch64.so.1); \
         path=/host/lib/x86_64-linux-gnu:/host/lib/aarch64-linux-gnu:/host/lib64; \
         chroot mnt /host$ld --library-path $path {checker} $dev || status=$?; exit $status"
    )
}

#[test]
fn a_root_that_was_changed_under_the_kernel_wants_a_reboot() {
    for broken in [false, true] {
        let (folder, image) = volume_file("-t ext4 -b 1024");
        debugfs(&image, "mkdir host\nmkdir proc\nmkdir sys\nmkdir dev\nwrite /etc/hostname file\n");
        if broken {
            debugfs(&image, "sif file links_count 7\n");
        }
        let program = format!("/host{} -fy", cargo_bin("fsck-rext4").display());
        let Some((code, words)) = mounting(folder.path(), &as_root(&program)) else { return };
        if broken {
            assert!(code == 3 && words.contains("REBOOT"), "{code}: {words}");
        } else {
            assert!(code == 0 && !words.contains("REBOOT"), "{code}: {words}");
        }
        ends_clean(&image);
        // As e2fsck does.
        if broken {
            debugfs(&image, "sif file links_count 7\n");
            let e2fsck =
                ["/sbin/e2fsck", "/usr/sbin/e2fsck"].into_iter().find(|path| Path::new(path).exists());
            let program = format!("/host{} -fy", e2fsck.unwrap());
            let (code, words) = mounting(folder.path(), &as_root(&program)).unwrap();
            assert_eq!(code, 3, "{words}");
        }
    }
}

#[test]
fn what_is_mounted_is_only_looked_at() {
    let (folder, image) = volume_file("-t ext4 -b 1024");
    let checker = cargo_bin("fsck-rext4").display().to_string();
    let run_on = |mode: &str, target: &str, flags: &str| {
        let script = format!(
            "dev=$(losetup -f --show image); trap 'umount mnt; losetup -d $dev' EXIT; mkdir -p mnt; \
             mount -o {mode} $dev mnt; {checker} {flags} {target} </dev/null"
        );
        mounting(folder.path(), &script)
    };
    for target in ["$dev", "image"] {
        let Some((code, words)) = run_on("rw", target, "-fn") else { return };
        assert!(words.contains("is mounted") && code != 8, "{target}, {code}: {words}");
        let (code, words) = run_on("rw", target, "-fy").unwrap();
        assert!(code == 8 && words.contains("mounted on"), "{target}, {code}: {words}");
        let (code, words) = run_on("rw", target, "-p").unwrap();
        assert!(code == 8 && words.contains("mounted on"), "{target}, {code}: {words}");
    }
    // Read-only and not the root: only -f insists, and is warned.
    let (code, words) = run_on("ro", "$dev", "-p").unwrap();
    assert!(code == 8 && words.contains("mounted on"), "{code}: {words}");
    let (code, words) = run_on("ro", "$dev", "-fy").unwrap();
    assert!(code == 0 && words.contains("Warning!"), "{code}: {words}");
    ends_clean(&image);
}

#[test]
fn a_signal_cancels_and_leaves_the_volume_to_be_checked() {
    let (_folder, image) = volume_file("-t ext4 -b 1024");
    let mut commands = String::new();
    for at in 0..50 {
        commands += &format!("write /etc/hostname file{at}\nsif file{at} links_count 9\n");
    }
    debugfs(&image, &commands);
    // Somebody answers two questions and then says stop: script(1) passes the key on as a signal, and only
    // the checker may take it (dash would die of it, and that would be the exit code).
    let before = std::fs::read(&image).unwrap();
    let line = format!("exec {} -f {}", cargo_bin("fsck-rext4").display(), image.display());
    let mut child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut words, mut asked) = (String::new(), 0);
    let mut part = [0; 4096];
    while let Ok(read @ 1..) = screen.read(&mut part) {
        words += &String::from_utf8_lossy(&part[..read]);
        while asked < words.matches("<y>?").count() {
            asked += 1;
            keys.write_all(if asked < 3 { b"y\n" } else { b"\x03" }).unwrap();
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(33), "cancelled, and something was repaired: {words}");
    assert_ne!(std::fs::read(&image).unwrap(), before);
    let (code, words) = run(&["-p"], &image);
    assert!(code == 1 && !words.contains("clean, "), "a check is due: {words}");
    ends_clean(&image);
}

/// Says stop in one of the passes.
struct Stops {
    cancel: Arc<AtomicBool>,
    pass: u8,
}

impl Ui for Stops {
    fn say(&mut self, _: &str) {}

    fn prompt(&mut self, _: &str, _: &str) -> Answer {
        Answer::Yes
    }

    fn progress(&mut self, pass: u8, _: u64, _: u64) {
        if pass == self.pass {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn every_pass_can_be_stopped() {
    let (_folder, image) = volume_file("-t ext4 -b 1024");
    debugfs(&image, "write /etc/hostname file\nsif file links_count 9\nsif file size 1\nsif file faddr 5\n");
    let bytes = std::fs::read(&image).unwrap();
    for pass in 1..=5 {
        let device = Arc::new(MemDevice::new(bytes.len() as u64, Fill::Zero));
        device.write_at(0, &bytes).unwrap();
        let cancel = Arc::new(AtomicBool::new(false));
        let options =
            Options { mode: Mode::Yes, force: true, cancel: Some(Arc::clone(&cancel)), ..Options::default() };
        let ended = fsck::check_with(Arc::clone(&device) as _, &options, &mut Stops { cancel, pass });
        let mut after = vec![0; bytes.len()];
        device.read_at(0, &mut after).unwrap();
        // Pass 1 repairs the inode, pass 4 its count of links.
        assert!(
            matches!(ended, Err(Error::Cancelled { changed }) if changed == (pass > 1)),
            "pass {pass}: {ended:?}"
        );
        assert_eq!(after != bytes, pass > 1, "pass {pass}");
    }
}

#[test]
fn without_a_terminal_nobody_can_be_asked() {
    let (_folder, image) = volume_file("-t ext4 -b 1024");
    let ours =
        Command::new(cargo_bin("fsck-rext4")).arg("-f").arg(&image).stdin(Stdio::null()).status().unwrap();
    let theirs = Command::new("e2fsck").arg("-f").arg(&image).stdin(Stdio::null()).status().unwrap();
    assert_eq!((ours.code(), theirs.code()), (Some(8), Some(8)));
    let theirs = Command::new("e2fsck").arg("-Q").arg(&image).output().unwrap();
    assert_eq!((run(&["-Q"], &image).0, theirs.status.code()), (16, Some(16)));
    assert_eq!(run(&["-n", "-E", "no_such_option"], &image).0, 16);
    assert_eq!(e2fsck(&image, "-n").0, 0);
}
