//! One operation of the fuzzer: drawn from chance, done on one side, and answered in words that two sides
//! must share.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use fastrand::Rng;
use rustix::fs::{
    self as fs, AtFlags, CWD, FallocateFlags, FileType, IFlags, Mode, OFlags, RenameFlags, XattrFlags,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use crate::tree::fill;

/// Open files that outlive the operation that opened them.
const HANDLES: usize = 6;
const LONGEST_FILE: u64 = 3 << 20;

/// What came of an operation.
pub type Answer = Result<String, Errno>;

/// A name below the root of either side.
type Name = String;

/// One system's tree and its open files.
#[derive(Debug)]
pub struct Side {
    root: PathBuf,
    handles: [Option<OwnedFd>; HANDLES],
}

impl Side {
    /// With no file open.
    pub fn new(root: &Path) -> Side {
        Side { root: root.to_owned(), handles: Default::default() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Whether what `name` names, through a symbolic link too, or the folder that holds it, is immutable or
    /// append-only.
    fn is_guarded(&self, name: &str) -> bool {
        let path = self.at(name);
        let folder = path.parent().expect("names are below the root");
        let target = path.read_link().map(|target| folder.join(target)).unwrap_or_default();
        [&path, folder, target.parent().unwrap_or(folder)].iter().any(|path: &&Path| {
            let is_plain = path.metadata().is_ok_and(|about| about.is_file() || about.is_dir());
            is_plain && File::open(path).is_ok_and(is_guarded)
        })
    }

    fn handle(&self, slot: usize) -> Result<&OwnedFd, Errno> {
        self.handles[slot].as_ref().ok_or(Errno::BADF)
    }
}

/// What is done, and as whom.
#[derive(Clone, Debug)]
pub struct Operation {
    user: u32,
    verb: Verb,
}

/// Offsets and lengths are in bytes; `slot` is an open file's place.
#[derive(Clone, Debug)]
enum Verb {
    Open {
        name: Name,
        slot: usize,
        flags: OFlags,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    Write {
        slot: usize,
        seed: u64,
        offset: u64,
        length: usize,
    },
    Read {
        slot: usize,
        offset: u64,
        length: usize,
    },
    Truncate {
        slot: usize,
        length: u64,
    },
    Allocate {
        slot: usize,
        flags: FallocateFlags,
        offset: u64,
        length: u64,
    },
    CopyRange {
        from: usize,
        to: usize,
        offset_in: u64,
        offset_out: u64,
        length: usize,
    },
    Sync {
        slot: usize,
        data_only: bool,
    },
    Stat {
        name: Name,
    },
    List {
        name: Name,
    },
    MakeDir {
        name: Name,
        mode: u32,
    },
    RemoveDir {
        name: Name,
    },
    Unlink {
        name: Name,
    },
    Rename {
        from: Name,
        to: Name,
        flags: RenameFlags,
    },
    Link {
        from: Name,
        to: Name,
    },
    Symlink {
        target: String,
        name: Name,
    },
    ReadLink {
        name: Name,
    },
    MakeNode {
        name: Name,
        kind: FileType,
        mode: u32,
        device: u64,
    },
    ChangeMode {
        name: Name,
        mode: u32,
    },
    ChangeOwner {
        name: Name,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    SetTimes {
        name: Name,
        seconds: i64,
        nanoseconds: i64,
    },
    /// Both to now, or one, or none.
    Touch {
        name: Name,
        access: bool,
        modification: bool,
    },
    SetXattr {
        name: Name,
        key: String,
        value: Vec<u8>,
        flags: XattrFlags,
    },
    GetXattr {
        name: Name,
        key: String,
        size: usize,
    },
    ListXattr {
        name: Name,
    },
    RemoveXattr {
        name: Name,
        key: String,
    },
    SetFlags {
        name: Name,
        flags: IFlags,
    },
    GetFlags {
        name: Name,
    },
}

/// A path whose last part is mostly one of `usual`.
fn path(rng: &mut Rng, usual: &[&str]) -> Name {
    let mut parts: Vec<String> = Vec::new();
    for _ in 0..rng.usize(0..3) {
        parts.push(rng.choice(["a", "b", "c"]).expect("not empty").to_owned());
    }
    parts.push(match rng.u8(0..80) {
        0 => "n".repeat(255),
        1 => "n".repeat(256),
        2 => ".".to_owned(),
        3 => rng.choice(["a", "b", "c", "f", "g"]).expect("not empty").to_owned(),
        _ => rng.choice(usual).expect("not empty").to_string(),
    });
    parts.join("/")
}

/// Mostly a file's.
fn name(rng: &mut Rng) -> Name {
    path(rng, &["f", "g", "h", "i", "j"])
}

/// Mostly a folder's.
fn dir_name(rng: &mut Rng) -> Name {
    path(rng, &["a", "b", "c"])
}

/// A file's or a folder's.
fn any_name(rng: &mut Rng) -> Name {
    if rng.bool() { name(rng) } else { dir_name(rng) }
}

/// Anything, with a liking for the edges of blocks and for places that others use.
fn offset(rng: &mut Rng) -> u64 {
    let near = rng.u64(0..LONGEST_FILE / 4096) * 4096;
    match rng.u8(0..6) {
        0..=2 => rng.u64(0..100_000),
        3 => near,
        4 => (near + rng.u64(0..3)).saturating_sub(1),
        _ => rng.u64(0..LONGEST_FILE),
    }
}

fn key(rng: &mut Rng) -> String {
    let space = rng
        .choice(["user.", "user.", "user.", "trusted.", "security.", "system.", "none."])
        .expect("not empty");
    format!("{space}{}", rng.choice(["a", "b", "long-name-of-an-attribute", ""]).expect("not empty"))
}

/// An access control list in the kernel's form, mostly a valid one.
fn acl(rng: &mut Rng) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let entries = [(1, NOBODY), (2, 1000), (2, 1001), (4, NOBODY), (8, 1000), (0x10, NOBODY), (0x20, NOBODY)];
    for (tag, id) in entries {
        let is_optional = matches!(tag, 2 | 8);
        if rng.u8(0..20) != 0 && (!is_optional || rng.bool()) {
            bytes.extend(u16::to_le_bytes(tag));
            bytes.extend(rng.u16(0..8).to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
    }
    bytes
}

fn xattr(rng: &mut Rng) -> Verb {
    let name = any_name(rng);
    if rng.u8(0..4) == 0 {
        let key = rng
            .choice(["system.posix_acl_access", "system.posix_acl_default"])
            .expect("not empty")
            .to_owned();
        return Verb::SetXattr { name, key, value: acl(rng), flags: XattrFlags::empty() };
    }
    let length = match rng.u8(0..10) {
        0 => 0,
        1..=6 => rng.usize(1..100),
        7 | 8 => rng.usize(100..4000),
        _ => rng.usize(4000..70_000),
    };
    let mut value = vec![0; length];
    fill(rng.u64(..), 0, &mut value);
    let flags = [XattrFlags::empty(), XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE];
    Verb::SetXattr { name, key: key(rng), value, flags: rng.choice(flags).expect("not empty") }
}

fn allocate(rng: &mut Rng) -> Verb {
    let (keep, punch, zero) =
        (FallocateFlags::KEEP_SIZE, FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE);
    let flags = [FallocateFlags::empty(), keep, punch | keep, punch | keep, punch, zero, zero | keep];
    let length = if rng.u8(0..30) == 0 { 0 } else { rng.u64(1..300_000) };
    Verb::Allocate {
        slot: rng.usize(0..HANDLES),
        flags: rng.choice(flags).expect("not empty"),
        offset: offset(rng),
        length,
    }
}

fn open(rng: &mut Rng) -> Verb {
    let mut flags =
        rng.choice([OFlags::RDWR, OFlags::RDWR, OFlags::WRONLY, OFlags::RDONLY]).expect("not empty");
    for (flag, percent) in [
        (OFlags::CREATE, 75),
        (OFlags::EXCL, 10),
        (OFlags::TRUNC, 10),
        (OFlags::APPEND, 10),
        (OFlags::NOFOLLOW, 20),
        (OFlags::DIRECTORY, 3),
    ] {
        if rng.u8(0..100) < percent {
            flags |= flag;
        }
    }
    // Opening a pipe would wait for its other end.
    flags |= OFlags::NONBLOCK;
    Verb::Open { name: name(rng), slot: rng.usize(0..HANDLES), flags, mode: mode(rng) }
}

fn mode(rng: &mut Rng) -> u32 {
    rng.choice([0o644, 0o755, 0o777, 0o600, 0o4755, 0o2755, 0o1777, rng.clone().u32(0..0o10000)])
        .expect("not empty")
}

fn flags(rng: &mut Rng) -> Verb {
    // Few may bind anybody's hands, or soon nothing can be done at all.
    let flags = match rng.u8(0..12) {
        0 => IFlags::IMMUTABLE,
        1 => IFlags::APPEND,
        2 => IFlags::NODUMP | IFlags::NOATIME,
        3 => IFlags::SYNC,
        _ => IFlags::empty(),
    };
    // Replaces the changeable flags and keeps those that tell how the file is stored.
    Verb::SetFlags { name: any_name(rng), flags }
}

impl Operation {
    /// The next one.
    pub fn random(rng: &mut Rng) -> Operation {
        let user = if rng.u8(0..6) == 0 { 1000 + rng.u32(0..2) } else { 0 };
        Operation { user, verb: Operation::verb(rng) }
    }

    fn verb(rng: &mut Rng) -> Verb {
        let slot = rng.usize(0..HANDLES);
        match rng.u8(0..110) {
            0..=17 => open(rng),
            18 => Verb::Close { slot },
            19..=30 => {
                Verb::Write { slot, seed: rng.u64(..), offset: offset(rng), length: rng.usize(0..100_000) }
            }
            31..=35 => Verb::Read { slot, offset: offset(rng), length: rng.usize(0..100_000) },
            36..=39 => Verb::Truncate { slot, length: offset(rng) },
            40..=45 => allocate(rng),
            46..=48 => Verb::CopyRange {
                from: slot,
                to: rng.usize(0..HANDLES),
                offset_in: offset(rng),
                offset_out: offset(rng),
                length: rng.usize(0..200_000),
            },
            49 => Verb::Sync { slot, data_only: rng.bool() },
            50..=52 => Verb::Stat { name: any_name(rng) },
            53 => Verb::List { name: dir_name(rng) },
            54..=57 => Verb::MakeDir { name: dir_name(rng), mode: mode(rng) },
            58..=61 => Verb::RemoveDir { name: dir_name(rng) },
            62..=69 => Verb::Unlink { name: name(rng) },
            70..=79 => {
                let every = [
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::NOREPLACE,
                    RenameFlags::EXCHANGE,
                    RenameFlags::WHITEOUT,
                    RenameFlags::EXCHANGE | RenameFlags::NOREPLACE,
                ];
                Verb::Rename {
                    from: any_name(rng),
                    to: any_name(rng),
                    flags: rng.choice(every).expect("not empty"),
                }
            }
            80..=83 => Verb::Link { from: name(rng), to: name(rng) },
            84..=85 => {
                let length = rng.choice([1, 10, 59, 60, 61, 1000, 4095, 4096]).expect("not empty");
                let target = if rng.bool() { name(rng) } else { "t".repeat(length) };
                Verb::Symlink { target, name: name(rng) }
            }
            86 => Verb::ReadLink { name: any_name(rng) },
            87 => {
                let kinds =
                    [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice];
                let kind = rng.choice(kinds).expect("not empty");
                Verb::MakeNode {
                    name: name(rng),
                    kind,
                    mode: mode(rng),
                    device: fs::makedev(rng.u32(0..300), rng.u32(0..300)),
                }
            }
            88..=90 => Verb::ChangeMode { name: any_name(rng), mode: mode(rng) },
            91..=93 => {
                let mut id = || (rng.u8(0..3) > 0).then(|| 999 + rng.u32(0..4));
                // Neither would be a question to the VFS alone, whose answer depends on who handles setuid
                // bits.
                let (uid, gid) = (id(), id());
                let gid = if uid.is_none() { gid.or(Some(1000)) } else { gid };
                Verb::ChangeOwner { name: any_name(rng), uid, gid }
            }
            94 if rng.bool() => {
                Verb::Touch { name: any_name(rng), access: rng.u8(0..4) > 0, modification: rng.u8(0..4) > 0 }
            }
            94 => Verb::SetTimes {
                name: name(rng),
                seconds: rng.i64(-(1 << 31)..15_032_385_535),
                nanoseconds: rng.i64(0..1_000_000_000),
            },
            95..=99 => xattr(rng),
            100..=102 => Verb::GetXattr {
                name: name(rng),
                key: key(rng),
                size: rng.choice([0, 10, 100, 70_000]).expect("not empty"),
            },
            103 => Verb::ListXattr { name: any_name(rng) },
            104..=105 => Verb::RemoveXattr { name: any_name(rng), key: key(rng) },
            106..=107 => flags(rng),
            _ => Verb::GetFlags { name: any_name(rng) },
        }
    }

    /// Does it and says what came of it.
    pub fn run(&self, side: &mut Side) -> Answer {
        become_user(self.user).expect("root may become anybody");
        let answer = self.verb.run(side);
        become_user(0).expect("root comes back");
        answer
    }

    /// Whether the kernel's ext4 may say EPERM and a FUSE mount `answer` (docs/COMPATIBILITY.md): the VFS
    /// knows the immutable and append-only flags of its own filesystems and looks at them before anything
    /// else, of a FUSE filesystem it finds another reason to refuse and asks no server. It takes such a flag
    /// on `side`, ext4's.
    pub fn may_find_another_reason(&self, side: &Side, answer: &Answer) -> bool {
        use Verb::{CopyRange, RemoveDir, RemoveXattr, Rename, SetXattr, Unlink};
        let verb = &self.verb;
        let is_acl = matches!(verb, SetXattr { key, .. } if key.starts_with("system.posix_acl_"));
        let is_possible = match answer {
            Err(Errno::ACCESS) => self.user != 0 || is_acl,
            // A copy onto itself.
            Err(Errno::INVAL) => is_acl || matches!(verb, CopyRange { .. }),
            Err(Errno::NOTDIR) => matches!(verb, RemoveDir { .. } | Rename { .. }),
            Err(Errno::ISDIR) => matches!(verb, Unlink { .. } | Rename { .. }),
            // Behind the source's end there is nothing to copy.
            Ok(said) => matches!(verb, CopyRange { .. }) && said == "0",
            Err(_) => false,
        };
        is_possible
            && match verb {
                Verb::Open { name, .. }
                | Verb::MakeDir { name, .. }
                | Verb::MakeNode { name, .. }
                | Verb::Symlink { name, .. }
                | RemoveDir { name }
                | Unlink { name }
                | SetXattr { name, .. }
                | RemoveXattr { name, .. }
                | Verb::Touch { name, .. } => side.is_guarded(name),
                Rename { from, to, .. } | Verb::Link { from, to } => {
                    side.is_guarded(from) || side.is_guarded(to)
                }
                CopyRange { to, .. } => side.handle(*to).is_ok_and(is_guarded),
                _ => false,
            }
    }
}

/// This thread's effective user and group; the saved ones stay root's.
fn become_user(id: u32) -> rustix::io::Result<()> {
    if id == 0 {
        set_thread_res_uid(None, Uid::ROOT, None)?;
        return set_thread_res_gid(None, Gid::ROOT, None);
    }
    set_thread_res_gid(None, Gid::from_raw(id), None)?;
    set_thread_res_uid(None, Uid::from_raw(id), None)
}

fn opened(side: &Side, name: &str) -> Result<OwnedFd, Errno> {
    fs::openat(CWD, side.at(name), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW, Mode::empty())
}

impl Verb {
    fn run(&self, side: &mut Side) -> Result<String, Errno> {
        let done = |()| "done".to_owned();
        match self {
            Verb::Open { name, slot, flags, mode } => {
                let file = fs::openat(CWD, side.at(name), *flags, Mode::from_raw_mode(*mode))?;
                // A device node of chance could be any device of the machine: it is opened and not used.
                let kind = FileType::from_raw_mode(fs::fstat(&file)?.st_mode);
                if matches!(kind, FileType::RegularFile | FileType::Directory) {
                    side.handles[*slot] = Some(file);
                }
                Ok("opened".to_owned())
            }
            Verb::Close { slot } => {
                side.handles[*slot].take().map(|_| "closed".to_owned()).ok_or(Errno::BADF)
            }
            Verb::Write { slot, seed, offset, length } => {
                let mut bytes = vec![0; *length];
                fill(*seed, *offset, &mut bytes);
                rustix::io::pwrite(side.handle(*slot)?, &bytes, *offset).map(|length| length.to_string())
            }
            Verb::Read { slot, offset, length } => {
                let mut bytes = vec![0; *length];
                let length = rustix::io::pread(side.handle(*slot)?, &mut bytes, *offset)?;
                Ok(format!("{length} bytes, {:x}", xxhash_rust::xxh3::xxh3_64(&bytes[..length])))
            }
            Verb::Truncate { slot, length } => fs::ftruncate(side.handle(*slot)?, *length).map(done),
            Verb::Allocate { slot, flags, offset, length } => {
                fs::fallocate(side.handle(*slot)?, *flags, *offset, *length).map(done)
            }
            Verb::CopyRange { from, to, offset_in, offset_out, length } => {
                let (mut read, mut write) = (*offset_in, *offset_out);
                let (from, to) = (side.handle(*from)?, side.handle(*to)?);
                fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), *length)
                    .map(|copied| copied.to_string())
            }
            Verb::Sync { slot, data_only: true } => fs::fdatasync(side.handle(*slot)?).map(done),
            Verb::Sync { slot, data_only: false } => fs::fsync(side.handle(*slot)?).map(done),
            Verb::SetXattr { .. }
            | Verb::GetXattr { .. }
            | Verb::ListXattr { .. }
            | Verb::RemoveXattr { .. } => self.run_on_xattrs(side),
            _ => self.run_on_names(side),
        }
    }

    fn run_on_xattrs(&self, side: &Side) -> Result<String, Errno> {
        let done = |()| "done".to_owned();
        match self {
            Verb::SetXattr { name, key, value, flags } => {
                fs::lsetxattr(side.at(name), key.as_str(), value, *flags).map(done)
            }
            Verb::GetXattr { name, key, size } => {
                let mut value = vec![0; *size];
                let length = fs::lgetxattr(side.at(name), key.as_str(), &mut value[..])?;
                Ok(format!("{length}: {}", value[..length.min(*size)].escape_ascii()))
            }
            Verb::ListXattr { name } => {
                let mut names = vec![0; 65536];
                let length = fs::llistxattr(side.at(name), &mut names[..])?;
                let mut names: Vec<String> = names[..length]
                    .split(|byte| *byte == 0)
                    .map(|name| name.escape_ascii().to_string())
                    .collect();
                names.sort();
                Ok(names.join(" "))
            }
            Verb::RemoveXattr { name, key } => fs::lremovexattr(side.at(name), key.as_str()).map(done),
            _ => unreachable!("the other verbs are run elsewhere"),
        }
    }

    fn run_on_names(&self, side: &Side) -> Result<String, Errno> {
        let done = |()| "done".to_owned();
        match self {
            Verb::Stat { name } => fs::statat(CWD, side.at(name), AtFlags::SYMLINK_NOFOLLOW).map(|stat| {
                let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let size = if is_dir { 0 } else { stat.st_size };
                format!(
                    "{:o} {}:{} x{} {size} {:x}",
                    stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink, stat.st_rdev
                )
            }),
            Verb::List { name } => {
                let dir = fs::Dir::new(opened(side, name)?)?;
                let mut names = Vec::new();
                for entry in dir {
                    let entry = entry?;
                    names.push(format!("{}:{:?}", entry.file_name().to_string_lossy(), entry.file_type()));
                }
                names.retain(|name| !name.starts_with("lost+found"));
                names.sort();
                Ok(names.join(" "))
            }
            Verb::MakeDir { name, mode } => {
                fs::mkdirat(CWD, side.at(name), Mode::from_raw_mode(*mode)).map(done)
            }
            Verb::RemoveDir { name } => fs::unlinkat(CWD, side.at(name), AtFlags::REMOVEDIR).map(done),
            Verb::Unlink { name } => fs::unlinkat(CWD, side.at(name), AtFlags::empty()).map(done),
            Verb::Rename { from, to, flags } => {
                fs::renameat_with(CWD, side.at(from), CWD, side.at(to), *flags).map(done)
            }
            Verb::Link { from, to } => {
                // link(2) goes by the set-id bits that the kernel knows, which a write may have made old
                // (docs/COMPATIBILITY.md); a look makes them new.
                let _ = fs::statat(CWD, side.at(from), AtFlags::SYMLINK_NOFOLLOW);
                fs::linkat(CWD, side.at(from), CWD, side.at(to), AtFlags::empty()).map(done)
            }
            Verb::Symlink { target, name } => fs::symlinkat(target.as_str(), CWD, side.at(name)).map(done),
            Verb::ReadLink { name } => fs::readlinkat(CWD, side.at(name), Vec::new())
                .map(|target| target.to_string_lossy().into_owned()),
            Verb::MakeNode { name, kind, mode, device } => {
                fs::mknodat(CWD, side.at(name), *kind, Mode::from_raw_mode(*mode), *device).map(done)
            }
            Verb::ChangeMode { name, mode } => {
                fs::chmodat(CWD, side.at(name), Mode::from_raw_mode(*mode), AtFlags::empty()).map(done)
            }
            Verb::ChangeOwner { name, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                fs::chownat(CWD, side.at(name), uid, gid, AtFlags::SYMLINK_NOFOLLOW).map(done)
            }
            Verb::SetTimes { name, seconds, nanoseconds } => {
                let time = fs::Timespec { tv_sec: *seconds, tv_nsec: *nanoseconds };
                let times = fs::Timestamps { last_access: time, last_modification: time };
                fs::utimensat(CWD, side.at(name), &times, AtFlags::SYMLINK_NOFOLLOW)?;
                let stat = fs::statat(CWD, side.at(name), AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(format!(
                    "{}.{} {}.{}",
                    stat.st_mtime, stat.st_mtime_nsec, stat.st_atime, stat.st_atime_nsec
                ))
            }
            Verb::Touch { name, access, modification } => {
                let time = |set: bool| fs::Timespec {
                    tv_sec: 0,
                    tv_nsec: if set { fs::UTIME_NOW } else { fs::UTIME_OMIT },
                };
                let times =
                    fs::Timestamps { last_access: time(*access), last_modification: time(*modification) };
                fs::utimensat(CWD, side.at(name), &times, AtFlags::SYMLINK_NOFOLLOW).map(done)
            }
            Verb::SetFlags { name, flags } => {
                let file = opened_plain(side, name)?;
                let kept = fs::ioctl_getflags(&file)? & storage_flags();
                fs::ioctl_setflags(&file, kept | *flags).map(done)
            }
            Verb::GetFlags { name } => {
                let flags = fs::ioctl_getflags(opened_plain(side, name)?)?;
                Ok(format!("{:?}", flags.difference(storage_flags())))
            }
            _ => unreachable!("the other verbs are run elsewhere"),
        }
    }
}

fn is_guarded(file: impl AsFd) -> bool {
    fs::ioctl_getflags(file).is_ok_and(|flags| flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND))
}

/// For ioctls: only files and folders, since a device or a pipe would take them for its own.
fn opened_plain(side: &Side, name: &str) -> Result<File, Errno> {
    let kind = FileType::from_raw_mode(fs::statat(CWD, side.at(name), AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    if matches!(kind, FileType::RegularFile | FileType::Directory) {
        opened(side, name).map(File::from)
    } else {
        Err(Errno::NOTTY)
    }
}

/// How a file is stored (extents, an index, inline): nobody can set these, and systems may differ in them.
fn storage_flags() -> IFlags {
    const EXTENTS: u32 = 0x0008_0000;
    const INDEX: u32 = 0x0000_1000;
    IFlags::from_bits_retain(EXTENTS | INDEX)
}
