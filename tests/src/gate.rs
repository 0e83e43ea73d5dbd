//! A device that stands still when a test says so: fault injection for requests that take their time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::{BlockDevice, DeviceGeometry, Op, Result};
use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct State {
    closed: Option<Op>,
    waiting: usize,
}

/// Closed for one kind of request, it keeps each of them until it is opened.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// From now on requests of this kind wait.
    pub fn close(&self, op: Op) {
        self.state.lock().closed = Some(op);
    }

    /// Lets all go.
    pub fn open(&self) {
        self.state.lock().closed = None;
        self.changed.notify_all();
    }

    /// Whether so many requests stand before it, now or before `limit` is over.
    pub fn holds(&self, requests: usize, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        while state.waiting < requests {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return state.waiting >= requests;
            }
        }
        true
    }

    fn pass(&self, op: Op) {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.closed == Some(op) {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
    }
}

/// Opens the gate at the end, however that comes: who waits there could not end before.
pub struct Opening<'a>(pub &'a Gate);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// A device behind a [`Gate`].
pub struct Gated<D> {
    /// The device.
    pub inner: D,
    /// The gate.
    pub gate: Arc<Gate>,
}

impl<D: BlockDevice> BlockDevice for Gated<D> {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.gate.pass(Op::Read);
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.gate.pass(Op::Write);
        self.inner.write_at(offset, buf)
    }

    fn flush(&self) -> Result<()> {
        self.gate.pass(Op::Flush);
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.write_zeroes(offset, len)
    }
}
