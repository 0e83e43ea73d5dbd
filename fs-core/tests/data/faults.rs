//! A device that fails: nothing stale is shown, what was acknowledged stays, each failure is
//! reported once, and the volume is clean afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::Op;
use blockdev::sim::{Fault, FaultDevice, MemDevice, When};
use fs_core::{Credentials, FallocateMode, Filesystem, OpenFile, OpenFlags, WriteKind};

use crate::harness::{assert_same, e2fsck, manual, mke2fs, mount, open, read_all, recover};

const EIO: i32 = 5;
const BLOCK: usize = 4096;

struct Bench {
    dev: Arc<FaultDevice<MemDevice>>,
    fs: Arc<Filesystem>,
    file: OpenFile,
}

impl Bench {
    fn new(args: &[&str]) -> Bench {
        let dev = Arc::new(FaultDevice::new(MemDevice::from_image(mke2fs(args)), 7));
        let fs = mount(dev.clone(), manual());
        let file = open(&fs, "file");
        // The file's own creation is out of the way of what is to fail.
        fs.sync().unwrap();
        Bench { dev, fs, file }
    }

    /// The next request of a kind fails.
    fn fail(&self, op: Op) {
        self.dev.arm(Fault { op, when: When::Nth(0), sticky: false, errno: EIO });
    }

    fn write(&self, at: u64, data: &[u8], mode: WriteKind) -> Result<usize, i32> {
        self.file.write_as(&Credentials::root(), data, at, mode).map_err(|e| e.errno())
    }

    fn fsync(&self) -> Result<(), i32> {
        self.file.sync(false).map_err(|e| e.errno())
    }

    fn finish(self, expected: &[u8]) {
        assert_same(&read_all(&self.file), expected, "after the failure");
        self.fs.close().unwrap();
        drop(self.fs);
        let image = self.dev.inner().snapshot();
        e2fsck(&image, "after the failure");
        let fs = mount(Arc::new(MemDevice::from_image(image)), manual());
        assert_same(&read_all(&open(&fs, "file")), expected, "after a remount");
        fs.close().unwrap();
    }
}

#[test]
fn a_failed_direct_write_into_a_hole_leaves_zeros() {
    let bench = Bench::new(&["-t", "ext4"]);
    bench.write(7 * BLOCK as u64, &[1; BLOCK], WriteKind::Direct).unwrap();
    bench.fsync().unwrap();
    bench.fail(Op::Write);
    assert_eq!(bench.write(BLOCK as u64, &[2; 3 * BLOCK], WriteKind::Direct), Err(EIO));
    assert_eq!(bench.dev.struck(), 1);
    assert_eq!(bench.fsync(), Err(EIO));
    assert_eq!(bench.fsync(), Ok(()));
    let mut expected = vec![0; 8 * BLOCK];
    expected[7 * BLOCK..].fill(1);
    assert_eq!(bench.fs.data_stats().conversions_pending, 0);
    bench.finish(&expected);
}

#[test]
fn a_failed_extending_write_is_trimmed() {
    let bench = Bench::new(&["-t", "ext4"]);
    bench.write(0, &[1; BLOCK], WriteKind::Direct).unwrap();
    let before = bench.file.attributes().unwrap();
    bench.fail(Op::Write);
    assert_eq!(bench.write(BLOCK as u64, &[2; 16 * BLOCK], WriteKind::Direct), Err(EIO));
    let after = bench.file.attributes().unwrap();
    assert_eq!((after.size, after.sectors), (before.size, before.sectors));
    assert_eq!(bench.fsync(), Err(EIO));
    assert_eq!(bench.fsync(), Ok(()));
    bench.finish(&[1; BLOCK]);
}

#[test]
fn a_failed_write_into_preallocated_space_leaves_zeros() {
    let bench = Bench::new(&["-t", "ext4"]);
    let grow = FallocateMode::Allocate { keep_size: false };
    bench.file.fallocate_as(&Credentials::root(), 0, 64 << 10, grow).unwrap();
    bench.fail(Op::Write);
    assert_eq!(bench.write(8192, &[2; 8192], WriteKind::Direct), Err(EIO));
    assert_eq!(bench.fsync(), Err(EIO));
    bench.write(12_288, &[3; 100], WriteKind::Direct).unwrap();
    bench.fsync().unwrap();
    let mut expected = vec![0; 64 << 10];
    expected[12_288..12_388].fill(3);
    bench.finish(&expected);
}

#[test]
fn lost_dirty_data_are_reported_once() {
    for args in [["-t", "ext4"], ["-t", "ext2"]] {
        let bench = Bench::new(&args);
        bench.write(0, &[1; 2 * BLOCK], WriteKind::Cached).unwrap();
        bench.fsync().unwrap();
        // Without extents the data have to go to their place at once.
        let delayed = args[1] == "ext4";
        if !delayed {
            bench.fail(Op::Write);
        }
        let wrote = bench.write(2 * BLOCK as u64, &[2; BLOCK + 10], WriteKind::Cached);
        assert_eq!(wrote.is_ok(), delayed);
        if delayed {
            bench.fail(Op::Write);
        }
        assert_eq!(bench.fsync(), Err(EIO), "{args:?}");
        assert_eq!(bench.fsync(), Ok(()));
        let mut expected = vec![1; 2 * BLOCK];
        expected.resize(if delayed { 3 * BLOCK + 10 } else { 2 * BLOCK }, 0);
        assert_same(&read_all(&bench.file), &expected, "lost data read as zeros");
        bench.write(2 * BLOCK as u64, &[3; 10], WriteKind::Cached).unwrap();
        bench.fsync().unwrap();
        expected.resize(expected.len().max(2 * BLOCK + 10), 0);
        expected[2 * BLOCK..2 * BLOCK + 10].fill(3);
        bench.finish(&expected);
    }
}

#[test]
fn a_failed_overwrite_leaves_old_or_new() {
    let bench = Bench::new(&["-t", "ext4"]);
    bench.write(0, &[1; 4 * BLOCK], WriteKind::Direct).unwrap();
    bench.fsync().unwrap();
    bench.fail(Op::Write);
    assert_eq!(bench.write(0, &[2; 4 * BLOCK], WriteKind::Direct), Err(EIO));
    assert_eq!(bench.fsync(), Err(EIO));
    let found = read_all(&bench.file);
    assert!(found.chunks(512).all(|s| s.iter().all(|b| *b == s[0]) && (s[0] == 1 || s[0] == 2)));
    bench.finish(&found);
}

#[test]
fn a_failed_flush_fails_the_fsync() {
    let bench = Bench::new(&["-t", "ext4"]);
    bench.write(0, &[1; 4 * BLOCK], WriteKind::Direct).unwrap();
    bench.fsync().unwrap();
    bench.write(0, &[2; BLOCK], WriteKind::Direct).unwrap();
    bench.fail(Op::Flush);
    assert_eq!(bench.file.sync(true).map_err(|e| e.errno()), Err(EIO));
    assert_eq!(bench.dev.struck(), 1);
    let mut expected = vec![1; 4 * BLOCK];
    expected[..BLOCK].fill(2);
    assert_same(&read_all(&bench.file), &expected, "the data are where they were written");
}

#[test]
fn a_failed_read_of_a_partial_block_loses_nothing() {
    let bench = Bench::new(&["-t", "ext4"]);
    bench.write(0, &[1; 4 * BLOCK], WriteKind::Direct).unwrap();
    bench.fsync().unwrap();
    bench.fail(Op::Read);
    assert_eq!(bench.write(100, &[2; 50], WriteKind::Direct), Err(EIO));
    assert_eq!(bench.fsync(), Err(EIO));
    bench.finish(&[1; 4 * BLOCK]);
}

/// Every device write of a short life fails once, one life each: the volume either goes on or
/// refuses further changes, and is clean after recovery.
#[test]
fn each_write_fails_once() {
    let image = mke2fs(&["-t", "ext4", "-b", "1024"]);
    let mut torn = 0;
    for nth in 0..40 {
        let dev = Arc::new(FaultDevice::new(MemDevice::from_image(image.clone()), nth));
        let fs = mount(dev.clone(), manual());
        dev.arm(Fault { op: Op::Write, when: When::Nth(nth), sticky: false, errno: EIO });
        let root = Credentials::root();
        let mut synced = Vec::new();
        let Ok(file) = fs.root().and_then(|root| root.create("file", 0o644)) else { continue };
        for round in 1..6_u8 {
            let at = u64::from(round) * 3000;
            let mode = if round % 2 == 0 { WriteKind::Direct } else { WriteKind::Cached };
            let wrote = file.write_as(&root, &[round; 5000], at, mode).is_ok();
            if wrote && file.sync(false).is_ok() {
                synced.push((at as usize, round));
            } else {
                // Neither old nor new is promised from here on.
                break;
            }
        }
        let _ = fs.close();
        drop(fs);
        let image = dev.inner().snapshot();
        let dev = Arc::new(MemDevice::from_image(image));
        let Some(fs) = recover(dev.clone()) else {
            torn += 1;
            continue;
        };
        if let Some((last, round)) = synced.last() {
            let found = read_all(&open(&fs, "file"));
            assert!(found[*last..*last + 3000].iter().all(|b| *b == *round), "write {nth} failed");
            assert!(found.iter().all(|b| *b < 6), "write {nth} failed");
        }
        fs.close().unwrap();
        drop(fs);
        e2fsck(&dev.snapshot(), &format!("write {nth} failed"));
    }
    assert!(torn < 8, "{torn} of 40");
}

/// As the kernel's `errseq_t`: every open file is told once, whoever asks first.
#[test]
fn a_failure_is_told_once_to_each_open_file() {
    for mode in [WriteKind::Direct, WriteKind::Cached] {
        let bench = Bench::new(&["-t", "ext4"]);
        let open = || bench.file.open(OpenFlags { write: true, ..OpenFlags::default() }).unwrap();
        let told = |file: &OpenFile| file.sync_data().map_err(|e| e.errno());
        let (first, second) = (open(), open());
        bench.fail(Op::Write);
        let wrote = bench.write(0, &[1; BLOCK], mode);
        assert_eq!(wrote.is_err(), mode == WriteKind::Direct);
        bench.fs.tick().unwrap();
        assert_eq!(told(&second), Err(EIO), "{mode:?}");
        assert_eq!(told(&second), Ok(()));
        let third = open();
        assert_eq!(told(&third), Ok(()), "opened when it was known");
        assert_eq!(told(&first), Err(EIO));
        assert_eq!(told(&first), Ok(()));
        assert_eq!(bench.fsync(), Ok(()), "known to somebody");
    }
}

/// The caller of a delayed write reports its failure; fsync would report it twice.
#[test]
fn a_failed_delayed_write_is_not_reported_again() {
    let bench = Bench::new(&["-t", "ext3"]);
    bench.fail(Op::Write);
    assert_eq!(bench.write(0, &[1; BLOCK], WriteKind::Delayed), Err(EIO));
    assert_eq!(bench.fsync(), Ok(()));
    bench.finish(&[]);
}

/// A request that goes out in pieces, of which a later one fails: the first are not in the file either, and
/// nothing of them shows when it grows again.
#[test]
fn a_write_that_fails_half_way_leaves_the_file_as_it_was() {
    const BLOCK: usize = 1024;
    let cases = [(BLOCK, 5, false), (BLOCK, 900, true), (BLOCK + 50, 900, true)];
    for (at, nth, converts) in cases {
        let bench = Bench::new(&["-t", "ext4", "-b", "1024"]);
        bench.write(0, &[1; BLOCK + 100], WriteKind::Direct).unwrap();
        bench.fsync().unwrap();
        let keep = FallocateMode::Allocate { keep_size: true };
        let other = open(&bench.fs, "other");
        for block in (4..1000).step_by(2) {
            for file in [&bench.file, &other] {
                file.fallocate_as(&Credentials::root(), block * BLOCK as u64, BLOCK as u64, keep).unwrap();
            }
        }
        bench.fs.sync().unwrap();
        bench.dev.arm(Fault { op: Op::Write, when: When::Nth(nth), sticky: false, errno: EIO });
        let done = AtomicBool::new(false);
        let wrote = std::thread::scope(|scope| {
            scope.spawn(|| {
                while converts && !done.load(Ordering::Relaxed) {
                    bench.fs.step_convert();
                }
            });
            let wrote = bench.write(at as u64, &[2; 1000 * BLOCK], WriteKind::Direct);
            done.store(true, Ordering::Relaxed);
            wrote
        });
        assert_eq!(wrote, Err(EIO), "{nth}");
        assert_eq!(bench.file.attributes().unwrap().size, BLOCK as u64 + 100, "{nth}");
        assert_eq!((bench.fsync(), bench.fsync()), (Err(EIO), Ok(())), "{nth}");
        bench.file.set_len(1010 * BLOCK as u64).unwrap();
        let mut expected = read_all(&bench.file);
        let (head, tail) = expected.split_at(BLOCK + 100);
        assert!(head[..BLOCK].iter().all(|b| *b == 1) && head[BLOCK..].iter().all(|b| *b == 1 || *b == 2));
        assert!(tail.iter().all(|b| *b == 0), "{nth}: {:?}", tail.iter().position(|b| *b != 0));
        expected.truncate(1010 * BLOCK);
        bench.finish(&expected);
    }
}
