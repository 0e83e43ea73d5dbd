//! Many threads at once: handles, commits, checkpoints, freed blocks handed to files, and power cuts.

mod common;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use blockdev::BlockDevice;
use blockdev::sim::{Dice, Keep, MemDevice, Recorder, Walk};
use common::*;
use ext4_format::{BlockNo, Tid};
use jbd2::{Checkpoint, CommitObserver, Credits, Error, Handle, Journal, recovery};

const THREADS: u64 = 4;

/// Pairs of blocks that always change together: a handle writes the same number into both.
fn pair(index: u64) -> (u64, u64) {
    (10 + index, 200 + index)
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// Adds one to both halves of a pair; the transaction and the number reached.
fn bump(journal: &Journal, index: u64) -> (Tid, u64) {
    let handle = journal.start(Credits::blocks(2)).unwrap();
    let (low, high) = (read(journal, pair(index).0), read(journal, pair(index).1));
    let (reached, other) = {
        // Ascending, as every caller takes them.
        let mut low = handle.write(&low).unwrap();
        let mut high = handle.write(&high).unwrap();
        let reached = number(&low) + 1;
        let other = number(&high) + 1;
        low[..8].copy_from_slice(&reached.to_le_bytes());
        high[..8].copy_from_slice(&other.to_le_bytes());
        (reached, other)
    };
    assert_eq!(reached, other, "a pair came apart");
    let tid = handle.tid();
    handle.finish().unwrap();
    (tid, reached)
}

fn blank(shape: &Shape) -> blockdev::sim::Image {
    let mut image = shape.image();
    for block in 0..HOMES {
        image.write(shape.at(block), &vec![0; shape.block_size as usize]);
    }
    image
}

#[test]
fn parallel_handles_commits_and_checkpoints_stay_atomic_across_cuts() {
    for seed in 0..3 {
        let shape = Shape { log_blocks: 96, ..Shape::small() };
        let recorder = Recorder::new(blank(&shape));
        let journal = shape.open(Arc::new(recorder.clone()));
        // (position of the recording, pair, number that was durable by then)
        let promises = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (journal, promises, recorder) = (&journal, &promises, &recorder);
                scope.spawn(move || {
                    let mut dice = Dice::new(seed * 100 + thread);
                    for _ in 0..120 {
                        let index = dice.below(12);
                        let (tid, reached) = bump(journal, index);
                        match dice.below(8) {
                            0 | 1 => {
                                journal.commit(tid).unwrap();
                                assert!(journal.is_committed(tid));
                                promises.lock().unwrap().push((recorder.position(), index, reached));
                            }
                            2 => journal.checkpoint(Checkpoint::Some).unwrap(),
                            3 => {
                                let (low, _) = pair(index);
                                assert!(number(&read(journal, low).data()) >= reached);
                            }
                            _ => {}
                        }
                    }
                });
            }
        });
        let promises = promises.into_inner().unwrap();
        let recording = recorder.recording();
        let mut walk = Walk::new(&recording);
        let mut dice = Dice::new(seed);
        for cut in 0..=recording.events().len() {
            walk.go_to(cut);
            for keep in [Keep::All, Keep::Nothing, Keep::Seeded(dice.roll())] {
                let dev = MemDevice::from_image(walk.build(keep).image);
                recovery::recover(&dev, shape.block_size, &shape.location()).unwrap();
                for index in 0..12 {
                    let low = number(&shape.on_disk(&dev, pair(index).0));
                    let high = number(&shape.on_disk(&dev, pair(index).1));
                    assert_eq!(low, high, "pair {index} torn: seed {seed} cut {cut} keep {keep:?}");
                    let promised =
                        promises.iter().filter(|(at, i, _)| *at <= cut && *i == index).map(|p| p.2).max();
                    assert!(
                        low >= promised.unwrap_or(0),
                        "pair {index}: seed {seed} cut {cut} keep {keep:?}"
                    );
                }
            }
        }
        journal.close().unwrap();
    }
}

#[test]
fn waiting_commits_share_one() {
    let shape = Shape { log_blocks: 1024, ..Shape::small() };
    let journal = shape.open(Arc::new(MemDevice::from_image(blank(&shape))));
    let rounds = 200;
    let barrier = std::sync::Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (journal, barrier) = (&journal, &barrier);
            scope.spawn(move || {
                for _ in 0..rounds {
                    let (tid, _) = bump(journal, thread);
                    // Everybody is in the running transaction before anybody asks.
                    barrier.wait();
                    journal.commit(tid).unwrap();
                    assert!(journal.is_committed(tid));
                    barrier.wait();
                }
            });
        }
    });
    assert_eq!(journal.stats().commits, rounds);
}

/// Blocks that were freed and may be given to a file, as a filesystem keeps them.
#[derive(Default)]
struct Freed {
    pending: Mutex<Vec<(Tid, u64)>>,
    free: Mutex<VecDeque<u64>>,
}

impl CommitObserver for Freed {
    fn closing(&self, _tid: Tid, _handle: &Handle<'_>) -> jbd2::Result<()> {
        Ok(())
    }
    fn committed(&self, tid: Tid) {
        let mut pending = self.pending.lock().unwrap();
        let now: Vec<u64> = pending.extract_if(.., |(at, _)| tid.is_at_least(*at)).map(|(_, b)| b).collect();
        self.free.lock().unwrap().extend(now);
    }
    fn aborted(&self, _cause: &Error) {}
}

/// Each block goes around: free, a file's data written in place, free, metadata, freed in a transaction.
/// No checkpoint, however late, may bring metadata back over the file's bytes.
#[test]
fn a_late_checkpoint_never_overwrites_a_block_that_was_given_away() {
    let shape = Shape { log_blocks: 128, ..Shape::small() };
    let dev = Arc::new(MemDevice::from_image(blank(&shape)));
    let journal = shape.open(dev.clone());
    let freed = Arc::new(Freed::default());
    freed.free.lock().unwrap().extend(20..60);
    journal.set_observer(freed.clone());
    let stamps = AtomicU64::new(1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (journal, freed, dev, stamps, done) = (&journal, &freed, &dev, &stamps, &done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                journal.checkpoint(Checkpoint::All).unwrap();
                std::thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let mut dice = Dice::new(thread);
                    for _ in 0..300 {
                        let Some(block) = freed.free.lock().unwrap().pop_front() else {
                            journal.commit_running().unwrap();
                            continue;
                        };
                        let stamp = stamps.fetch_add(1, Ordering::Relaxed);
                        if dice.one_in(2) {
                            journal.invalidate(BlockNo(block), 1);
                            dev.write_at(shape.at(block), &shape.bytes(stamp)).unwrap();
                            for _ in 0..dice.below(50) {
                                std::thread::yield_now();
                                assert!(shape.on_disk(&**dev, block) == shape.bytes(stamp), "block {block}");
                            }
                            freed.free.lock().unwrap().push_back(block);
                            continue;
                        }
                        let handle = journal.start(Credits::blocks(1)).unwrap();
                        let buf = handle.create(BlockNo(block)).unwrap();
                        handle.write(&buf).unwrap().copy_from_slice(&shape.bytes(stamp));
                        handle.finish().unwrap();
                        if dice.one_in(2) {
                            journal.commit_running().unwrap();
                        }
                        let handle = journal.start(Credits { blocks: 1, revokes: 1 }).unwrap();
                        write(&handle, 5, &shape.bytes(stamp));
                        handle.forget(BlockNo(block)).unwrap();
                        freed.pending.lock().unwrap().push((handle.tid(), block));
                        handle.finish().unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    journal.close().unwrap();
}

/// Big reservations among small ones get their turn, and nobody waits for ever in a log as small as this.
#[test]
fn a_small_log_under_pressure_lets_everybody_through() {
    let shape = Shape::small();
    let journal = shape.open(Arc::new(MemDevice::from_image(blank(&shape))));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let journal = &journal;
            scope.spawn(move || {
                let mut dice = Dice::new(thread);
                for _ in 0..300 {
                    let credits = Credits::blocks(if thread == 0 { 11 } else { 1 + dice.below(4) as u32 });
                    let mut handle = journal.start(credits).unwrap();
                    for i in 0..u64::from(credits.blocks) {
                        write(&handle, 10 + (thread * 40 + i) % 180, &shape.bytes(i));
                    }
                    if dice.one_in(4) && !handle.extend(Credits::blocks(4)).unwrap() {
                        handle.restart(Credits::blocks(4)).unwrap();
                    }
                }
            });
        }
    });
    journal.close().unwrap();
    assert_eq!(journal.stats().log_used, 0);
}

/// A device whose writes to a range wait at a gate, and that keeps a diary.
struct Gate {
    disk: MemDevice,
    guarded: std::ops::Range<u64>,
    open: AtomicBool,
    diary: Arc<Mutex<Vec<&'static str>>>,
}

impl BlockDevice for Gate {
    fn geometry(&self) -> blockdev::DeviceGeometry {
        self.disk.geometry()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> blockdev::Result<()> {
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> blockdev::Result<()> {
        if self.guarded.contains(&offset) {
            self.diary.lock().unwrap().push("guarded write begins");
            // Not for ever: a test that waits for what never comes should fail, not hang.
            for _ in 0..2_000_000 {
                if self.open.load(Ordering::Acquire) {
                    break;
                }
                std::thread::yield_now();
            }
            self.disk.write_at(offset, buf)?;
            self.diary.lock().unwrap().push("guarded write ends");
            return Ok(());
        }
        self.disk.write_at(offset, buf)
    }
    fn flush(&self) -> blockdev::Result<()> {
        self.diary.lock().unwrap().push("flush");
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        self.disk.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        self.disk.write_zeroes(offset, len)
    }
}

struct Diarist(Arc<Mutex<Vec<&'static str>>>);

impl CommitObserver for Diarist {
    fn closing(&self, _tid: Tid, _handle: &Handle<'_>) -> jbd2::Result<()> {
        Ok(())
    }
    fn committed(&self, _tid: Tid) {
        self.0.lock().unwrap().push("committed");
    }
    fn aborted(&self, _cause: &Error) {}
}

#[test]
fn a_block_is_not_given_back_while_an_older_version_is_on_its_way_home() {
    let shape = Shape::small();
    let diary = Arc::new(Mutex::new(Vec::new()));
    let dev = Arc::new(Gate {
        disk: MemDevice::from_image(blank(&shape)),
        guarded: shape.at(5)..shape.at(6),
        open: AtomicBool::new(false),
        diary: diary.clone(),
    });
    let journal = shape.open(dev.clone());
    journal.commit(write_all(&shape, &journal, &[(5, 1)])).unwrap();
    journal.set_observer(Arc::new(Diarist(diary.clone())));
    let wait_for = |entry: &str, times: usize| {
        while diary.lock().unwrap().iter().filter(|seen| **seen == entry).count() < times {
            std::thread::yield_now();
        }
    };
    diary.lock().unwrap().clear();
    std::thread::scope(|scope| {
        scope.spawn(|| journal.checkpoint(Checkpoint::All).unwrap());
        wait_for("guarded write begins", 1);
        let handle = journal.start(Credits { blocks: 1, revokes: 1 }).unwrap();
        handle.forget(BlockNo(5)).unwrap();
        let tid = handle.tid();
        handle.finish().unwrap();
        scope.spawn({
            let journal = &journal;
            move || journal.commit(tid).unwrap()
        });
        // Both flushes of the commit: from here on only the checkpoint holds it up.
        wait_for("flush", 2);
        for _ in 0..2000 {
            std::thread::yield_now();
        }
        dev.open.store(true, Ordering::Release);
    });
    let diary = diary.lock().unwrap();
    let at = |entry| diary.iter().position(|seen| *seen == entry).unwrap();
    assert!(at("guarded write ends") < at("committed"), "{diary:?}");
}

#[test]
fn starts_go_on_while_the_start_that_met_a_full_transaction_commits_it() {
    let shape = Shape::small();
    let diary = Arc::new(Mutex::new(Vec::new()));
    let dev = Arc::new(Gate {
        disk: MemDevice::from_image(blank(&shape)),
        // The log.
        guarded: shape.at(HOMES)..shape.at(shape.blocks()),
        open: AtomicBool::new(true),
        diary: diary.clone(),
    });
    let journal = shape.open(dev.clone());
    let full = write_all(&shape, &journal, &[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)]);
    dev.open.store(false, Ordering::Release);
    std::thread::scope(|scope| {
        let journal = &journal;
        scope.spawn(|| drop(journal.start(Credits::blocks(8)).unwrap()));
        while !diary.lock().unwrap().contains(&"guarded write begins") {
            std::thread::yield_now();
        }
        assert_eq!(write_all(&shape, journal, &[(8, 8)]), full.next());
        diary.lock().unwrap().push("started");
        dev.open.store(true, Ordering::Release);
    });
    let diary = diary.lock().unwrap();
    let at = |entry| diary.iter().position(|seen| *seen == entry).unwrap();
    assert!(at("started") < at("guarded write ends"), "{diary:?}");
    assert!(journal.is_committed(full));
}
