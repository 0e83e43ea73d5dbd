//! Write-behind: how data get into it, and how they leave it for the device.

use std::ops::Range;
use std::sync::Arc;

use blockdev::PooledBuf;
use smallvec::SmallVec;

use super::flight::Writing;
use super::place::{Account, Run};
use super::{DataPath, Place};
use crate::alloc::Depth;
use crate::error::{Posix, Result};
use crate::inode::{Inode, IoGuard, Put, Slice};

/// Most bytes that one handle and one round of device writes deal with.
const MAX_RUN: u64 = 8 << 20;

impl DataPath {
    /// Takes `data` into write-behind; it is in the file when this returns. The caller holds the
    /// inode lock.
    ///
    /// # Errors
    /// `NoSpace` when no place can be promised, ENOMEM when there is no memory; nothing was written then.
    pub fn write_behind(&self, inode: &Arc<Inode>, at: u64, data: &[u8], privileged: bool) -> Result<()> {
        let bs = self.block_size();
        // From here on a buffer lies in the pool: once space is promised, nothing may be refused.
        PooledBuf::try_take(data.len()).map_err(|_| Posix::NoMemory)?;
        let end = at + data.len() as u64;
        self.promise(inode, at / bs..end.div_ceil(bs), privileged)?;
        self.put_dirty(inode, at, data)?;
        if inode.core.read().size < end {
            let mut core = inode.core.write();
            core.size = core.size.max(end);
        }
        if self.budget.is_half_used() {
            self.dirty.ring();
        }
        Ok(())
    }

    /// Makes bytes dirty that have a place or a promise.
    pub(super) fn put_dirty(&self, inode: &Arc<Inode>, at: u64, data: &[u8]) -> Result<()> {
        loop {
            let mut io = inode.io.lock();
            let before = io.behind.bytes();
            let put = io.behind.put(at, data);
            self.budget.moved(before, io.behind.bytes());
            self.list_dirty(inode, &mut io);
            drop(io);
            match put {
                Put::Done => return Ok(()),
                Put::NeedsFill(block) => self.fill_dirty(inode, block)?,
            }
        }
    }

    /// Promises space to those of `blocks` that have neither a place nor a promise.
    fn promise(&self, inode: &Inode, blocks: Range<u64>, privileged: bool) -> Result<()> {
        if inode.io.lock().delayed.count(blocks.clone()) == blocks.end - blocks.start {
            return Ok(());
        }
        let mut holes: SmallVec<[Range<u64>; 4]> = SmallVec::new();
        {
            let core = inode.core.read();
            let mut at = blocks.start;
            while at < blocks.end {
                let (place, len) = self.find(inode, &core, at, blocks.end - at)?;
                if place == Place::Hole {
                    holes.push(at..at + len);
                }
                at += len;
            }
        }
        let missing = |io: &IoGuard<'_>| -> u64 {
            holes.iter().map(|h| h.end - h.start - io.delayed.count(h.clone())).sum()
        };
        let wanted = missing(&inode.io.lock());
        if wanted == 0 {
            return Ok(());
        }
        let mut promised = self.alloc.reserve(wanted, privileged)?;
        let mut io = inode.io.lock();
        // Another writer of the same blocks may have been faster; the surplus goes back.
        let promised = promised.split(missing(&io));
        for hole in holes {
            io.delayed.insert(hole);
        }
        match &mut io.promised {
            Some(all) => all.absorb(promised),
            none => *none = Some(promised),
        }
        Ok(())
    }

    /// Gives a dirty block the bytes that no write has set.
    fn fill_dirty(&self, inode: &Arc<Inode>, block: u64) -> Result<()> {
        // A write of the block that is under way would be missing from what is read here.
        let Some((writing, io)) = Writing::begin(inode, |_| Some(block..block + 1)) else { return Ok(()) };
        drop(io);
        self.fill(inode, block)?;
        writing.end(&mut inode.io.lock());
        Ok(())
    }

    fn fill(&self, inode: &Arc<Inode>, block: u64) -> Result<()> {
        let mut content = PooledBuf::take(self.block_size() as usize);
        self.read_block(inode, block, &mut content)?;
        inode.io.lock().behind.fill(block, &content);
        Ok(())
    }

    /// Puts the file on the list of dirty ones.
    pub(super) fn list_dirty(&self, inode: &Arc<Inode>, io: &mut IoGuard<'_>) {
        if io.dirty_ticket.is_none() {
            io.dirty_ticket = Some(self.dirty.add(inode, self.clock()));
        }
    }

    /// Takes the file off the list of dirty ones if nothing is dirty any more.
    pub(super) fn unlist_clean(&self, io: &mut IoGuard<'_>) {
        if io.is_clean()
            && let Some(ticket) = io.dirty_ticket.take()
        {
            self.dirty.remove(ticket);
        }
    }

    /// Drops dirty data of the blocks `range`, which are going away. The caller holds the inode
    /// lock exclusively and has waited for flushes of the range.
    pub fn drop_dirty(&self, inode: &Inode, range: Range<u64>) {
        let mut io = inode.io.lock();
        let before = io.behind.bytes();
        io.behind.discard(range.clone());
        self.budget.moved(before, io.behind.bytes());
        io.release_promise(range);
        self.unlist_clean(&mut io);
    }

    /// Drops dirty data from byte `size` on. The caller as with [`DataPath::drop_dirty`].
    pub fn cut_dirty(&self, inode: &Inode, size: u64) {
        let mut io = inode.io.lock();
        let before = io.behind.bytes();
        io.behind.cut(size);
        self.budget.moved(before, io.behind.bytes());
        let block = size / self.block_size();
        let kept = io.behind.status(block, 1).0;
        io.release_promise(block + u64::from(kept)..u64::MAX);
        self.unlist_clean(&mut io);
    }

    /// Writes out what is dirty in the blocks `within` now, and waits for what of it other threads
    /// are writing out. The caller holds no lock.
    ///
    /// # Errors
    /// The first failure. It is also kept for the next fsync.
    pub fn flush(&self, inode: &Arc<Inode>, within: Range<u64>) -> Result<()> {
        let (end, taken) = {
            let io = inode.io.lock();
            (within.end.min(io.behind.dirty_end()), io.behind.flushing_at(&within))
        };
        let mut at = within.start;
        let mut outcome = Ok(());
        while at < end
            && let Some((next, result)) = self.flush_run(inode, at..end)
        {
            at = next;
            outcome = outcome.and(result);
        }
        let mut io = inode.io.lock();
        for first in taken {
            while io.behind.is_flushing(first) {
                io.wait();
            }
        }
        outcome
    }

    /// Writes out the first dirty run of `within`. Gives its end, and what became of it; `None`
    /// when nothing was dirty.
    fn flush_run(&self, inode: &Arc<Inode>, within: Range<u64>) -> Option<(u64, Result<()>)> {
        let bs = self.block_size();
        let (writing, mut io) = {
            let _shared = inode.lock.read();
            Writing::begin(inode, |io| io.behind.next_run(&within, MAX_RUN / bs))?
        };
        let run = writing.blocks();
        io.behind.take(&run);
        let unfilled = io.behind.unfilled(&run);
        let delayed = io.delayed.count(run.clone());
        let mut promised = io.promised.as_mut().map(|all| all.split(delayed));
        drop(io);
        let mut account = Account { depth: Depth::Ordinary, promised: promised.as_mut() };
        let outcome = unfilled
            .into_iter()
            .try_for_each(|block| self.fill(inode, block))
            .and_then(|()| self.write_out(inode, &run, &mut account));
        drop(promised);
        self.counters.flushes.add(1);
        let size = inode.core.read().size;
        let mut io = inode.io.lock();
        let before = io.behind.bytes();
        io.behind.landed(&run);
        self.budget.moved(before, io.behind.bytes());
        io.delayed.remove(run.clone());
        if let Err(error) = &outcome {
            tracing::warn!(ino = %inode.ino, ?run, %error, "dirty data were lost");
            self.failed(&mut io, error);
            // The size that callers were shown stays; the lost blocks read as zeros, and none
            // of them lies beyond it.
            io.completed.take_overhang();
            let end = (run.end * bs).min(size);
            self.join(inode, &mut io, &[], end);
        }
        self.unlist_clean(&mut io);
        writing.end(&mut io);
        drop(io);
        self.relieve(inode);
        Some((run.end, outcome))
    }

    /// Places and writes the blocks of a run that is flushing.
    fn write_out(&self, inode: &Arc<Inode>, run: &Range<u64>, account: &mut Account<'_>) -> Result<()> {
        let bs = self.block_size();
        let slices = inode.io.lock().behind.flushing(run);
        let mut at = run.start;
        while at < run.end {
            let placed = self.place(inode, at..run.end, account)?;
            let wrote = placed.runs.iter().try_for_each(|part| self.write_run(part, run.start, &slices));
            at = placed.end();
            let end = (at * bs).min(inode.core.read().size);
            self.arrived(inode, placed, end, wrote)?;
        }
        Ok(())
    }

    /// One device write: the part of `slices`, which begin at file block `first`, that `part` names.
    fn write_run(&self, part: &Run, first: u64, slices: &[Slice]) -> Result<()> {
        let bs = self.block_size();
        let mut skip = ((part.blocks.start - first) * bs) as usize;
        let mut left = (part.len() * bs) as usize;
        let mut bufs: SmallVec<[&[u8]; 16]> = SmallVec::new();
        for slice in slices {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let len = left.min(slice.len() - skip);
            bufs.push(&slice[skip..skip + len]);
            skip = 0;
            left -= len;
            if left == 0 {
                break;
            }
        }
        match bufs.as_slice() {
            [one] => self.vol.dev.write_at(part.start * bs, one)?,
            many => self.vol.dev.write_vectored_at(part.start * bs, many)?,
        }
        Ok(())
    }

    /// Keeps write-behind within its bound: a writer beyond it writes data out, its own file's
    /// first. The caller holds no lock. `done_with` gets other files that were written out.
    pub fn throttle(&self, inode: &Arc<Inode>, done_with: impl Fn(Arc<Inode>)) {
        while self.budget.is_exceeded() {
            let own = self.flush_run(inode, 0..u64::MAX).is_some();
            if own {
                continue;
            }
            let wrote = self.flush_oldest().is_some_and(|(other, wrote)| {
                done_with(other);
                wrote
            });
            if !wrote {
                self.budget.wait();
            }
        }
    }

    /// Writes out the first run of the file that has been dirty longest. Gives the file, and whether it had
    /// one.
    fn flush_oldest(&self) -> Option<(Arc<Inode>, bool)> {
        let inode = self.dirty.oldest()?;
        let wrote = self.flush_run(&inode, 0..u64::MAX).is_some();
        if !wrote {
            self.store_times_or_warn(&inode);
        }
        Some((inode, wrote))
    }

    /// Writes out old data if so much is dirty that writers would soon have to help. Gives the
    /// file, and whether it had any.
    pub fn relieve_memory(&self) -> Option<(Arc<Inode>, bool)> {
        if self.budget.is_half_used() { self.flush_oldest() } else { None }
    }

    /// Writes out all that is dirty in a file, its times too. Failures wait for its fsync.
    pub fn flush_all(&self, inode: &Arc<Inode>) {
        let _ = self.flush(inode, 0..u64::MAX);
        self.store_times_or_warn(inode);
    }

    fn store_times_or_warn(&self, inode: &Arc<Inode>) {
        if let Err(error) = self.store_times(inode) {
            tracing::warn!(ino = %inode.ino, %error, "times could not be stored");
        }
    }

    /// Whether no file has anything to be written out or converted.
    pub fn is_idle(&self) -> bool {
        self.dirty.count() == 0 && self.completed.count() == 0
    }

    /// Whether a file has no data to be written out or converted.
    pub fn is_settled(&self, inode: &Inode) -> bool {
        let io = inode.io.lock();
        io.behind.is_empty() && io.completed.is_empty()
    }

    /// Starts the writing out of a file without waiting for it.
    pub fn hasten(&self, inode: &Inode) {
        let ticket = inode.io.lock().dirty_ticket;
        if let Some(ticket) = ticket {
            self.dirty.hasten(ticket);
        }
    }

    /// Forgets everything about a file that nobody can reach any more.
    pub fn abandon(&self, inode: &Inode) {
        super::wait_clear(inode, &(0..u64::MAX));
        let mut io = inode.io.lock();
        let before = io.behind.bytes();
        io.behind.discard(0..u64::MAX);
        self.budget.moved(before, io.behind.bytes());
        io.release_promise(0..u64::MAX);
        io.times_dirty = false;
        io.completed.clear();
        self.unlist_clean(&mut io);
        self.unlist_converted(&mut io);
    }
}
