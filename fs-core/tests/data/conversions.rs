//! The completed list and its conversion: bounded, merged, done once, and true at every commit.

use std::sync::Arc;

use blockdev::sim::{MemDevice, Recorder, Walk};
use blockdev::{Env, Workers};
use fs_core::{Credentials, FallocateMode, Filesystem, OpenFile, WriteKind};

use crate::harness::{assert_same, e2fsck, manual, mke2fs, mount, open, read_all, recover};

const BLOCK: u64 = 1024;

fn write(file: &OpenFile, block: u64, byte: u8) {
    let data = [byte; BLOCK as usize];
    assert_eq!(
        file.write_as(&Credentials::root(), &data, block * BLOCK, WriteKind::Direct).unwrap(),
        data.len()
    );
}

/// Ranges whose leaves fill more than one transaction, beyond the size on disk and in preallocated space, so
/// that no orphan record vouches for them.
#[test]
fn a_commit_between_two_batches_leaves_no_written_extent_behind_the_size() {
    let recorder = Recorder::new(mke2fs(&["-t", "ext4", "-b", "1024", "-J", "size=1"]));
    let fs = mount(Arc::new(recorder.clone()), manual());
    let file = open(&fs, "file");
    let keep = FallocateMode::Allocate { keep_size: true };
    for at in 0..20_000 {
        file.fallocate_as(&Credentials::root(), 2 * at * BLOCK, BLOCK, keep).unwrap();
    }
    let written: Vec<u64> = (0..250).map(|n| n * 160).collect();
    for &block in &written {
        write(&file, block, 7);
    }
    fs.step_commit().unwrap();
    assert_eq!(fs.data_stats().conversions_pending, 250);
    let before = recorder.recording().events().len();
    fs.step_convert();
    let recording = recorder.recording();
    assert!(recording.events().len() > before, "nothing was committed between the batches");
    let mut walk = Walk::new(&recording);
    walk.go_to(recording.events().len());
    for keep in walk.keeps(1, 1, 1) {
        let dev = Arc::new(MemDevice::from_image(walk.build(keep).image));
        let fs = recover(dev.clone()).unwrap();
        let file = open(&fs, "file");
        let size = file.attributes().unwrap().size as usize;
        // What a larger size brings into the file are zeros. (It also spares e2fsck 1.47 deep trees that go
        // on behind the size, whose index nodes it takes for wrong.)
        file.set_len(40_000 * BLOCK).unwrap();
        let found = read_all(&file);
        assert!(found[size..].iter().all(|byte| *byte == 0), "written extents behind the size {size}");
        assert!(found.iter().all(|byte| *byte == 0 || *byte == 7));
        fs.close().unwrap();
        drop(fs);
        e2fsck(&dev.snapshot(), "between two batches");
    }
}

/// Whatever room is left in the transaction, there is enough to go on or it is committed. (A handle that got
/// what it began with, but not what it needed then, came back for ever.)
#[test]
fn ranges_are_zeroed_however_full_the_transaction_is() {
    let dev = Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4", "-b", "1024", "-J", "size=1"])));
    let fs = mount(dev.clone(), manual());
    let file = open(&fs, "file");
    const BLOCKS: u64 = 2000;
    let zero = FallocateMode::ZeroRange { keep_size: false };
    let mut expected = vec![9; (BLOCKS * BLOCK) as usize];
    assert_eq!(file.write_as(&Credentials::root(), &expected, 0, WriteKind::Cached).unwrap(), expected.len());
    file.sync(false).unwrap();
    for block in (1..BLOCKS).step_by(3) {
        open(&fs, &format!("beside{block}"));
        file.fallocate_as(&Credentials::root(), block * BLOCK, BLOCK, zero).unwrap();
        expected[(block * BLOCK) as usize..][..BLOCK as usize].fill(0);
    }
    assert_same(&read_all(&file), &expected, "zeroed");
    fs.close().unwrap();
    drop(fs);
    e2fsck(&dev.snapshot(), "zeroed");
}

/// A write that fills a hole and goes on over blocks that hold data: the end of the data is not the end of
/// the last range that is converted.
#[test]
fn the_size_moves_with_data_that_end_in_blocks_written_before() {
    for mode in [WriteKind::Direct, WriteKind::Cached] {
        let dev = Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4", "-b", "1024"])));
        let fs = mount(dev.clone(), manual());
        let file = open(&fs, "file");
        let put = |at: u64, bytes: &[u8], mode| {
            assert_eq!(file.write_as(&Credentials::root(), bytes, at, mode).unwrap(), bytes.len());
        };
        put(4 * BLOCK, &[1; 2000], WriteKind::Cached);
        file.sync(false).unwrap();
        put(0, &[2; 6 * BLOCK as usize], mode);
        file.sync(false).unwrap();
        let after_a_cut = Arc::new(MemDevice::from_image(dev.snapshot()));
        let fs = recover(after_a_cut.clone()).unwrap();
        assert_same(&read_all(&open(&fs, "file")), &[2; 6 * BLOCK as usize], &format!("{mode:?}"));
        fs.close().unwrap();
        drop(fs);
        e2fsck(&after_a_cut.snapshot(), "after the longer write");
    }
}

/// Nobody converts here but the writers themselves.
#[test]
fn writers_help_when_the_worker_does_not_keep_up() {
    const FILES: u64 = 3;
    const RANGES: u64 = 1500;
    let dev = Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4", "-b", "1024"])));
    let fs = mount(dev.clone(), manual());
    let files: Vec<OpenFile> = (0..FILES).map(|n| open(&fs, &format!("file{n}"))).collect();
    let mut most = 0;
    for n in 0..RANGES {
        for file in &files {
            write(file, 2 * n, 9);
        }
        most = most.max(fs.data_stats().conversions_pending);
    }
    let stats = fs.data_stats();
    assert_eq!((stats.conversions_queued, stats.conversions_merged), (FILES * RANGES, 0), "{stats}");
    assert!((FILES * 200..=FILES * 257).contains(&most), "{most} ranges waited: {stats}");
    assert_eq!(stats.conversions_by_worker + stats.conversions_by_fsync, 0, "{stats}");
    assert_eq!(stats.conversions_by_writers + stats.conversions_pending, FILES * RANGES, "{stats}");
    fs.close().unwrap();
    drop(fs);
    e2fsck(&dev.snapshot(), "after the flood");
}

/// The worker and fsync race for the same ranges: each is converted once, whoever comes first.
#[test]
fn worker_and_fsync_convert_each_range_once() {
    let dev = Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4", "-b", "1024"])));
    let fs = mount(dev.clone(), Env { workers: Workers::Threads, ..Env::system() });
    let file = open(&fs, "file");
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (fs, file) = (&fs, &file);
            scope.spawn(move || {
                for n in 0..600 {
                    write(file, 4 * n + 2 * worker, 1 + worker as u8);
                    match n % 3 {
                        0 => file.sync(true).unwrap(),
                        1 => fs.step_convert(),
                        _ => {}
                    }
                }
            });
        }
    });
    file.sync(false).unwrap();
    let stats = fs.data_stats();
    let done = stats.conversions_by_worker + stats.conversions_by_fsync + stats.conversions_by_writers;
    assert_eq!(stats.conversions_queued, 1200, "{stats}");
    assert_eq!(done + stats.conversions_merged, 1200, "{stats}");
    assert!(stats.conversions_by_worker > 0 && stats.conversions_by_fsync > 0, "{stats}");
    fs.close().unwrap();
    drop(fs);
    e2fsck(&dev.snapshot(), "after the race");
}

#[test]
fn neighbours_are_merged_and_overwrites_need_no_handle() {
    let dev = Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4", "-b", "1024"])));
    let fs = mount(dev.clone(), manual());
    let file = open(&fs, "file");
    for block in [0, 2, 1, 3] {
        write(&file, block, 1);
    }
    let stats = fs.data_stats();
    assert_eq!((stats.conversions_queued, stats.conversions_merged, stats.conversions_pending), (4, 2, 1));
    file.sync(false).unwrap();
    assert_eq!(fs.data_stats().conversions_by_fsync, 1);
    for block in [1, 0] {
        write(&file, block, 2);
    }
    let stats = fs.data_stats();
    assert_eq!((stats.overwrites, stats.conversions_queued, stats.conversions_pending), (2, 4, 0), "{stats}");
    let expected = [[2; BLOCK as usize], [2; 1024], [1; 1024], [1; 1024]].concat();
    assert_same(&read_all(&file), &expected, "overwritten");
    fs.close().unwrap();
    drop(fs);
    e2fsck(&dev.snapshot(), "after overwrites");
}

/// What an operation that makes things durable is called, and how it is asked for.
type Flusher = (&'static str, fn(&Filesystem, &OpenFile));

#[test]
fn whoever_commits_flushes_the_completed_list_before() {
    let flushers: [Flusher; 5] = [
        ("fsync", |_, file| file.sync(false).unwrap()),
        ("fdatasync", |_, file| file.sync(true).unwrap()),
        ("syncfs", |fs, _| fs.sync().unwrap()),
        ("the commit timer", |fs, _| fs.tick().unwrap()),
        ("unmount", |fs, _| fs.close().unwrap()),
    ];
    for (name, flush) in flushers {
        let recorder = Recorder::new(mke2fs(&["-t", "ext4", "-b", "1024"]));
        let fs = mount(Arc::new(recorder.clone()), manual());
        let file = open(&fs, "file");
        fs.sync().unwrap();
        for block in [0, 1, 5] {
            write(&file, block, 6);
        }
        assert_eq!(fs.data_stats().conversions_pending, 2, "{name}");
        flush(&fs, &file);
        assert_eq!(fs.data_stats().conversions_pending, 0, "{name}");
        // The power goes: what is open is lost.
        let recording = recorder.recording();
        let mut walk = Walk::new(&recording);
        walk.go_to(recording.events().len());
        for keep in walk.keeps(0, 0, 1) {
            let dev = Arc::new(MemDevice::from_image(walk.build(keep).image));
            let fs = recover(dev).unwrap();
            let expected = [[6; 1024], [6; 1024], [0; 1024], [0; 1024], [0; 1024], [6; 1024]].concat();
            assert_same(&read_all(&open(&fs, "file")), &expected, name);
        }
    }
}
