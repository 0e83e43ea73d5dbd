//! The examples, run by an ordinary user, and what e2fsck and the kernel say of the volumes that they make.

mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rext4::{OpenOptions, mkfs};
use serde_json::Value;
use support::{assert_clean, example, folder, give, kernel_tree, run, tree};

/// A folder of the host with files of several kinds.
fn fill(top: &Path) {
    let odd = OsStr::from_bytes(b"not \xff text");
    for dir in ["", "empty", "deep", "deep/er", "deep/er/still"] {
        fs::create_dir(top.join(dir)).unwrap();
    }
    let noise: Vec<u8> = (0..3_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (path, content) in [
        (OsStr::new("nothing"), &b""[..]),
        (OsStr::new("deep/er/still/noise"), &noise[..]),
        (OsStr::new("program"), b"#!/bin/sh\n"),
        (odd, b"x"),
    ] {
        fs::write(top.join(path), content).unwrap();
    }
    symlink("deep/er", top.join("short")).unwrap();
    symlink("nowhere/".repeat(30), top.join("deep/long")).unwrap();
    for path in tree(top).keys() {
        give(&top.join(path));
    }
    for (path, mode) in [("program", 0o4751), ("deep/er", 0o1770), ("nothing", 0o600)] {
        fs::set_permissions(top.join(path), Permissions::from_mode(mode)).unwrap();
    }
    // Directories last, since their times change with what they hold.
    for (n, path) in ["deep/er/still/noise", "deep/er", "empty"].into_iter().enumerate() {
        let time = UNIX_EPOCH + Duration::new(1_000_000_000 + n as u64, 123_456_789);
        let times = FileTimes::new().set_modified(time).set_accessed(time);
        File::open(top.join(path)).unwrap().set_times(times).unwrap();
    }
    give(top);
}

#[test]
fn copy_in_read_out_and_tree_json() {
    let folder = folder();
    let (image, source) = (folder.path().join("disk.img"), folder.path().join("source"));
    fill(&source);
    mkfs::format_file(&image, 32 << 20, &mkfs::Options::default()).unwrap();
    give(&image);
    run(example("copy_in", folder.path()).args([&image, &source]));
    run(example("copy_in", folder.path()).args([&image, &source]).arg("/second/copy"));
    assert_clean(&image);
    let here = tree(&source);
    if let Some(there) = kernel_tree(&image) {
        for (path, seen) in &here {
            for copy in [path.clone(), Path::new("second/copy").join(path)] {
                // The target's times are its own.
                assert_eq!(there.get(&copy), Some(seen), "{}", copy.display());
            }
        }
        assert_eq!(there.len(), 2 * here.len() + 2);
    }

    let said = run(example("read_out", folder.path()).arg(&image).arg("second/copy/short/still/noise"));
    assert!(said == here[Path::new("deep/er/still/noise")].content);
    let missing = example("read_out", folder.path()).arg(&image).arg("none").output().unwrap();
    assert!(!missing.status.success() && missing.stdout.is_empty());

    let said = run(example("tree_json", folder.path()).arg(&image).arg("second/copy"));
    let lines = str::from_utf8(&said).unwrap().lines();
    let mut paths = BTreeSet::new();
    for line in lines {
        let line: Value = serde_json::from_str(line).unwrap();
        let path = match &line["path"] {
            Value::String(path) => path.clone().into_bytes(),
            bytes => serde_json::from_value(bytes.clone()).unwrap(),
        };
        let path = Path::new(OsStr::from_bytes(&path)).strip_prefix("second/copy").unwrap().to_owned();
        let Some(seen) = here.get(&path) else {
            assert_eq!((path.as_os_str().len(), &line["type"]), (0, &"Directory".into()));
            continue;
        };
        assert_eq!(line["mode"], format!("{:04o}", seen.mode & 0o7777));
        assert_eq!((&line["uid"], &line["mtime"]), (&seen.owner.0.into(), &seen.mtime.0.into()));
        if line["type"] == "Symlink" {
            assert_eq!(line["target"].as_str().unwrap().as_bytes(), seen.content);
        }
        paths.insert(path);
    }
    assert!(paths.iter().eq(here.keys()), "{paths:?}");
}

#[test]
fn lifecycle() {
    let folder = folder();
    let image = folder.path().join("disk.img");
    let said = String::from_utf8(run(example("lifecycle", folder.path()).arg(&image))).unwrap();
    assert!(said.starts_with("99 letters; the last has 99 lines\n"), "{said}");
    assert_clean(&image);
    if let Some(tree) = kernel_tree(&image) {
        assert_eq!(tree.len(), 99 + 4);
        assert_eq!(tree[Path::new("letters/sent/3")].content, b"letter 3\n".repeat(3));
        assert_eq!(tree[Path::new("letters/last")].content, b"sent/99");
    }
    // An image that is there stays as it is.
    let again = example("lifecycle", folder.path()).arg(&image).output().unwrap();
    assert!(!again.status.success());
    let fs = OpenOptions::new().read_only(true).open(&image).unwrap();
    assert!(fs.read("diary").unwrap().ends_with(b"day 1000\n"));
}

/// They show what can be done with this crate alone.
#[test]
fn examples_use_nothing_but_this_crate() {
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")];
    let (mut seen, mut browser) = (0, 0);
    while let Some(folder) = todo.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for inside in ["fs_core", "blockdev::", "ext4_format", "jbd2", "::mkfs", "::fsck"] {
                let used = text.match_indices(inside).any(|(at, _)| !text[..at].ends_with("rext4"));
                assert!(!used, "{} uses {inside}", path.display());
            }
            seen += 1;
            let in_browser = path.components().any(|part| part.as_os_str() == "http_browser");
            browser += if in_browser { text.lines().count() } else { 0 };
        }
    }
    assert!(seen >= 7 && browser > 0 && browser < 400, "{seen} files, {browser} lines");
}
