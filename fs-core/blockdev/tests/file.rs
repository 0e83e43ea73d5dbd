//! Files and loop devices: every way of reading and writing against a plain model, and the claims.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use blockdev::sim::Dice;
use blockdev::{
    BlockDevice, Direct, FileDevice, Holder, OpenError, OpenOptions, PooledBuf, ReadOnlyMap, open,
};
use parking_lot::{Mutex, MutexGuard};
use tempfile::TempDir;

const SIZE: u64 = 8 << 20;

/// A program that one test starts has, until it runs, copies of the descriptors of all, and with them their
/// claims: so the tests take turns.
fn my_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock()
}

fn image(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None` where loop devices cannot be made, which CI does not accept.
    fn attach(image: &Path, options: &[&str]) -> Option<Loop> {
        let out =
            Command::new("losetup").args(["--find", "--show"]).args(options).arg(image).output().ok()?;
        if out.status.success() {
            return Some(Loop(String::from_utf8(out.stdout).unwrap().trim().into()));
        }
        assert!(std::env::var_os("CI").is_none(), "no loop device: {}", String::from_utf8_lossy(&out.stderr));
        eprintln!("SKIPPED: needs root and loop devices");
        None
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("-d").arg(&self.0).status().unwrap();
        assert!(detached.success() || std::thread::panicking());
    }
}

fn rw() -> OpenOptions {
    OpenOptions::default()
}

/// Random requests of every kind, each compared with a vector.
fn torture(device: &FileDevice, seed: u64) {
    let size = device.geometry().size as usize;
    let mut dice = Dice::new(seed);
    let mut model = vec![0; size];
    device.read_at(0, &mut model).unwrap();
    for step in 0..400u32 {
        let at = dice.below(size as u64) as usize;
        let at = *dice.pick(&[at, at / 512 * 512, at / 4096 * 4096]);
        let max = *dice.pick(&[1, 511, 512, 5000, 65536, 3 << 20]);
        let len = (1 + dice.below(max) as usize).min(size - at);
        let byte = step as u8;
        match dice.below(8) {
            0 | 1 => {
                device.write_at(at as u64, &vec![byte; len]).unwrap();
                model[at..at + len].fill(byte);
            }
            2 => {
                let mut buf = PooledBuf::take(len);
                buf.fill(byte);
                device.write_at(at as u64, &buf).unwrap();
                model[at..at + len].fill(byte);
            }
            3 => {
                let parts: Vec<Vec<u8>> = (0..4).map(|i| vec![byte ^ i; len / 4]).collect();
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                device.write_vectored_at(at as u64, &parts).unwrap();
                let joined = parts.concat();
                model[at..at + joined.len()].copy_from_slice(&joined);
            }
            4 => {
                device.write_zeroes(at as u64, len as u64).unwrap();
                model[at..at + len].fill(0);
            }
            5 => {
                device.discard(at as u64, len as u64).unwrap();
                device.read_at(at as u64, &mut model[at..at + len]).unwrap();
            }
            6 => {
                let mut buf = PooledBuf::take(len);
                device.read_at(at as u64, &mut buf).unwrap();
                assert!(buf[..] == model[at..at + len], "step {step}: {len} bytes at {at}");
            }
            _ => {
                let mut buf = vec![0; len];
                device.read_at(at as u64, &mut buf).unwrap();
                assert!(buf == model[at..at + len], "step {step}: {len} bytes at {at}");
            }
        }
    }
    device.flush().unwrap();
    let mut all = vec![0; size];
    device.read_at(0, &mut all).unwrap();
    assert!(all == model);
    assert!(ReadOnlyMap::of(device).unwrap()[..] == model);
}

/// Threads that write neighbouring bytes of the same sectors: nothing may be lost.
fn neighbours(device: &Arc<FileDevice>) {
    const THREADS: u64 = 4;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let device = Arc::clone(device);
            scope.spawn(move || {
                for round in 0..100u64 {
                    let at = (round * THREADS + thread) * 100;
                    device.write_at(at, &[1 + thread as u8; 100]).unwrap();
                }
            });
        }
    });
    let mut all = vec![0; (100 * THREADS * 100) as usize];
    device.read_at(0, &mut all).unwrap();
    for (i, piece) in all.chunks(100).enumerate() {
        assert!(piece.iter().all(|&byte| u64::from(byte) == 1 + i as u64 % THREADS), "piece {i}");
    }
}

#[test]
fn image_files_keep_what_is_written_buffered_and_direct() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    for (seed, direct, offset) in
        [(1, Direct::Never, 0), (2, Direct::Always, 0), (3, Direct::Always, 4096), (4, Direct::Always, 1000)]
    {
        let device = open(&path, &OpenOptions { direct, offset, ..rw() }).unwrap();
        eprintln!("direct {} offset {offset}: {:?}", device.is_direct(), device.geometry());
        assert!(!(device.is_direct() && offset == 1000), "an odd offset cannot be direct");
        torture(&device, seed);
        neighbours(&device);
    }
}

#[test]
fn loop_devices_of_both_sector_sizes_keep_what_is_written() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    for (seed, sector) in [(5, "512"), (6, "4096")] {
        for direct in [Direct::Auto, Direct::Never] {
            let Some(device) = Loop::attach(&path, &["--sector-size", sector]) else { return };
            let device = open(&device.0, &OpenOptions { direct, ..rw() }).unwrap();
            assert_eq!(device.geometry().logical_sector.to_string(), sector);
            assert_eq!(device.is_direct(), direct == Direct::Auto);
            assert_eq!(device.geometry().size, SIZE);
            assert!(device.is_block_device() && device.geometry().discard);
            torture(&device, seed);
            neighbours(&device);
        }
    }
}

#[test]
fn requests_beyond_the_end_or_against_read_only_are_refused() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let device = open(&path, &rw()).unwrap();
    assert!(device.write_at(SIZE - 1, &[0; 2]).is_err());
    assert!(device.read_at(u64::MAX, &mut [0; 2]).is_err());
    assert!(device.write_zeroes(SIZE, 1).is_err() && device.discard(u64::MAX, 2).is_err());
    drop(device);
    let device = open(&path, &OpenOptions { read_only: true, ..rw() }).unwrap();
    let refused = device.write_at(0, &[0]).unwrap_err();
    assert_eq!(refused.source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(device.flush().is_ok());
}

fn holder(result: Result<Arc<FileDevice>, OpenError>) -> Holder {
    match result {
        Err(OpenError::InUse { holder, .. }) => holder,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let ro = OpenOptions { read_only: true, ..rw() };
    let writer = open(&path, &rw()).unwrap();
    match holder(open(&path, &rw())) {
        Holder::Process { pid, name } => {
            assert_eq!(pid, std::process::id());
            assert!(!name.is_empty());
        }
        other => panic!("{other:?}"),
    }
    holder(open(&path, &ro));
    assert!(open(&path, &OpenOptions { exclusive: false, ..ro }).is_ok());
    drop(writer);
    let _reader = open(&path, &ro).unwrap();
    assert!(open(&path, &ro).is_ok());
    holder(open(&path, &rw()));
}

#[test]
fn a_loop_device_and_its_file_exclude_each_other() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let held = open(&path, &rw()).unwrap();
    let Some(device) = Loop::attach(&path, &[]) else { return };
    assert!(matches!(holder(open(&device.0, &rw())), Holder::Process { .. }));
    drop(held);
    let found = holder(open(&path, &rw()));
    assert_eq!(found, Holder::Loop { device: device.0.clone(), at: None });
    assert!(found.to_string().contains("losetup -d"), "{found}");
    let _held = open(&device.0, &rw()).unwrap();
    holder(open(&device.0, &rw()));
}

#[test]
fn a_kernel_mount_is_named() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let Some(device) = Loop::attach(&path, &[]) else { return };
    let run = |program: &str, args: &[&Path]| {
        let out = Command::new(program).args(args).output().unwrap();
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let at = dir.path().join("mount point");
    std::fs::create_dir(&at).unwrap();
    run("mke2fs", &[Path::new("-q"), Path::new("-F"), Path::new("-t"), Path::new("ext4"), &device.0]);
    run("mount", &[&device.0, &at]);
    let by_device = holder(open(&device.0, &rw()));
    let by_file = holder(open(&path, &rw()));
    run("umount", &[&at]);
    assert_eq!(by_device, Holder::Mounted { at: at.clone() });
    assert_eq!(by_file, Holder::Loop { device: device.0.clone(), at: Some(at) });
}

#[test]
fn a_read_only_medium_opens_read_only() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let Some(device) = Loop::attach(&path, &["--read-only"]) else { return };
    assert!(matches!(open(&device.0, &rw()), Err(OpenError::ReadOnlyMedium { .. })));
    let reader = open(&device.0, &OpenOptions { read_only: true, ..rw() }).unwrap();
    reader.read_at(0, &mut [0; 512]).unwrap();
    assert!(open(&path, &OpenOptions { read_only: true, ..rw() }).is_ok(), "readers share");
}

#[test]
fn what_is_no_device_is_named() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let message = |path: &Path, options: &OpenOptions| open(path, options).err().unwrap().to_string();
    assert!(message(dir.path(), &rw()).contains("a directory"));
    assert!(message(Path::new("/dev/null"), &rw()).contains("a character device"));
    assert!(message(&dir.path().join("missing"), &rw()).contains("No such file"));
    let text = message(&path, &OpenOptions { offset: SIZE, ..rw() });
    assert!(text.contains("beyond the end") && text.contains(&SIZE.to_string()), "{text}");
    let empty = dir.path().join("empty");
    std::fs::File::create(&empty).unwrap();
    assert!(matches!(open(&empty, &rw()), Err(OpenError::Offset { size: 0, .. })));
}

/// Another host writes to the medium: here the file behind a loop device, whose page cache does not learn of it.
#[test]
fn what_another_host_writes_is_read_past_the_cache() {
    let _turn = my_turn();
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir);
    let Some(device) = Loop::attach(&path, &[]) else { return };
    let medium = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let other = |byte: u8| std::os::unix::fs::FileExt::write_all_at(&medium, &[byte; 1024], 5120).unwrap();
    for direct in [Direct::Never, Direct::Always] {
        let device = open(&device.0, &OpenOptions { direct, ..rw() }).unwrap();
        let mut seen = [0; 1024];
        other(1);
        device.read_at(5120, &mut seen).unwrap();
        assert_eq!(seen, [1; 1024]);
        other(2);
        device.read_at(5120, &mut seen).unwrap();
        assert_eq!(seen[0] == 1, direct == Direct::Never, "the page cache: the test shows nothing");
        device.read_past_cache(5120, &mut seen).unwrap();
        assert_eq!(seen, [2; 1024]);
        device.write_past_cache(5120, &[3; 1024]).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&medium, &mut seen, 5120).unwrap();
        assert_eq!(seen, [3; 1024], "what we write stays in this host");
        device.read_at(5120, &mut seen).unwrap();
        assert_eq!(seen, [3; 1024]);
        assert!(device.read_past_cache(SIZE - 512, &mut seen).is_err());
        // The next one begins with an empty cache.
        drop(device);
    }
}
