//! Several threads on one file, each with bytes of its own that share blocks with its neighbours'.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockdev::sim::{Dice, MemDevice};
use blockdev::{Env, Workers};
use fs_core::{Credentials, Error, FallocateMode, OpenFile, Posix, WriteKind};

use crate::harness::{STALE, assert_same, e2fsck, foreign_read, manual, mke2fs, mount, open, pick, read_all};

/// Bytes of a thread: no multiple of a block, so that neighbours meet inside one.
const SHARE: u64 = 300_001;
const THREADS: u64 = 5;

fn env() -> Env {
    Env { workers: Workers::Threads, ..Env::system() }
}

fn work(file: &OpenFile, mine: u64, rounds: u64) -> Vec<u8> {
    let root = Credentials::root();
    let mut dice = Dice::new(mine + 1);
    let mut model = vec![0; SHARE as usize];
    let base = mine * SHARE;
    for round in 0..rounds {
        let at = dice.below(SHARE - 1);
        let len = (1 + dice.below(40_000)).min(SHARE - at);
        let range = at as usize..(at + len) as usize;
        match dice.below(8) {
            0 => {
                file.fallocate_as(&root, base + at, len, FallocateMode::PunchHole).unwrap();
                model[range].fill(0);
            }
            1 => file.sync(dice.one_in(2)).unwrap(),
            n => {
                let mode = if n % 2 == 0 { WriteKind::Direct } else { WriteKind::Cached };
                // Every other direct write is of whole blocks where the share has some.
                let (at, len) = match n {
                    2 if len > 8192 => ((base + at).next_multiple_of(4096) - base, len / 4096 * 4096 - 4096),
                    _ => (at, len),
                };
                let data = vec![1 + (dice.roll() as u8) % 0x80; len as usize];
                assert_eq!(file.write_as(&root, &data, base + at, mode).unwrap(), data.len());
                model[at as usize..(at + len) as usize].copy_from_slice(&data);
            }
        }
        if round % 3 == 0 {
            let mut buf = vec![0; SHARE as usize];
            let got = file.read_at(&mut buf, base).unwrap();
            assert_same(&buf[..got], &model[..got], &format!("share {mine} round {round}"));
            assert!(model[got..].iter().all(|b| *b == 0));
        }
    }
    model
}

/// The end of the file, which moves: direct and cached appends, truncates, collapses and inserts. What comes
/// before `base` is others'. Gives the bytes from there on.
fn work_on_tail(file: &OpenFile, base: u64, block: u64, rounds: u64) -> Vec<u8> {
    let root = Credentials::root();
    let mut dice = Dice::new(77);
    let mut model: Vec<u8> = Vec::new();
    for round in 0..rounds {
        let end = model.len() as u64;
        let at = dice.below(end / block + 1) * block;
        let len = (1 + dice.below(6)) * block;
        match dice.below(8) {
            0 => {
                let size = dice.below(40 * block);
                file.set_len(base + size).unwrap();
                model.resize(size as usize, 0);
            }
            1 if file.fallocate_as(&root, base + at, len, FallocateMode::Collapse).is_ok() => {
                model.drain(at as usize..(at + len) as usize);
            }
            2 if file.fallocate_as(&root, base + at, len, FallocateMode::Insert).is_ok() => {
                let zeros = std::iter::repeat_n(0, len as usize);
                model.splice(at as usize..at as usize, zeros);
            }
            3 => {
                let how = FallocateMode::Allocate { keep_size: true };
                let done = file.fallocate_as(&root, base + at, len, how);
                assert!(matches!(done, Ok(()) | Err(Error::Posix(Posix::NotSupported))), "{done:?}");
            }
            n => {
                let mode = if n == 4 { WriteKind::Cached } else { WriteKind::Direct };
                let data = vec![1 + (dice.roll() as u8) % 0x80; len as usize];
                assert_eq!(file.write_as(&root, &data, base + at, mode).unwrap(), data.len());
                model.resize(model.len().max((at + len) as usize), 0);
                model[at as usize..(at + len) as usize].copy_from_slice(&data);
            }
        }
        let mut buf = vec![0; model.len() + 1];
        let got = file.read_at(&mut buf, base).unwrap();
        assert_same(&buf[..got], &model, &format!("tail, round {round}"));
    }
    model
}

fn stress(args: &[&str], rounds: u64) {
    let dev = Arc::new(MemDevice::from_image(mke2fs(args)));
    let fs = mount(dev.clone(), env());
    let file = open(&fs, "file");
    let block = u64::from(fs.block_size());
    let base = (THREADS * SHARE).next_multiple_of(block);
    file.set_len(base).unwrap();
    let other = open(&fs, "other");
    let done = AtomicBool::new(false);
    let (models, tail) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|mine| {
                (
                    mine,
                    scope.spawn({
                        let file = &file;
                        move || work(file, mine, rounds)
                    }),
                )
            })
            .collect();
        let tail = scope.spawn(|| work_on_tail(&file, base, block, rounds));
        // A file that comes and goes keeps the freed blocks moving.
        let churn = scope.spawn(|| {
            let root = Credentials::root();
            let mut dice = Dice::new(99);
            while !done.load(Ordering::Relaxed) {
                let size = dice.below(400_000);
                other.write_as(&root, &[0x99; 70_000], size, WriteKind::Direct).unwrap();
                other.set_len(dice.below(400_000)).unwrap();
                fs.tick().unwrap();
            }
        });
        let models: Vec<_> = threads.into_iter().map(|(_, t)| t.join()).collect();
        let tail = tail.join();
        done.store(true, Ordering::Relaxed);
        churn.join().unwrap();
        (models.into_iter().map(Result::unwrap).collect::<Vec<_>>(), tail.unwrap())
    });
    let mut expected = models.concat();
    expected.resize(base as usize, 0);
    expected.extend(tail);
    assert_same(&read_all(&file), &expected, "all shares");
    fs.close().unwrap();
    let stats = fs.data_stats();
    assert_eq!((stats.conversions_pending, stats.behind_bytes), (0, 0), "{stats:?}");
    assert_eq!((stats.direct_writes_in_flight, stats.direct_reads_in_flight), (0, 0));
    drop(fs);
    e2fsck(&dev.snapshot(), "after the threads");
    assert_same(&foreign_read(&dev.snapshot()), &expected, "all shares, read by debugfs");
    let fs = mount(Arc::new(MemDevice::from_image(dev.snapshot())), manual());
    assert_same(&read_all(&open(&fs, "file")), &expected, "all shares after a remount");
}

#[test]
fn threads_share_a_file() {
    stress(&["-t", "ext4", "-b", "4096"], pick(150, 5000));
}

#[test]
fn threads_share_a_file_of_small_blocks() {
    stress(&["-t", "ext4", "-b", "1024"], pick(150, 5000));
}

#[test]
fn threads_share_an_indirect_file() {
    stress(&["-t", "ext3", "-b", "2048"], pick(100, 3000));
}

/// Readers look on while direct writes fill holes and preallocated blocks and move the end of a file on a
/// disk full of what others left there.
#[test]
fn readers_see_nothing_stale_while_blocks_are_filled() {
    const LENGTH: u64 = 2 << 20;
    let dev = Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4", "-b", "1024"])));
    let fs = mount(dev.clone(), env());
    let file = open(&fs, "file");
    let root = Credentials::root();
    let done = AtomicBool::new(false);
    let looks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (file, done, looks) = (&file, &done, &looks);
            scope.spawn(move || {
                let mut dice = Dice::new(reader);
                let mut buf = vec![0; 64 << 10];
                while !done.load(Ordering::Relaxed) {
                    let got = file.read_at(&mut buf, dice.below(LENGTH)).unwrap();
                    assert!(!buf[..got].contains(&STALE), "stale bytes");
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (file, root) = (&file, &root);
                scope.spawn(move || {
                    let mut dice = Dice::new(100 + writer);
                    for _ in 0..pick(400, 20_000) {
                        let (at, len) = (dice.below(LENGTH / 1024) * 1024, (1 + dice.below(20)) * 1024);
                        match dice.below(8) {
                            0 => file.fallocate_as(root, at, len, FallocateMode::PunchHole).unwrap(),
                            1 => {
                                let keep_size = dice.one_in(2);
                                let how = FallocateMode::Allocate { keep_size };
                                file.fallocate_as(root, at, len, how).unwrap();
                            }
                            2 => file.set_len(at).unwrap(),
                            3 => file.sync(true).unwrap(),
                            n => {
                                let skew = if n == 4 { dice.below(1000) } else { 0 };
                                let data = vec![1; len as usize];
                                file.write_as(root, &data, at + skew, WriteKind::Direct).unwrap();
                            }
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(Result::unwrap);
    });
    assert!(looks.into_inner() > 100, "hardly anybody looked");
    assert!(read_all(&file).iter().all(|byte| [0, 1].contains(byte)));
    fs.close().unwrap();
    drop(fs);
    e2fsck(&dev.snapshot(), "after the fillers");
}
