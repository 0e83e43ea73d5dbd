//! Several threads on one file, each with bytes of its own that share blocks with its neighbours'.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockdev::sim::{Dice, MemDevice};
use blockdev::{Env, Workers};
use ext4_format::Ino;
use fs_core::ops::FallocateMode;
use fs_core::ops::WriteMode;
use fs_core::types::Caller;
use fs_core::{Error, Filesystem, Posix};

use crate::harness::{
    STALE, assert_same, e2fsck, file, foreign_read, manual, mke2fs, mount, pick, read_all, set_size,
};

/// Bytes of a thread: no multiple of a block, so that neighbours meet inside one.
const SHARE: u64 = 300_001;
const THREADS: u64 = 5;

fn env() -> Env {
    Env { workers: Workers::Threads, ..Env::system() }
}

fn work(fs: &Filesystem, ino: Ino, mine: u64, rounds: u64) -> Vec<u8> {
    let root = Caller::root();
    let mut dice = Dice::new(mine + 1);
    let mut model = vec![0; SHARE as usize];
    let base = mine * SHARE;
    for round in 0..rounds {
        let at = dice.below(SHARE - 1);
        let len = (1 + dice.below(40_000)).min(SHARE - at);
        let range = at as usize..(at + len) as usize;
        match dice.below(8) {
            0 => {
                fs.fallocate(&root, ino, base + at, len, FallocateMode::PunchHole).unwrap();
                model[range].fill(0);
            }
            1 => fs.fsync(ino, dice.one_in(2)).unwrap(),
            n => {
                let mode = if n % 2 == 0 { WriteMode::Direct } else { WriteMode::Cached };
                // Every other direct write is of whole blocks where the share has some.
                let (at, len) = match n {
                    2 if len > 8192 => ((base + at).next_multiple_of(4096) - base, len / 4096 * 4096 - 4096),
                    _ => (at, len),
                };
                let data = vec![1 + (dice.roll() as u8) % 0x80; len as usize];
                assert_eq!(fs.write(&root, ino, base + at, &data, mode).unwrap(), data.len());
                model[at as usize..(at + len) as usize].copy_from_slice(&data);
            }
        }
        if round % 3 == 0 {
            let mut buf = vec![0; SHARE as usize];
            let got = fs.read(ino, base, &mut buf).unwrap();
            assert_same(&buf[..got], &model[..got], &format!("share {mine} round {round}"));
            assert!(model[got..].iter().all(|b| *b == 0));
        }
    }
    model
}

/// The end of the file, which moves: direct and cached appends, truncates, collapses and inserts. What comes
/// before `base` is others'. Gives the bytes from there on.
fn work_on_tail(fs: &Filesystem, ino: Ino, base: u64, block: u64, rounds: u64) -> Vec<u8> {
    let root = Caller::root();
    let mut dice = Dice::new(77);
    let mut model: Vec<u8> = Vec::new();
    for round in 0..rounds {
        let end = model.len() as u64;
        let at = dice.below(end / block + 1) * block;
        let len = (1 + dice.below(6)) * block;
        match dice.below(8) {
            0 => {
                let size = dice.below(40 * block);
                set_size(fs, ino, base + size).unwrap();
                model.resize(size as usize, 0);
            }
            1 if fs.fallocate(&root, ino, base + at, len, FallocateMode::Collapse).is_ok() => {
                model.drain(at as usize..(at + len) as usize);
            }
            2 if fs.fallocate(&root, ino, base + at, len, FallocateMode::Insert).is_ok() => {
                let zeros = std::iter::repeat_n(0, len as usize);
                model.splice(at as usize..at as usize, zeros);
            }
            3 => {
                let how = FallocateMode::Allocate { keep_size: true };
                let done = fs.fallocate(&root, ino, base + at, len, how);
                assert!(matches!(done, Ok(()) | Err(Error::Posix(Posix::NotSupported))), "{done:?}");
            }
            n => {
                let mode = if n == 4 { WriteMode::Cached } else { WriteMode::Direct };
                let data = vec![1 + (dice.roll() as u8) % 0x80; len as usize];
                assert_eq!(fs.write(&root, ino, base + at, &data, mode).unwrap(), data.len());
                model.resize(model.len().max((at + len) as usize), 0);
                model[at as usize..(at + len) as usize].copy_from_slice(&data);
            }
        }
        let mut buf = vec![0; model.len() + 1];
        let got = fs.read(ino, base, &mut buf).unwrap();
        assert_same(&buf[..got], &model, &format!("tail, round {round}"));
    }
    model
}

fn stress(args: &[&str], rounds: u64) {
    let dev = Arc::new(MemDevice::from_image(mke2fs(args)));
    let fs = mount(dev.clone(), env());
    let ino = file(&fs, "file");
    let block = u64::from(fs.block_size());
    let base = (THREADS * SHARE).next_multiple_of(block);
    set_size(&fs, ino, base).unwrap();
    let other = file(&fs, "other");
    let done = AtomicBool::new(false);
    let (models, tail) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|mine| {
                (
                    mine,
                    scope.spawn({
                        let fs = &fs;
                        move || work(fs, ino, mine, rounds)
                    }),
                )
            })
            .collect();
        let tail = scope.spawn(|| work_on_tail(&fs, ino, base, block, rounds));
        // A file that comes and goes keeps the freed blocks moving.
        let churn = scope.spawn(|| {
            let root = Caller::root();
            let mut dice = Dice::new(99);
            while !done.load(Ordering::Relaxed) {
                let size = dice.below(400_000);
                fs.write(&root, other, size, &[0x99; 70_000], WriteMode::Direct).unwrap();
                set_size(&fs, other, dice.below(400_000)).unwrap();
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
    assert_same(&read_all(&fs, ino), &expected, "all shares");
    fs.unmount().unwrap();
    let stats = fs.data_stats();
    assert_eq!((stats.conversions_pending, stats.behind_bytes), (0, 0), "{stats:?}");
    assert_eq!((stats.direct_writes_in_flight, stats.direct_reads_in_flight), (0, 0));
    drop(fs);
    e2fsck(&dev.snapshot(), "after the threads");
    assert_same(&foreign_read(&dev.snapshot()), &expected, "all shares, read by debugfs");
    let fs = mount(Arc::new(MemDevice::from_image(dev.snapshot())), manual());
    assert_same(&read_all(&fs, file(&fs, "file")), &expected, "all shares after a remount");
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
    let ino = file(&fs, "file");
    let root = Caller::root();
    let done = AtomicBool::new(false);
    let looks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (fs, done, looks) = (&fs, &done, &looks);
            scope.spawn(move || {
                let mut dice = Dice::new(reader);
                let mut buf = vec![0; 64 << 10];
                while !done.load(Ordering::Relaxed) {
                    let got = fs.read(ino, dice.below(LENGTH), &mut buf).unwrap();
                    assert!(!buf[..got].contains(&STALE), "stale bytes");
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (fs, root) = (&fs, &root);
                scope.spawn(move || {
                    let mut dice = Dice::new(100 + writer);
                    for _ in 0..pick(400, 20_000) {
                        let (at, len) = (dice.below(LENGTH / 1024) * 1024, (1 + dice.below(20)) * 1024);
                        match dice.below(8) {
                            0 => fs.fallocate(root, ino, at, len, FallocateMode::PunchHole).unwrap(),
                            1 => {
                                let keep_size = dice.one_in(2);
                                let how = FallocateMode::Allocate { keep_size };
                                fs.fallocate(root, ino, at, len, how).unwrap();
                            }
                            2 => set_size(fs, ino, at).unwrap(),
                            3 => fs.fsync(ino, true).unwrap(),
                            n => {
                                let skew = if n == 4 { dice.below(1000) } else { 0 };
                                let data = vec![1; len as usize];
                                fs.write(root, ino, at + skew, &data, WriteMode::Direct).unwrap();
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
    assert!(read_all(&fs, ino).iter().all(|byte| [0, 1].contains(byte)));
    fs.unmount().unwrap();
    drop(fs);
    e2fsck(&dev.snapshot(), "after the fillers");
}
