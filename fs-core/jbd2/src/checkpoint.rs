//! Writing committed blocks home, so that the log can forget them.
//!
//! One checkpoint at a time, in the thread of whoever needs room (or of a background worker), and
//! never inside a commit. The order is what makes it safe: versions home, flush, tail moved in the
//! journal superblock, flush, space reused. Only committed versions are written, never what a
//! running transaction has made of the block since; a version that a newer committed one replaced
//! needs no writing at all, for the log replays the newer one.

use crate::error::Result;
use crate::home::write_home;
use crate::journal::{Journal, Kind};
use crate::log::Log;
use crate::mutants::{Mutant, is};

/// How much to write home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checkpoint {
    /// Until at most half of the log is in use.
    Some,
    /// Everything committed.
    All,
}

impl Journal {
    /// Writes committed blocks home and moves the log's tail. Waits for another checkpoint under way.
    pub fn checkpoint(&self, how: Checkpoint) -> Result<()> {
        let Kind::Log(log) = &self.kind else { return self.check_alive() };
        self.free_log(match how {
            Checkpoint::Some => log.size() - log.size() / 2,
            Checkpoint::All => log.size(),
        })
    }

    /// Checkpoints committed transactions, oldest first, until `goal` log blocks are free or none is left.
    pub(crate) fn free_log(&self, goal: u32) -> Result<()> {
        let Kind::Log(log) = &self.kind else { return Ok(()) };
        let turn = self.checkpointing.lock();
        let done = self.free_log_in_turn(log, goal);
        drop(turn);
        done.map_err(|e| self.die(e))
    }

    fn free_log_in_turn(&self, log: &Log, goal: u32) -> Result<()> {
        let (mut blocks, leaving) = {
            let mut core = self.core.lock();
            core.check_alive()?;
            let committed = core.committed;
            core.space.choose(goal, committed)
        };
        if leaving == 0 {
            return Ok(());
        }
        let move_tail = || {
            log.move_tail(|| {
                let core = self.core.lock();
                core.space.tail(leaving, core.committed.next())
            })
        };
        if is(Mutant::TailBeforeHomes) {
            move_tail()?;
        }
        if !blocks.is_empty() {
            write_home(&*self.dev, self.block_size, &mut blocks)?;
            self.flush()?;
        }
        self.core.lock().space.landed(leaving);
        self.landed.notify_all();
        if !is(Mutant::TailBeforeHomes) {
            move_tail()?;
        }
        self.core.lock().space.release(leaving);
        self.admission.notify_all();
        self.counters.checkpoints.add(1);
        self.counters.home_blocks.add(blocks.len() as u64);
        tracing::debug!(blocks = blocks.len(), transactions = leaving, "checkpoint");
        Ok(())
    }

    /// Commits, writes everything home and marks the log empty. The caller starts no more handles;
    /// if somebody else does, their transactions stay in a log that says so.
    pub fn close(&self) -> Result<()> {
        self.commit_running()?;
        self.checkpoint(Checkpoint::All)?;
        let Kind::Log(log) = &self.kind else { return Ok(()) };
        let marked = log.mark_empty(|| {
            let core = self.core.lock();
            core.space.logged.is_empty().then(|| (core.space.head, core.committed.next()))
        });
        marked.map(drop).map_err(|e| self.die(e))
    }
}
