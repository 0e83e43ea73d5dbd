//! The journal alone: transactions over raw blocks, and a model that knows each block's content after each
//! transaction.
//!
//! A block is metadata (changed through handles), or free, or file data (written straight to its place,
//! as soon as the transaction that freed it is durable). After a cut and a recovery there must be one
//! committed transaction, not older than the last commit that returned, such that every metadata block is
//! exactly what it was at the end of it; and file data that was flushed must be there: a replay must not
//! write an old copy over it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use blockdev::sim::{CrashState, Dice, Fill, Image, MemDevice, Recorder, Recording, StateName};
use blockdev::{BlockDevice, Clock, Timestamp};
use ext4_format::jbd2::{MAGIC_BYTES, SuperBlock};
use ext4_format::{BlockNo, Tid};
use jbd2::{
    Checkpoint, CommitObserver, Credits, Error, Handle, Journal, LogChecksum, LogExtent, LogFeatures,
    LogLocation, Options, recovery,
};
use parking_lot::Mutex;

use super::epochs::{Density, epoch_at, for_each_state};

/// Blocks outside the log. Block 0 is changed by every commit's last edits, as a superblock is.
const HOMES: u64 = 40;

/// A run of the lab: everything in it follows from this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// 1024 or 4096.
    pub block_size: u32,
    /// Blocks of the log; a small one wraps and checkpoints all the time.
    pub log_blocks: u32,
    /// How the log is checksummed.
    pub checksum: LogChecksum,
    /// Handles that are run.
    pub steps: u32,
    /// Everything else.
    pub seed: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checksum =
            CHECKSUMS.iter().find(|(kind, _)| *kind == self.checksum).map_or("?", |(_, name)| name);
        write!(f, "{}/{}/{checksum}/{}/{}", self.block_size, self.log_blocks, self.steps, self.seed)
    }
}

impl FromStr for Run {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Run> {
        let fields: Vec<&str> = text.split('/').collect();
        let [block_size, log_blocks, checksum, steps, seed] = fields[..] else {
            bail!("{text:?} is no run of the journal; like 1024/32/v3/60/7")
        };
        let (checksum, _) =
            CHECKSUMS.iter().find(|(_, name)| *name == checksum).context("unknown checksum")?;
        Ok(Run {
            block_size: block_size.parse()?,
            log_blocks: log_blocks.parse()?,
            checksum: *checksum,
            steps: steps.parse()?,
            seed: seed.parse()?,
        })
    }
}

const CHECKSUMS: [(LogChecksum, &str); 4] = [
    (LogChecksum::None, "none"),
    (LogChecksum::Compat, "compat"),
    (LogChecksum::V2, "v2"),
    (LogChecksum::V3, "v3"),
];

/// Block number to the stamp it was filled with.
type Blocks = BTreeMap<u64, u64>;

/// File data on one block.
#[derive(Clone, Debug, Default)]
struct Data {
    /// The stamp that a flush has made durable.
    settled: Option<u64>,
    /// Stamps written since.
    later: Vec<u64>,
}

/// What holds for a cut in one epoch: one of these versions is found, and these file data.
#[derive(Clone, Debug)]
struct Promise {
    versions: Vec<Arc<Blocks>>,
    data: BTreeMap<u64, Data>,
}

/// The model beside the journal.
struct Truth {
    recorder: Recorder,
    next_stamp: u64,
    /// Metadata as the running transaction sees them.
    running: Blocks,
    /// Freed by the running transaction.
    freed: BTreeSet<u64>,
    /// Freed by the transaction that is being committed.
    freeing: BTreeSet<u64>,
    /// Free and durably so.
    free: BTreeSet<u64>,
    /// File data that may be on the disk; of a block that became metadata, until that is durable.
    data: BTreeMap<u64, Data>,
    /// Blocks that are file data now.
    data_now: BTreeSet<u64>,
    /// The last durable version and, during a commit, the one after.
    versions: Vec<Arc<Blocks>>,
    promises: Vec<Promise>,
}

impl Truth {
    fn new(recorder: Recorder) -> Truth {
        let mut truth = Truth {
            recorder,
            next_stamp: 1,
            running: Blocks::new(),
            freed: BTreeSet::new(),
            freeing: BTreeSet::new(),
            free: (1..HOMES).collect(),
            data: BTreeMap::new(),
            data_now: BTreeSet::new(),
            versions: vec![Arc::default()],
            promises: vec![],
        };
        truth.next_epoch();
        truth
    }

    fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    fn next_epoch(&mut self) {
        self.recorder.mark(self.promises.len() as u64);
        self.promises.push(Promise { versions: self.versions.clone(), data: self.data.clone() });
    }

    fn settle_data(&mut self) {
        for data in self.data.values_mut() {
            data.settled = data.later.pop().or(data.settled);
            data.later.clear();
        }
    }

    fn closing(&mut self) -> u64 {
        let stamp = self.stamp();
        self.running.insert(0, stamp);
        self.versions.push(Arc::new(self.running.clone()));
        self.freeing = std::mem::take(&mut self.freed);
        self.next_epoch();
        stamp
    }

    fn committed(&mut self) {
        self.versions.drain(..self.versions.len() - 1);
        self.free.append(&mut self.freeing);
        let metadata = &self.versions[0];
        self.data.retain(|block, _| !metadata.contains_key(block));
        // A commit flushes the device before it is durable, and file data with it.
        self.settle_data();
        self.next_epoch();
    }
}

struct Observer {
    truth: Arc<Mutex<Truth>>,
    run: Run,
}

impl CommitObserver for Observer {
    fn closing(&self, _: Tid, handle: &Handle<'_>) -> jbd2::Result<()> {
        let stamp = self.truth.lock().closing();
        let block = handle.create(BlockNo(0))?;
        handle.write(&block)?.copy_from_slice(&self.run.bytes(stamp));
        Ok(())
    }

    fn committed(&self, _: Tid) {
        self.truth.lock().committed();
    }

    fn aborted(&self, _: &Error) {}
}

struct StandingClock;

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        Timestamp { sec: 1_700_000_000, nsec: 0 }
    }
}

/// A recorded run and what held in each of its epochs.
pub struct Recorded {
    run: Run,
    recording: Recording,
    promises: Vec<Promise>,
}

impl Run {
    /// The log in two pieces, the second in front of the first.
    fn location(&self) -> LogLocation {
        let first = self.log_blocks / 3;
        let rest = self.log_blocks - first;
        let run = |first, len, start| LogExtent { first, len, start: BlockNo(start) };
        LogLocation { extents: vec![run(0, first, HOMES + u64::from(rest)), run(first, rest, HOMES)] }
    }

    fn image(&self) -> Image {
        let size = (HOMES + u64::from(self.log_blocks)) * u64::from(self.block_size);
        let mut image = Image::new(size, Fill::Stale(0x57a1));
        let superblock = SuperBlock::new(self.block_size, self.log_blocks, 0, *b"crashlab journal");
        image.write(self.location().extents[0].start.0 * u64::from(self.block_size), &superblock.encode());
        image
    }

    /// A block full of one stamp; every fifth looks like a block of the journal and must be escaped.
    fn bytes(&self, stamp: u64) -> Vec<u8> {
        let mut bytes = stamp.to_le_bytes().repeat(self.block_size as usize / 8);
        if stamp.is_multiple_of(5) {
            bytes[..4].copy_from_slice(&MAGIC_BYTES);
        }
        bytes
    }

    /// Runs it and records what the device sees.
    pub fn record(&self) -> Result<Recorded> {
        let recorder = Recorder::new(self.image());
        let options = Options {
            cache_bytes: 64 << 10,
            barrier: true,
            closing_credits: 1,
            features: Some(LogFeatures { checksum: self.checksum, wide: self.seed.is_multiple_of(2) }),
            clock: Arc::new(StandingClock),
            ..Options::default()
        };
        let journal = Journal::open(Arc::new(recorder.clone()), self.block_size, self.location(), options)?;
        let truth = Arc::new(Mutex::new(Truth::new(recorder.clone())));
        journal.set_observer(Arc::new(Observer { truth: truth.clone(), run: *self }));
        let mut dice = Dice::new(self.seed);
        for _ in 0..self.steps {
            match dice.below(16) {
                0..8 => self.transact(&journal, &truth, &mut dice)?,
                8..11 => journal.commit_running()?,
                11 => journal.checkpoint(*dice.pick(&[Checkpoint::Some, Checkpoint::All]))?,
                12 => {
                    journal.flush_device()?;
                    let mut truth = truth.lock();
                    truth.settle_data();
                    truth.next_epoch();
                }
                _ => self.write_data(&journal, &recorder, &truth, &mut dice)?,
            }
        }
        if dice.one_in(3) {
            journal.close()?;
        }
        journal.set_observer(Arc::new(Deaf));
        let promises = truth.lock().promises.clone();
        Ok(Recorded { run: *self, recording: recorder.recording(), promises })
    }

    /// One handle with a few changes.
    fn transact(&self, journal: &Journal, truth: &Mutex<Truth>, dice: &mut Dice) -> Result<()> {
        let handle = journal.start(Credits { blocks: 5, revokes: 5 })?;
        for _ in 0..1 + dice.below(4) {
            let mut truth = truth.lock();
            let metadata: Vec<u64> = truth.running.keys().copied().filter(|block| *block != 0).collect();
            let usable: Vec<u64> =
                truth.free.iter().chain(&truth.freed).chain(&truth.data_now).copied().collect();
            let stamp = truth.stamp();
            match dice.below(5) {
                0 if !metadata.is_empty() => {
                    let block = *dice.pick(&metadata);
                    truth.running.remove(&block);
                    truth.freed.insert(block);
                    drop(truth);
                    handle.forget(BlockNo(block))?;
                }
                1 | 2 if !usable.is_empty() => {
                    let block = *dice.pick(&usable);
                    truth.free.remove(&block);
                    truth.freed.remove(&block);
                    truth.data_now.remove(&block);
                    truth.running.insert(block, stamp);
                    drop(truth);
                    let buffer = handle.create(BlockNo(block))?;
                    handle.write(&buffer)?.copy_from_slice(&self.bytes(stamp));
                }
                _ if !metadata.is_empty() => {
                    let block = *dice.pick(&metadata);
                    truth.running.insert(block, stamp);
                    drop(truth);
                    let buffer = journal.read(BlockNo(block), |_| Ok(()))?;
                    handle.write(&buffer)?.copy_from_slice(&self.bytes(stamp));
                }
                _ => {}
            }
        }
        handle.finish()?;
        Ok(())
    }

    /// Writes a free block as file data, in its place, or overwrites one that is.
    fn write_data(
        &self,
        journal: &Journal,
        dev: &Recorder,
        truth: &Mutex<Truth>,
        dice: &mut Dice,
    ) -> Result<()> {
        let mut truth = truth.lock();
        let usable: Vec<u64> = truth.free.iter().chain(&truth.data_now).copied().collect();
        if usable.is_empty() {
            return Ok(());
        }
        let block = *dice.pick(&usable);
        let stamp = truth.stamp();
        if truth.free.remove(&block) {
            journal.invalidate(BlockNo(block), 1);
            truth.data_now.insert(block);
            truth.data.insert(block, Data::default());
        }
        truth.data.entry(block).or_default().later.push(stamp);
        truth.next_epoch();
        dev.write_at(block * u64::from(self.block_size), &self.bytes(stamp))?;
        Ok(())
    }
}

/// Hears nothing: breaks the circle between a journal and its observer's truth.
struct Deaf;

impl CommitObserver for Deaf {
    fn closing(&self, _: Tid, _: &Handle<'_>) -> jbd2::Result<()> {
        Ok(())
    }
    fn committed(&self, _: Tid) {}
    fn aborted(&self, _: &Error) {}
}

impl Recorded {
    /// Judges every state. Returns how many there were.
    ///
    /// # Errors
    /// The first failure, with the line that replays it.
    pub fn judge_all(&self, density: Density) -> Result<u64> {
        for_each_state(&self.recording, density, |name, epoch, state| self.judge(name, epoch, state)).map_err(
            |(name, why)| {
                why.context(format!(
                    "journal run {run}: replay with --journal {run} --state {name}",
                    run = self.run
                ))
            },
        )
    }

    /// Judges one state by its name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge_one(&self, name: StateName) -> Result<()> {
        self.judge(name, epoch_at(&self.recording, name.cut), self.recording.build(name))
    }

    fn judge(&self, name: StateName, epoch: u64, state: CrashState) -> Result<()> {
        let promise = &self.promises[epoch as usize];
        let dev = Recorder::new(state.image);
        recovery::recover(&dev, self.run.block_size, &self.run.location()).context("recovery")?;
        let version = self.check(promise, &dev.snapshot())?;
        // The second recovery finds nothing, and a cut in the first changes nothing.
        let again = MemDevice::from_image(dev.snapshot());
        let found = recovery::recover(&again, self.run.block_size, &self.run.location())?;
        ensure!(found.transactions == 0, "a second recovery found {} transactions", found.transactions);
        if name.cut.is_multiple_of(7) {
            let density = Density { exhaustive: 2, sampled: 2, seed: name.cut as u64 };
            let only = Promise { versions: vec![version], data: promise.data.clone() };
            for_each_state(&dev.recording(), density, |_, _, state| {
                let dev = MemDevice::from_image(state.image);
                recovery::recover(&dev, self.run.block_size, &self.run.location())?;
                self.check(&only, &dev.snapshot()).map(drop)
            })
            .map_err(|(at, why)| why.context(format!("after a cut in recovery at {at}")))?;
        }
        Ok(())
    }

    /// The version that a recovered disk holds.
    fn check(&self, promise: &Promise, image: &Image) -> Result<Arc<Blocks>> {
        let mut why = String::new();
        for version in promise.versions.iter().rev() {
            match self.difference(promise, version, image) {
                None => return Ok(version.clone()),
                Some(difference) => why = difference,
            }
        }
        bail!("{} versions are allowed, the oldest differs: {why}", promise.versions.len())
    }

    fn difference(&self, promise: &Promise, version: &Blocks, image: &Image) -> Option<String> {
        let mut found = vec![0; self.run.block_size as usize];
        for (&block, &stamp) in version {
            image.read(block * u64::from(self.run.block_size), &mut found);
            if found != self.run.bytes(stamp) {
                return Some(format!("metadata block {block} is not {stamp}"));
            }
        }
        for (&block, data) in promise.data.iter().filter(|(block, _)| !version.contains_key(block)) {
            let Some(settled) = data.settled else { continue };
            image.read(block * u64::from(self.run.block_size), &mut found);
            let allowed: Vec<_> =
                data.later.iter().chain([&settled]).map(|&stamp| self.run.bytes(stamp)).collect();
            // File data may tear between sectors.
            let sectors = (0..found.len()).step_by(512).map(|at| at..at + 512);
            for sector in sectors {
                if !allowed.iter().any(|bytes| bytes[sector.clone()] == found[sector.clone()]) {
                    return Some(format!("data block {block} is neither {settled} nor of {:?}", data.later));
                }
            }
        }
        None
    }
}
