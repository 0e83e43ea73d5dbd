//! A file under random direct, buffered and mapped reads and writes, punches, allocations and fsyncs from
//! several threads, compared with a byte array at every read.
//!
//! Each thread owns a stripe of the file, a whole number of pages, so that it knows every byte of it whatever
//! the others do; all stripes share the file's extent tree, its IO modes and its journal. One more thread
//! owns the tail: it appends and truncates, which moves the size under the feet of all.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blockdev::AlignedBuf;
use fastrand::Rng;
use mmap_io::MemoryMappedFile;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::tree::fill;

const PAGE: u64 = 4096;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Decides what each thread does.
    pub seed: u64,
    /// Threads with a stripe; the tail's comes on top.
    pub threads: u64,
    /// Bytes of a stripe, a multiple of a page.
    pub stripe: u64,
    /// How long.
    pub time: Duration,
}

/// One way to the file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Buffered,
    Direct,
    Mapped,
}

/// A part of the file and what must be in it.
struct Stripe {
    start: u64,
    bytes: Vec<u8>,
    rng: Rng,
    buffered: File,
    direct: File,
    path: std::path::PathBuf,
}

impl Model {
    /// Runs on a new file at `path`; returns the number of operations, all of whose reads were right.
    pub fn run(&self, path: &Path) -> Result<u64> {
        File::create(path)?.set_len(self.threads * self.stripe)?;
        let (done, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let deadline = Instant::now() + self.time;
        let mut stripes = (0..=self.threads)
            .map(|index| Stripe::new(path, index * self.stripe, self.stripe, self.seed.wrapping_add(index)))
            .collect::<Result<Vec<_>>>()?;
        std::thread::scope(|scope| {
            let (done, failed) = (&done, &failed);
            let workers: Vec<_> = stripes
                .iter_mut()
                .enumerate()
                .map(|(index, stripe)| {
                    let is_tail = index as u64 == self.threads;
                    scope.spawn(move || -> Result<()> {
                        while Instant::now() < deadline && !failed.load(Ordering::Relaxed) {
                            let outcome = if is_tail { stripe.step_of_tail() } else { stripe.step() };
                            if let Err(error) = outcome {
                                failed.store(true, Ordering::Relaxed);
                                return Err(error.context(format!("stripe {index}")));
                            }
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
        let expected = stripes.iter().flat_map(|stripe| &stripe.bytes);
        let found = fs::read(path)?;
        if let Some(at) = expected.zip(&found).position(|(right, found)| right != found) {
            bail!("at the end, byte {at} is wrong");
        }
        Ok(done.into_inner())
    }
}

impl Stripe {
    fn new(path: &Path, start: u64, length: u64, seed: u64) -> Result<Stripe> {
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let direct = rustix::fs::open(path, flags, Mode::empty()).context("opening with O_DIRECT")?;
        Ok(Stripe {
            start,
            bytes: vec![0; length as usize],
            rng: Rng::with_seed(seed),
            buffered: File::options().read(true).write(true).open(path)?,
            direct: File::from(direct),
            path: path.to_owned(),
        })
    }

    /// A range of the stripe; with O_DIRECT mostly of whole sectors.
    fn range(&mut self, way: Way) -> (usize, usize) {
        let total = self.bytes.len();
        let unit = if way == Way::Direct { 512 << self.rng.u8(0..4) } else { 1 };
        let longest = if self.rng.u8(0..8) == 0 { total } else { total.min(64 << 10) };
        let offset = self.rng.usize(0..total) / unit * unit;
        let length = (self.rng.usize(0..longest) / unit * unit).max(unit).min(total - offset);
        (offset, length)
    }

    fn way(&mut self) -> Way {
        self.rng.choice([Way::Buffered, Way::Direct, Way::Direct, Way::Mapped]).expect("not empty")
    }

    fn step(&mut self) -> Result<()> {
        let way = self.way();
        let (offset, length) = self.range(way);
        match self.rng.u8(0..20) {
            0..=7 => self
                .write(way, offset, length)
                .with_context(|| format!("{way:?} write of {length} at {offset}")),
            8..=15 => self.check(way, offset, length),
            16 => self.punch(offset, length),
            17 => {
                // Preallocates, or changes nothing.
                rustix::fs::fallocate(
                    &self.buffered,
                    FallocateFlags::KEEP_SIZE,
                    self.start + offset as u64,
                    length as u64,
                )?;
                Ok(())
            }
            18 => Ok(self.direct.sync_data()?),
            _ => Ok(self.buffered.sync_all()?),
        }
    }

    fn punch(&mut self, offset: usize, length: usize) -> Result<()> {
        let flags = [
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        ];
        let flags = self.rng.choice(flags).expect("not empty");
        rustix::fs::fallocate(&self.buffered, flags, self.start + offset as u64, length as u64)?;
        self.bytes[offset..offset + length].fill(0);
        Ok(())
    }

    fn write(&mut self, way: Way, offset: usize, length: usize) -> Result<()> {
        let mut buffer = AlignedBuf::zeroed(length);
        fill(self.rng.u64(..), offset as u64, &mut buffer);
        let at = self.start + offset as u64;
        match way {
            Way::Mapped => {
                let map = self.map()?;
                map.update_region(at, &buffer)?;
                if self.rng.bool() {
                    map.flush_range(at, length as u64)?;
                }
            }
            way => {
                let mut done = 0;
                while done < length {
                    match rustix::io::pwrite(self.file(way).as_fd(), &buffer[done..], at + done as u64) {
                        // The kernel's ext4 wants sectors of the device.
                        Err(Errno::INVAL) if way == Way::Direct && done == 0 => return Ok(()),
                        answer => done += answer?,
                    }
                }
            }
        }
        self.bytes[offset..offset + length].copy_from_slice(&buffer);
        Ok(())
    }

    fn check(&mut self, way: Way, offset: usize, length: usize) -> Result<()> {
        let mut buffer = AlignedBuf::zeroed(length);
        let at = self.start + offset as u64;
        let read = match way {
            Way::Mapped => self.map()?.read_into(at, &mut buffer).map(|()| length)?,
            way => match rustix::io::pread(self.file(way).as_fd(), &mut buffer[..], at) {
                Err(Errno::INVAL) if way == Way::Direct => return Ok(()),
                answer => answer?,
            },
        };
        let wrong =
            buffer[..read].iter().zip(&self.bytes[offset..]).position(|(found, right)| found != right);
        match wrong {
            Some(index) => bail!(
                "{way:?} read of {length} at {at}: byte {} is {:#x}, not {:#x}",
                at + index as u64,
                buffer[index],
                self.bytes[offset + index]
            ),
            None if read < length => bail!("{way:?} read at {at} gave {read} of {length}"),
            None => Ok(()),
        }
    }

    fn file(&self, way: Way) -> &File {
        if way == Way::Direct { &self.direct } else { &self.buffered }
    }

    fn map(&self) -> Result<MemoryMappedFile> {
        Ok(MemoryMappedFile::open_rw(&self.path)?)
    }

    /// The tail's life: its model has the length that the file has behind `start`.
    fn step_of_tail(&mut self) -> Result<()> {
        const LONGEST: usize = 1 << 20;
        if self.bytes.len() == LONGEST || self.rng.u8(0..4) == 0 {
            let length = self.rng.usize(0..LONGEST);
            self.buffered.set_len(self.start + length as u64)?;
            self.bytes.resize(length, 0);
            return Ok(());
        }
        let way = if self.rng.bool() { Way::Direct } else { Way::Buffered };
        let end = self.bytes.len();
        let from = if way == Way::Direct { end.next_multiple_of(PAGE as usize) } else { end };
        let length = (self.rng.usize(1..16) * PAGE as usize).min(LONGEST.saturating_sub(from));
        if length == 0 {
            self.bytes.truncate(LONGEST);
            return Ok(self.buffered.set_len(self.start + self.bytes.len() as u64)?);
        }
        self.bytes.resize(from + length, 0);
        self.write(way, from, length)?;
        self.check(way, from, length)
    }
}
