//! Undo files: ours and e2fsprogs', each put back by the other one's program.

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use support::{debugfs, e2fsck, run, volume_file};

/// A volume with damage in many places.
fn damaged(options: &str) -> (tempfile::TempDir, PathBuf) {
    let (folder, image) = volume_file(options);
    let mut commands = String::new();
    for at in 0..120 {
        commands += &format!("mkdir d{at}\nwrite /etc/hostname d{at}/file\nsif d{at}/file links_count 9\n");
    }
    debugfs(&image, &commands);
    (folder, image)
}

fn program(name: impl AsRef<std::ffi::OsStr>, arguments: &[&str], paths: [&Path; 2]) -> (bool, String) {
    let output = Command::new(name).args(arguments).args(paths).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn ours(arguments: &[&str], log: &Path, image: &Path) -> (bool, String) {
    program(cargo_bin("rext4-undo"), arguments, [log, image])
}

fn theirs(arguments: &[&str], log: &Path, image: &Path) -> (bool, String) {
    program("e2undo", arguments, [log, image])
}

#[test]
fn each_program_puts_back_what_the_other_one_wrote() {
    for options in ["-t ext4 -b 1024", "-t ext4 -b 4096", "-t ext4 -b 1024 -O ^metadata_csum"] {
        let (folder, image) = damaged(options);
        let before = std::fs::read(&image).unwrap();
        let log = folder.path().join("log");
        let name = log.to_str().unwrap();
        // Written by ours.
        for undo in [ours, theirs] {
            let (code, words) = run(&["-fy", "-z", name], &image);
            assert_eq!(code, 1, "{words}");
            let repaired = std::fs::read(&image).unwrap();
            assert_ne!(repaired, before);
            let (done, words) = theirs(&["-n"], &log, &image);
            assert!(done, "{options}: {words}");
            let (done, words) = undo(&[], &log, &image);
            assert!(done, "{options}: {words}");
            assert!(std::fs::read(&image).unwrap() == before, "{options}: undone to the byte");
            std::fs::remove_file(&log).unwrap();
        }
        // Written by e2fsck, tune2fs and mke2fs; ours and theirs may go on with it.
        for command in ["e2fsck -fy -z", "tune2fs -O ^has_journal -z", "mke2fs -Fq -t ext4 -z"] {
            let words: Vec<&str> = command.split(' ').collect();
            let made = Command::new(words[0]).args(&words[1..]).arg(&log).arg(&image).output().unwrap();
            assert!(made.status.code().is_some_and(|code| code <= 1), "{command}");
            assert!(std::fs::read(&image).unwrap() != before, "{command}");
            let (done, words) = ours(&["-v"], &log, &image);
            assert!(done && words.contains("block "), "{command}: {words}");
            assert!(std::fs::read(&image).unwrap() == before, "{options}, {command}: undone to the byte");
            std::fs::remove_file(&log).unwrap();
        }
        for first_is_ours in [true, false] {
            let one = |flags: &[&str]| run(flags, &image).0;
            let other = |flags: &[&str]| Command::new("e2fsck").args(flags).arg(&image).output().unwrap();
            let fix = ["-fy", "-z", name];
            if first_is_ours {
                assert_eq!(one(&fix), 1);
                assert_eq!(other(&["-fyD", "-z", name]).status.code(), Some(0));
            } else {
                assert_eq!(other(&fix).status.code(), Some(1));
                assert_eq!(one(&["-fyD", "-z", name]), 0);
            }
            let undo = if first_is_ours { ours } else { theirs };
            let (done, words) = undo(&[], &log, &image);
            assert!(done, "{options}: {words}");
            assert!(std::fs::read(&image).unwrap() == before, "{options}, {first_is_ours}");
            std::fs::remove_file(&log).unwrap();
        }
    }
}

#[test]
fn an_undo_can_be_undone_and_looked_at() {
    let (folder, image) = damaged("-t ext4 -b 1024");
    let before = std::fs::read(&image).unwrap();
    let (log, back) = (folder.path().join("log"), folder.path().join("back"));
    assert_eq!(run(&["-fy", "-z", log.to_str().unwrap()], &image).0, 1);
    let repaired = std::fs::read(&image).unwrap();
    let (done, words) = ours(&["-n"], &log, &image);
    assert!(done && words.contains("would be put back"), "{words}");
    assert!(std::fs::read(&image).unwrap() == repaired);
    let (done, words) = ours(&["-z", back.to_str().unwrap()], &log, &image);
    assert!(done, "{words}");
    assert!(std::fs::read(&image).unwrap() == before);
    let (done, words) = theirs(&[], &back, &image);
    assert!(done, "{words}");
    assert!(std::fs::read(&image).unwrap() == repaired);
    assert_eq!(e2fsck(&image, "-n").0, 0);
}

#[test]
fn a_log_that_does_not_fit_changes_nothing() {
    let (folder, image) = damaged("-t ext4 -b 1024");
    let log = folder.path().join("log");
    assert_eq!(run(&["-fy", "-z", log.to_str().unwrap()], &image).0, 1);
    let good = std::fs::read(&log).unwrap();
    // The volume has changed since.
    debugfs(&image, "write /etc/hostname late\n");
    let changed = std::fs::read(&image).unwrap();
    let (done, words) = ours(&[], &log, &image);
    assert!(!done && words.contains("changed since"), "{words}");
    // So a new repair cannot go on with the log, either.
    let (code, words) = run(&["-fy", "-z", log.to_str().unwrap()], &image);
    assert!(code == 8 && words.contains("changed since"), "{code}: {words}");
    // Any byte that counts: the header, a key, data. Nothing is written of a log that is not whole.
    for at in [0, 9, 30, 40, 0x1fd, 2048 + 3, 2048 + 6, 2048 + 20, 2048 + 30, 3072 + 100] {
        let mut bad = good.clone();
        bad[at] ^= 0x5a;
        std::fs::write(&log, bad).unwrap();
        let (done, words) = ours(&["-f"], &log, &image);
        assert!(!done, "byte {at}: {words}");
        assert!(std::fs::read(&image).unwrap() == changed, "byte {at}");
    }
    for len in [0, 100, 511, 1500, 2048 + 8, good.len() - 1] {
        std::fs::write(&log, &good[..len]).unwrap();
        assert!(!ours(&["-f"], &log, &image).0, "cut to {len}");
        assert!(std::fs::read(&image).unwrap() == changed, "cut to {len}");
    }
    std::fs::write(&log, "no log").unwrap();
    assert_eq!(run(&["-fy", "-z", log.to_str().unwrap()], &image).0, 8);
    std::fs::write(&log, good).unwrap();
    assert!(ours(&["-f"], &log, &image).0);
}

/// What a power cut leaves of a log: it was never closed, and its last key may have no data.
#[test]
fn a_log_that_was_never_closed_is_put_back_as_far_as_it_goes() {
    let (folder, image) = damaged("-t ext4 -b 1024");
    let before = std::fs::read(&image).unwrap();
    let log = folder.path().join("log");
    assert_eq!(run(&["-fy", "-z", log.to_str().unwrap()], &image).0, 1);
    let file = std::fs::File::options().read(true).write(true).open(&log).unwrap();
    let mut header = [0; 512];
    file.read_exact_at(&mut header, 0).unwrap();
    header[44] = 0;
    let keys = u64::from_le_bytes(header[8..16].try_into().unwrap());
    header[8..16].copy_from_slice(&(keys + 1).to_le_bytes());
    let sum = ext4_format::crc::crc32c(!0, &header[..508]);
    header[508..].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&header, 0).unwrap();
    let (done, words) = ours(&[], &log, &image);
    assert!(done && words.contains("was not closed"), "{words}");
    assert!(std::fs::read(&image).unwrap() == before);
}

#[test]
fn a_volume_within_a_device_is_found_by_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let (image, log) = (folder.path().join("image"), folder.path().join("log"));
    std::fs::File::create(&image).unwrap().set_len(17 << 20).unwrap();
    let made = Command::new("mke2fs")
        .args(["-Fq", "-t", "ext4", "-b", "1024", "-E", "offset=1048576"])
        .arg(&image)
        .arg("16M")
        .status()
        .unwrap();
    assert!(made.success());
    // A wrong link count of the root directory.
    let (_folder, plain) = volume_file("-t ext4 -b 1024");
    let bytes = std::fs::read(&plain).unwrap();
    let at = support::Volume::new(&bytes).unwrap().inode_offset(ext4_format::Ino::ROOT).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
    file.write_all_at(&[9], (1 << 20) + at as u64 + 0x1a).unwrap();
    let before = std::fs::read(&image).unwrap();
    for undo in [ours, theirs] {
        let place = format!("offset={}", 1 << 20);
        let (code, words) = run(&["-fy", "-E", &place, "-z", log.to_str().unwrap()], &image);
        assert_eq!(code, 1, "{words}");
        let (done, words) = undo(&[], &log, &image);
        assert!(done, "{words}");
        assert!(std::fs::read(&image).unwrap() == before);
        std::fs::remove_file(&log).unwrap();
    }
}
