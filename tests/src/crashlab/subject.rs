//! The filesystem under test: a volume over a recorder, with the model beside it.
//!
//! Background work is stepped by hand, where the seed says so: the same workload and seed give the same
//! device writes.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockdev::sim::{Dice, Fault, FaultDevice, Fill, Image, MemDevice, Recorder, Recording, When};
use blockdev::{BlockDevice, Chance, Clock, Env, Timestamp, Workers};
use ext4_format::Ino;
use fs_core::Filesystem;
use fs_core::ops::{FallocateMode, OpenFlags, RenameFlags, SetXattr, WriteMode};
use fs_core::types::{Caller, MountOptions, SetAttr};
use mkfs::{Kind, Options};
use parking_lot::Mutex;

use super::meddler::Meddler;
use super::model::{Format, Model, Promise, symlink_target};
use super::ops::{CELL, Falloc, Op, Persist, Step, Way, Workload, parent};
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
#[must_use]
pub fn env(seed: u64) -> Env {
    Env {
        clock: Arc::new(StandingClock),
        chance: Arc::new(Seeded(Mutex::new(Dice::new(seed)))),
        workers: Workers::Manual,
    }
}

/// How volumes are mounted in the lab.
#[must_use]
pub fn mount_options() -> MountOptions {
    MountOptions { cache_bytes: 4 << 20, ..MountOptions::default() }
}

impl Config {
    /// What the model has to know of it.
    #[must_use]
    pub fn format(&self) -> Format {
        Format { block: self.block.into(), extents: self.kind == Kind::Ext4 }
    }

    /// A clean volume that holds [`workload::START`], on a disk full of stale bytes.
    pub fn base(&self) -> Result<Image> {
        // A journal cannot be smaller than 1024 blocks, so that is most of the volume.
        let size = u64::from(self.block) * 2048;
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
        let device = Arc::new(recorder.clone());
        let mut subject = Subject::mount(recorder.clone(), device, Model::new(self.format()), 0, false)?;
        for op in workload::START {
            subject.apply(op)?;
        }
        if self.wrap {
            subject.advance_log()?;
        }
        subject.fs.unmount()?;
        Ok(recorder.snapshot())
    }

    /// Runs a workload on a copy of `base` and records it.
    pub fn run(&self, base: &Image, workload: &Workload, seed: u64) -> Result<Recorded> {
        let seed = seed ^ workload.salt();
        let recorder = Recorder::with_whole(base.clone(), SUPERBLOCK);
        let mut subject = self.subject(recorder.clone(), Arc::new(recorder.clone()), seed)?;
        for step in &workload.0 {
            subject.step(step)?;
        }
        Ok(Recorded { recording: recorder.recording(), promises: subject.promises })
    }

    /// Runs a workload on a device one of whose requests fails, or all from one on, until the first
    /// operation fails, and records it. Where the fault strikes nothing this is a run like any other.
    pub fn run_on_failing(&self, base: &Image, workload: &Workload, seed: u64) -> Result<Recorded> {
        let seed = seed ^ workload.salt();
        let recorder = Recorder::with_whole(base.clone(), SUPERBLOCK);
        let below = recorder.clone();
        let failing = FaultDevice::with_failed_flush(recorder.clone(), seed, move || below.flush_failed());
        let failing = Arc::new(failing);
        let mut subject = self.subject(recorder.clone(), failing.clone(), seed)?;
        let mut dice = Dice::new(seed);
        let kind = *dice.pick(&[blockdev::Op::Write, blockdev::Op::Flush]);
        // 5 is EIO.
        failing.arm(Fault { op: kind, when: When::Nth(dice.below(6)), sticky: dice.one_in(2), errno: 5 });
        for step in &workload.0 {
            if let Err(error) = subject.step(step) {
                ensure!(failing.struck() > 0, error);
                break;
            }
        }
        Ok(Recorded { recording: recorder.recording(), promises: subject.promises })
    }

    fn subject(&self, recorder: Recorder, device: Arc<dyn BlockDevice>, seed: u64) -> Result<Subject> {
        // An indirect map keeps its handle open across the data's IO: a commit there would wait for itself.
        let meddle = self.kind == Kind::Ext4;
        let mut subject = Subject::mount(recorder, device, workload::start(self.format()), seed, meddle)?;
        subject.next_epoch();
        Ok(subject)
    }
}

/// A recorded run and what holds in each of its epochs.
pub struct Recorded {
    /// What the device saw.
    pub recording: Recording,
    /// Per epoch.
    pub promises: Vec<Promise>,
}

struct Subject {
    fs: Arc<Filesystem>,
    recorder: Recorder,
    model: Model,
    promises: Vec<Promise>,
    dice: Dice,
}

impl Subject {
    fn mount(
        recorder: Recorder,
        device: Arc<dyn BlockDevice>,
        model: Model,
        seed: u64,
        meddle: bool,
    ) -> Result<Subject> {
        let device = Arc::new(Meddler::new(device, seed));
        let fs = Filesystem::mount(device.clone(), mount_options(), env(seed)).context("mount")?;
        if meddle {
            device.meddle_with(&fs);
        }
        Ok(Subject { fs, recorder, model, promises: vec![], dice: Dice::new(seed) })
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        self.apply(step.op()).with_context(|| format!("{:?}", step.op()))?;
        self.persist(step.op(), step.then).with_context(|| format!("{:?} {:?}", step.then, step.op()))
    }

    fn next_epoch(&mut self) {
        self.recorder.mark(self.promises.len() as u64);
        self.promises.push(self.model.promise());
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        let tag = self.model.next_tag();
        let written = self.model.written(op);
        self.model.begin(op);
        self.next_epoch();
        self.execute(op, written, tag)?;
        self.background();
        Ok(())
    }

    /// Now and then a worker gets its turn.
    fn background(&mut self) {
        match self.dice.below(8) {
            0 => self.fs.step_convert(),
            1 => self.fs.step_flush(),
            2 => drop(self.fs.step_commit()),
            3 => drop(self.fs.tick()),
            _ => {}
        }
    }

    fn execute(&self, op: &Op, written: Option<(u64, u64)>, tag: u8) -> Result<()> {
        let (fs, root) = (&self.fs, Caller::root());
        match *op {
            Op::Create(name) => self.in_parent(name, |dir, leaf| {
                let made = fs.mknod(&root, dir, leaf, 0o100_644, (0, 0))?;
                fs.forget(made.ino, 1);
                Ok(())
            })?,
            Op::Mkdir(name) => self.in_parent(name, |dir, leaf| {
                let made = fs.mkdir(&root, dir, leaf, 0o755)?;
                fs.forget(made.ino, 1);
                Ok(())
            })?,
            Op::Symlink(name, len) => self.in_parent(name, |dir, leaf| {
                let made = fs.symlink(&root, dir, leaf, symlink_target(len).as_bytes())?;
                fs.forget(made.ino, 1);
                Ok(())
            })?,
            Op::Rmdir(name) => self.in_parent(name, |dir, leaf| Ok(fs.rmdir(dir, leaf)?))?,
            Op::Unlink(name) => self.in_parent(name, |dir, leaf| Ok(fs.unlink(dir, leaf)?))?,
            Op::UnlinkOpen(name) => {
                let ino = lookup(fs, name)?;
                fs.open(ino, OpenFlags::default())?;
                self.in_parent(name, |dir, leaf| Ok(fs.unlink(dir, leaf)?))?;
            }
            Op::Link(from, to) => self.with(from, |ino| {
                self.in_parent(to, |dir, leaf| {
                    let made = fs.link(&root, ino, dir, leaf)?;
                    fs.forget(made.ino, 1);
                    Ok(())
                })
            })?,
            Op::Rename(from, to) => self.rename(from, to, RenameFlags::default())?,
            Op::Exchange(a, b) => {
                self.rename(a, b, RenameFlags { exchange: true, ..RenameFlags::default() })?
            }
            Op::Write { file, way, .. } | Op::Append { file, way, .. } => {
                let (at, len) = written.context("a write has a range")?;
                let mode = if way == Way::Direct { WriteMode::Direct } else { WriteMode::Cached };
                let data = vec![tag; (len * CELL) as usize];
                let done = self.with(file, |ino| Ok(fs.write(&root, ino, at * CELL, &data, mode)?))?;
                ensure!(done == data.len(), "wrote {done} of {}", data.len());
            }
            Op::Truncate(file, size) => {
                let change = SetAttr { size: Some(size * CELL), ..SetAttr::default() };
                self.with(file, |ino| Ok(fs.setattr(ino, &change)?)).map(drop)?;
            }
            Op::Chmod(file, mode) => {
                let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
                self.with(file, |ino| Ok(fs.setattr(ino, &change)?)).map(drop)?;
            }
            Op::Fallocate { file, how, at, len } => {
                let mode = match how {
                    Falloc::Allocate => FallocateMode::Allocate { keep_size: false },
                    Falloc::KeepSize => FallocateMode::Allocate { keep_size: true },
                    Falloc::Punch => FallocateMode::PunchHole,
                    Falloc::Zero => FallocateMode::ZeroRange { keep_size: false },
                    Falloc::ZeroKeepSize => FallocateMode::ZeroRange { keep_size: true },
                    Falloc::Collapse => FallocateMode::Collapse,
                    Falloc::Insert => FallocateMode::Insert,
                };
                self.with(file, |ino| Ok(fs.fallocate(&root, ino, at * CELL, len * CELL, mode)?))?;
            }
            Op::SetXattr(file, attr, len) => {
                let value = vec![tag; len];
                self.with(file, |ino| {
                    Ok(fs.setxattr(&root, ino, attr.as_bytes(), &value, SetXattr::Any, false)?)
                })?;
            }
            Op::RemoveXattr(file, attr) => {
                self.with(file, |ino| Ok(fs.removexattr(&root, ino, attr.as_bytes())?))?;
            }
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<()> {
        self.in_parent(from, |from_dir, from_leaf| {
            self.in_parent(to, |to_dir, to_leaf| {
                Ok(self.fs.rename(&Caller::root(), (from_dir, from_leaf), (to_dir, to_leaf), flags)?)
            })
        })
    }

    fn persist(&mut self, op: &Op, what: Persist) -> Result<()> {
        let fs = &self.fs;
        match what {
            Persist::No => return Ok(()),
            Persist::Sync => fs.syncfs()?,
            Persist::FsyncParent => {
                let data_only = self.dice.one_in(2);
                self.with(parent(op.target()), |ino| Ok(fs.fsyncdir(ino, data_only)?))?;
            }
            Persist::Fsync | Persist::Fdatasync => {
                self.with(op.target(), |ino| Ok(fs.fsync(ino, what == Persist::Fdatasync)?))?;
            }
        }
        self.model.persisted(op, what);
        self.next_epoch();
        Ok(())
    }

    /// Looks `path` up, as a kernel does, for the time of `f`.
    fn with<T>(&self, path: &str, f: impl FnOnce(Ino) -> Result<T>) -> Result<T> {
        let ino = lookup(&self.fs, path)?;
        let result = f(ino);
        if !path.is_empty() {
            self.fs.forget(ino, 1);
        }
        result
    }

    fn in_parent<T>(&self, path: &str, f: impl FnOnce(Ino, &[u8]) -> Result<T>) -> Result<T> {
        let leaf = path.rsplit('/').next().unwrap_or(path);
        self.with(parent(path), |dir| f(dir, leaf.as_bytes()))
    }

    /// Commits until the log's head is a few blocks before its end.
    fn advance_log(&self) -> Result<()> {
        // An empty change of the mode takes a descriptor, the inode, the superblock and a commit block.
        let change = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
        self.with("foo", |ino| {
            for _ in 0..125 {
                self.fs.setattr(ino, &change(0o600))?;
                self.fs.fsync(ino, false)?;
                self.fs.setattr(ino, &change(0o644))?;
                self.fs.fsync(ino, false)?;
            }
            Ok(())
        })
    }
}

/// The inode of a path; takes a reference unless it is the root.
pub fn lookup(fs: &Filesystem, path: &str) -> Result<Ino> {
    let mut at = fs.root();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let next = fs.lookup(at, name.as_bytes()).with_context(|| format!("lookup of {path}"))?.ino;
        if at != fs.root() {
            fs.forget(at, 1);
        }
        at = next;
    }
    Ok(at)
}
