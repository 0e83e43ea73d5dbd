//! The end of an inode: nobody holds it any more, and if it has no name either, its blocks, its attributes
//! and its number are given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ext4_format::Ino;
use jbd2::Credits;

use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::inode::{Departure, Inode, orphan};
use crate::node::{Held, Hold};
use crate::{alloc, tx};

/// How long is waited for work pending on an inode that should be deleted.
const EVICT_TIMEOUT: Duration = Duration::from_secs(1);

impl Filesystem {
    /// Has `hint` called when space has run out, before deletions are waited for and the operation is tried
    /// once more: a caller that holds handles which it has yet to drop can do so there. Locks may be held
    /// during the call, so it may drop handles and must do nothing else with this filesystem. The first call
    /// counts.
    pub fn before_no_space(&self, hint: impl Fn() + Send + Sync + 'static) {
        let _ = self.hint.set(Box::new(hint));
    }

    /// Waits until the space of deleted files is free: for the deletions under way, and for a second at most
    /// for those of inodes that the background work still deals with. Returns whether there were any. A file
    /// that was removed is deleted when its last handle is dropped, in the thread that drops it.
    pub fn wait_for_reclaim(&self) -> bool {
        self.wait_for_reclaim_since(self.reclaim.ended())
    }

    /// The same; whether any has ended since there were `before` of them.
    fn wait_for_reclaim_since(&self, before: u64) -> bool {
        if let Some(hint) = self.hint.get() {
            hint();
        }
        self.reclaim.wait_for_deletions();
        let deadline = Instant::now() + EVICT_TIMEOUT;
        loop {
            let seen = self.reclaim.changes();
            self.reap();
            // Without a thread that does the background work nobody could end what is pending.
            if !self.background.flush_soon() || !self.reclaim.wait_for_change(seen, deadline) {
                break;
            }
        }
        self.reclaim.wait_for_deletions();
        self.reclaim.ended() > before
    }

    /// Tries again when there was no space but a deletion under way has made some.
    pub(super) fn after_reclaim<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let before = self.reclaim.ended();
        match attempt() {
            Err(Error::NoSpace) if self.wait_for_reclaim_since(before) => attempt(),
            done => done,
        }
    }

    /// The inode `ino` for the time of an operation.
    pub(crate) fn hold(&self, ino: Ino) -> Result<Hold<'_>> {
        Ok(Held::new(self, self.inodes.get(ino)?))
    }

    /// Takes a handle back.
    pub(crate) fn release(&self, handle: Arc<Inode>) {
        let (ino, unlinked) = (handle.ino, handle.core.read().disk.links == 0);
        // From before it leaves the table, so that there is no moment at which nobody knows of it.
        let _running = unlinked.then(|| self.reclaim.begin());
        match self.inodes.release(handle) {
            Ok(Departure::Left(inode)) => self.delete_if_unlinked(&inode),
            Ok(_) => {}
            Err(handle) => {
                if unlinked {
                    // Data that nobody can read any more are not worth writing out.
                    self.data.abandon(&handle);
                }
                self.inodes.unhold(handle);
                self.evict(ino, unlinked);
            }
        }
    }

    /// Takes a handle of an inode without a name back inside a journal handle: it is deleted later.
    pub(super) fn release_later(&self, handle: Arc<Inode>) {
        let ino = handle.ino;
        self.inodes.unhold(handle);
        self.reclaim.add(ino, true);
    }

    /// Lets `ino`, which had work pending when its last handle was given up, leave the table now or when that
    /// has ended. The caller has no journal handle.
    fn evict(&self, ino: Ino, unlinked: bool) {
        // Listed before the look: whoever has ended the work meanwhile may have looked before it was.
        let ticket = self.reclaim.add(ino, unlinked);
        self.try_evict(ino, ticket);
    }

    /// Lets an inode that waits leave the table if nothing keeps it any more.
    fn try_evict(&self, ino: Ino, ticket: u64) {
        let _running = self.reclaim.begin();
        match self.inodes.depart(ino) {
            Departure::Busy => return,
            Departure::Left(inode) => self.delete_if_unlinked(&inode),
            Departure::Held | Departure::Gone => {}
        }
        self.reclaim.remove(ino, ticket);
    }

    /// Ends work on an inode that was pending: it may leave if only that has kept it.
    pub(crate) fn done_with(&self, inode: Arc<Inode>) {
        let ino = inode.ino;
        drop(inode);
        if let Some(ticket) = self.reclaim.ticket(ino) {
            self.try_evict(ino, ticket);
        }
    }

    /// Looks once more at the inodes that had work pending when they should have left.
    pub(crate) fn reap(&self) {
        for (ino, ticket) in self.reclaim.tickets() {
            self.try_evict(ino, ticket);
        }
    }

    fn delete_if_unlinked(&self, inode: &Arc<Inode>) {
        // A volume that was closed or shut down is not written any more: recovery knows the orphan.
        if inode.core.read().disk.links > 0 || matches!(self.vol.alive(), Err(Error::ShutDown)) {
            return;
        }
        self.delete_or_log(inode);
    }

    fn delete_or_log(&self, inode: &Arc<Inode>) {
        match self.delete(inode) {
            Ok(()) => self.reclaim.count(),
            Err(error) => {
                tracing::error!(ino = %inode.ino, %error, "an inode could not be deleted; recovery or fsck will");
            }
        }
    }

    /// Closes the journal with `close` after the inodes without a name are deleted, handles or not. Whoever is in
    /// the middle of something with one of these is waited for, for a while, and with the next step has to wait
    /// until `close` has returned, when nothing can be changed any more. What stays in use that long is left to
    /// recovery.
    pub(crate) fn delete_unlinked_and(&self, close: impl FnOnce() -> Result<()>) -> Result<()> {
        self.reap();
        self.reclaim.wait_for_deletions();
        let mut unlinked = self.inodes.unlinked();
        // The order of all locks of inodes that are no ancestors of each other.
        unlinked.sort_unstable_by_key(|inode| (!inode.is_dir(), inode.ino));
        let deadline = Instant::now() + EVICT_TIMEOUT;
        let locks: Vec<_> = unlinked.iter().map(|inode| inode.lock.write_ordered_until(deadline)).collect();
        for (inode, lock) in unlinked.iter().zip(&locks) {
            if lock.is_some() {
                self.delete_or_log(inode);
            }
        }
        let closed = close();
        drop(locks);
        unlinked.into_iter().for_each(|inode| self.inodes.unhold(inode));
        closed
    }

    /// Frees everything that belongs to `inode`, which is an orphan that nobody can reach.
    fn delete(&self, inode: &Arc<Inode>) -> Result<()> {
        self.vol.changeable()?;
        self.truncate_blocks(inode, 0)?;
        self.free_xattrs(inode)?;
        let credits = 1 + orphan::CREDITS + alloc::FREE_INODE_CREDITS;
        let tx = tx::start(&self.vol.journal, Credits::blocks(credits))?;
        let mut core = inode.core.write();
        self.orphans.remove(&tx, inode, &mut core)?;
        core.disk.dtime = self.vol.now().sec.clamp(1, u32::MAX.into()) as u32;
        core.disk.size = 0;
        self.inodes.store(&tx, inode, &mut core)?;
        self.alloc.free_inode(&tx, inode.ino, inode.is_dir())?;
        drop(core);
        tx.finish()
    }

    /// Ends what a crash interrupted: deletes orphans without a name, and cuts the others back to
    /// their size.
    pub(crate) fn recover_orphans(&self, orphans: Vec<Hold<'_>>) -> Result<()> {
        for inode in orphans {
            let (links, size) = {
                let core = inode.core.read();
                (core.disk.links, core.disk.size)
            };
            let ino = inode.ino;
            if links == 0 {
                // Dropping the handle deletes it.
                continue;
            }
            tracing::debug!(%ino, size, "cutting an orphan back to its size");
            self.truncate_blocks(&inode, size)?;
            let tx = tx::start(&self.vol.journal, Credits::blocks(1 + orphan::CREDITS))?;
            let mut core = inode.core.write();
            self.orphans.remove(&tx, &inode, &mut core)?;
            self.inodes.store(&tx, &inode, &mut core)?;
            drop(core);
            tx.finish()?;
        }
        Ok(())
    }
}
