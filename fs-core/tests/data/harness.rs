//! Images made by mke2fs in memory, mounts of them, and the judges.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;

use blockdev::sim::{Fill, Image};
use blockdev::{BlockDevice, Chance, Clock, Env, Timestamp, Workers};
use fs_core::{Filesystem, MountError, MountOptions, OpenFile, OpenFlags, OpenOptions};

/// What blocks hold that nobody wrote. No test writes this byte.
pub const STALE: u8 = 0xa5;

/// The small number, or with `REXT4_SCALE=long` the large one.
pub fn pick(small: u64, large: u64) -> u64 {
    if std::env::var("REXT4_SCALE").is_ok_and(|scale| scale == "long") { large } else { small }
}

/// Small enough for speed, large enough for several groups of 1 KiB blocks.
pub const SIZE: u64 = 48 << 20;

/// An image made by mke2fs on a device full of [`STALE`].
pub fn mke2fs(args: &[&str]) -> Image {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let stale = vec![STALE; 1 << 20];
    for _ in 0..SIZE >> 20 {
        file.write_all(&stale).unwrap();
    }
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"])
        .args(args)
        .arg(file.path())
        .output()
        .expect("mke2fs is needed for this test");
    assert!(made.status.success(), "mke2fs {args:?}: {}", String::from_utf8_lossy(&made.stderr));
    let mut image = Image::new(SIZE, Fill::Zero);
    let mut file = File::open(file.path()).unwrap();
    let mut buf = vec![0; 1 << 20];
    for at in 0..SIZE >> 20 {
        file.read_exact(&mut buf).unwrap();
        image.write(at << 20, &buf);
    }
    image
}

/// Asserts that e2fsck finds nothing to say about a volume.
pub fn e2fsck(image: &Image, what: &str) {
    let file = dump(image);
    let judged = Command::new("e2fsck").args(["-fn"]).arg(file.path()).output().unwrap();
    assert!(
        judged.status.success(),
        "{what}: e2fsck: {}{}",
        String::from_utf8_lossy(&judged.stdout),
        String::from_utf8_lossy(&judged.stderr)
    );
}

/// The content of `/file` as debugfs of e2fsprogs reads it.
pub fn foreign_read(image: &Image) -> Vec<u8> {
    let file = dump(image);
    let out = tempfile::NamedTempFile::new().unwrap();
    let request = format!("dump /file {}", out.path().display());
    let read = Command::new("debugfs").args(["-R", &request]).arg(file.path()).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    std::fs::read(out.path()).unwrap()
}

fn dump(image: &Image) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut buf = vec![0; 1 << 20];
    for at in 0..image.size() >> 20 {
        image.read(at << 20, &mut buf);
        file.as_file().write_all(&buf).unwrap();
    }
    file
}

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp { sec: 1_700_000_000, nsec: 5 }
    }
}

impl Chance for Still {
    fn next_u64(&self) -> u64 {
        0x1234_5678_9abc_def0
    }
}

/// No threads, and a clock that stands still.
pub fn manual() -> Env {
    Env { clock: Arc::new(Still), chance: Arc::new(Still), workers: Workers::Manual }
}

/// Options with a write-behind so small that its bound is met.
pub fn options() -> OpenOptions {
    let small = MountOptions { write_behind_bytes: 1 << 20, ..MountOptions::default() };
    OpenOptions::new().mount_options(small)
}

/// A mounted volume.
pub fn mount(dev: Arc<dyn BlockDevice>, env: Env) -> Arc<Filesystem> {
    options().env(env).open_device(dev).unwrap()
}

/// Mounts what is left of a disk; `None` when its superblock is torn between sectors, which no
/// journal can mend.
pub fn recover(dev: Arc<dyn BlockDevice>) -> Option<Arc<Filesystem>> {
    match options().env(manual()).open_device(dev) {
        Ok(fs) => Some(fs),
        Err(MountError::SuperBlock { .. }) => None,
        Err(e) => panic!("{e}"),
    }
}

/// Makes `/name`, or opens it.
pub fn open(fs: &Arc<Filesystem>, name: &str) -> OpenFile {
    let root = fs.root().unwrap();
    match root.lookup(name) {
        Ok(found) => found.open(OpenFlags { write: true, ..OpenFlags::default() }).unwrap(),
        Err(_) => root.create(name, 0o644).unwrap(),
    }
}

/// Everything in a file.
pub fn read_all(file: &OpenFile) -> Vec<u8> {
    let size = file.attributes().unwrap().size as usize;
    let mut buf = vec![0xcc; size];
    let mut at = 0;
    while at < size {
        let end = (at + (1 << 20)).min(size);
        let got = file.read_at(&mut buf[at..end], at as u64).unwrap();
        assert!(got > 0);
        at += got;
    }
    buf
}

/// Where two contents differ first.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if found != expected {
        let at =
            found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
        let byte = |bytes: &[u8]| bytes.get(at).map_or("nothing".into(), |b| format!("{b:#04x}"));
        panic!(
            "{what}: byte {at} is {}, expected {} (sizes {} and {})",
            byte(found),
            byte(expected),
            found.len(),
            expected.len()
        );
    }
}
