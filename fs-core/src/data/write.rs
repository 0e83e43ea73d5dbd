//! Direct writes, and what every write does to the gap behind the old end.

use std::sync::Arc;

use super::DataPath;
use super::flight::{Writing, wait_clear};
use super::place::Account;
use crate::alloc::Depth;
use crate::error::{Error, Result};
use crate::inode::{Core, Inode};

/// A direct write that failed.
pub struct Failed {
    /// Why.
    pub error: Error,
    /// Byte up to which the file may have grown by it.
    pub reached: u64,
}

impl DataPath {
    /// Writes `data` to the device and returns when they are there (not yet when a power cut
    /// cannot take them any more). The caller holds no lock.
    ///
    /// # Errors
    /// `NoSpace` when there is not space for all of it, as the kernel's ext4 answers a direct write; the
    /// device's, the journal's.
    pub fn write_direct(
        &self,
        inode: &Arc<Inode>,
        at: u64,
        data: &[u8],
        privileged: bool,
    ) -> std::result::Result<(), Failed> {
        let mut reached = at;
        self.write_now(inode, at, data, privileged, &mut reached).map_err(|error| Failed { error, reached })
    }

    fn write_now(
        &self,
        inode: &Arc<Inode>,
        at: u64,
        data: &[u8],
        privileged: bool,
        reached: &mut u64,
    ) -> Result<()> {
        let _counted = self.counters.writing.enter();
        self.counters.writes.add(1);
        let bs = self.block_size();
        let end = at + data.len() as u64;
        let whole = at.is_multiple_of(bs) && end.is_multiple_of(bs);
        if !whole || !inode.core.read().map.has_extents() {
            // Partial blocks are merged with what is there, and indirect mappings hidden from
            // readers until the data are in place, by write-behind.
            *reached = end;
            {
                let _shared = inode.lock.read();
                self.write_behind(inode, at, data, privileged)?;
            }
            if let Err(error) = self.flush(inode, at / bs..end.div_ceil(bs)) {
                if matches!(error, Error::NoSpace) {
                    // The caller hears of it now.
                    inode.io.lock().failures.forget_if(|kept| matches!(kept, Error::NoSpace));
                }
                return Err(error);
            }
            return Ok(());
        }
        let blocks = at / bs..end / bs;
        let writing = loop {
            {
                let _shared = inode.lock.read();
                let free =
                    |io: &crate::inode::IoGuard<'_>| (!io.behind.is_dirty(&blocks)).then(|| blocks.clone());
                if let Some((writing, _)) = Writing::begin(inode, free) {
                    break writing;
                }
            }
            self.flush(inode, blocks.clone())?;
        };
        let mut account = Account { depth: Depth::of(privileged), promised: None };
        let mut next = blocks.start;
        let mut outcome = Ok(());
        while next < blocks.end && outcome.is_ok() {
            outcome = self.place(inode, next..blocks.end, &mut account).and_then(|placed| {
                let wrote = placed.runs.iter().try_for_each(|run| {
                    let from = ((run.blocks.start - blocks.start) * bs) as usize;
                    let to = ((run.blocks.end - blocks.start) * bs) as usize;
                    Ok(self.vol.dev.write_at(run.start * bs, &data[from..to])?)
                });
                let upto = placed.end();
                self.arrived(inode, placed, upto * bs, wrote)?;
                next = upto;
                *reached = upto * bs;
                Ok(())
            });
        }
        writing.end(&mut inode.io.lock());
        if let Err(error) = outcome {
            self.clean_up(inode, &error)?;
            return Err(error);
        }
        self.relieve(inode);
        Ok(())
    }

    /// After a direct write that could not be done in full.
    fn clean_up(&self, inode: &Arc<Inode>, error: &Error) -> Result<()> {
        let overhang = {
            let mut io = inode.io.lock();
            if !matches!(error, Error::NoSpace) {
                self.failed(&mut io, error);
            }
            io.completed.has_overhang()
        };
        if overhang { self.trim_overhang(inode) } else { Ok(()) }
    }

    /// Frees the blocks that a failed extending write has left beyond the size.
    fn trim_overhang(&self, inode: &Arc<Inode>) -> Result<()> {
        let _lock = inode.lock.write();
        wait_clear(inode, &(0..u64::MAX));
        if !inode.io.lock().completed.take_overhang() {
            return Ok(());
        }
        self.convert(inode, super::By::Fsync)?;
        let size = inode.core.read().size;
        self.finish_truncation(inode, size.div_ceil(self.block_size()))
    }

    /// Zeros the bytes between the end of the file and the end of its last block on the device,
    /// before a write at `at` makes them part of the file. The caller holds no lock.
    pub fn close_gap(&self, inode: &Arc<Inode>, at: u64) -> Result<()> {
        let bs = self.block_size();
        let is_gap = |core: &Core| at > core.size && !core.size.is_multiple_of(bs);
        if !is_gap(&inode.core.read()) {
            return Ok(());
        }
        let _lock = inode.lock.write();
        wait_clear(inode, &(0..u64::MAX));
        let size = inode.core.read().size;
        if is_gap(&inode.core.read()) { self.zero_tail(inode, size) } else { Ok(()) }
    }

    /// Zeros the bytes from `size` to the end of its block, if the block holds data. The
    /// caller holds the inode lock exclusively and has waited for writes under way.
    pub fn zero_tail(&self, inode: &Arc<Inode>, size: u64) -> Result<()> {
        let end = size.next_multiple_of(self.block_size());
        self.zero_bytes(inode, size, end)
    }

    /// Zeros the bytes `from..to`, which lie in one block, if that block holds data. The file's
    /// size does not change. The caller as with [`DataPath::zero_tail`].
    pub fn zero_bytes(&self, inode: &Arc<Inode>, from: u64, to: u64) -> Result<()> {
        let bs = self.block_size();
        let block = from / bs;
        if from == to {
            return Ok(());
        }
        let held = {
            let core = inode.core.read();
            let dirty = inode.io.lock().behind.is_dirty(&(block..block + 1));
            dirty || matches!(self.find(inode, &core, block, 1)?.0, super::Place::Data(_))
        };
        if held {
            let zeros = [0; 1024];
            let mut at = from;
            while at < to {
                let len = (to - at).min(zeros.len() as u64);
                self.put_dirty(inode, at, &zeros[..len as usize])?;
                at += len;
            }
        }
        Ok(())
    }
}
