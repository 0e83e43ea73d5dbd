//! The edges of extended attributes and access control lists beside the kernel: which value fits where, what
//! does not, in which order names are listed, what a shared block costs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;
use tests::scale::{Need, can_run};

use crate::beside::Pair;

/// Asks on one mount and keeps the answers.
struct Asked<'a> {
    root: &'a Path,
    said: String,
}

impl Asked<'_> {
    fn tell<T: std::fmt::Debug>(&mut self, what: &str, answer: Result<T, Errno>) {
        let _ = match answer {
            Ok(answer) => writeln!(self.said, "{what}: {answer:?}"),
            Err(errno) => writeln!(self.said, "{what}: {}", errno.raw_os_error()),
        };
    }

    fn set(&mut self, file: &str, name: &str, value: &[u8], flags: XattrFlags) {
        let answer = lsetxattr(self.root.join(file), name, value, flags);
        self.tell(&format!("{file}: set {:.30} of {} bytes, {flags:?}", name, value.len()), answer);
    }

    fn get(&mut self, file: &str, name: &str, room: usize) {
        let mut value = vec![0; room];
        let answer = lgetxattr(self.root.join(file), name, &mut value[..]);
        let sum = value.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        self.tell(&format!("{file}: get {name:.30} into {room}"), answer.map(|len| (len, sum)));
    }

    fn list(&mut self, file: &str, room: usize) {
        let mut names = vec![0; room];
        let answer = llistxattr(self.root.join(file), &mut names[..]);
        let shown = |len: usize| String::from_utf8_lossy(&names[..len.min(room)]).replace('\0', " ");
        self.tell(&format!("{file}: list into {room}"), answer.map(|len| (len, shown(len))));
    }

    fn remove(&mut self, file: &str, name: &str) {
        let answer = lremovexattr(self.root.join(file), name);
        self.tell(&format!("{file}: remove {name:.30}"), answer);
    }

    fn space(&mut self, file: &str) {
        let told = fs::symlink_metadata(self.root.join(file)).map(|told| (told.blocks(), told.mode()));
        self.tell(&format!("{file}: blocks and mode"), told.map_err(|_| Errno::IO));
    }
}

const ANY: XattrFlags = XattrFlags::empty();

fn sizes(asked: &mut Asked<'_>) {
    let near = [0, 1, 50, 96, 100, 104, 120, 400, 900, 984, 1000, 1024, 1900, 2000];
    let far = [3500, 3560, 3584, 3600, 3900, 3984, 4016, 4032, 4040, 4064, 4096, 5000, 20_000, 65_536];
    for size in near.into_iter().chain(far) {
        let file = format!("size{size}");
        let _ = File::create(asked.root.join(&file));
        asked.set(&file, "user.a", &vec![b'v'; size], ANY);
        asked.space(&file);
        asked.set(&file, "user.another", &[b'w'; 20], ANY);
        asked.list(&file, 100);
        asked.get(&file, "user.a", 65_536);
        asked.space(&file);
    }
    asked.set("file", "user.a", &[0; 65_537], ANY);
}

fn names_and_flags(asked: &mut Asked<'_>) {
    let (longest, longer) = (format!("user.{}", "n".repeat(250)), format!("user.{}", "n".repeat(251)));
    let strange =
        ["user.", "trusted.", "security.", "system.x", "foo.bar", "os2.x", "", "trusted.x", "security.x"];
    for name in strange.into_iter().chain([&*longest, &longer]) {
        asked.set("file", name, b"abc", ANY);
        asked.get("file", name, 100);
        asked.remove("file", name);
        asked.remove("file", name);
    }
    for flags in [XattrFlags::CREATE, XattrFlags::REPLACE, XattrFlags::CREATE | XattrFlags::REPLACE] {
        asked.set("file", "user.once", b"1", flags);
        asked.set("file", "user.once", b"2", flags);
        asked.remove("file", "user.once");
    }
    for file in ["link", "pipe"] {
        for name in ["user.a", "trusted.a", "security.a", "system.posix_acl_access"] {
            asked.set(file, name, b"v", ANY);
            asked.get(file, name, 10);
        }
    }
}

/// Names come and go in the inode and in the block, until the block is full.
fn order_and_room(asked: &mut Asked<'_>) {
    for name in ["user.zz", "user.a", "trusted.b", "security.c", "user.bbb", "trusted.a", "security.a"] {
        asked.set("folder", name, b"12345", ANY);
    }
    for index in 0..30 {
        asked.set("folder", &format!("user.m{:02}", index * 7 % 30), &vec![b'x'; index * 5 % 40], ANY);
    }
    asked.list("folder", 2000);
    for index in (0..30).step_by(3) {
        asked.remove("folder", &format!("user.m{index:02}"));
    }
    for index in (0..30).step_by(4) {
        asked.set("folder", &format!("user.m{index:02}"), &[b'y'; 100], ANY);
    }
    for room in [2000, 10, 0] {
        asked.list("folder", room);
        asked.get("folder", "user.m04", room.min(50));
    }
    for index in 0..80 {
        asked.set("file", &format!("user.fill{index:03}"), &[b'z'; 50], ANY);
    }
    for len in [0, 1, 50, 70, 5000] {
        asked.set("file", "user.fill003", &vec![b'r'; len], XattrFlags::REPLACE);
        asked.set("file", "user.new", &vec![b'n'; len], ANY);
    }
    asked.list("file", 4000);
    asked.space("file");
    for index in 0..5 {
        let file = format!("shares{index}");
        let _ = File::create(asked.root.join(&file));
        asked.set(&file, "user.shared", &[b'B'; 600], ANY);
        asked.space(&file);
    }
    asked.set("shares0", "user.shared", &[b'C'; 600], ANY);
}

/// A list in the form of the system call: version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()));
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn lists(asked: &mut Asked<'_>) {
    const NOBODY: u32 = u32::MAX;
    let (owner, group, mask, other) = ((1, 6, NOBODY), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY));
    let user = |id| (2, 4, id);
    let many = |count: u32| {
        acl(&[vec![owner], (0..count).map(|id| user(2000 + id)).collect(), vec![group, mask, other]].concat())
    };
    let cases = [
        acl(&[owner, user(1000), group, mask, other]),
        acl(&[owner, group, other]),
        acl(&[owner, group, mask, other]),
        acl(&[owner, user(1000), group, other]),
        acl(&[owner, user(1000), user(1000), group, mask, other]),
        acl(&[owner, user(1001), user(1000), group, mask, other]),
        acl(&[group, owner, other]),
        acl(&[group, other]),
        acl(&[(1, 9, NOBODY), group, other]),
        acl(&[owner, (3, 4, 1), group, mask, other]),
        acl(&[]),
        vec![],
        vec![2, 0, 0],
        vec![1, 0, 0, 0],
        many(100),
        many(500),
    ];
    for (index, list) in cases.iter().enumerate() {
        for file in ["file", "folder"] {
            for name in ["system.posix_acl_access", "system.posix_acl_default"] {
                let _ = writeln!(asked.said, "case {index}");
                asked.set(file, name, list, ANY);
                asked.space(file);
                asked.get(file, name, 1000);
                asked.remove(file, name);
                asked.remove(file, name);
            }
        }
    }
}

/// A folder's inherited lists, of which one fits into its inode: which, decides what fits beside the other.
fn inherited(asked: &mut Asked<'_>) {
    const NOBODY: u32 = u32::MAX;
    let users = (0..3).map(|id| (2, 4, 1000 + id));
    let list: Vec<_> = [(1, 7, NOBODY)].into_iter().chain(users).collect();
    let list = acl(&[list, vec![(4, 4, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]].concat());
    asked.set("folder", "system.posix_acl_default", &list, ANY);
    for size in [3, 40, 500, 2000, 3800] {
        let child = format!("folder/of-{size}");
        let _ = fs::create_dir(asked.root.join(&child));
        let short = acl(&[(1, 7, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)]);
        asked.set(&child, "system.posix_acl_access", &short, ANY);
        asked.set(&child, "user.filler", &vec![b'f'; size], ANY);
        for length in (0..200_u8).step_by(4) {
            asked.set(&child, "user.long-name-of-an-attribute", &(0..length).collect::<Vec<u8>>(), ANY);
        }
        asked.list(&child, 200);
        asked.space(&child);
    }
}

#[test]
fn attributes_have_the_edges_of_the_kernel() -> Result<()> {
    if !can_run("attributes_have_the_edges_of_the_kernel", &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    for mke2fs in [
        "-t ext4 -b 4096",
        "-t ext4 -b 1024",
        "-t ext4 -b 4096 -I 128",
        "-t ext4 -b 4096 -I 1024",
        "-t ext4 -b 4096 -O ea_inode",
        "-t ext4 -b 1024 -O ea_inode",
    ] {
        for part in [sizes, names_and_flags, order_and_room, lists, inherited] {
            let pair = Pair::new(64 << 20, mke2fs, &[])?;
            let said = pair.ask(mke2fs, |root| {
                File::create(root.join("file"))?;
                fs::create_dir(root.join("folder"))?;
                symlink("nowhere", root.join("link"))?;
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    root.join("pipe"),
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::RUSR,
                    0,
                )?;
                let mut asked = Asked { root, said: String::new() };
                part(&mut asked);
                Ok(asked.said)
            })?;
            ensure!(said.lines().count() > 20, "{said}");
            // Shared blocks and shared inodes of values count once.
            pair.ask(mke2fs, |root| {
                File::open(root)?.sync_all()?;
                let free = rustix::fs::statvfs(root)?;
                Ok(format!("{} free blocks, {} free inodes", free.f_bfree, free.f_ffree))
            })?;
            pair.finish()?;
        }
    }
    Ok(())
}
