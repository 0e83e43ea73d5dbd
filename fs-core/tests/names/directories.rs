//! Directories of every shape, judged by e2fsck and read back.

use std::collections::{BTreeSet, HashSet};

use ext4_format::hash::{HashVersion, name_hash};
use fs_core::{Attr, Credentials, Dir, Error, Posix, RenameFlags};

use crate::rig::Rig;

fn refused<T>(result: fs_core::Result<T>, want: Posix) -> bool {
    matches!(result, Err(Error::Posix(got)) if got == want)
}

#[test]
fn every_kind_of_file_is_made_found_and_removed() {
    let Some(mut rig) = Rig::new(16, &["-t", "ext4", "-b", "4096"]) else { return };
    let root = Credentials::root();
    let dir = rig.mkdir(&rig.root(), "dir");
    let file = rig.touch(&dir, "file");
    let pipe = dir.mknod_as(&root, b"pipe", 0o010_600, (0, 0)).unwrap();
    let device = dir.mknod_as(&root, b"device", 0o060_600, (259, 300_000)).unwrap();
    dir.symlink(b"short", [b's'; 59]).unwrap();
    dir.symlink(b"long", [b'l'; 4095]).unwrap();
    assert!(refused(dir.symlink(b"longer", [b'l'; 4096]), Posix::NameTooLong));
    dir.link(b"hard", &file).unwrap();
    assert!(refused(dir.link(b"loop", &dir), Posix::NotPermitted));
    let numbers = [file.ino(), pipe.ino(), device.ino()];
    rig.remount();
    let dir = rig.dir("dir");
    let look = |name: &str| -> Attr { dir.lookup(name).unwrap().attributes().unwrap() };
    assert_eq!((look("file").ino, look("file").links), (numbers[0], 2));
    assert_eq!(look("hard").ino, numbers[0]);
    assert_eq!((look("pipe").ino, look("pipe").mode), (numbers[1], 0o010_600));
    assert_eq!((look("device").ino, look("device").rdev), (numbers[2], (259, 300_000)));
    assert_eq!(dir.lookup("short").unwrap().read_link().unwrap(), vec![b's'; 59]);
    assert_eq!(dir.lookup("long").unwrap().read_link().unwrap(), vec![b'l'; 4095]);
    assert_eq!((look(".").ino, look("..").ino), (dir.ino(), rig.root().ino()));
    assert_eq!(rig.root().attributes().unwrap().links, 4);
    assert!(refused(rig.root().rmdir(b"dir"), Posix::NotEmpty));
    assert!(refused(rig.root().unlink(b"dir"), Posix::IsDirectory));
    for name in ["file", "hard", "pipe", "device", "short", "long"] {
        assert!(refused(dir.rmdir(name.as_bytes()), Posix::NotDirectory));
        dir.unlink(name.as_bytes()).unwrap();
    }
    rig.root().rmdir(b"dir").unwrap();
    assert!(refused(rig.root().rmdir(b"dir"), Posix::NotFound));
    rig.unmount();
}

#[test]
fn a_large_directory_is_indexed_listed_once_each_and_emptied() {
    for args in [&["-t", "ext4", "-b", "1024"][..], &["-t", "ext4"], &["-t", "ext2"], &["-t", "ext3"]] {
        let Some(mut rig) = Rig::new(64, &[args, &["-N", "20000"]].concat()) else { return };
        let dir = rig.mkdir(&rig.root(), "dir");
        let names: BTreeSet<Vec<u8>> =
            (0..6000).map(|i| format!("a rather long name, number {i:05}").into_bytes()).collect();
        for name in &names {
            dir.mknod_as(&Credentials::root(), name, 0o100_644, (0, 0)).unwrap();
        }
        assert!(refused(
            dir.mknod_as(&Credentials::root(), names.first().unwrap(), 0o100_644, (0, 0)),
            Posix::Exists
        ));
        rig.remount();
        let dir = rig.dir("dir");
        let listed = rig.list(&dir, 37);
        assert_eq!(listed.len(), names.len());
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
        assert!(names.iter().all(|name| rig.exists(&dir, name)));
        assert!(!rig.exists(&dir, b"a rather long name"));
        for name in &names {
            dir.unlink(name).unwrap();
        }
        assert!(rig.list(&dir, 100).is_empty());
        rig.root().rmdir(b"dir").unwrap();
        rig.unmount();
    }
}

#[test]
fn long_names_split_small_blocks_twice_if_they_must() {
    let Some(mut rig) = Rig::new(32, &["-t", "ext4", "-b", "1024"]) else { return };
    let dir = rig.mkdir(&rig.root(), "dir");
    for i in 0..1500_usize {
        let name = format!("{i:05}{}", "x".repeat(if i % 3 == 0 { 250 } else { i * 7 % 200 }));
        rig.touch(&dir, &name);
    }
    assert_eq!(rig.list(&dir, 10).len(), 1500);
    rig.unmount();
}

#[test]
fn a_reader_sees_what_stays_exactly_once_while_others_come_and_go() {
    let Some(rig) = Rig::new(64, &["-t", "ext4", "-N", "20000"]) else { return };
    let dir = rig.mkdir(&rig.root(), "dir");
    // From one block over the birth of the index to many leaves.
    for count in [20, 200, 3000] {
        for i in 0..count {
            rig.touch(&dir, &format!("stays{i}"));
            rig.touch(&dir, &format!("goes{i}"));
        }
        let (mut cookie, mut seen, mut step) = (0, Vec::new(), 0);
        loop {
            let names = rig.read_some(&dir, &mut cookie, 7);
            if names.is_empty() {
                break;
            }
            seen.extend(names.into_iter().filter(|n| n.starts_with(b"stays")));
            for _ in 0..3 {
                let _ = dir.unlink(format!("goes{step}").as_bytes());
                rig.touch(&dir, &format!("comes{count}-{step}"));
                step += 1;
            }
        }
        let unique: BTreeSet<_> = seen.iter().collect();
        assert_eq!((seen.len(), unique.len()), (count, count));
        for name in rig.list(&dir, 1000) {
            dir.unlink(&name).unwrap();
        }
    }
}

#[test]
fn deleting_while_reading_empties_the_directory() {
    let Some(mut rig) = Rig::new(64, &["-t", "ext4", "-N", "20000"]) else { return };
    let dir = rig.mkdir(&rig.root(), "dir");
    for i in 0..5000 {
        rig.touch(&dir, &format!("file{i}"));
    }
    let mut cookie = 0;
    loop {
        let names = rig.read_some(&dir, &mut cookie, 50);
        if names.is_empty() {
            break;
        }
        for name in names.iter().filter(|n| *n != b"." && *n != b"..") {
            dir.unlink(name).unwrap();
        }
    }
    rig.root().rmdir(b"dir").unwrap();
    rig.unmount();
}

#[test]
fn rename_moves_replaces_swaps_and_refuses() {
    let Some(mut rig) = Rig::new(16, &["-t", "ext4"]) else { return };
    let plain = RenameFlags::default();
    let (a, b) = (rig.mkdir(&rig.root(), "a"), rig.mkdir(&rig.root(), "b"));
    let inner = rig.mkdir(&a, "inner");
    let file = rig.touch(&a, "file");
    let other = rig.touch(&b, "other");
    let go = |from: (&Dir, &[u8]), to: (&Dir, &[u8]), flags| from.0.rename(from.1, to.0, to.1, flags);
    let top_dir = rig.root();
    // Directories move with their `..` and are counted where they are.
    go((&a, b"inner"), (&b, b"moved"), plain).unwrap();
    assert_eq!(inner.lookup(b"..").unwrap().ino(), b.ino());
    assert_eq!((a.attributes().unwrap().links, b.attributes().unwrap().links), (2, 3));
    // Not into themselves, not over what they lie in.
    assert!(refused(go((&top_dir, b"b"), (&inner, b"b"), plain), Posix::Invalid));
    assert!(refused(go((&b, b"moved"), (&inner, b"x"), plain), Posix::Invalid));
    assert!(refused(go((&b, b"moved"), (&top_dir, b"b"), plain), Posix::NotEmpty));
    // Kinds must agree, and only empty directories are replaced.
    assert!(refused(go((&a, b"file"), (&top_dir, b"b"), plain), Posix::IsDirectory));
    assert!(refused(go((&top_dir, b"a"), (&b, b"other"), plain), Posix::NotDirectory));
    assert!(refused(go((&b, b"moved"), (&top_dir, b"a"), plain), Posix::NotEmpty));
    assert!(refused(go((&a, b"none"), (&b, b"none"), plain), Posix::NotFound));
    // Replacing.
    let no_replace = RenameFlags { no_replace: true, ..plain };
    assert!(refused(go((&a, b"file"), (&b, b"other"), no_replace), Posix::Exists));
    go((&a, b"file"), (&b, b"other"), plain).unwrap();
    assert_eq!(b.lookup(b"other").unwrap().ino(), file.ino());
    assert_eq!(other.attributes().unwrap().links, 0);
    let (number, generation) = (other.ino(), other.generation());
    assert!(rig.fs().node(number, generation).is_ok() && rig.fs().node(number, !generation).is_err());
    drop(other);
    assert!(refused(rig.fs().node(number, generation), Posix::Stale));
    // Swapping a file and a directory across parents.
    let exchange = RenameFlags { exchange: true, ..plain };
    let top = rig.touch(&a, "top");
    go((&a, b"top"), (&b, b"moved"), exchange).unwrap();
    assert_eq!(b.lookup(b"moved").unwrap().ino(), top.ino());
    assert_eq!(a.lookup(b"top").unwrap().ino(), inner.ino());
    assert_eq!(inner.lookup(b"..").unwrap().ino(), a.ino());
    assert!(refused(go((&a, b"top"), (&b, b"none"), exchange), Posix::NotFound));
    // A whiteout stays behind.
    go((&b, b"other"), (&a, b"gone"), RenameFlags { whiteout: true, ..plain }).unwrap();
    let whiteout = b.lookup(b"other").unwrap().attributes().unwrap();
    assert_eq!((whiteout.mode, whiteout.rdev), (0o020_000, (0, 0)));
    // Two names of one file: nothing happens.
    b.link(b"again", &file).unwrap();
    go((&a, b"gone"), (&b, b"again"), plain).unwrap();
    assert!(rig.exists(&a, b"gone") && rig.exists(&b, b"again"));
    rig.unmount();
}

#[test]
fn a_new_name_may_land_beside_the_old_one() {
    let Some(mut rig) = Rig::new(16, &["-t", "ext4"]) else { return };
    let root = Credentials::root();
    let plain = RenameFlags::default();
    for (at, whiteout) in [false, true].into_iter().enumerate() {
        let flags = RenameFlags { whiteout, ..plain };
        // Right in front of it, where a longer name was.
        let dir = rig.mkdir(&rig.root(), &format!("front {at}"));
        let _ = rig.touch(&dir, "a name that leaves a gap");
        let old = rig.touch(&dir, "old").ino();
        let last = rig.touch(&dir, "last").ino();
        dir.unlink(b"a name that leaves a gap").unwrap();
        dir.rename_as(&root, b"old", &dir, b"new", flags).unwrap();
        assert_eq!(dir.lookup(b"new").unwrap().ino(), old);
        assert_eq!(dir.lookup(b"last").unwrap().ino(), last);
        assert_eq!(rig.exists(&dir, b"old"), whiteout);
        // Into the end of its own record.
        let dir = rig.mkdir(&rig.root(), &format!("own {at}"));
        let only = rig.touch(&dir, "only").ino();
        dir.rename_as(&root, b"only", &dir, b"renamed", flags).unwrap();
        assert_eq!(dir.lookup(b"renamed").unwrap().ino(), only);
        assert_eq!(rig.exists(&dir, b"only"), whiteout);
        // Over the one in front of it.
        let over = rig.touch(&dir, "over").ino();
        dir.rename_as(&root, b"over", &dir, b"renamed", flags).unwrap();
        assert_eq!(dir.lookup(b"renamed").unwrap().ino(), over);
        assert_eq!(rig.exists(&dir, b"over"), whiteout);
    }
    rig.unmount();
}

#[test]
fn more_subdirectories_than_links_can_count() {
    let Some(mut rig) = Rig::new(512, &["-t", "ext4", "-N", "70000", "-b", "1024"]) else { return };
    for i in 0..65_001 {
        rig.root().create_dir(format!("{i}"), 0o755).unwrap();
    }
    assert_eq!(rig.root().attributes().unwrap().links, 1);
    rig.root().rmdir(b"17").unwrap();
    assert_eq!(rig.root().attributes().unwrap().links, 1);
    rig.unmount();
}

#[test]
fn a_link_too_many_is_refused() {
    let Some(mut rig) = Rig::new(64, &["-t", "ext4"]) else { return };
    let file = rig.touch(&rig.root(), "file");
    let dir = rig.mkdir(&rig.root(), "dir");
    for i in 1..65_000 {
        dir.link(format!("{i}").as_bytes(), &file).unwrap();
    }
    assert!(refused(dir.link(b"one more", &file), Posix::TooManyLinks));
    rig.unmount();
}

#[test]
fn a_full_volume_refuses_and_stays_whole() {
    for args in [&["-t", "ext4", "-b", "1024", "-N", "4000"][..], &["-t", "ext4", "-N", "256"]] {
        let Some(mut rig) = Rig::new(8, args) else { return };
        let dir = rig.mkdir(&rig.root(), "dir");
        let mut made = 0;
        loop {
            let target = vec![b't'; 900];
            match dir.symlink(format!("link{made}").as_bytes(), &target) {
                Ok(_) => made += 1,
                Err(Error::NoSpace) => break,
                Err(other) => panic!("{other}"),
            }
        }
        for i in 0..10_000 {
            let name = format!("{}{i}", "n".repeat(200));
            match dir.create_dir(name.as_bytes(), 0o755) {
                Ok(_) => made += 1,
                Err(Error::NoSpace) => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(rig.list(&dir, 100).len(), made);
        rig.remount();
        let dir = rig.dir("dir");
        dir.unlink(b"link0").unwrap();
        dir.symlink(b"link0", b"target").unwrap();
        rig.unmount();
    }
}

#[test]
fn an_index_of_two_levels_fills_up_and_of_three_does_not() {
    let name = |i: usize| format!("{i:06}{}", "-".repeat(249)).into_bytes();
    for (feature, count) in [("^large_dir", 45_000), ("large_dir", 45_000)] {
        let kind = ["-t", "ext4", "-b", "1024", "-N", "16", "-O", feature];
        let Some(mut rig) = Rig::new(96, &kind) else { return };
        let file = rig.touch(&rig.root(), "file");
        let dir = rig.mkdir(&rig.root(), "dir");
        let mut made = 0;
        // Links cost no inode; they count to 65000.
        while made < count {
            match dir.link(name(made), &file) {
                Ok(_) => made += 1,
                Err(Error::NoSpace) => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(made == count, feature == "large_dir", "{made}");
        assert!(rig.exists(&dir, &name(made - 1)) && !rig.exists(&dir, &name(made)));
        assert_eq!(rig.list(&dir, 500).len(), made);
        rig.unmount();
    }
}

/// Pairs of strings that take the legacy hash over signed bytes from the same state to the same
/// state, one pair behind the other: every way through them is a name with the same hash.
const SAME_HASH: [[&[u8; 6]; 2]; 8] = [
    [b"!!d\xdbWj", b"!!d\xbb7J"],
    [b"!!a\xb5\x9e\x17", b"!!aL5\x80"],
    [b"!!a\xeb^\x04", b"!!a\x97\x0aX"],
    [b"!!o\xfd)\x0c", b"!!o\xb4rU"],
    [b"!!d\xd9En", b"!!d\xcf;d"],
    [b"!!a\xe93\xac", b"!!a\xde(\xa1"],
    [b"!!t\xac\xf0(", b"!!t\xa1\xe5\x1d"],
    [b"!!a\x12\x0f\x06", b"!!a\x06\x03\x12"],
];

#[test]
fn names_of_one_hash_are_all_found_and_listed_once() {
    let Some(mut rig) = Rig::new(32, &["-t", "ext4", "-b", "1024"]) else { return };
    rig.offline(|image| {
        crate::rig::run(std::process::Command::new("tune2fs").args(["-E", "hash_alg=legacy"]).arg(image));
    });
    let names: BTreeSet<Vec<u8>> = (0..256)
        .map(|way| SAME_HASH.iter().enumerate().flat_map(|(i, pair)| *pair[way >> i & 1]).collect())
        .collect();
    let hash = |name: &Vec<u8>| name_hash(HashVersion::Legacy, [0; 4], name);
    assert_eq!((names.len(), names.iter().map(hash).collect::<HashSet<_>>().len()), (256, 1));
    let dir = rig.mkdir(&rig.root(), "dir");
    for (i, name) in names.iter().enumerate() {
        dir.mknod_as(&Credentials::root(), name, 0o100_644, (0, 0)).unwrap();
        rig.touch(&dir, &format!("between {i}"));
        let again = dir.mknod_as(&Credentials::root(), name, 0o100_644, (0, 0));
        assert!(refused(again, Posix::Exists));
    }
    rig.remount();
    let dir = rig.dir("dir");
    assert!(names.iter().all(|name| rig.exists(&dir, name)));
    for batch in [1, 3, 600] {
        let listed = rig.list(&dir, batch);
        assert_eq!(listed.len(), 512);
        assert!(listed.into_iter().collect::<BTreeSet<_>>().is_superset(&names));
    }
    // Deleting what was just read loses none of those that stay.
    let (mut cookie, mut seen) = (0, 0);
    loop {
        let some = rig.read_some(&dir, &mut cookie, 5);
        if some.is_empty() {
            break;
        }
        for name in some.iter().filter(|name| names.contains(*name)) {
            seen += 1;
            dir.unlink(name).unwrap();
        }
    }
    assert_eq!(seen, 256);
    rig.unmount();
}
