//! The filesystem under test: a volume over a recorder, and clients that work on it, each with its model
//! beside it.
//!
//! Background work is stepped by hand, where the seed says so: the same workload and seed give the same
//! device writes.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockdev::sim::{Dice, Fault, FaultDevice, Fill, Image, MemDevice, Recorder, Recording, When};
use blockdev::{BlockDevice, Chance, Clock, Env, Timestamp, Workers};
use fs_core::{Filesystem, OpenOptions, SetAttr};
use mkfs::{Kind, Options};
use parking_lot::Mutex;

use super::actor::Actor;
use super::clients::Crowd;
use super::ledger::{Ledger, Pledge};
use super::meddler::Meddler;
use super::model::{Format, Model};
use super::ops::{Op, Persist, Step, Workload};
use super::workload;

/// A kind of volume to run workloads on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// How the command line calls it.
    pub name: &'static str,
    kind: Kind,
    /// Block size in bytes.
    pub block: u32,
    features: &'static str,
    /// Whether the log's head stands so near its end that the workload wraps around.
    wrap: bool,
}

/// Every kind of volume.
pub const CONFIGS: &[Config] = &[
    Config { name: "4k", kind: Kind::Ext4, block: 4096, features: "", wrap: false },
    Config { name: "1k", kind: Kind::Ext4, block: 1024, features: "^orphan_file", wrap: false },
    Config { name: "wrap", kind: Kind::Ext4, block: 1024, features: "^64bit", wrap: true },
    Config { name: "unlogged", kind: Kind::Ext4, block: 1024, features: "^has_journal", wrap: false },
    Config { name: "ext3", kind: Kind::Ext3, block: 1024, features: "", wrap: false },
];

/// The configuration of a name.
#[must_use]
pub fn config(name: &str) -> Option<&'static Config> {
    CONFIGS.iter().find(|config| config.name == name)
}

struct StandingClock;

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        Timestamp { sec: 1_700_000_000, nsec: 0 }
    }
}

struct Seeded(Mutex<Dice>);

impl Chance for Seeded {
    fn next_u64(&self) -> u64 {
        self.0.lock().roll()
    }
}

/// The primary superblock, which is assumed not to tear: its checksum lies in another sector than most of
/// its fields, so neither the kernel nor e2fsck could recover a volume whose superblock was torn.
pub const SUPERBLOCK: std::ops::Range<u64> = 1024..2048;

/// The world of a run: time stands still, chance comes from the seed, workers are stepped by hand.
fn env(seed: u64) -> Env {
    Env {
        clock: Arc::new(StandingClock),
        chance: Arc::new(Seeded(Mutex::new(Dice::new(seed)))),
        workers: Workers::Manual,
    }
}

/// Mounts a volume as the lab does.
///
/// # Errors
/// What the filesystem answers.
pub fn mount(device: Arc<dyn BlockDevice>, seed: u64) -> Result<Arc<Filesystem>> {
    OpenOptions::new().cache_bytes(4 << 20).env(env(seed)).open_device(device).context("mount")
}

impl Config {
    /// What the model has to know of it.
    #[must_use]
    pub fn format(&self) -> Format {
        Format {
            block: self.block.into(),
            extents: self.kind == Kind::Ext4,
            journal: !self.features.contains("^has_journal"),
        }
    }

    /// A clean volume that holds [`workload::START`], on a disk full of stale bytes.
    pub fn base(&self) -> Result<Image> {
        self.base_for(&[String::new()])
    }

    /// The same with [`workload::START`] in each of these directories.
    pub fn base_for(&self, homes: &[String]) -> Result<Image> {
        // A journal cannot be smaller than 1024 blocks, so that is most of the volume.
        let size = u64::from(self.block) * (1536 + 512 * homes.len() as u64);
        let disk = Arc::new(MemDevice::new(size, Fill::Stale(0x57a1)));
        let mut options = Options::new(self.kind, 1_700_000_000);
        options.block_size = Some(self.block);
        options.uuid = Some(*b"crash lab volume");
        options.hash_seed = Some(*b"seed of the lab.");
        options.inode_count = Some(64);
        options.features = self.features.split(',').filter(|f| !f.is_empty()).map(String::from).collect();
        options.discard = false;
        mkfs::format(&*disk, &options).context("mkfs")?;
        let recorder = Recorder::new(disk.snapshot());
        let fs = mount(Arc::new(recorder.clone()), 0)?;
        let ledger = Ledger::new(recorder.clone(), vec![]);
        for home in homes {
            if !home.is_empty() {
                fs.root()?.create_dir(home, 0o755)?;
            }
            let actor = Actor::new(fs.clone(), home.clone());
            let mut client = Client::new(actor, 0, Model::new(self.format()), 0);
            for op in workload::START {
                client.apply(op, &ledger)?;
            }
            if self.wrap {
                advance_log(&client.actor)?;
            }
        }
        fs.close()?;
        Ok(recorder.snapshot())
    }

    /// Runs a workload on a copy of `base` and records it.
    pub fn run(&self, base: &Image, workload: &Workload, seed: u64) -> Result<Recorded> {
        let seed = seed ^ workload.salt();
        let recorder = Recorder::with_whole(base.clone(), SUPERBLOCK);
        let (mut client, ledger) = self.alone(&recorder, Arc::new(recorder.clone()), seed)?;
        for step in &workload.0 {
            client.step(step, &ledger)?;
        }
        Ok(ledger.close())
    }

    /// Runs a workload on a device one of whose requests fails, or all from one on, until the first
    /// operation fails, and records it. Where the fault strikes nothing this is a run like any other.
    pub fn run_on_failing(&self, base: &Image, workload: &Workload, seed: u64) -> Result<Recorded> {
        let seed = seed ^ workload.salt();
        let recorder = Recorder::with_whole(base.clone(), SUPERBLOCK);
        let below = recorder.clone();
        let failing = FaultDevice::with_failed_flush(recorder.clone(), seed, move || below.flush_failed());
        let failing = Arc::new(failing);
        let (mut client, ledger) = self.alone(&recorder, failing.clone(), seed)?;
        let mut dice = Dice::new(seed);
        let kind = *dice.pick(&[blockdev::Op::Write, blockdev::Op::Flush]);
        // 5 is EIO.
        failing.arm(Fault { op: kind, when: When::Nth(dice.below(6)), sticky: dice.one_in(2), errno: 5 });
        for step in &workload.0 {
            if let Err(error) = client.step(step, &ledger) {
                ensure!(failing.struck() > 0, error);
                break;
            }
        }
        Ok(ledger.close())
    }

    /// Several clients at once, each with a workload and a directory of its own, on a copy of a base made
    /// for `homes`; recorded.
    pub fn run_crowd(&self, base: &Image, homes: &[String], seed: u64) -> Result<Recorded> {
        let recorder = Recorder::with_whole(base.clone(), SUPERBLOCK);
        let device = Arc::new(Meddler::new(Arc::new(recorder.clone()), seed));
        let fs = mount(device.clone(), seed)?;
        let begin = workload::start(self.format()).promise();
        let ledger = Ledger::new(recorder, homes.iter().map(|home| (home.clone(), begin.clone())).collect());
        let mut dice = Dice::new(seed);
        let clients = homes.iter().enumerate().map(|(index, home)| {
            let actor = Actor::new(fs.clone(), home.clone());
            let mut client = Client::new(actor, index, workload::start(self.format()), dice.roll());
            let length = 4 + dice.below(12) as usize;
            client.todo = workload::sample(length, self.format(), &mut dice).0.into();
            client
        });
        let crowd = Arc::new(Crowd::new(clients.collect(), fs.clone(), ledger, dice.roll()));
        if self.may_be_interrupted() {
            let weak = Arc::downgrade(&crowd);
            device.meddle_with(move || {
                if let Some(crowd) = weak.upgrade() {
                    crowd.interrupt();
                }
            });
        }
        crowd.run()?;
        Ok(crowd.ledger.close())
    }

    /// An indirect map keeps its handle open across the data's IO: a commit there would wait for itself.
    fn may_be_interrupted(&self) -> bool {
        self.kind == Kind::Ext4
    }

    fn alone(
        &self,
        recorder: &Recorder,
        device: Arc<dyn BlockDevice>,
        seed: u64,
    ) -> Result<(Client, Ledger)> {
        let device = Arc::new(Meddler::new(device, seed));
        let fs = mount(device.clone(), seed)?;
        if self.may_be_interrupted() {
            let weak = Arc::downgrade(&fs);
            device.meddle_with(move || {
                if let Some(fs) = weak.upgrade() {
                    // A failed commit aborts the journal, which the workload notices by itself.
                    drop(fs.step_commit());
                }
            });
        }
        let actor = Actor::new(fs, String::new());
        let client = Client::new(actor, 0, workload::start(self.format()), seed);
        let ledger = Ledger::new(recorder.clone(), vec![(String::new(), client.model.promise())]);
        Ok((client, ledger))
    }
}

/// A recorded run and what holds in each of its epochs.
pub struct Recorded {
    /// What the device saw.
    pub recording: Recording,
    /// Per epoch.
    pub pledges: Vec<Pledge>,
}

/// Who works on a volume: operations one after the other, and the model of their effects.
pub struct Client {
    /// The hands.
    pub actor: Actor,
    /// What is still to be done.
    pub todo: VecDeque<Step>,
    index: usize,
    model: Model,
    dice: Dice,
}

impl Client {
    /// The client of this number in the ledger.
    fn new(actor: Actor, index: usize, model: Model, seed: u64) -> Client {
        Client { actor, todo: VecDeque::new(), index, model, dice: Dice::new(seed) }
    }

    /// Its number in the ledger.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// One step, and perhaps some background work after the operation.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn step(&mut self, step: &Step, ledger: &Ledger) -> Result<()> {
        self.apply(step.op(), ledger).with_context(|| format!("{:?}", step.op()))?;
        self.background();
        self.persist(step, ledger).with_context(|| format!("{:?} {:?}", step.then, step.op()))
    }

    /// The operation of a step.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn apply(&mut self, op: &Op, ledger: &Ledger) -> Result<()> {
        let tag = self.model.next_tag();
        let written = self.model.written(op);
        self.model.begin(op);
        ledger.next_epoch(self.index, self.model.promise());
        self.actor.execute(op, written, tag)
    }

    /// Now and then a worker gets its turn.
    pub fn background(&mut self) {
        let fs = self.actor.fs();
        match self.dice.below(8) {
            0 => fs.step_convert(),
            1 => fs.step_flush(),
            2 => drop(fs.step_commit()),
            3 => drop(fs.tick()),
            _ => {}
        }
    }

    /// The persistence point of a step.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn persist(&mut self, step: &Step, ledger: &Ledger) -> Result<()> {
        if step.then != Persist::No {
            self.actor.persist(step.op(), step.then, self.dice.one_in(2))?;
            self.model.persisted(step.op(), step.then);
            ledger.next_epoch(self.index, self.model.promise());
        }
        Ok(())
    }
}

/// Commits until the log's head is a few blocks before its end.
fn advance_log(actor: &Actor) -> Result<()> {
    // An empty change of the mode takes a descriptor, the inode, the superblock and a commit block.
    let change = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    let file = actor.find("foo")?;
    for _ in 0..125 {
        for mode in [0o600, 0o644] {
            file.set_attributes(&change(mode))?;
            file.sync(false)?;
        }
    }
    Ok(())
}
