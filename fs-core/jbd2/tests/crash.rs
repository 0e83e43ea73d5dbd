//! Power cuts: whatever a cut leaves, recovery brings back exactly the transactions up to some number,
//! among them every one whose commit had returned.
//!
//! The workload writes, creates and frees metadata blocks, and gives freed blocks to a "file" that
//! overwrites them in place once their transaction is durable. Block 0 is written in every
//! transaction with its number, so a recovered disk says how far it got.

mod common;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use blockdev::BlockDevice;
use blockdev::sim::{Dice, Event, Image, MemDevice, Recorder, Walk};
use common::*;
use ext4_format::BlockNo;
use jbd2::{Checkpoint, Credits, Journal, LogChecksum, LogFeatures, recovery};

/// Blocks the workload plays with, besides block 0.
const PLAY: u64 = 40;

/// Small enough to wrap in every life, and a quarter of it holds a transaction.
const LOG: u32 = 80;

/// What a block is, and with which content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Free,
    Meta(u64),
    /// File data, and the position of the recording after the flush that made them durable.
    Data(u64, usize),
}

type Volume = BTreeMap<u64, Use>;

/// One life of a volume: from a mount to the cut.
struct Life {
    recorder: Recorder,
    /// The volume as of each transaction number; entry 0 is the start.
    history: Vec<Volume>,
    /// (position of the recording, transactions durable by then)
    promises: Vec<(usize, usize)>,
}

fn stamp(dice: &mut Dice) -> u64 {
    dice.roll() >> 20
}

/// Runs transactions on `image`, whose content is `volume`. Durable data of later states are noted in
/// every state from the transaction that freed their block on.
fn live(shape: &Shape, image: Image, volume: Volume, dice: &mut Dice) -> Life {
    let recorder = Recorder::new(image);
    let journal = shape.open(Arc::new(recorder.clone()));
    let mut life = Life { recorder: recorder.clone(), history: vec![volume.clone()], promises: vec![(0, 0)] };
    let mut now = volume;
    // Blocks free as of the last durable transaction: these may hold data.
    let mut reusable: HashSet<u64> =
        now.iter().filter(|(_, u)| !matches!(u, Use::Meta(_))).map(|(b, _)| *b).collect();
    for number in 1..=5 + dice.below(12) {
        transaction(shape, &journal, number, &mut now, &mut reusable, dice);
        life.history.push(now.clone());
        if dice.one_in(3) {
            continue_uncommitted(shape, &journal, dice);
        }
        journal.commit_running().unwrap();
        life.promises.push((recorder.position(), number as usize));
        reusable.extend(now.iter().filter(|(_, u)| !matches!(u, Use::Meta(_))).map(|(b, _)| *b));
        write_data(shape, &journal, &recorder, &reusable, &mut now, dice);
        if let Some(last) = life.history.last_mut() {
            last.clone_from(&now);
        }
        if dice.one_in(4) {
            let how = if dice.one_in(2) { Checkpoint::Some } else { Checkpoint::All };
            journal.checkpoint(how).unwrap();
        }
    }
    if dice.one_in(3) {
        journal.close().unwrap();
    }
    life
}

fn transaction(
    shape: &Shape,
    journal: &Journal,
    number: u64,
    now: &mut Volume,
    reusable: &mut HashSet<u64>,
    dice: &mut Dice,
) {
    let mut tid = None;
    for part in 0..1 + dice.below(3) {
        let handle = journal.start(Credits { blocks: 4, revokes: 3 }).unwrap();
        assert_eq!(*tid.get_or_insert(handle.tid()), handle.tid(), "the log is too small for this workload");
        if part == 0 {
            let buf = read(journal, 0);
            handle.write(&buf).unwrap()[..8].copy_from_slice(&number.to_le_bytes());
        }
        for _ in 0..dice.below(4) {
            let block = 1 + dice.below(PLAY);
            match now[&block] {
                Use::Meta(_) if dice.one_in(3) => {
                    handle.forget(BlockNo(block)).unwrap();
                    now.insert(block, Use::Free);
                    reusable.remove(&block);
                }
                Use::Meta(_) => {
                    let stamp = stamp(dice);
                    write(&handle, block, &shape.bytes(stamp));
                    now.insert(block, Use::Meta(stamp));
                }
                Use::Free | Use::Data(..) => {
                    let stamp = stamp(dice);
                    let buf = handle.create(BlockNo(block)).unwrap();
                    handle.write(&buf).unwrap().copy_from_slice(&shape.bytes(stamp));
                    now.insert(block, Use::Meta(stamp));
                    reusable.remove(&block);
                }
            }
        }
        handle.finish().unwrap();
    }
}

/// Changes without consequence: a handle that dirties a block and puts the same bytes back.
fn continue_uncommitted(shape: &Shape, journal: &Journal, dice: &mut Dice) {
    let handle = journal.start(Credits::blocks(1)).unwrap();
    let buf = read(journal, 0);
    let mut guard = handle.write(&buf).unwrap();
    let same = guard.to_vec();
    guard.copy_from_slice(&shape.bytes(stamp(dice)));
    guard.copy_from_slice(&same);
}

fn write_data(
    shape: &Shape,
    journal: &Journal,
    recorder: &Recorder,
    reusable: &HashSet<u64>,
    now: &mut Volume,
    dice: &mut Dice,
) {
    let mut blocks: Vec<u64> = reusable.iter().copied().filter(|b| !matches!(now[b], Use::Meta(_))).collect();
    blocks.sort_unstable();
    let mut written = Vec::new();
    for block in blocks {
        if dice.one_in(3) {
            let stamp = stamp(dice);
            journal.invalidate(BlockNo(block), 1);
            recorder.write_at(shape.at(block), &shape.bytes(stamp)).unwrap();
            written.push((block, stamp));
        }
    }
    journal.flush_device().unwrap();
    for (block, stamp) in written {
        now.insert(block, Use::Data(stamp, recorder.position()));
    }
}

/// The transaction number a disk has got to.
fn reached(shape: &Shape, dev: &dyn BlockDevice) -> usize {
    let bytes = shape.on_disk(dev, 0);
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

/// Checks a recovered disk; the number of its last transaction.
fn judge(shape: &Shape, life: &Life, cut: usize, dev: &dyn BlockDevice, name: &str) -> usize {
    let number = reached(shape, dev);
    let promised = life.promises.iter().filter(|(at, _)| *at <= cut).map(|(_, n)| *n).max().unwrap_or(0);
    assert!(number >= promised, "{name}: transaction {promised} was durable, only {number} came back");
    assert!(number < life.history.len(), "{name}: transaction {number} never was");
    for (block, used) in &life.history[number] {
        match *used {
            Use::Meta(stamp) => {
                assert!(
                    shape.on_disk(dev, *block) == shape.bytes(stamp),
                    "{name}: block {block} of {number}"
                );
            }
            // Data that were durable before the cut are there, whatever the log still holds of the block.
            Use::Data(stamp, at) if at <= cut => {
                assert!(shape.on_disk(dev, *block) == shape.bytes(stamp), "{name}: file block {block}");
            }
            Use::Data(..) | Use::Free => {}
        }
    }
    number
}

fn recover_copy(shape: &Shape, image: &Image) -> Recorder {
    let recorder = Recorder::new(image.clone());
    recovery::recover(&recorder, shape.block_size, &shape.location()).expect("recover");
    recorder
}

/// The homes of two disks, compared where the volume of `number` says that content matters.
fn same_homes(shape: &Shape, life: &Life, number: usize, a: &dyn BlockDevice, b: &dyn BlockDevice) -> bool {
    life.history[number]
        .iter()
        .filter(|(_, used)| matches!(used, Use::Meta(_)))
        .all(|(block, _)| shape.on_disk(a, *block) == shape.on_disk(b, *block))
}

fn run(shape: &Shape, seed: u64, lives: u32, sampled: u32) {
    let mut dice = Dice::new(seed);
    let mut image = shape.image();
    let mut volume: Volume = (1..=PLAY).map(|block| (block, Use::Free)).collect();
    image.write(0, &vec![0; shape.block_size as usize]);
    for round in 0..lives {
        let life = live(shape, image.clone(), volume.clone(), &mut dice);
        let recording = life.recorder.recording();
        let events = recording.events().len();
        let mut walk = Walk::new(&recording);
        let mut seen = HashSet::new();
        let mut next = None;
        for cut in 0..=events {
            walk.go_to(cut);
            for keep in walk.keeps(3, sampled, seed) {
                let state = walk.build(keep);
                if !seen.insert((state.fingerprint, cut_class(recording.events(), cut))) {
                    continue;
                }
                let name = format!("{shape:?} seed {seed} life {round} cut {cut} keep {keep:?}");
                let crashed: Arc<dyn BlockDevice> = Arc::new(MemDevice::from_image(state.image.clone()));
                let replay = recovery::scan(&*crashed, shape.block_size, &shape.location()).expect(&name);
                let overlay = recovery::Overlay::new(crashed, shape.block_size, replay);
                let recovered = recover_copy(shape, &state.image);
                let number = judge(shape, &life, cut, &recovered, &name);
                assert_eq!(judge(shape, &life, cut, &overlay, &name), number);
                if dice.one_in(24) {
                    cut_recovery(shape, &life, number, &recovered, &mut dice, &name);
                }
                if dice.one_in(20) {
                    next = Some((recovered.snapshot(), number));
                }
            }
        }
        // The next life goes on from some crashed and recovered disk.
        let Some((recovered, number)) = next else { return };
        volume = life.history[number].clone();
        for used in volume.values_mut() {
            // Whether these data were durable by then is not known here.
            if matches!(used, Use::Data(..)) {
                *used = Use::Free;
            }
        }
        image = recovered;
        image.write(0, &0u64.to_le_bytes());
    }
}

/// Promises differ between cuts even when the disks are equal.
fn cut_class(events: &[Event], cut: usize) -> usize {
    events[..cut].iter().filter(|event| matches!(event, Event::Flushed { .. })).count()
}

/// Recovery cut short and run again ends where one run ends.
fn cut_recovery(shape: &Shape, life: &Life, number: usize, whole: &Recorder, dice: &mut Dice, name: &str) {
    let recording = whole.recording();
    let mut walk = Walk::new(&recording);
    for cut in 0..=recording.events().len() {
        walk.go_to(cut);
        for keep in walk.keeps(0, 1, dice.roll()) {
            let again = recover_copy(shape, &walk.build(keep).image);
            assert!(
                same_homes(shape, life, number, &again, whole) && reached(shape, &again) == number,
                "{name}: recovery cut at {cut}, {keep:?}"
            );
        }
    }
}

/// How many runs: `JBD2_CRASH_RUNS` for a long sweep, few otherwise.
fn runs(few: u64) -> u64 {
    std::env::var("JBD2_CRASH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(few)
}

#[test]
fn a_cut_leaves_a_prefix_with_everything_that_was_promised() {
    for seed in 0..runs(6) {
        run(&Shape { log_blocks: LOG, ..Shape::small() }, seed, 3, 1);
    }
}

#[test]
fn so_it_does_with_every_kind_of_log() {
    for (seed, shape) in shapes().into_iter().enumerate() {
        run(&Shape { log_blocks: LOG, ..shape }, 100 + seed as u64, 1, 1);
    }
}

#[test]
fn without_checksums_a_torn_log_still_leaves_a_prefix() {
    let features = LogFeatures { checksum: LogChecksum::None, wide: false };
    for seed in 10_000..10_000 + runs(3) {
        run(&Shape { features, log_blocks: LOG, ..Shape::small() }, seed, 3, 1);
    }
}
