//! Trees, images and judges.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::SeekFrom;

/// A program that must be there.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command
}

/// Runs a program that must succeed; what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// mkfs.rext4 with arguments and a standard input: whether it succeeded, and what it said.
pub fn mkfs_fed(args: &[&OsStr], input: &[u8]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mkfs-rext4"));
    command.args(args).env_remove("SOURCE_DATE_EPOCH");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The program may stop reading.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// mkfs.rext4 with arguments.
pub fn mkfs<S: AsRef<OsStr>>(args: &[S]) -> (bool, String) {
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    mkfs_fed(&args, b"")
}

/// Builds an image that must be clean; returns what was said.
pub fn build<S: AsRef<OsStr>>(args: &[S]) -> String {
    let (done, said) = mkfs(args);
    assert!(done, "{:?}: {said}", args.iter().map(|arg| arg.as_ref().to_owned()).collect::<Vec<_>>());
    let image = args.iter().map(AsRef::as_ref).rfind(|arg| Path::new(arg).is_file()).unwrap();
    clean(Path::new(image));
    said
}

/// The image of sources, built into `folder`, judged and read.
pub fn image_of<S: AsRef<OsStr>>(folder: &Path, sources: &[S]) -> Vec<u8> {
    let image = folder.join("image");
    let mut args: Vec<&OsStr> = vec![OsStr::new("-q"), OsStr::new("-F")];
    for source in sources {
        args.push(OsStr::new("-d"));
        args.push(source.as_ref());
    }
    args.push(image.as_os_str());
    build(&args);
    let bytes = fs::read(&image).unwrap();
    fs::remove_file(image).unwrap();
    bytes
}

/// Both checkers must find an image clean.
pub fn clean(image: &Path) {
    let run_clean = |command: &mut Command| {
        let output = command.arg("-fn").arg(image).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command:?}: {text}");
    };
    run_clean(&mut tool("e2fsck"));
    let ours = Path::new(env!("CARGO_BIN_EXE_mkfs-rext4")).with_file_name("fsck-rext4");
    assert!(ours.exists(), "fsck-rext4 is not built; cargo build -p fsck --bins");
    run_clean(&mut Command::new(ours));
}

/// Whether the kernel can be asked here. Where not, that is said, and a failure under CI.
pub fn kernel_judges() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !can {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "mounts need root and loop devices");
        eprintln!("SKIPPED: mounts need root and loop devices");
    }
    can
}

/// Shows what the kernel sees in an image.
pub fn with_mounted<T>(image: &Path, look: impl FnOnce(&Path) -> T) -> T {
    let point = tempfile::tempdir().unwrap();
    run(tool("mount").args(["-t", "ext4", "-o", "loop,ro"]).arg(image).arg(point.path()));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(point.path())));
    unmount(point.path());
    match result {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Unmounts. A program that another test starts has our files open until it runs.
pub fn unmount(point: &Path) {
    for _ in 0..100 {
        if tool("umount").arg(point).output().unwrap().status.success() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    run(tool("umount").arg(point));
}

/// What is known of one file, in words.
pub type Facts = BTreeMap<String, String>;
/// A tree as read: path and facts.
pub type Snapshot = BTreeMap<Vec<u8>, Facts>;

/// Reads a tree. lost+found, and what a tree and its image differ in (inode numbers, sizes of directories),
/// is left out.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut links: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut waiting = vec![(root.to_owned(), Vec::new())];
    while let Some((path, name)) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap();
                let inner = entry.file_name().as_bytes().to_vec();
                if name.is_empty() && inner == b"lost+found" {
                    continue;
                }
                let inner = if name.is_empty() { inner } else { [&name[..], b"/", &inner].concat() };
                waiting.push((entry.path(), inner));
            }
        }
        found.insert(name, facts(&path, &meta));
    }
    // The first name of a file, in order, stands for it.
    for (name, facts) in &mut found {
        let path = root.join(OsStr::from_bytes(name));
        let meta = fs::symlink_metadata(path).unwrap();
        if !meta.is_dir() {
            let first = links.entry(meta.ino()).or_insert_with(|| name.clone());
            facts.insert("same file as".into(), first.escape_ascii().to_string());
        }
    }
    found
}

fn facts(path: &Path, meta: &fs::Metadata) -> Facts {
    let mut facts = Facts::new();
    let mut note = |key: &str, value: String| {
        facts.insert(key.to_owned(), value);
    };
    note("mode", format!("{:o}", meta.mode()));
    note("owner", format!("{}:{}", meta.uid(), meta.gid()));
    note("time", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()));
    if !meta.is_dir() {
        note("links", meta.nlink().to_string());
    }
    if meta.file_type().is_symlink() {
        note("target", fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii().to_string());
    }
    if meta.rdev() != 0 {
        note("device", format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
    }
    if meta.is_file() {
        note("size", meta.size().to_string());
        let (data, hash) = data(path, meta.size());
        note("data", format!("{data:?}"));
        note("hash", hash);
    }
    for (name, value) in attributes(path) {
        note(&format!("xattr {}", name.escape_ascii()), value.escape_ascii().to_string());
    }
    facts
}

/// Runs of data, and a hash of what they hold.
fn data(path: &Path, size: u64) -> (Vec<(u64, u64)>, String) {
    let file = File::open(path).unwrap();
    let (mut runs, mut at, mut hash) = (Vec::new(), 0, xxhash_rust::xxh3::Xxh3::new());
    while at < size {
        let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) else { break };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap().min(size);
        let mut bytes = vec![0; (end - start) as usize];
        file.read_exact_at(&mut bytes, start).unwrap();
        hash.update(&bytes);
        runs.push((start, end));
        at = end;
    }
    (runs, format!("{:032x}", hash.digest128()))
}

fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0_u8; 65536];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = names
        .map(|name| {
            let mut value = vec![0_u8; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect();
    all.sort();
    all
}

/// Fails with the first differences of two trees.
pub fn same(left: &Snapshot, right: &Snapshot) {
    let mut lines = Vec::new();
    for (name, facts) in left {
        match right.get(name) {
            None => lines.push(format!("{}: only left", name.escape_ascii())),
            Some(other) if other != facts => {
                let keys = facts.keys().chain(other.keys()).collect::<std::collections::BTreeSet<_>>();
                for key in keys.into_iter().filter(|key| facts.get(*key) != other.get(*key)) {
                    let (a, b) = (facts.get(key), other.get(key));
                    lines.push(format!("{}: {key}: {a:?} / {b:?}", name.escape_ascii()));
                }
            }
            Some(_) => {}
        }
    }
    lines.extend(
        right
            .keys()
            .filter(|name| !left.contains_key(*name))
            .map(|name| format!("{}: only right", name.escape_ascii())),
    );
    lines.truncate(20);
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

/// The kernel must show an image's tree as that of a folder.
pub fn shows_the_tree(image: &Path, folder: &Path) {
    if kernel_judges() {
        let expected = snapshot(folder);
        let found = with_mounted(image, snapshot);
        same(&expected, &found);
    }
}

/// A tree with one of everything. What needs root is there when root makes it.
pub fn one_of_everything(root: &Path) {
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("usr/share/doc")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("usr/hello"), b"hello\n").unwrap();
    fs::hard_link(path("usr/hello"), path("usr/share/again")).unwrap();
    fs::write(path("usr/share/nothing"), b"").unwrap();
    fs::write(path("usr/share/large"), pattern(3_000_000)).unwrap();
    std::os::unix::fs::symlink("../hello", path("usr/share/short")).unwrap();
    std::os::unix::fs::symlink("x".repeat(59), path("usr/share/just")).unwrap();
    std::os::unix::fs::symlink("y".repeat(60), path("usr/share/over")).unwrap();
    std::os::unix::fs::symlink("/z".repeat(450), path("usr/share/long")).unwrap();
    fs::write(path(&"n".repeat(255)), b"a long name").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"bytes\xff\xfe\n")), b"").unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(&pattern(10_000), 5 << 20).unwrap();
    sparse.write_all_at(b"end", 7 << 30).unwrap();
    for hole in 0..12 {
        sparse.write_all_at(&pattern(4096), (100 + 3 * hole) << 20).unwrap();
    }
    File::create(path("all hole")).unwrap().set_len(1 << 20).unwrap();
    let set = |name: &str, attribute: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(path(name), attribute, value, flags).unwrap();
    };
    set("usr/hello", "user.small", b"v");
    set("usr", "user.binary", b"\0\n=\xff");
    set("usr/share/large", "user.big", &pattern(2500));
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\
        \x10\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
    set("empty", "system.posix_acl_access", acl);
    set("empty", "system.posix_acl_default", acl);
    if rustix::process::geteuid().is_root() {
        for (name, kind, device) in [
            ("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            ("disk", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
            ("pipe", rustix::fs::FileType::Fifo, 0),
            ("socket", rustix::fs::FileType::Socket, 0),
        ] {
            let name = CString::new(path(name).as_os_str().as_bytes()).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, name, kind, 0o644.into(), device).unwrap();
        }
        std::os::unix::fs::lchown(path("usr/share/large"), Some(70_000), Some(1 << 20)).unwrap();
        std::os::unix::fs::lchown(path("usr/share/short"), Some(5), Some(6)).unwrap();
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set("usr/hello", "security.capability", &capability);
        set("pipe", "trusted.t", b"1");
    }
    fs::set_permissions(path("usr/share/nothing"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(path("usr/share"), fs::Permissions::from_mode(0o3775)).unwrap();
    set_time(&path("usr/hello"), 1_000_000_000, 123_456_789);
    set_time(&path("usr/share/short"), 5_000_000_000, 1);
    set_time(&path("usr/share/nothing"), -1_000_000, 999_999_999);
    set_time(&path("usr"), 1_234_567_890, 5);
    set_time(root, 1_111_111_111, 0);
}

/// Sets a file's modification time.
pub fn set_time(path: &Path, sec: i64, nsec: i64) {
    let time = rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

/// Bytes without a pattern that a filesystem could guess, none of them 0.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = len as u64 | 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8 | 1
    })
    .take(len)
    .collect()
}

/// A tar archive of a folder, as GNU tar writes it.
pub fn tar(folder: &Path, archive: &Path, args: &[&str]) {
    run(tool("tar").args(args).arg("-C").arg(folder).arg("-cf").arg(archive).arg("."));
}

/// How GNU tar keeps everything.
pub const KEEP_ALL: &[&str] =
    &["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse"];

/// One member of an archive made by hand.
pub struct Member {
    header: tar::Header,
    records: Vec<(String, Vec<u8>)>,
    data: Vec<u8>,
}

impl Member {
    /// A member of a type with a path.
    pub fn new(kind: u8, path: &str, data: &[u8]) -> Member {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        let mut member = Member { header, records: Vec::new(), data: data.to_vec() };
        if path.len() <= 100 {
            member.header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        } else {
            member.records.push(("path".into(), path.as_bytes().to_vec()));
        }
        member
    }

    /// A file.
    pub fn file(path: &str, data: &[u8]) -> Member {
        Member::new(b'0', path, data)
    }

    /// A directory.
    pub fn dir(path: &str) -> Member {
        Member::new(b'5', path, b"")
    }

    /// A symbolic (`2`) or hard (`1`) link.
    pub fn link(kind: u8, path: &str, target: &str) -> Member {
        let mut member = Member::new(kind, path, b"");
        if target.len() <= 100 {
            member.header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            member
        } else {
            member.record("linkpath", target.as_bytes())
        }
    }

    /// Adds a PAX record.
    pub fn record(mut self, key: &str, value: &[u8]) -> Member {
        self.records.push((key.to_owned(), value.to_vec()));
        self
    }

    /// Changes the header.
    pub fn with(mut self, change: impl FnOnce(&mut tar::Header)) -> Member {
        change(&mut self.header);
        self
    }

    /// Its bytes in an archive.
    pub fn bytes(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.records.is_empty() {
            let mut body = Vec::new();
            for (key, value) in &self.records {
                body.extend(record(key, value));
            }
            out.extend(Member::new(b'x', "pax", &body).bytes());
        }
        self.header.set_cksum();
        out.extend_from_slice(self.header.as_bytes());
        out.extend_from_slice(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// One PAX record.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    let mut bytes = format!("{len} {key}=").into_bytes();
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
    bytes
}

/// A complete archive.
pub fn archive(members: Vec<Member>) -> Vec<u8> {
    let mut bytes: Vec<u8> = members.into_iter().flat_map(Member::bytes).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Reads a file out of an image with debugfs, which needs no mount.
pub fn read_from(image: &Path, path: &str) -> Vec<u8> {
    let output = tool("debugfs").arg("-R").arg(format!("cat {path}")).arg(image).output().unwrap();
    output.stdout
}

/// What debugfs says of a path; `None` when it is not there.
pub fn stat_of(image: &Path, path: &str) -> Option<String> {
    let output = tool("debugfs").arg("-R").arg(format!("stat {path}")).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.contains("Inode:").then_some(text)
}

/// A temporary folder.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A path in a folder, written.
pub fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Everything that a stream holds.
pub fn all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}
