//! Making things durable.
//!
//! A file: its dirty data go out, its completed list is converted, then the transaction that
//! last changed it commits, if it has not yet. Plain overwrites have no transaction: a flush of
//! the device makes them durable, unless one has come after them already.

use std::sync::Arc;

use jbd2::mutants::{Mutant, is};

use crate::data::By;
use crate::error::Result;
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::{Node, OpenFile};

impl OpenFile {
    /// Makes the content durable, and all attributes.
    ///
    /// # Errors
    /// A failure of this call, or the last one to write the file's data before it: that is reported once to
    /// each open file, and to one that was opened later if nobody was told before.
    pub fn sync_all(&self) -> Result<()> {
        self.sync_open(false)
    }

    /// Makes the content durable, and of the attributes what is needed to read it.
    ///
    /// # Errors
    /// Those of [`OpenFile::sync_all`].
    pub fn sync_data(&self) -> Result<()> {
        self.sync_open(true)
    }

    fn sync_open(&self, data_only: bool) -> Result<()> {
        let synced = self.filesystem().sync_file(self.inode(), data_only);
        let failure = {
            let mut io = self.inode().io.lock();
            let mut seen = self.seen.lock();
            io.failures.report(&mut seen)
        };
        synced?;
        failure.map_or(Ok(()), Err)
    }
}

impl Node {
    /// Makes the content durable - the names in a directory, the data of a file - and with it the attributes
    /// unless `data_only`; for a caller who has not opened the file.
    ///
    /// # Errors
    /// A failure of this call, or the last one to write the file's data before it, unless somebody has been
    /// told of that already.
    pub fn sync(&self, data_only: bool) -> Result<()> {
        let synced = self.filesystem().sync_file(self.inode(), data_only);
        let failure = {
            let mut io = self.inode().io.lock();
            let mut seen = io.failures.cursor();
            io.failures.report(&mut seen)
        };
        synced?;
        failure.map_or(Ok(()), Err)
    }
}

impl Filesystem {
    fn sync_file(&self, inode: &Arc<Inode>, data_only: bool) -> Result<()> {
        self.vol.alive()?;
        let alive = self.vol.journal.is_aborted().is_none();
        let synced = self.sync_inode(inode, data_only);
        synced.map_err(|e| if alive { e.at_first_sight() } else { e })
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// The first failure, the rest was tried nevertheless; or data of any file that were lost since the last
    /// call. Their own fsync tells of it, too.
    pub fn sync(&self) -> Result<()> {
        let synced = self.sync_all();
        let lost = self.data.lost.lock().take();
        synced?;
        lost.map_or(Ok(()), Err)
    }

    pub(crate) fn sync_all(&self) -> Result<()> {
        self.vol.alive()?;
        if self.vol.changeable().is_err() {
            return self.left_behind();
        }
        for inode in self.data.dirty.all() {
            self.data.flush_all(&inode);
            self.done_with(inode);
        }
        let mut converted = Ok(());
        for inode in self.data.completed.all() {
            converted = converted.and(self.data.convert(&inode, By::Fsync));
            self.done_with(inode);
        }
        self.vol.journal.commit_running()?;
        self.data.make_all_durable()?;
        converted
    }

    /// What a volume that cannot be written has to say to whoever wants something durable: nothing can have
    /// been changed on one that was mounted read-only, anything on one whose journal was aborted later.
    fn left_behind(&self) -> Result<()> {
        self.vol.journal.is_aborted().map_or(Ok(()), |cause| Err(cause.into()))
    }

    fn sync_inode(&self, inode: &Arc<Inode>, data_only: bool) -> Result<()> {
        if self.vol.changeable().is_err() {
            return self.left_behind();
        }
        // The names are a directory's content: to fdatasync it is to fsync it.
        let data_only = data_only && !inode.is_dir();
        // A failure is kept with the inode, and reported from there.
        let _ = self.data.flush(inode, 0..u64::MAX);
        if !is(Mutant::FsyncSkipsCompleted) {
            self.data.convert(inode, By::Fsync)?;
        }
        if !data_only {
            self.data.store_times(inode)?;
        }
        let tid = {
            let core = inode.core.read();
            if data_only { core.datasync_tid } else { core.sync_tid }
        };
        if let Some(tid) = tid
            && !self.vol.journal.is_committed(tid)
        {
            self.vol.journal.commit(tid)?;
        }
        self.data.make_durable(inode)
    }
}
