//! One operation's part in a transaction.
//!
//! A handle is a lock (rank 50): while it is open its transaction cannot be committed, so every
//! block it changes becomes durable together. It pays one block credit when a block joins the
//! transaction and one revoke credit when a freed block must be revoked; what is left at the end
//! goes back. A thread holds at most one handle, and never waits for a commit with one in hand.

use std::cell::Cell;
use std::sync::Arc;

use ext4_format::{BlockNo, Tid};

use crate::buffer::{Buffer, Load, Slot, WriteGuard};
use crate::bytes::BlockData;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::mutants::{Mutant, is};
use crate::transaction::Transaction;

/// What an operation may dirty at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Credits {
    /// Blocks that may join the transaction.
    pub blocks: u32,
    /// Blocks that may be freed and need a revoke record.
    pub revokes: u32,
}

impl Credits {
    /// Credits for `blocks` blocks and no revoke.
    #[must_use]
    pub const fn blocks(blocks: u32) -> Credits {
        Credits { blocks, revokes: 0 }
    }

    pub(crate) fn plus(self, other: Credits) -> Credits {
        Credits {
            blocks: self.blocks.saturating_add(other.blocks),
            revokes: self.revokes.saturating_add(other.revokes),
        }
    }

    pub(crate) fn minus(self, other: Credits) -> Credits {
        Credits {
            blocks: self.blocks.saturating_sub(other.blocks),
            revokes: self.revokes.saturating_sub(other.revokes),
        }
    }
}

/// An open handle.
pub struct Handle<'j> {
    journal: &'j Journal,
    tx: Arc<Transaction>,
    left: Cell<Credits>,
    /// False only after a `restart` that failed because the journal was aborted.
    open: bool,
}

impl<'j> Handle<'j> {
    pub(crate) fn new(journal: &'j Journal, tx: Arc<Transaction>, credits: Credits) -> Handle<'j> {
        Handle { journal, tx, left: Cell::new(credits), open: true }
    }

    /// The transaction that this handle's changes belong to.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tx.tid
    }

    /// The credits not spent yet.
    #[must_use]
    pub fn left(&self) -> Credits {
        self.left.get()
    }

    /// The journal this handle belongs to.
    #[must_use]
    pub fn journal(&self) -> &'j Journal {
        self.journal
    }

    /// The right to change `buf`'s bytes in this transaction.
    ///
    /// Fails with [`Error::OutOfCredits`] (and asserts in debug builds) when the reservation is
    /// spent, [`Error::Forgotten`] when the block was forgotten since `buf` was read.
    pub fn write(&self, buf: &Buffer) -> Result<WriteGuard<'_>> {
        self.journal.check_alive()?;
        let mut slot = buf.lock();
        if slot.load != Load::Ready {
            return Err(Error::Forgotten { block: buf.block() });
        }
        self.join(buf, &mut slot)?;
        Ok(WriteGuard::new(slot))
    }

    /// A zeroed block that is not read from the device. Cancels a pending revoke of it.
    pub fn create(&self, block: BlockNo) -> Result<Buffer> {
        self.journal.check_alive()?;
        self.journal.check_range(block)?;
        let (buf, was_cached) = self.journal.cache.get_or_insert(block);
        let mut slot = buf.lock();
        self.join(&buf, &mut slot)?;
        if was_cached || slot.load != Load::Absent {
            slot.data = BlockData::zeroed(self.journal.block_size);
        }
        slot.load = Load::Ready;
        drop(slot);
        Ok(buf)
    }

    fn join(&self, buf: &Buffer, slot: &mut Slot) -> Result<()> {
        let tid = self.tx.tid;
        if slot.dirty == Some(tid) {
            return Ok(());
        }
        let mut left = self.left.get();
        if left.blocks == 0 {
            debug_assert!(false, "handle of transaction {tid} has no credit left for block {}", buf.block());
            return Err(Error::OutOfCredits { block: buf.block() });
        }
        left.blocks -= 1;
        debug_assert!(slot.dirty.is_none(), "block {} is dirty in two transactions", buf.block());
        slot.dirty = Some(tid);
        let mut work = self.tx.work.lock();
        work.dirty += 1;
        if slot.listed != Some(tid) {
            slot.listed = Some(tid);
            work.list.push(buf.clone());
        }
        if !work.forgotten.is_empty() {
            work.forgotten.remove(&buf.block());
            if work.revoked.remove(&buf.block()) {
                left.revokes += 1;
            }
        }
        self.left.set(left);
        Ok(())
    }

    /// `block` was freed: pending writes of it are dropped, and a copy in the log is revoked.
    ///
    /// The caller must not reuse the block for file data before this transaction is durable
    /// ([`crate::CommitObserver::committed`]); as metadata it may [`Handle::create`] it at once.
    pub fn forget(&self, block: BlockNo) -> Result<()> {
        self.journal.check_alive()?;
        let mut left = self.left.get();
        let buf = self.journal.cache.peek(block);
        let mut slot = buf.as_ref().map(Buffer::lock);
        let revoke = self.journal.log_holds(block);
        let mut work = self.tx.work.lock();
        if revoke && !is(Mutant::NoRevoke) && !work.revoked.contains(&block) {
            if left.revokes == 0 {
                debug_assert!(false, "no revoke credit left for block {block}");
                return Err(Error::OutOfCredits { block });
            }
            left.revokes -= 1;
            work.revoked.insert(block);
        }
        work.forgotten.insert(block);
        if let Some(slot) = &mut slot {
            if slot.dirty.take().is_some() {
                work.dirty -= 1;
                left.blocks += 1;
            }
            slot.load = Load::Absent;
        }
        self.left.set(left);
        Ok(())
    }

    /// Asks for more credits in the same transaction. `false`: no room, the caller has to bring
    /// its blocks into a consistent state and [`Handle::restart`].
    pub fn extend(&self, more: Credits) -> Result<bool> {
        self.journal.check_alive()?;
        let granted = self.journal.extend(more);
        if granted {
            self.left.set(self.left.get().plus(more));
        }
        Ok(granted)
    }

    /// Ends this handle and starts another in its place, possibly in a later transaction.
    pub fn restart(&mut self, credits: Credits) -> Result<()> {
        self.journal.check_size(credits)?;
        self.end();
        self.tx = self.journal.admit(credits)?;
        self.left.set(credits);
        self.open = true;
        Ok(())
    }

    /// Ends the operation. Its changes become durable with the transaction, not before.
    pub fn finish(self) -> Result<()> {
        self.journal.check_alive()
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            self.journal.release(self.left.take());
        }
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
