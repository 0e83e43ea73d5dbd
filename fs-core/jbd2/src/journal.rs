//! The journal itself: opening, reading blocks, aborting.
//!
//! Lock order inside this crate: a buffer's slot (rank 80), then `core` (rank 90), then leaves: a
//! transaction's work list, a cache shard, the observer (rank 100). No device IO under `core`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::{BlockDevice, Clock, Env};
use ext4_format::{BlockNo, Corruption, Tid};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::admission::Running;
use crate::buffer::{Buffer, Load, SlotGuard};
use crate::bytes::BlockData;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::handle::Handle;
use crate::log::{Log, LogFeatures};
use crate::map::LogLocation;
use crate::space::Space;
use crate::stats::{Counters, Stats};

const MAX_READ_AHEAD: usize = 1 << 20;

/// How a journal is run.
#[derive(Clone)]
pub struct Options {
    /// Blocks of the volume. The device may have more, which are none of the journal's business.
    pub blocks: u64,
    /// Memory for cached blocks, in bytes. Blocks that must stay (dirty, in the log only) can pass it.
    pub cache_bytes: usize,
    /// Whether commits and checkpoints flush the device. Off, a power cut may lose anything.
    pub barrier: bool,
    /// Blocks that [`CommitObserver::closing`] may dirty; reserved in every transaction.
    pub closing_credits: u32,
    /// The shape of the log; `None` keeps what it was.
    pub features: Option<LogFeatures>,
    /// The time that commit blocks carry.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            blocks: u64::MAX,
            cache_bytes: 64 << 20,
            barrier: true,
            closing_credits: 4,
            features: None,
            clock: Env::system().clock,
        }
    }
}

/// Told about commits by whoever leads them, with no lock of this crate held.
pub trait CommitObserver: Send + Sync {
    /// Every handle of `tid` is closed and none can be opened: its last edits are made here,
    /// within [`Options::closing_credits`]. Not called for a transaction that changed nothing.
    /// Must not start a handle or wait for a commit. An error aborts the journal.
    fn closing(&self, tid: Tid, handle: &Handle<'_>) -> Result<()>;

    /// `tid` is durable: blocks freed in it may be reused, and discarded, from now on. Runs before
    /// any waiter of the commit wakes. Must not wait for a commit; should be short.
    fn committed(&self, tid: Tid);

    /// The journal rested ([`Journal::suspend`]) and a handle is about to start: what was said of the volume then
    /// is taken back. Must not start a handle.
    fn resuming(&self) -> Result<()> {
        Ok(())
    }

    /// The journal was aborted: nothing will be written from here on. Called once.
    fn aborted(&self, cause: &Error);
}

pub(crate) enum Kind {
    /// A commit writes the log; checkpoints write home.
    Log(Box<Log>),
    /// No log: a commit writes the blocks home and flushes.
    Home,
    /// Handles are refused.
    ReadOnly,
}

/// What `Journal::core` guards (rank 90).
pub(crate) struct Core {
    /// The number the next transaction gets.
    pub next_tid: Tid,
    /// The last durable transaction.
    pub committed: Tid,
    /// The transaction that takes handles; made by the first one.
    pub running: Option<Running>,
    /// The transaction being committed, from Locked to Done. There is one leader at a time.
    pub leading: Option<Tid>,
    /// Waiting starts: the next ticket to give and the one being served.
    pub next_ticket: u64,
    pub serving: u64,
    /// The log's content; without a log, nothing.
    pub space: Space,
    /// The first cause of an abort.
    pub aborted: Option<Arc<Error>>,
    /// The journal rests ([`Journal::suspend`]).
    pub suspended: bool,
}

/// A cache of metadata blocks whose changes reach the device in transactions.
pub struct Journal {
    pub(crate) dev: Arc<dyn BlockDevice>,
    pub(crate) block_size: usize,
    /// Blocks that may be read and written.
    blocks: u64,
    pub(crate) cache: Cache,
    pub(crate) opts: Options,
    pub(crate) kind: Kind,
    pub(crate) core: Mutex<Core>,
    /// The last open handle of a locked transaction was closed.
    pub(crate) handles_gone: Condvar,
    /// A waiting start may look again.
    pub(crate) admission: Condvar,
    /// A commit ended.
    pub(crate) commit_ended: Condvar,
    /// A checkpoint's blocks are home.
    pub(crate) landed: Condvar,
    /// Whose turn it is to write home; taken before anything else of this crate.
    pub(crate) checkpointing: Mutex<()>,
    /// Who suspends or resumes; taken before anything else of this crate.
    pub(crate) suspending: Mutex<()>,
    /// Set with `Core::aborted`, for a look without the lock.
    dead: AtomicBool,
    pub(crate) observer: RwLock<Option<Arc<dyn CommitObserver>>>,
    pub(crate) counters: Counters,
}

impl Journal {
    /// Opens the log. It must be empty: recovery ran before.
    pub fn open(
        dev: Arc<dyn BlockDevice>,
        block_size: u32,
        log: LogLocation,
        opts: Options,
    ) -> Result<Arc<Journal>> {
        let log = Log::open(dev.clone(), block_size as usize, &log, &opts)?;
        let (tid, space) = (log.next_tid(), Space::new(log.first, log.size()));
        Ok(Arc::new(Journal::with(dev, block_size, opts, Kind::Log(Box::new(log)), tid, space)))
    }

    /// The same interface without a log (`has_journal` off): a commit writes the blocks to their
    /// places and flushes, so it is durable but not atomic.
    pub fn without_log(dev: Arc<dyn BlockDevice>, block_size: u32, opts: Options) -> Arc<Journal> {
        Arc::new(Journal::with(dev, block_size, opts, Kind::Home, Tid(1), Space::new(0, 0)))
    }

    /// For reading only: [`Journal::start`] fails with [`Error::ReadOnly`].
    pub fn read_only(dev: Arc<dyn BlockDevice>, block_size: u32, opts: Options) -> Arc<Journal> {
        Arc::new(Journal::with(dev, block_size, opts, Kind::ReadOnly, Tid(1), Space::new(0, 0)))
    }

    fn with(
        dev: Arc<dyn BlockDevice>,
        block_size: u32,
        opts: Options,
        kind: Kind,
        next_tid: Tid,
        space: Space,
    ) -> Journal {
        let block_size = block_size as usize;
        Journal {
            blocks: opts.blocks.min(dev.geometry().size / block_size as u64),
            dev,
            block_size,
            cache: Cache::new(block_size, opts.cache_bytes),
            opts,
            kind,
            core: Mutex::new(Core {
                next_tid,
                committed: Tid(next_tid.0.wrapping_sub(1)),
                running: None,
                leading: None,
                next_ticket: 0,
                serving: 0,
                space,
                aborted: None,
                suspended: false,
            }),
            handles_gone: Condvar::new(),
            admission: Condvar::new(),
            commit_ended: Condvar::new(),
            landed: Condvar::new(),
            checkpointing: Mutex::new(()),
            suspending: Mutex::new(()),
            dead: AtomicBool::new(false),
            observer: RwLock::new(None),
            counters: Counters::default(),
        }
    }

    /// Who is told about commits. Set once, before the first handle.
    pub fn set_observer(&self, observer: Arc<dyn CommitObserver>) {
        *self.observer.write() = Some(observer);
    }

    /// The block's buffer, loaded if need be. `verify` sees the bytes once, before anybody else
    /// does; what it refuses stays out of the cache.
    pub fn read(
        &self,
        block: BlockNo,
        verify: impl FnOnce(&[u8]) -> std::result::Result<(), Corruption>,
    ) -> Result<Buffer> {
        self.check_range(block)?;
        let (buf, _) = self.cache.get_or_insert(block);
        let mut slot = buf.lock();
        match slot.load {
            Load::Ready => {
                drop(slot);
                self.counters.hits.add(1);
                return Ok(buf);
            }
            Load::Unverified => {}
            Load::Absent => {
                self.counters.loads.add(1);
                self.dev.read_at(block.0 * self.block_size as u64, slot.data.make_mut())?;
                slot.load = Load::Unverified;
            }
        }
        if let Err(corruption) = verify(&slot.data) {
            slot.load = Load::Absent;
            return Err(Error::Corrupt(corruption.at_block(block)));
        }
        slot.load = Load::Ready;
        drop(slot);
        Ok(buf)
    }

    /// Loads what is absent of a run with one request, of 1 MiB at most. Best effort: errors show up
    /// in the later `read`, which also verifies.
    pub fn read_ahead(&self, first: BlockNo, count: u32) {
        let count = u64::from(count).min((MAX_READ_AHEAD / self.block_size) as u64);
        let end = first.0.saturating_add(count).min(self.blocks);
        let mut slots: Vec<(BlockNo, SlotGuard)> = Vec::new();
        for block in (first.0..end).map(BlockNo) {
            let (buf, _) = self.cache.get_or_insert(block);
            // Held until filled: nobody can load, change and evict the block behind our request.
            if let Some(slot) = buf.try_lock().filter(|slot| slot.load == Load::Absent) {
                slots.push((block, slot));
            }
        }
        let (Some(&(low, _)), Some(&(high, _))) = (slots.first(), slots.last()) else { return };
        let mut run = BlockData::zeroed((high.0 - low.0 + 1) as usize * self.block_size);
        if self.dev.read_at(low.0 * self.block_size as u64, run.make_mut()).is_err() {
            return;
        }
        self.counters.loads.add(slots.len() as u64);
        for (block, slot) in &mut slots {
            let at = (block.0 - low.0) as usize * self.block_size;
            slot.data.make_mut().copy_from_slice(&run[at..at + self.block_size]);
            slot.load = Load::Unverified;
        }
    }

    /// Forgets cached copies of blocks that become file data. The caller knows that none of them
    /// is dirty: they were forgotten in a transaction that is durable now, or never were metadata.
    pub fn invalidate(&self, first: BlockNo, count: u64) {
        for block in self.cache.blocks_in(first, count) {
            if let Some(buf) = self.cache.drop_or_get(block) {
                let mut slot = buf.lock();
                debug_assert!(slot.dirty.is_none(), "dirty block {block} invalidated");
                if slot.dirty.is_none() {
                    slot.load = Load::Absent;
                }
            }
        }
    }

    /// Makes completed writes of file data durable when no commit does it.
    pub fn flush_device(&self) -> Result<()> {
        self.check_alive()?;
        self.flush().map_err(|e| self.die(e))
    }

    pub(crate) fn flush(&self) -> Result<()> {
        if self.opts.barrier {
            self.dev.flush()?;
        }
        Ok(())
    }

    /// Stops all writing. The first cause is kept and told to the observer; later ones are not.
    pub fn abort(&self, cause: Error) {
        let cause = Arc::new(cause);
        {
            let mut core = self.core.lock();
            if core.aborted.is_some() {
                return;
            }
            self.end(&mut core, cause.clone());
        }
        tracing::error!(%cause, "journal aborted");
        self.record(&cause);
        let observer = self.observer.read().clone();
        if let Some(observer) = observer {
            observer.aborted(&cause);
        }
    }

    /// Refuses handles and commits from here on; the last call, after [`Journal::close`]. Gives whether
    /// everything is written back: no handle open, nothing to commit, nothing in the log.
    pub fn seal(&self) -> bool {
        let mut core = self.core.lock();
        if core.aborted.is_some() {
            return false;
        }
        let settled = core.is_settled();
        self.end(&mut core, Arc::new(Error::ShutDown));
        settled
    }

    /// Fails every later call, and whoever waits, with `cause`.
    fn end(&self, core: &mut Core, cause: Arc<Error>) {
        core.aborted = Some(cause);
        self.dead.store(true, Ordering::Release);
        self.handles_gone.notify_all();
        self.admission.notify_all();
        self.commit_ended.notify_all();
        self.landed.notify_all();
    }

    /// Leaves the cause in the journal superblock, where the next mount and e2fsck look for it.
    fn record(&self, cause: &Error) {
        let errno = match cause.root() {
            Error::Io(_) => 5,        // EIO
            Error::Corrupt(_) => 117, // EUCLEAN
            _ => return,
        };
        if let Kind::Log(log) = &self.kind
            && let Err(e) = log.record_errno(errno)
        {
            tracing::warn!(%e, "the journal superblock could not be told of the abort");
        }
    }

    /// Why the journal was aborted, if it was.
    pub fn is_aborted(&self) -> Option<Error> {
        self.check_alive().err()
    }

    /// Aborts because of `cause` and returns the error to give to the caller.
    pub(crate) fn die(&self, cause: Error) -> Error {
        match cause {
            Error::Aborted(_) => cause,
            cause => {
                self.abort(cause);
                self.check_alive().err().unwrap_or(Error::ReadOnly)
            }
        }
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        if !self.dead.load(Ordering::Acquire) {
            return Ok(());
        }
        self.core.lock().check_alive()
    }

    pub(crate) fn check_range(&self, block: BlockNo) -> Result<()> {
        if block.0 < self.blocks { Ok(()) } else { Err(Error::OutOfRange { block }) }
    }

    /// A reading of the counters.
    pub fn stats(&self) -> Stats {
        let (log_size, log_free) = match &self.kind {
            Kind::Log(log) => (log.size(), self.core.lock().space.free),
            Kind::Home | Kind::ReadOnly => (0, 0),
        };
        let c = &self.counters;
        Stats {
            commits: c.commits.get(),
            followers: c.followers.get(),
            committed_blocks: c.committed_blocks.get(),
            checkpoints: c.checkpoints.get(),
            home_blocks: c.home_blocks.get(),
            loads: c.loads.get(),
            hits: c.hits.get(),
            cached: self.cache.len() as u64,
            log_used: (log_size - log_free).into(),
            log_size: log_size.into(),
        }
    }
}

impl Core {
    pub fn check_alive(&self) -> Result<()> {
        match &self.aborted {
            Some(cause) => Err(Error::Aborted(cause.clone())),
            None => Ok(()),
        }
    }
}
