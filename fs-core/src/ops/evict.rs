//! The end of an inode: nobody uses it any more, and if it has no name either, its blocks, its
//! attributes and its number are given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ext4_format::Ino;
use jbd2::Credits;

use crate::alloc;
use crate::deletions::Arrival;
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::inode::{Departure, Inode, orphan};
use crate::{threads, tx};

/// How long is waited for those who hold an inode that should be deleted, and how long between two looks.
const PATIENCE: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

/// How long an inode that has lost its last name is taken for one that was closed before: the kernel tells of
/// a close by a message that nobody waits for either.
const CLOSING: Duration = Duration::from_millis(100);

impl Filesystem {
    /// Takes back `n` references of the kernel to `ino`; the last one of an inode without names
    /// deletes it.
    pub fn forget(&self, ino: Ino, n: u64) {
        self.inodes.forget(ino, n);
        self.let_go(ino);
    }

    /// For a door that brings [`Filesystem::forget`] by another way than the rest: `arrival` returns when all
    /// that was sent before has been heard. Called where there is no space, with locks of the caller's held.
    pub fn forgets_arrive_by(&self, arrival: Arrival) {
        self.deletions.arrive_by(arrival);
    }

    /// Tries again when there was no space but a deletion under way has made some.
    pub(super) fn after_deletions<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let ended = self.deletions.ended();
        match attempt() {
            Err(Error::NoSpace) if self.wait_for_deletions(ended) => attempt(),
            done => done,
        }
    }

    /// Takes note that `ino` has lost its last name.
    pub(super) fn lost_its_name(&self, ino: Ino) {
        let mut unlinked = self.unlinked.lock();
        while unlinked.front().is_some_and(|(since, _)| since.elapsed() > CLOSING) {
            unlinked.pop_front();
        }
        unlinked.push_back((Instant::now(), ino));
    }

    /// Waits until the inodes that have lost their last name lately are gone, or that is no longer lately.
    fn wait_for_closing(&self) {
        let mut unlinked: Vec<(Instant, Ino)> = self.unlinked.lock().iter().copied().collect();
        let nameless = |inode: Arc<Inode>| inode.core.read().disk.links == 0;
        loop {
            unlinked.retain(|(since, ino)| {
                since.elapsed() < CLOSING && self.inodes.peek(*ino).is_some_and(nameless)
            });
            if unlinked.is_empty() {
                return;
            }
            threads::sleep(MOMENT);
        }
    }

    /// Waits for the deletions under way, and a while for those of inodes that somebody still holds. Says
    /// whether any has ended since there were `ended` of them. The caller has no handle and holds no inode
    /// that is being deleted.
    pub(super) fn wait_for_deletions(&self, ended: u64) -> bool {
        self.wait_for_closing();
        let any = self.deletions.wait(ended);
        let deadline = Instant::now() + PATIENCE;
        let mut held = false;
        while self.leaving.lock().values().any(|nameless| *nameless) {
            held = true;
            if !self.background.flush_soon() || Instant::now() > deadline {
                break;
            }
            threads::sleep(MOMENT);
        }
        any | (held && self.deletions.wait(ended))
    }

    /// Lets `ino` leave the table, now or, when it is busy, at a later [`Filesystem::reap`].
    pub(crate) fn let_go(&self, ino: Ino) {
        if self.depart(ino) {
            return;
        }
        let Some(inode) = self.inodes.peek(ino).filter(|inode| inode.is_unused()) else { return };
        let nameless = inode.core.read().disk.links == 0;
        if nameless {
            // Data that nobody can read any more are not worth writing out.
            self.data.abandon(&inode);
        }
        drop(inode);
        self.leaving.lock().insert(ino, nameless);
        // Whoever held it until now may have looked before it was listed. It stays listed until the next reap, which
        // finds nothing: to take it off here could hit the number's next inode.
        self.depart(ino);
    }

    /// Lets `ino` leave the table and deletes it if it has no name. False when it is busy.
    fn depart(&self, ino: Ino) -> bool {
        // From before it leaves the table: there, or among the deletions, an unmount finds it.
        let _running = self.deletions.begin();
        match self.inodes.depart(ino) {
            Departure::Busy => return false,
            Departure::Gone => {}
            Departure::Delete(inode) => {
                if let Err(error) = self.delete(&inode) {
                    tracing::error!(%ino, %error, "an inode could not be deleted; recovery or fsck will");
                }
            }
        }
        true
    }

    /// Asks the inodes that were busy when they should have left once more.
    pub(crate) fn reap(&self) {
        let _running = self.deletions.begin();
        let leaving = std::mem::take(&mut *self.leaving.lock());
        for ino in leaving.into_keys() {
            self.let_go(ino);
        }
    }

    /// Lets every inode leave, once the kernel has forgotten them all. Waits for the deletions under way, and a
    /// while for whoever still holds an inode without a name.
    pub(crate) fn let_all_go(&self) {
        for ino in self.inodes.live() {
            self.let_go(ino);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.reap();
            self.deletions.wait_for_running(0);
            let held = self.leaving.lock().values().any(|nameless| *nameless);
            if !held || Instant::now() > deadline {
                return;
            }
            threads::sleep(MOMENT);
        }
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
    pub(crate) fn recover_orphans(&self, orphans: Vec<Arc<Inode>>) -> Result<()> {
        for inode in orphans {
            let (links, size) = {
                let core = inode.core.read();
                (core.disk.links, core.disk.size)
            };
            let ino = inode.ino;
            if links == 0 {
                drop(inode);
                self.let_go(ino);
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
            drop(inode);
            self.let_go(ino);
        }
        Ok(())
    }
}
