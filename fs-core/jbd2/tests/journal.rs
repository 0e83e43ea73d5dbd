//! What one thread sees: commits, copies, checkpoints, credits, failure.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blockdev::sim::{Event, Fault, FaultDevice, MemDevice, Recorder, When};
use blockdev::{BlockDevice, Op};
use common::*;
use ext4_format::{BlockNo, Corruption, Tid, What};
use jbd2::{Checkpoint, CommitObserver, Credits, Error, Handle, Journal, Options, recovery};

#[test]
fn what_was_committed_is_replayed_and_what_was_not_is_gone() {
    for shape in shapes() {
        let dev = Arc::new(MemDevice::from_image(shape.image()));
        let journal = shape.open(dev.clone());
        let writes: Vec<(u64, u64)> = (0..50).map(|i| (i * 7 % 350, 1000 + i)).collect();
        let tid = write_all(&shape, &journal, &writes);
        journal.commit(tid).unwrap();
        assert!(journal.is_committed(tid));
        write_all(&shape, &journal, &[(3, 77), (399, 78)]);
        let before = shape.on_disk(&*dev, 0);
        assert_ne!(before, shape.bytes(1000), "nothing goes home with a commit");

        let view: Arc<dyn BlockDevice> = dev.clone();
        let replay = recovery::scan(&*view, shape.block_size, &shape.location()).unwrap();
        let overlay = recovery::Overlay::new(view, shape.block_size, replay);
        let found = recovery::recover(&*dev, shape.block_size, &shape.location()).unwrap();
        assert_eq!((found.transactions, found.blocks, found.revokes), (1, 50, 0), "{shape:?}");
        for (block, stamp) in writes {
            assert_eq!(shape.on_disk(&*dev, block), shape.bytes(stamp), "block {block} of {shape:?}");
            assert_eq!(shape.on_disk(&overlay, block), shape.bytes(stamp), "overlaid block {block}");
        }
        assert_ne!(shape.on_disk(&*dev, 3), shape.bytes(77));
        let again = recovery::recover(&*dev, shape.block_size, &shape.location()).unwrap();
        assert_eq!(again, recovery::Recovered::default());
    }
}

#[test]
fn a_closed_log_is_empty_and_opens_with_the_next_sequence() {
    let shape = Shape::small();
    let dev = Arc::new(MemDevice::from_image(shape.image()));
    let journal = shape.open(dev.clone());
    let first = write_all(&shape, &journal, &[(1, 10)]);
    journal.commit(first).unwrap();
    assert!(matches!(
        Journal::open(dev.clone(), shape.block_size, shape.location(), shape.options()),
        Err(Error::NeedsRecovery)
    ));
    journal.close().unwrap();
    assert_eq!(shape.on_disk(&*dev, 1), shape.bytes(10));
    assert_eq!(journal.stats().log_used, 0);
    drop(journal);
    let journal = shape.open(dev);
    assert_eq!(write_all(&shape, &journal, &[(1, 11)]), first.next());
}

#[test]
fn a_reader_keeps_its_snapshot_and_a_commit_keeps_its_own() {
    let shape = Shape::small();
    let dev = Arc::new(MemDevice::from_image(shape.image()));
    let journal = shape.open(dev.clone());
    let tid = write_all(&shape, &journal, &[(9, 20)]);
    let held = read(&journal, 9).data();
    write_all(&shape, &journal, &[(9, 21)]);
    assert_eq!(&held[..], shape.bytes(20));
    journal.commit(tid).unwrap();
    // Dirty again, in a newer transaction: only the committed version may go home.
    write_all(&shape, &journal, &[(9, 22)]);
    journal.checkpoint(Checkpoint::All).unwrap();
    assert_eq!(shape.on_disk(&*dev, 9), shape.bytes(21));
    assert_eq!(&read(&journal, 9).data()[..], shape.bytes(22));
}

#[test]
fn a_version_that_a_newer_committed_one_replaced_is_not_written_home() {
    let shape = Shape::small();
    let dev = Arc::new(MemDevice::from_image(shape.image()));
    let journal = shape.open(dev.clone());
    for stamp in 1..6 {
        let tid = write_all(&shape, &journal, &[(9, stamp), (100 + stamp, stamp)]);
        journal.commit(tid).unwrap();
    }
    journal.checkpoint(Checkpoint::All).unwrap();
    assert_eq!(journal.stats().home_blocks, 6);
    assert_eq!(shape.on_disk(&*dev, 9), shape.bytes(5));
}

#[test]
fn a_commit_without_changes_writes_nothing() {
    let shape = Shape::small();
    let dev = Recorder::new(shape.image());
    let journal = shape.open(Arc::new(dev.clone()));
    let handle = journal.start(Credits::blocks(4)).unwrap();
    let tid = handle.tid();
    handle.finish().unwrap();
    journal.commit(tid).unwrap();
    journal.commit_running().unwrap();
    assert_eq!(dev.recording().events().len(), 0);
    assert_eq!(journal.running(), Some(tid), "it keeps running");
    journal.flush_device().unwrap();
    assert!(matches!(dev.recording().events(), [Event::Flushed { .. }]));
}

#[test]
fn the_last_write_of_a_commit_is_one_sector() {
    for shape in shapes() {
        let dev = Recorder::new(shape.image());
        let journal = shape.open(Arc::new(dev.clone()));
        journal.commit(write_all(&shape, &journal, &[(1, 1)])).unwrap();
        let recording = dev.recording();
        let [.., Event::Flushed { .. }, Event::Changed { change, .. }, Event::Flushed { .. }] =
            recording.events()
        else {
            panic!("{:?}", recording.events());
        };
        assert_eq!(change.len(), 512, "a commit block torn between sectors is refused by the kernel");
    }
}

#[test]
fn a_forgotten_block_is_not_written_and_its_old_copy_is_revoked() {
    for shape in shapes() {
        let dev = Arc::new(MemDevice::from_image(shape.image()));
        let journal = shape.open(dev.clone());
        let tid = write_all(&shape, &journal, &[(5, 30), (6, 31)]);
        journal.commit(tid).unwrap();
        let handle = journal.start(Credits { blocks: 3, revokes: 2 }).unwrap();
        write(&handle, 5, &shape.bytes(32));
        write(&handle, 7, &shape.bytes(33));
        handle.forget(BlockNo(5)).unwrap();
        handle.forget(BlockNo(7)).unwrap();
        assert_eq!(handle.left(), Credits { blocks: 3, revokes: 1 }, "7 was never logged");
        let tid = handle.tid();
        handle.finish().unwrap();
        journal.commit(tid).unwrap();
        // Both are a file's now.
        for block in [5, 7] {
            journal.invalidate(BlockNo(block), 1);
            dev.write_at(shape.at(block), &shape.bytes(40 + block)).unwrap();
        }
        let copy = MemDevice::from_image(dev.snapshot());
        let found = recovery::recover(&copy, shape.block_size, &shape.location()).unwrap();
        assert_eq!((found.transactions, found.blocks, found.revokes), (2, 1, 1), "{shape:?}");
        for dev in [&copy as &dyn BlockDevice, &*dev] {
            assert_eq!(shape.on_disk(dev, 5), shape.bytes(45));
            assert_eq!(shape.on_disk(dev, 7), shape.bytes(47));
        }
        journal.close().unwrap();
        assert_eq!(shape.on_disk(&*dev, 5), shape.bytes(45), "nor does a checkpoint write it");
        assert_eq!(shape.on_disk(&*dev, 6), shape.bytes(31));
    }
}

#[test]
fn a_block_created_after_it_was_forgotten_is_replayed() {
    let shape = Shape::small();
    let dev = Arc::new(MemDevice::from_image(shape.image()));
    let journal = shape.open(dev.clone());
    let tid = write_all(&shape, &journal, &[(5, 30), (6, 30)]);
    journal.commit(tid).unwrap();
    // In the same transaction, and in the one after.
    let handle = journal.start(Credits { blocks: 1, revokes: 2 }).unwrap();
    handle.forget(BlockNo(5)).unwrap();
    handle.forget(BlockNo(6)).unwrap();
    let buf = handle.create(BlockNo(5)).unwrap();
    assert_eq!(handle.left().revokes, 1, "the revoke was taken back");
    assert!(buf.data().iter().all(|byte| *byte == 0));
    handle.write(&buf).unwrap().copy_from_slice(&shape.bytes(31));
    handle.finish().unwrap();
    journal.commit_running().unwrap();
    let handle = journal.start(Credits::blocks(1)).unwrap();
    let buf = handle.create(BlockNo(6)).unwrap();
    handle.write(&buf).unwrap().copy_from_slice(&shape.bytes(32));
    handle.finish().unwrap();
    journal.commit_running().unwrap();
    let found = recovery::recover(&*dev, shape.block_size, &shape.location()).unwrap();
    assert_eq!((found.transactions, found.blocks, found.revokes), (3, 2, 1));
    assert_eq!(shape.on_disk(&*dev, 5), shape.bytes(31));
    assert_eq!(shape.on_disk(&*dev, 6), shape.bytes(32));
}

#[test]
fn a_forgotten_buffer_cannot_be_written() {
    let shape = Shape::small();
    let journal = shape.open(Arc::new(MemDevice::from_image(shape.image())));
    let handle = journal.start(Credits { blocks: 1, revokes: 1 }).unwrap();
    let buf = read(&journal, 5);
    handle.forget(BlockNo(5)).unwrap();
    assert!(matches!(handle.write(&buf), Err(Error::Forgotten { block: BlockNo(5) })));
}

#[test]
fn the_log_wraps_for_a_long_time_and_its_accounting_stays_exact() {
    for shape in shapes() {
        let shape = Shape { log_blocks: 97, ..shape };
        let dev = Arc::new(MemDevice::from_image(shape.image()));
        let journal = shape.open(dev.clone());
        let mut expected = [0; 60];
        for round in 0..400u64 {
            let writes: Vec<(u64, u64)> =
                (0..1 + round % 14).map(|i| ((round * 3 + i * 5) % 60, round)).collect();
            let tid = write_all(&shape, &journal, &writes);
            for (block, stamp) in writes {
                expected[block as usize] = stamp;
            }
            journal.commit(tid).unwrap();
            let stats = journal.stats();
            assert!(stats.log_used <= stats.log_size);
        }
        assert!(journal.stats().checkpoints > 10);
        recovery::recover(&*dev, shape.block_size, &shape.location()).unwrap();
        for (block, stamp) in expected.iter().enumerate() {
            assert_eq!(shape.on_disk(&*dev, block as u64), shape.bytes(*stamp), "block {block} of {shape:?}");
        }
    }
}

#[test]
fn a_full_transaction_is_committed_by_the_start_that_does_not_fit() {
    let shape = Shape::small();
    let journal = shape.open(Arc::new(MemDevice::from_image(shape.image())));
    let max = match journal.start(Credits::blocks(10_000)) {
        Err(Error::TooManyCredits { max, .. }) => max,
        other => panic!("{:?}", other.map(|h| h.tid())),
    };
    assert_eq!(max, 63 / 4);
    let first = write_all(&shape, &journal, &[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]);
    let second = write_all(&shape, &journal, &[(7, 1), (8, 2), (9, 3), (10, 4), (11, 5), (12, 6), (13, 7)]);
    assert_eq!(second, first.next());
    assert!(journal.is_committed(first));
}

#[test]
fn a_handle_is_extended_while_there_is_room_and_restarted_when_not() {
    let shape = Shape::small();
    let journal = shape.open(Arc::new(MemDevice::from_image(shape.image())));
    let mut handle = journal.start(Credits::blocks(2)).unwrap();
    assert!(handle.extend(Credits::blocks(3)).unwrap());
    assert_eq!(handle.left().blocks, 5);
    assert!(!handle.extend(Credits::blocks(20)).unwrap());
    let first = handle.tid();
    write(&handle, 1, &shape.bytes(1));
    handle.restart(Credits::blocks(11)).unwrap();
    assert_eq!(handle.tid(), first.next());
    assert!(journal.is_committed(first));
}

#[test]
fn reserved_but_unused_credits_do_not_block_a_start_for_ever() {
    let shape = Shape::small();
    let journal = shape.open(Arc::new(MemDevice::from_image(shape.image())));
    let big = Credits::blocks(10);
    let handle = journal.start(big).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| journal.start(big).unwrap().tid());
        // Until the newcomer has locked the transaction to get the credits back.
        while handle.extend(Credits::default()).unwrap() {
            std::thread::yield_now();
        }
        let tid = handle.tid();
        drop(handle);
        assert_eq!(other.join().unwrap(), tid, "the transaction was empty and runs on");
    });
}

#[test]
fn without_a_log_a_commit_writes_home() {
    let shape = Shape::small();
    let dev = Arc::new(MemDevice::from_image(shape.image()));
    let journal = Journal::without_log(dev.clone(), shape.block_size, shape.options());
    let witness = Arc::new(Witness::default());
    journal.set_observer(witness.clone());
    let tid = write_all(&shape, &journal, &[(1, 10), (2, 11), (5, 12)]);
    assert_ne!(shape.on_disk(&*dev, 1), shape.bytes(10));
    journal.commit(tid).unwrap();
    for (block, stamp) in [(1, 10), (2, 11), (5, 12)] {
        assert_eq!(shape.on_disk(&*dev, block), shape.bytes(stamp));
    }
    assert_eq!(*witness.committed.lock().unwrap(), [tid]);
    journal.close().unwrap();
}

#[test]
fn a_read_only_journal_reads_and_starts_nothing() {
    let shape = Shape::small();
    let dev = MemDevice::from_image(shape.image());
    dev.write_at(shape.at(4), &shape.bytes(9)).unwrap();
    let journal = Journal::read_only(Arc::new(dev), shape.block_size, shape.options());
    assert!(matches!(journal.start(Credits::blocks(1)), Err(Error::ReadOnly)));
    assert_eq!(&read(&journal, 4).data()[..], shape.bytes(9));
    assert!(matches!(journal.read(BlockNo(shape.blocks()), any), Err(Error::OutOfRange { .. })));
}

#[test]
fn a_block_is_verified_once_and_a_bad_one_is_not_kept() {
    let shape = Shape::small();
    let dev = Arc::new(MemDevice::from_image(shape.image()));
    let journal = shape.open(dev.clone());
    let bad = |_: &[u8]| Err(Corruption::new(What::DirBlock, "checksum", 1, 2));
    match journal.read(BlockNo(8), bad) {
        Err(Error::Corrupt(c)) => assert_eq!(c.place.block, Some(BlockNo(8))),
        other => panic!("{other:?}"),
    }
    dev.write_at(shape.at(8), &shape.bytes(3)).unwrap();
    assert_eq!(&read(&journal, 8).data()[..], shape.bytes(3));
    journal.read(BlockNo(8), bad).expect("verified before");
    // Read ahead is not verified yet.
    journal.read_ahead(BlockNo(20), 8);
    let loads = journal.stats().loads;
    assert!(journal.read(BlockNo(22), bad).is_err());
    read(&journal, 23);
    assert_eq!(journal.stats().loads, loads, "both were in memory");
    journal.read_ahead(BlockNo(shape.blocks() - 2), 100);
}

#[test]
fn clean_blocks_are_evicted_and_dirty_ones_are_not() {
    let shape = Shape { log_blocks: 256, ..Shape::small() };
    let dev = Arc::new(MemDevice::from_image(shape.image()));
    // The smallest cache: 16 shards of 16.
    let opts = Options { cache_bytes: 1, ..shape.options() };
    let journal = Journal::open(dev, shape.block_size, shape.location(), opts).unwrap();
    let writes: Vec<(u64, u64)> = (0..40).map(|i| (i, 500 + i)).collect();
    let tid = write_all(&shape, &journal, &writes);
    journal.commit(tid).unwrap();
    let dirty: Vec<(u64, u64)> = (40..50).map(|i| (i, 500 + i)).collect();
    write_all(&shape, &journal, &dirty);
    for block in 60..HOMES {
        read(&journal, block);
    }
    assert!(journal.stats().cached <= 256 + 50);
    let loads = journal.stats().loads;
    for (block, stamp) in writes.iter().chain(&dirty) {
        assert_eq!(&read(&journal, *block).data()[..], shape.bytes(*stamp));
    }
    assert_eq!(journal.stats().loads, loads, "neither the running nor the committed blocks left the cache");
}

struct Closer(AtomicU32);

impl CommitObserver for Closer {
    fn closing(&self, _tid: Tid, handle: &Handle<'_>) -> jbd2::Result<()> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let buf = handle.journal().read(BlockNo(0), any)?;
        handle.write(&buf)?[..4].copy_from_slice(&count.to_le_bytes());
        Ok(())
    }
    fn committed(&self, _tid: Tid) {}
    fn aborted(&self, _cause: &Error) {}
}

#[test]
fn the_last_edits_of_a_transaction_are_part_of_it() {
    let shape = Shape::small();
    let dev = Arc::new(MemDevice::from_image(shape.image()));
    let journal = shape.open(dev.clone());
    journal.set_observer(Arc::new(Closer(AtomicU32::new(0))));
    for stamp in 1..4 {
        journal.commit(write_all(&shape, &journal, &[(9, stamp)])).unwrap();
    }
    recovery::recover(&*dev, shape.block_size, &shape.location()).unwrap();
    assert_eq!(shape.on_disk(&*dev, 0)[..4], 3u32.to_le_bytes());
}

#[test]
fn a_failing_log_aborts_once_and_keeps_the_first_cause() {
    for op in [Op::Write, Op::Flush] {
        for nth in 0..3 {
            let shape = Shape::small();
            let dev = Arc::new(FaultDevice::new(MemDevice::from_image(shape.image()), 1));
            let journal = shape.open(dev.clone());
            let witness = Arc::new(Witness::default());
            journal.set_observer(witness.clone());
            let tid = write_all(&shape, &journal, &[(1, 1)]);
            dev.arm(Fault { op, when: When::Nth(nth), sticky: true, errno: 5 });
            let result = journal.commit(tid).and_then(|()| journal.checkpoint(Checkpoint::All));
            assert!(
                matches!(&result, Err(Error::Aborted(cause)) if matches!(**cause, Error::Io(_))),
                "{result:?}"
            );
            journal.abort(Error::ShutDown);
            assert!(matches!(journal.is_aborted().unwrap().root(), Error::Io(_)));
            assert!(matches!(journal.start(Credits::blocks(1)), Err(Error::Aborted(_))));
            assert!(matches!(journal.commit(tid), Err(Error::Aborted(_))));
            assert!(matches!(journal.commit_running(), Err(Error::Aborted(_))));
            assert!(matches!(journal.flush_device(), Err(Error::Aborted(_))));
            assert!(matches!(journal.close(), Err(Error::Aborted(_))));
            assert_eq!(&read(&journal, 1).data()[..], shape.bytes(1), "reads go on");
            assert_eq!(witness.aborted.lock().unwrap().len(), 1);
        }
    }
}

#[test]
fn an_abort_leaves_an_errno_that_the_next_mount_finds() {
    let shape = Shape::small();
    let dev = Arc::new(FaultDevice::new(MemDevice::from_image(shape.image()), 1));
    let journal = shape.open(dev.clone());
    journal.commit(write_all(&shape, &journal, &[(1, 1)])).unwrap();
    dev.arm(Fault { op: Op::Flush, when: When::Nth(0), sticky: false, errno: 5 });
    journal.commit(write_all(&shape, &journal, &[(1, 2)])).unwrap_err();
    let found = recovery::recover(&*dev, shape.block_size, &shape.location()).unwrap();
    assert_eq!((found.transactions, found.errno), (1, 5));
    recovery::clear_errno(&*dev, shape.block_size, &shape.location()).unwrap();
    assert_eq!(recovery::recover(&*dev, shape.block_size, &shape.location()).unwrap().errno, 0);
}
