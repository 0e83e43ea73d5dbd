//! The program as a person meets it: what it refuses, what it says, what it leaves alone.

use std::path::Path;

use assert_cmd::Command;

fn mkfs(args: &[&str], image: &Path, size: Option<&str>) -> (bool, String) {
    let mut command = Command::cargo_bin("mkfs-rext4").unwrap();
    command.args(args).arg(image).args(size).env("E2FSPROGS_FAKE_TIME", "1600000000");
    let output = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[test]
fn a_device_that_holds_something_needs_force() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    assert!(mkfs(&["-q", "-L", "precious"], &image, Some("3M")).0);
    let before = std::fs::read(&image).unwrap();
    let (done, said) = mkfs(&[], &image, None);
    assert!(!done);
    assert!(said.contains("contains an ext4 filesystem labelled 'precious'"), "{said}");
    assert!(std::fs::read(&image).unwrap() == before, "the image was changed");
    assert!(mkfs(&["-q", "-F"], &image, None).0);

    for (at, magic, name) in
        [(0, &b"XFSB"[..], "xfs"), (65600, b"_BHRfS_M", "btrfs"), (4086, b"SWAPSPACE2", "swap")]
    {
        let mut bytes = vec![0; 3 << 20];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        std::fs::write(&image, &bytes).unwrap();
        let (done, said) = mkfs(&[], &image, None);
        assert!(!done && said.contains(name), "{said}");
        assert!(std::fs::read(&image).unwrap() == bytes, "the image was changed");
    }
}

#[test]
fn a_dry_run_writes_nothing_and_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let (done, said) = mkfs(&["-n"], &image, Some("300M"));
    assert!(done && said.contains("307200 1k blocks and 76912 inodes"), "{said}");
    assert!(said.contains("8193, 24577, 40961, 57345, 73729, 204801, 221185"), "{said}");
    assert!(!image.exists());
    std::fs::write(&image, vec![7; 4 << 20]).unwrap();
    assert!(mkfs(&["-n"], &image, None).0);
    assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 7));
}

#[test]
fn what_cannot_be_met_gets_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    for (args, expected) in [
        (&["-b", "3000"][..], "invalid block size 3000"),
        (&["-I", "100"], "invalid inode size 100"),
        (&["-m", "60"], "invalid reserved blocks percent"),
        (&["-O", "nonsense"], "invalid filesystem option set: nonsense"),
        (&["-O", "encrypt"], "feature encrypt"),
        (&["-O", "^extent"], "extents must be enabled"),
        (&["-O", "meta_bg"], "not compatible"),
        (&["-E", "nonsense=1"], "nonsense"),
        (&["-J", "size=1000"], "journal size too big"),
        (&["-N", "9000000"], "too many inodes"),
        (&["-i", "100"], "invalid inode ratio"),
        (&["-t", "ext5"], "unknown filesystem type ext5"),
        (&["-T", "nonsense"], "unknown usage type nonsense"),
        (&["-U", "nonsense"], "invalid UUID"),
        (&["-G", "3"], "not a power of 2"),
        (&["-E", "desc-size=32"], "descriptors have 64 bytes"),
        (&["-r", "0"], "revision 0"),
        (&["-o", "hurd"], "the creator is Linux"),
        (&["-O", "fast_commit", "-J", "fast_commit_size=99999999"], "exceeds the journal"),
    ] {
        let (done, said) = mkfs(args, &image, Some("64M"));
        assert!(!done && said.contains(expected), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(!image.exists(), "{args:?} left a file");
    }
    for (size, expected) in
        [("3", "too small"), ("100K", "too small"), ("x", "invalid size"), ("9999999999P", "size")]
    {
        let (done, said) = mkfs(&[], &image, Some(size));
        assert!(!done && said.contains(expected) && !image.exists(), "{size}: {said}");
    }
    for place in [dir.path(), Path::new("/dev/null"), &dir.path().join("no/such")] {
        let (done, said) = mkfs(&[], place, None);
        assert!(!done && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn pinned_inputs_make_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let pinned = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let make = |name: &str| {
        let image = dir.path().join(name);
        let seed = format!("hash_seed={pinned}");
        assert!(mkfs(&["-q", "-U", pinned, "-E", &seed], &image, Some("64M")).0);
        std::fs::read(image).unwrap()
    };
    assert!(make("a") == make("b"));
}

#[test]
fn a_volume_at_an_offset_leaves_what_is_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, vec![7; 8 << 20]).unwrap();
    assert!(mkfs(&["-q", "-E", "offset=1048576"], &image, Some("4M")).0);
    let bytes = std::fs::read(&image).unwrap();
    assert!(bytes[..1 << 20].iter().all(|byte| *byte == 7));
    assert!(bytes[5 << 20..].iter().all(|byte| *byte == 7));
    let superblock = bytes[(1 << 20) + 1024..][..1024].try_into().unwrap();
    let sb = ext4_format::superblock::SuperBlock::parse(superblock).unwrap();
    assert_eq!(sb.blocks_count().0, 4096);
}

#[test]
fn a_mounted_image_is_refused_even_with_force() {
    use std::process::Command as System;
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "mounts need root and loop devices");
        eprintln!("SKIPPED: mounts need root and loop devices");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, place) = (dir.path().join("image"), dir.path().join("mounted"));
    std::fs::create_dir(&place).unwrap();
    assert!(mkfs(&["-q"], &image, Some("8M")).0);
    assert!(System::new("mount").args(["-o", "loop"]).arg(&image).arg(&place).status().unwrap().success());
    let (done, said) = mkfs(&["-F"], &image, None);
    let device = System::new("findmnt").args(["-no", "SOURCE"]).arg(&place).output().unwrap();
    let device = String::from_utf8(device.stdout).unwrap();
    let (device_done, device_said) = mkfs(&["-F"], Path::new(device.trim()), None);
    assert!(System::new("umount").arg(&place).status().unwrap().success());
    let place = place.to_str().unwrap();
    assert!(!done && said.contains("in use") && said.contains(place), "{said}");
    assert!(!device_done && device_said.contains("in use") && device_said.contains(place), "{device_said}");
    assert!(System::new("e2fsck").arg("-fn").arg(&image).status().unwrap().success());
}
