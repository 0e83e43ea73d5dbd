//! A device whose requests fail when a test says so.
//!
//! A failed read returns no data. A failed write leaves each of its sectors old or new, by the dice. A
//! failed flush tells whoever listens below, since nothing since the last good flush can be trusted.

use std::io;
use std::ops::Range;

use parking_lot::Mutex;

use super::dice::Dice;
use crate::{BlockDevice, DeviceGeometry, Error, Op, Result};

/// When a fault strikes, among the requests of its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum When {
    /// At the n-th request after arming, the first being 0.
    Nth(u64),
    /// At requests that touch a byte range.
    Touching(Range<u64>),
    /// Always.
    Always,
}

/// A fault to be armed.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kind of request.
    pub op: Op,
    /// Which of them.
    pub when: When,
    /// Whether it goes on failing after the first time (after `Nth`: every later request of that kind too).
    pub sticky: bool,
    /// The operating system's error number to answer (5 is EIO).
    pub errno: i32,
}

/// Names an armed fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultId(u64);

struct Armed {
    id: FaultId,
    fault: Fault,
    /// Requests of its kind since it was armed.
    seen: u64,
}

struct State {
    armed: Vec<Armed>,
    next_id: u64,
    struck: u64,
    dice: Dice,
}

/// A device with faults on demand.
pub struct FaultDevice<D> {
    inner: D,
    state: Mutex<State>,
    on_failed_flush: Box<dyn Fn() + Send + Sync>,
}

impl<D: BlockDevice> FaultDevice<D> {
    /// A device that works until a fault is armed; `seed` decides how failed writes tear.
    pub fn new(inner: D, seed: u64) -> FaultDevice<D> {
        FaultDevice::with_failed_flush(inner, seed, || {})
    }

    /// The same, and `on_failed_flush` hears of each failed flush (a recorder below wants to know).
    pub fn with_failed_flush(
        inner: D,
        seed: u64,
        on_failed_flush: impl Fn() + Send + Sync + 'static,
    ) -> FaultDevice<D> {
        let state = State { armed: Vec::new(), next_id: 0, struck: 0, dice: Dice::new(seed) };
        FaultDevice { inner, state: Mutex::new(state), on_failed_flush: Box::new(on_failed_flush) }
    }

    /// Arms a fault.
    pub fn arm(&self, fault: Fault) -> FaultId {
        let mut state = self.state.lock();
        let id = FaultId(state.next_id);
        state.next_id += 1;
        state.armed.push(Armed { id, fault, seen: 0 });
        id
    }

    /// Takes a fault away; one that has struck and is not sticky is gone already.
    pub fn disarm(&self, id: FaultId) {
        self.state.lock().armed.retain(|armed| armed.id != id);
    }

    /// How many requests have been failed.
    pub fn struck(&self) -> u64 {
        self.state.lock().struck
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Counts a request; the error and a seed if it is to fail.
    fn strike(&self, op: Op, offset: u64, len: u64) -> Option<(Error, u64)> {
        let mut state = self.state.lock();
        let mut errno = None;
        state.armed.retain_mut(|armed| {
            if armed.fault.op != op {
                return true;
            }
            let nth = armed.seen;
            armed.seen += 1;
            let hit = match &armed.fault.when {
                When::Nth(n) => nth == *n || (armed.fault.sticky && nth > *n),
                When::Touching(range) => offset < range.end && range.start < offset.saturating_add(len),
                When::Always => true,
            };
            if hit {
                errno = Some(armed.fault.errno);
            }
            !hit || armed.fault.sticky
        });
        let errno = errno?;
        state.struck += 1;
        let source = io::Error::from_raw_os_error(errno);
        Some((Error { op, offset, len, source }, state.dice.roll()))
    }
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self.strike(Op::Read, offset, buf.len() as u64) {
            Some((error, _)) => Err(error),
            None => self.inner.read_at(offset, buf),
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let Some((error, seed)) = self.strike(Op::Write, offset, buf.len() as u64) else {
            return self.inner.write_at(offset, buf);
        };
        self.geometry().check(Op::Write, offset, buf.len() as u64)?;
        let mut dice = Dice::new(seed);
        let unit = u64::from(self.geometry().logical_sector);
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let piece = ((unit - at % unit) as usize).min(buf.len() - done);
            if dice.one_in(2) {
                self.inner.write_at(at, &buf[done..done + piece])?;
            }
            done += piece;
        }
        Err(error)
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        self.write_at(offset, &bufs.concat())
    }

    fn flush(&self) -> Result<()> {
        match self.strike(Op::Flush, 0, 0) {
            Some((error, _)) => {
                (self.on_failed_flush)();
                Err(error)
            }
            None => self.inner.flush(),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        match self.strike(Op::Discard, offset, len) {
            Some((error, _)) => Err(error),
            None => self.inner.discard(offset, len),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        match self.strike(Op::WriteZeroes, offset, len) {
            Some((error, _)) => Err(error),
            None => self.inner.write_zeroes(offset, len),
        }
    }
}
