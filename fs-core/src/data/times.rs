//! Times that reads and writes move. They change in memory and are stored with whatever stores the
//! inode next: a conversion, fsync, the commit timer. Until then the inode is on the list of
//! dirty ones.

use std::sync::Arc;

use ext4_format::inode::{Time, flag};
use jbd2::Credits;

use super::DataPath;
use crate::error::Result;
use crate::inode::{Core, Inode};
use crate::tx;
use crate::types::Atime;

/// How fine times are, in nanoseconds: a younger one is not moved.
const GRAIN: i128 = 4_000_000;

/// Age at which a relative access time is moved in any case, in nanoseconds.
const DAY: i128 = 24 * 3600 * 1_000_000_000;

impl DataPath {
    /// Moves the times of a file that is being written.
    pub fn touch(&self, inode: &Arc<Inode>) {
        let now = self.vol.now();
        if age(inode.core.read().disk.mtime, now).abs() < GRAIN {
            return;
        }
        self.move_times(inode, |core| {
            core.disk.mtime = now;
            core.disk.ctime = now;
            core.disk.version = core.disk.version.wrapping_add(1);
        });
    }

    /// Moves the access time of what is being read, as the mount options have it.
    pub fn touch_read(&self, inode: &Arc<Inode>) {
        let opts = &self.vol.opts;
        if opts.atime == Atime::Never || (opts.no_dir_atime && inode.is_dir()) || !self.vol.is_active() {
            return;
        }
        let now = self.vol.now();
        let moves = {
            let core = inode.core.read();
            let disk = &core.disk;
            let since = age(disk.atime, now);
            !disk.has(flag::NOATIME)
                && match opts.atime {
                    Atime::Strict => since.abs() >= GRAIN,
                    _ => age(disk.atime, disk.mtime) >= 0 || age(disk.atime, disk.ctime) >= 0 || since >= DAY,
                }
                && since != 0
        };
        if moves {
            self.move_times(inode, |core| core.disk.atime = now);
        }
    }

    fn move_times(&self, inode: &Arc<Inode>, change: impl FnOnce(&mut Core)) {
        let mut core = inode.core.write();
        change(&mut core);
        let mut io = inode.io.lock();
        io.times_dirty = true;
        self.list_dirty(inode, &mut io);
    }

    /// Stores times that are only in memory.
    pub fn store_times(&self, inode: &Arc<Inode>) -> Result<()> {
        if !inode.io.lock().times_dirty {
            return Ok(());
        }
        let tx = tx::start(&self.vol.journal, Credits::blocks(1));
        let mut core = inode.core.write();
        {
            let mut io = inode.io.lock();
            io.times_dirty = false;
            self.unlist_clean(&mut io);
        }
        let tx = tx?;
        self.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()
    }
}

/// Nanoseconds from `then` to `now`.
fn age(then: Time, now: Time) -> i128 {
    let nanos = |t: Time| i128::from(t.sec) * 1_000_000_000 + i128::from(t.nsec);
    nanos(now) - nanos(then)
}
