//! A memory disk that remembers every change, for the crash states made from it later.
//!
//! The log is in order of completion. A change carries the length the log had when it was issued: at a
//! cut in between it was in flight, and may have reached the medium or not. A flush carries the length
//! the log had when *it* was issued: it covers what had completed by then, and nothing that raced with it.
//! A test drops marks between them, to know what had been promised by when.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::image::{Fill, Image};
use super::mem::{DISCARDED, MemDevice};
use crate::{BlockDevice, DeviceGeometry, Op, Result};

/// What a change does to the medium.
#[derive(Clone, Debug)]
pub enum Change {
    /// These bytes replace what was there.
    Write(Arc<[u8]>),
    /// So many bytes become this.
    Fill(u64, Fill),
}

impl Change {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Change::Write(data) => data.len() as u64,
            Change::Fill(len, _) => *len,
        }
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub enum Event {
    /// A write, zeroing or discard that has completed.
    Changed {
        /// First byte.
        offset: u64,
        /// What became of it.
        change: Change,
        /// Length of the log when it was issued.
        issued: usize,
    },
    /// A flush that has returned `Ok`: changes before this position are on the medium.
    Flushed {
        /// Length of the log when it was issued.
        covers: usize,
    },
    /// A flush that failed: no later flush covers a change since the last good one.
    FlushFailed,
    /// The test's own note.
    Mark(u64),
}

/// A disk and the log of all changes since its start. Clones share it.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    base: Image,
    whole: Range<u64>,
    disk: MemDevice,
    log: Mutex<Vec<Event>>,
}

impl Recorder {
    /// Starts on a disk with this content.
    #[must_use]
    pub fn new(base: Image) -> Recorder {
        Recorder::with_whole(base, 0..0)
    }

    /// The same on a medium that never tears what one write does to the bytes of `whole`, although they
    /// are more than a sector.
    #[must_use]
    pub fn with_whole(base: Image, whole: Range<u64>) -> Recorder {
        let disk = MemDevice::from_image(base.clone());
        Recorder(Arc::new(Shared { base, whole, disk, log: Mutex::new(Vec::new()) }))
    }

    /// Notes that the test has come to `mark`.
    pub fn mark(&self, mark: u64) {
        self.0.log.lock().push(Event::Mark(mark));
    }

    /// Notes that a device above answered a flush with an error.
    pub fn flush_failed(&self) {
        self.0.log.lock().push(Event::FlushFailed);
    }

    /// Number of events so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.0.log.lock().len()
    }

    /// The log up to now; the disk may go on being used.
    #[must_use]
    pub fn recording(&self) -> Recording {
        let events = self.0.log.lock().clone();
        let Shared { base, whole, .. } = &*self.0;
        Recording { base: base.clone(), events, sector: self.geometry().logical_sector, whole: whole.clone() }
    }

    /// What the disk holds now, as if nothing could be lost.
    #[must_use]
    pub fn snapshot(&self) -> Image {
        self.0.disk.snapshot()
    }

    fn logged(&self, offset: u64, change: Change, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let issued = self.position();
        act()?;
        if !change.is_empty() {
            self.0.log.lock().push(Event::Changed { offset, change, issued });
        }
        Ok(())
    }
}

impl BlockDevice for Recorder {
    fn geometry(&self) -> DeviceGeometry {
        self.0.disk.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.disk.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.logged(offset, Change::Write(buf.into()), || self.0.disk.write_at(offset, buf))
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        self.write_at(offset, &bufs.concat())
    }

    fn flush(&self) -> Result<()> {
        let covers = self.position();
        self.0.disk.flush()?;
        self.0.log.lock().push(Event::Flushed { covers });
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.disk.geometry().check(Op::Discard, offset, len)?;
        self.logged(offset, Change::Fill(len, DISCARDED), || self.0.disk.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.logged(offset, Change::Fill(len, Fill::Zero), || self.0.disk.write_zeroes(offset, len))
    }
}

/// A finished log and the disk it began with.
#[derive(Clone)]
pub struct Recording {
    pub(super) base: Image,
    pub(super) events: Vec<Event>,
    pub(super) sector: u32,
    /// Bytes that no write tears.
    pub(super) whole: Range<u64>,
}

impl Recording {
    /// The log.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The disk at the start.
    #[must_use]
    pub fn base(&self) -> &Image {
        &self.base
    }
}
