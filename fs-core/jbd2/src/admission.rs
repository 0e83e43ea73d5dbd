//! Who may join the running transaction: log space is promised here, before anything is dirtied.
//!
//! The running transaction has promised every block that joined it and every credit its open
//! handles have not spent. A start is admitted when the log, as it is now, could hold all that and
//! the newcomer's credits besides. Otherwise it takes a ticket, and so does whoever comes after it; the
//! first in the queue makes room itself (commits the full transaction, checkpoints the full log), the
//! others wait their turn.
//! Whoever waits here holds no handle, so the handles that are open can always end.

use std::sync::Arc;

use ext4_format::{BlockNo, Tid};
use parking_lot::MutexGuard;

use crate::error::{Error, Result};
use crate::handle::{Credits, Handle};
use crate::journal::{Core, Journal, Kind};
use crate::transaction::Transaction;

/// The transaction that takes handles.
pub(crate) struct Running {
    pub tx: Arc<Transaction>,
    /// Open handles.
    pub handles: u32,
    /// Blocks that joined, plus the unspent credits of open handles.
    pub promised: Credits,
    /// A commit waits for the open handles; no new ones.
    pub locked: bool,
}

enum Room {
    Enough,
    /// A commit has locked the transaction.
    Locked,
    /// The transaction would grow past its limit.
    Full(Tid),
    /// The log has no room for it: committed transactions must leave first.
    Short(u32),
}

impl Journal {
    /// Opens a handle. One per thread; the caller holds no lock above rank 50. Waits while a
    /// commit closes the running transaction or while room in the log is being made.
    pub fn start(&self, credits: Credits) -> Result<Handle<'_>> {
        if matches!(self.kind, Kind::ReadOnly) {
            return Err(Error::ReadOnly);
        }
        self.check_size(credits)?;
        Ok(Handle::new(self, self.admit(credits)?, credits))
    }

    /// Whether a transaction of its own could hold these credits.
    pub(crate) fn check_size(&self, credits: Credits) -> Result<()> {
        let asked = self.cost(credits.plus(self.closing()));
        let max = self.max_transaction();
        if asked > max { Err(Error::TooManyCredits { asked, max }) } else { Ok(()) }
    }

    pub(crate) fn closing(&self) -> Credits {
        Credits::blocks(self.opts.closing_credits)
    }

    pub(crate) fn admit(&self, credits: Credits) -> Result<Arc<Transaction>> {
        let mut core = self.core.lock();
        while core.suspended {
            MutexGuard::unlocked(&mut core, || self.resume())?;
        }
        let mut led = false;
        while core.serving == core.next_ticket {
            core.check_alive()?;
            match self.room(&core, credits) {
                Room::Enough => return Ok(core.join(credits, self.closing())),
                // Who commits a full transaction lets everybody else into the next one meanwhile; if that
                // is full too when it comes back, it queues.
                Room::Full(_) if led => break,
                Room::Short(_) => break,
                room => {
                    led = matches!(room, Room::Full(_)) && core.leading.is_none();
                    self.make_room(&mut core, &room)?;
                }
            }
        }
        let ticket = core.next_ticket;
        core.next_ticket += 1;
        let admitted = self.wait_in_queue(&mut core, ticket, credits);
        core.serving += 1;
        self.admission.notify_all();
        admitted
    }

    fn wait_in_queue(
        &self,
        core: &mut MutexGuard<'_, Core>,
        ticket: u64,
        credits: Credits,
    ) -> Result<Arc<Transaction>> {
        loop {
            if core.serving != ticket {
                self.admission.wait(core);
                continue;
            }
            core.check_alive()?;
            match self.room(core, credits) {
                Room::Enough => return Ok(core.join(credits, self.closing())),
                room => self.make_room(core, &room)?,
            }
        }
    }

    /// Does what `room` lacks, or waits for the commit under way that will.
    fn make_room(&self, core: &mut MutexGuard<'_, Core>, room: &Room) -> Result<()> {
        let oldest = core.space.logged.front().map(|logged| logged.tid);
        match *room {
            Room::Full(tid) if core.leading.is_none() => {
                MutexGuard::unlocked(core, || self.commit_or_drain(tid, true))
            }
            // Something in the log is committed, and can go home.
            Room::Short(goal) if core.leading.is_none() || oldest != core.leading => {
                MutexGuard::unlocked(core, || self.free_log(goal))
            }
            _ => {
                self.admission.wait(core);
                Ok(())
            }
        }
    }

    fn room(&self, core: &Core, credits: Credits) -> Room {
        let promised = core.running.as_ref().map_or(self.closing(), |running| running.promised);
        let need = self.cost(promised.plus(credits));
        match (&core.running, &self.kind) {
            (Some(running), _) if running.locked => Room::Locked,
            (Some(running), _) if need > self.max_transaction() => Room::Full(running.tx.tid),
            // Beyond what is needed now, so that the next start does not come back for a block.
            (_, Kind::Log(log)) if need > core.space.free.into() => {
                Room::Short((need as u32).saturating_add(log.size() / 8).min(log.size()))
            }
            _ => Room::Enough,
        }
    }

    pub(crate) fn extend(&self, more: Credits) -> bool {
        let mut core = self.core.lock();
        if !matches!(self.room(&core, more), Room::Enough) {
            return false;
        }
        let Some(running) = &mut core.running else { return false };
        running.promised = running.promised.plus(more);
        true
    }

    pub(crate) fn release(&self, unspent: Credits) {
        let mut core = self.core.lock();
        if let Some(running) = &mut core.running {
            running.promised = running.promised.minus(unspent);
            running.handles -= 1;
            if running.handles == 0 && running.locked {
                self.handles_gone.notify_all();
            }
        }
    }

    /// Log blocks that a transaction of this size takes.
    fn cost(&self, credits: Credits) -> u64 {
        match &self.kind {
            Kind::Log(log) => log.cost(credits.blocks.into(), credits.revokes.into()),
            Kind::Home | Kind::ReadOnly => credits.blocks.into(),
        }
    }

    /// The largest transaction, in log blocks.
    fn max_transaction(&self) -> u64 {
        match &self.kind {
            Kind::Log(log) => u64::from(log.size() / 4),
            // Without a log only memory limits it.
            Kind::Home | Kind::ReadOnly => (self.opts.cache_bytes / self.block_size / 4).max(1024) as u64,
        }
    }

    /// Whether a replay of the log, or of what is being written to it, could bring `block` back.
    pub(crate) fn log_holds(&self, block: BlockNo) -> bool {
        matches!(self.kind, Kind::Log(_)) && self.core.lock().space.holds(block)
    }
}

impl Core {
    /// Counts a handle in, opening the transaction if there is none.
    fn join(&mut self, credits: Credits, closing: Credits) -> Arc<Transaction> {
        let running = self.running.get_or_insert_with(|| {
            let tid = self.next_tid;
            self.next_tid = tid.next();
            Running { tx: Arc::new(Transaction::new(tid)), handles: 0, promised: closing, locked: false }
        });
        running.handles += 1;
        running.promised = running.promised.plus(credits);
        running.tx.clone()
    }
}
