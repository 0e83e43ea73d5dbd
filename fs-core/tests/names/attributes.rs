//! Extended attributes and access control lists, judged by e2fsck and by the kernel's own view.

use std::collections::BTreeMap;

use fs_core::{Credentials, Error, Node, Posix, RenameFlags, SetAttr, SetXattr};

use crate::rig::Rig;

const KINDS: [&[&str]; 5] = [
    &["-t", "ext4"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext4", "-I", "128"],
    &["-t", "ext2"],
    &["-t", "ext4", "-O", "ea_inode"],
];

fn refused<T>(result: fs_core::Result<T>, want: Posix) -> bool {
    matches!(result, Err(Error::Posix(got)) if got == want)
}

fn set(node: &Node, name: &str, value: &[u8]) -> fs_core::Result<()> {
    node.set_xattr(name, value, SetXattr::Any)
}

fn names(node: &Node) -> Vec<String> {
    let list = node.list_xattrs_as(&Credentials::root()).unwrap();
    let text = String::from_utf8_lossy(&list);
    text.split_terminator('\0').map(String::from).collect()
}

/// An access control list in the form of the system call: tag, permissions, id.
fn wire(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const NO_ID: u32 = u32::MAX;

#[test]
fn attributes_are_set_replaced_listed_and_removed() {
    for kind in KINDS {
        let Some(mut rig) = Rig::new(32, kind) else { return };
        let mut file = Node::clone(&rig.touch(&rig.root(), "file"));
        let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut roll = 1_u32;
        for step in 0..400_u32 {
            roll = roll.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let space = ["user", "trusted", "security"][(roll >> 8) as usize % 3];
            let name = format!("{space}.{}", "n".repeat(1 + (roll >> 12) as usize % 20));
            if roll >> 28 < 5 {
                let got = file.remove_xattr(name.as_bytes());
                match model.remove(&name) {
                    Some(_) => got.unwrap(),
                    None => assert!(refused(got, Posix::NoData)),
                }
            } else {
                let value = vec![step as u8; (roll >> 16) as usize % 300];
                match set(&file, &name, &value) {
                    Ok(()) => drop(model.insert(name, value)),
                    Err(Error::NoSpace) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            if step % 100 == 99 {
                rig.remount();
                file = rig.find("file");
            }
            let mut listed = names(&file);
            listed.sort();
            assert!(listed.iter().eq(model.keys()), "{kind:?} step {step}");
            for (name, value) in &model {
                assert_eq!(&file.xattr(name.as_bytes()).unwrap(), value, "{name}");
            }
        }
        assert!(!model.is_empty());
        rig.root().unlink(b"file").unwrap();
        rig.unmount();
    }
}

#[test]
fn the_rules_of_setting() {
    let Some(mut rig) = Rig::new(16, &["-t", "ext4", "-b", "1024"]) else { return };
    let file = rig.touch(&rig.root(), "file");
    let root = Credentials::root();
    let put = |name: &[u8], value: &[u8], how| file.set_xattr_as(&root, name, value, how, false);
    assert!(refused(put(b"user.a", b"1", SetXattr::Replace), Posix::NoData));
    put(b"user.a", b"1", SetXattr::Create).unwrap();
    assert!(refused(put(b"user.a", b"2", SetXattr::Create), Posix::Exists));
    put(b"user.a", b"2", SetXattr::Replace).unwrap();
    put(b"user.empty", b"", SetXattr::Any).unwrap();
    assert_eq!(file.xattr(b"user.empty").unwrap(), b"");
    assert!(refused(file.xattr(b"user.b"), Posix::NoData));
    assert!(refused(file.xattr(b"foreign.b"), Posix::NotSupported));
    assert!(matches!(put(b"user.large", &[0; 1024], SetXattr::Any), Err(Error::NoSpace)));
    assert!(refused(put(b"user.large", &[0; 65537], SetXattr::Any), Posix::ArgTooBig));
    assert_eq!(file.xattr(b"user.a").unwrap(), b"2");
    put(b"trusted.t", b"t", SetXattr::Any).unwrap();
    let user = Credentials { uid: 1000, gid: 1000, ..Credentials::root() };
    assert_eq!(file.list_xattrs_as(&user).unwrap(), b"user.a\0user.empty\0");
    rig.unmount();
}

#[test]
fn equal_attributes_share_a_block_until_they_differ() {
    let Some(mut rig) = Rig::new(32, &["-t", "ext4", "-b", "4096"]) else { return };
    let value = vec![7; 1000];
    let files: Vec<_> = (0..1500).map(|i| rig.touch(&rig.root(), &format!("{i}"))).collect();
    let free = rig.fs().statfs().unwrap().blocks_free;
    for file in &files {
        set(file, "user.same", &value).unwrap();
    }
    // 1024 share the first block, the rest the second.
    assert_eq!(free - rig.fs().statfs().unwrap().blocks_free, 2);
    drop(files);
    rig.remount();
    let files: Vec<_> = (0..1500).map(|i| rig.find(&format!("{i}"))).collect();
    set(&files[3], "user.same", b"short").unwrap();
    set(&files[4], "user.more", &value).unwrap();
    set(&files[5], "user.same", &[8; 1000]).unwrap();
    assert_eq!(files[6].xattr(b"user.same").unwrap(), value);
    assert_eq!(names(&files[4]), ["user.more", "user.same"]);
    for i in 0..files.len() {
        rig.root().unlink(format!("{i}").as_bytes()).unwrap();
    }
    rig.unmount();
}

#[test]
fn large_values_live_in_inodes_of_their_own() {
    let Some(mut rig) = Rig::new(32, &["-t", "ext4", "-b", "4096", "-O", "ea_inode"]) else { return };
    let (one, two) = (rig.touch(&rig.root(), "one"), rig.touch(&rig.root(), "two"));
    let large: Vec<u8> = (0..60_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    let free = rig.fs().statfs().unwrap().files_free;
    for ino in [one, two] {
        set(&ino, "user.large", &large).unwrap();
        set(&ino, "user.second", &large[..9000]).unwrap();
        for i in 0..30 {
            set(&ino, &format!("user.filler{i}"), &[i; 100]).unwrap();
        }
    }
    assert_eq!(free - rig.fs().statfs().unwrap().files_free, 2, "equal values share an inode");
    rig.remount();
    let (one, two) = (rig.find("one"), rig.find("two"));
    assert_eq!(one.xattr(b"user.large").unwrap(), large);
    assert_eq!(two.xattr(b"user.second").unwrap(), &large[..9000]);
    set(&one, "user.large", b"small").unwrap();
    one.remove_xattr(b"user.second").unwrap();
    rig.root().unlink(b"two").unwrap();
    drop(two);
    assert_eq!(rig.fs().statfs().unwrap().files_free, free + 1);
    rig.unmount();
}

#[test]
fn a_value_that_finds_no_place_leaves_no_inode() {
    let Some(mut rig) = Rig::new(32, &["-t", "ext4", "-b", "1024", "-O", "ea_inode"]) else { return };
    let file = rig.touch(&rig.root(), "file");
    let mut number = 0_u8;
    let mut put = || {
        number += 1;
        set(&file, &format!("user.{:0>50}", number), &[number; 100])
    };
    while put().is_ok() {}
    let free = rig.fs().statfs().unwrap().files_free;
    for _ in 0..5 {
        assert!(matches!(put(), Err(Error::NoSpace)));
    }
    assert_eq!(rig.fs().statfs().unwrap().files_free, free);
    rig.unmount();
}

/// Short values, too, have inodes of their own where the block's room for values is used up: capabilities
/// that a write takes away, lists that follow the mode.
#[test]
fn what_is_changed_on_the_side_gives_its_value_inode_back() {
    let Some(mut rig) = Rig::new(32, &["-t", "ext4", "-b", "1024", "-O", "ea_inode"]) else { return };
    let file = rig.touch(&rig.root(), "file");
    set(&file, "user.in.record", &[1; 40]).unwrap();
    set(&file, "user.in.block", &[2; 880]).unwrap();
    let free = rig.fs().statfs().unwrap().files_free;
    let used = |rig: &Rig| free - rig.fs().statfs().unwrap().files_free;
    let outsider = Credentials { uid: 1000, gid: 1000, ..Credentials::root() };
    let kill = SetAttr { kill_privileges: Some(outsider.clone()), ..SetAttr::default() };
    for by_write in [true, false] {
        set(&file, "security.capability", &[3; 20]).unwrap();
        assert_eq!(used(&rig), 1);
        match by_write {
            true => file.kill_privileges(&outsider).unwrap(),
            false => drop(file.set_attributes(&kill).unwrap()),
        }
        assert_eq!(used(&rig), 0, "by write: {by_write}");
    }
    let users = (0..8).map(|user| (2, 6, 1000 + user));
    let ends = [(4, 5, NO_ID), (0x10, 6, NO_ID), (0x20, 1, NO_ID)];
    let list: Vec<_> = [(1, 7, NO_ID)].into_iter().chain(users).chain(ends).collect();
    set(&file, "system.posix_acl_access", &wire(&list)).unwrap();
    for mode in [0o640, 0o600, 0o755] {
        file.set_attributes(&SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
        assert_eq!(used(&rig), 1, "{mode:o}");
    }
    rig.unmount();
}

/// Each attribute counts, those of one inode, too: in its block, in its record, moved from there, set again.
#[test]
fn shared_values_are_counted_for_each_attribute() {
    let Some(mut rig) = Rig::new(32, &["-t", "ext4", "-b", "4096", "-O", "ea_inode"]) else { return };
    rig.touch(&rig.root(), "file");
    let (value, other) = (vec![1; 20_000], vec![2; 20_000]);
    let free = rig.fs().statfs().unwrap().files_free;
    let used = |rig: &Rig| free - rig.fs().statfs().unwrap().files_free;
    let remove = |rig: &Rig, name: &str| rig.find("file").remove_xattr(name).unwrap();
    for round in 0..2 {
        let file = rig.find("file");
        for name in ["user.a", "user.b", "user.c", "user.d", "user.e", "user.f"] {
            set(&file, name, &value).unwrap();
            set(&file, name, &value).unwrap();
        }
        assert_eq!(used(&rig), 1, "round {round}");
        rig.remount();
        let file = rig.find("file");
        set(&file, "user.b", b"short").unwrap();
        set(&file, "user.e", &other).unwrap();
        remove(&rig, "user.a");
        remove(&rig, "user.f");
        assert_eq!(file.xattr(b"user.c").unwrap(), value);
        // Found again by having been read.
        set(&file, "user.g", &value).unwrap();
        assert_eq!(used(&rig), 2, "round {round}");
        for name in ["user.b", "user.c", "user.d", "user.e"] {
            remove(&rig, name);
        }
        assert_eq!(file.xattr(b"user.g").unwrap(), value);
        rig.remount();
        remove(&rig, "user.g");
        assert_eq!(used(&rig), 0, "round {round}");
    }
    rig.unmount();
}

#[test]
fn access_lists_follow_and_move_the_mode() {
    let Some(mut rig) = Rig::new(16, &["-t", "ext4"]) else { return };
    let access = b"system.posix_acl_access";
    let file = rig.touch(&rig.root(), "file");
    let mode = |node: &Node| node.attributes().unwrap().mode & 0o7777;
    let minimal = wire(&[(1, 6, NO_ID), (4, 0, NO_ID), (0x20, 0, NO_ID)]);
    set(&file, "system.posix_acl_access", &minimal).unwrap();
    assert_eq!(mode(&file), 0o600);
    assert!(refused(file.xattr(access), Posix::NoData));
    let rich =
        wire(&[(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (8, 4, 7), (0x10, 6, NO_ID), (0x20, 1, NO_ID)]);
    set(&file, "system.posix_acl_access", &rich).unwrap();
    assert_eq!(mode(&file), 0o761);
    assert_eq!(file.xattr(access).unwrap(), rich);
    file.set_attributes(&SetAttr { mode: Some(0o640), ..SetAttr::default() }).unwrap();
    let masked =
        wire(&[(1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (8, 4, 7), (0x10, 4, NO_ID), (0x20, 0, NO_ID)]);
    assert_eq!(file.xattr(access).unwrap(), masked);
    assert_eq!(names(&file), ["system.posix_acl_access"]);
    assert!(refused(set(&file, "system.posix_acl_default", &rich), Posix::Access));
    assert!(refused(set(&file, "system.posix_acl_access", &rich[..11]), Posix::Invalid));
    rig.remount();
    let file = rig.find("file");
    file.remove_xattr(access).unwrap();
    file.remove_xattr(access).unwrap();
    assert!(names(&file).is_empty());
    rig.unmount();
}

#[test]
fn default_lists_are_inherited_instead_of_the_umask() {
    let Some(mut rig) = Rig::new(16, &["-t", "ext4"]) else { return };
    let dir = rig.mkdir(&rig.root(), "dir");
    let list = wire(&[(1, 7, NO_ID), (2, 7, 1000), (4, 5, NO_ID), (0x10, 7, NO_ID), (0x20, 0, NO_ID)]);
    set(&dir, "system.posix_acl_default", &list).unwrap();
    let caller = Credentials { umask: 0o077, ..Credentials::root() };
    let file = dir.mknod_as(&caller, b"file", 0o100_666, (0, 0)).unwrap();
    let sub = dir.create_dir_as(&caller, b"sub", 0o777).unwrap();
    let link = dir.symlink_as(&caller, b"link", b"target").unwrap();
    let mode = |node: &Node| node.attributes().unwrap().mode;
    assert_eq!((mode(&file), mode(&sub), mode(&link)), (0o100_660, 0o040_770, 0o120_777));
    assert_eq!(names(&file), ["system.posix_acl_access"]);
    assert_eq!(names(&sub), ["system.posix_acl_default", "system.posix_acl_access"]);
    assert!(names(&link).is_empty());
    assert_eq!(sub.xattr(b"system.posix_acl_default").unwrap(), list);
    // A whiteout is a new file like any other.
    let flags = RenameFlags { whiteout: true, ..RenameFlags::default() };
    dir.rename_as(&caller, b"file", &rig.root(), b"moved", flags).unwrap();
    let whiteout = dir.lookup(b"file").unwrap();
    assert_eq!((mode(&whiteout), names(&whiteout)), (0o020_000, vec!["system.posix_acl_access".into()]));
    let plain = rig.root().mknod_as(&caller, b"plain", 0o100_666, (0, 0)).unwrap();
    assert_eq!(mode(&plain), 0o100_600);
    rig.unmount();
}

#[test]
fn killing_privileges_takes_mode_bits_and_capabilities() {
    let Some(mut rig) = Rig::new(16, &["-t", "ext4"]) else { return };
    let kill = SetAttr { kill_privileges: Some(Credentials::root()), ..SetAttr::default() };
    let pipe = rig.root().mknod_as(&Credentials::root(), b"pipe", 0o016_555, (0, 0)).unwrap();
    let locked = rig.root().mknod_as(&Credentials::root(), b"locked", 0o106_645, (0, 0)).unwrap();
    let dir = rig.root().create_dir(b"dir", 0o6755).unwrap();
    set(&locked, "security.capability", &[1; 20]).unwrap();
    set(&locked, "security.other", b"stays").unwrap();
    let mode = |node: &Node| node.set_attributes(&kill).unwrap().mode & 0o7777;
    // Set-group-id without group execution is a mark for mandatory locks, no privilege.
    assert_eq!((mode(&pipe), mode(&locked), mode(&dir)), (0o555, 0o2645, 0o6755));
    assert_eq!(names(&locked), ["security.other"]);
    // Who is not in the group loses the mark too.
    let outsider = Credentials { uid: 1000, gid: 1000, ..Credentials::root() };
    let kill = SetAttr { kill_privileges: Some(outsider), ..SetAttr::default() };
    assert_eq!(locked.set_attributes(&kill).unwrap().mode & 0o7777, 0o645);
    rig.unmount();
}
