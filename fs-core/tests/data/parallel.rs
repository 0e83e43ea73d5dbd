//! Several threads on one file, each with bytes of its own that share blocks with its neighbours'.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::sim::{Dice, MemDevice};
use blockdev::{Env, Workers};
use ext4_format::Ino;
use fs_core::Filesystem;
use fs_core::ops::FallocateMode;
use fs_core::ops::WriteMode;
use fs_core::types::Caller;

use crate::harness::{
    assert_same, e2fsck, file, foreign_read, manual, mke2fs, mount, pick, read_all, set_size,
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

fn stress(args: &[&str], rounds: u64) {
    let dev = Arc::new(MemDevice::from_image(mke2fs(args)));
    let fs = mount(dev.clone(), env());
    let ino = file(&fs, "file");
    set_size(&fs, ino, THREADS * SHARE).unwrap();
    let other = file(&fs, "other");
    let done = AtomicBool::new(false);
    let models = std::thread::scope(|scope| {
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
        done.store(true, Ordering::Relaxed);
        churn.join().unwrap();
        models.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    });
    let expected = models.concat();
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
