//! Making a transaction durable: one function per state.
//!
//! ```text
//!   Running --lock--> Locked --close, switch--> Switched --write--> Logged --seal--> Durable --settle--> Done
//!      handles start    open handles end         the next transaction runs from here on
//! ```
//!
//! The thread that asks first leads; others that ask for the same transaction wait for it, and
//! those that ask for a later one lead it when the leader is done, so any number of waiting fsyncs
//! costs one commit. Only Locked waits for handles. A failure in any state aborts the journal.
//!
//! An empty transaction is never committed: nothing is written, it keeps running.

use std::sync::Arc;

use ext4_format::Tid;

use crate::error::Result;
use crate::handle::Handle;
use crate::home::write_home;
use crate::journal::{CommitObserver, Core, Journal, Kind};
use crate::transaction::{Snapshot, Transaction};

impl Journal {
    /// The transaction that would take a handle now, if one has been opened.
    pub fn running(&self) -> Option<Tid> {
        self.core.lock().running.as_ref().map(|running| running.tx.tid)
    }

    /// The newest transaction that anybody can have changed something in: the running one, or the one
    /// being committed, or the last durable one.
    pub fn newest(&self) -> Tid {
        let core = self.core.lock();
        let running = core.running.as_ref().map(|running| running.tx.tid);
        running.or(core.leading).unwrap_or(core.committed)
    }

    /// Whether `tid` is durable.
    pub fn is_committed(&self, tid: Tid) -> bool {
        self.core.lock().committed.is_at_least(tid)
    }

    /// Returns when `tid` and everything before it is durable. The caller holds no handle.
    /// Committing a transaction that changed nothing, or a number that was never given to a handle,
    /// writes nothing and flushes nothing.
    pub fn commit(&self, tid: Tid) -> Result<()> {
        self.commit_or_drain(tid, false)
    }

    /// As `commit`; with `drain`, a transaction that is empty so far is locked too, so that the
    /// credits its handles have reserved come back.
    pub(crate) fn commit_or_drain(&self, tid: Tid, drain: bool) -> Result<()> {
        let mut core = self.core.lock();
        let mut followed = false;
        loop {
            core.check_alive()?;
            if core.committed.is_at_least(tid) {
                self.counters.followers.add(u64::from(followed));
                return Ok(());
            }
            if core.leading.is_some() {
                followed = core.leading == Some(tid);
                self.commit_ended.wait(&mut core);
                continue;
            }
            let tx = match &core.running {
                Some(running) if running.tx.tid == tid => running.tx.clone(),
                _ => return Ok(()),
            };
            if !drain && tx.work.lock().is_empty() {
                return Ok(());
            }
            core.lock_running(tid);
            drop(core);
            return self.lead(&tx).map_err(|e| self.die(e));
        }
    }

    /// Commits whatever runs, or waits for the commit under way.
    pub fn commit_running(&self) -> Result<()> {
        let tid = {
            let core = self.core.lock();
            core.check_alive()?;
            match (&core.running, core.leading) {
                (Some(running), _) => running.tx.tid,
                (None, Some(leading)) => leading,
                (None, None) => return Ok(()),
            }
        };
        self.commit(tid)
    }

    fn lead(&self, tx: &Arc<Transaction>) -> Result<()> {
        let observer = self.observer.read().clone();
        self.wait_for_handles()?;
        if tx.work.lock().is_empty() {
            self.reopen();
            return Ok(());
        }
        self.close_transaction(tx, observer.as_deref())?;
        let (mut snapshot, start) = self.switch(tx);
        self.write(&mut snapshot, start)?;
        self.settle(snapshot, observer.as_deref())
    }

    /// Locked: the open handles end.
    fn wait_for_handles(&self) -> Result<()> {
        let mut core = self.core.lock();
        while core.running.as_ref().is_some_and(|running| running.handles > 0) {
            core.check_alive()?;
            self.handles_gone.wait(&mut core);
        }
        core.check_alive()
    }

    /// Back to Running: the handles ended and had changed nothing.
    fn reopen(&self) {
        let mut core = self.core.lock();
        core.leading = None;
        if let Some(running) = &mut core.running {
            running.locked = false;
        }
        self.admission.notify_all();
        self.commit_ended.notify_all();
    }

    /// Locked: the observer makes the last edits, in a handle that nobody waited to admit.
    fn close_transaction(&self, tx: &Arc<Transaction>, observer: Option<&dyn CommitObserver>) -> Result<()> {
        let Some(observer) = observer else { return Ok(()) };
        if let Some(running) = &mut self.core.lock().running {
            running.handles += 1;
        }
        let handle = Handle::new(self, tx.clone(), self.closing());
        observer.closing(tx.tid, &handle)?;
        handle.finish()
    }

    /// Switched: takes the dirty bytes, the transaction's place in the log, and lets the next one
    /// run. Nobody holds a write guard on the blocks, for a guard borrows a handle.
    fn switch(&self, tx: &Transaction) -> (Snapshot, u32) {
        let snapshot = tx.snapshot();
        let mut core = self.core.lock();
        let start = match &self.kind {
            Kind::Log(log) => {
                let len = log.cost(snapshot.blocks.len() as u64, snapshot.revoked.len() as u64) as u32;
                let next_head = log.advance(core.space.head, len);
                core.space.reserve(&snapshot, len, next_head)
            }
            Kind::Home | Kind::ReadOnly => 0,
        };
        core.running = None;
        self.admission.notify_all();
        (snapshot, start)
    }

    /// Logged, Durable: into the log and sealed, or without a log straight home.
    fn write(&self, snapshot: &mut Snapshot, start: u32) -> Result<()> {
        if let Kind::Log(log) = &self.kind {
            return log.write_transaction(snapshot, start);
        }
        write_home(&*self.dev, self.block_size, &mut snapshot.blocks)?;
        self.counters.home_blocks.add(snapshot.blocks.len() as u64);
        self.flush()
    }

    /// Done: wakes the waiters. The observer is called first, so that freed blocks are free before a
    /// waiter looks for them.
    fn settle(&self, snapshot: Snapshot, observer: Option<&dyn CommitObserver>) -> Result<()> {
        let tid = snapshot.tid;
        let (blocks, revoked) = (snapshot.blocks.len(), snapshot.revoked.len());
        tracing::debug!(%tid, blocks, revoked, forgotten = snapshot.forgotten.len(), "committed");
        self.counters.commits.add(1);
        self.counters.committed_blocks.add(blocks as u64);
        if let Kind::Log(_) = &self.kind {
            self.replace_versions(snapshot)?;
        }
        if let Some(observer) = observer {
            observer.committed(tid);
        }
        let mut core = self.core.lock();
        core.committed = tid;
        core.leading = None;
        self.commit_ended.notify_all();
        self.admission.notify_all();
        Ok(())
    }

    /// Hands the committed versions to the checkpoint. A block freed here may be given to a file as
    /// soon as we return, so an older version of it must not be on its way home any more.
    fn replace_versions(&self, snapshot: Snapshot) -> Result<()> {
        let mut core = self.core.lock();
        while snapshot.forgotten.iter().any(|block| core.space.in_flight.contains(block)) {
            core.check_alive()?;
            self.landed.wait(&mut core);
        }
        core.space.committed(snapshot);
        Ok(())
    }
}

impl Core {
    fn lock_running(&mut self, tid: Tid) {
        self.leading = Some(tid);
        if let Some(running) = &mut self.running {
            running.locked = true;
        }
    }
}
