//! From a device to a mounted filesystem and back.
//!
//! Mount: superblock, features, journal replay, orphans, background. The superblock says
//! `needs_recovery` from before the first transaction until after the last checkpoint, so that
//! whoever comes after a crash knows that the log counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::{BlockDevice, Env, FileDevice};
use ext4_format::features::{Access, Compat, Incompat, RoCompat};
use ext4_format::superblock::{SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, State, SuperBlock};
use ext4_format::{Corruption, Ino};
use jbd2::recovery::Overlay;
use jbd2::{Journal, LogChecksum, LogFeatures, LogLocation};
use tracing::{info, warn};

use crate::alloc::Allocator;
use crate::background::{Background, Rounds};
use crate::data::DataPath;
use crate::dir;
use crate::error::{Error, MountError, Result};
use crate::fs::{Filesystem, Observer};
use crate::inode::{Orphans, Reclaim, Table};
use crate::locks::{Rank, RankedMutex};
use crate::mmp::{self, MmpGuard};
use crate::node::Held;
use crate::recovery;
use crate::threads;
use crate::types::MountOptions;
use crate::volume::{VOLUME_EVENTS, Volume};
use crate::xattr::XattrCache;

impl Filesystem {
    /// Mounts the volume on `dev`: replays its journal, deals with its orphans, and starts the
    /// background work if `env` has threads for it.
    pub(crate) fn mount(
        dev: Arc<dyn BlockDevice>,
        mut opts: MountOptions,
        env: Env,
    ) -> std::result::Result<Arc<Filesystem>, MountError> {
        let sb = read_superblock(dev.as_ref(), &opts)?;
        judge(&sb, dev.as_ref(), &mut opts)?;
        let claim = if opts.read_only { None } else { mmp::acquire(&dev, &sb, &env)?.map(Arc::new) };
        let dev = claim.as_ref().map_or(dev, |claim| claim.guarded());
        let mounted = Self::mount_claimed(dev, sb, opts, env, claim.clone());
        if mounted.is_err()
            && let Some(claim) = claim
            && let Err(error) = claim.release()
        {
            warn!(%error, "the next mount has to wait: the claim on the volume could not be given up");
        }
        let fs = mounted?;
        let how = if fs.is_writable() { "r/w" } else { "ro" };
        info!(target: VOLUME_EVENTS, "mounted filesystem {} {how} with ordered data mode", fs.vol.uuid());
        Ok(fs)
    }

    fn mount_claimed(
        mut dev: Arc<dyn BlockDevice>,
        mut sb: SuperBlock,
        mut opts: MountOptions,
        env: Env,
        claim: Option<Arc<MmpGuard>>,
    ) -> std::result::Result<Arc<Filesystem>, MountError> {
        let log = recovery::locate(dev.as_ref(), &sb).map_err(contradicts)?;
        let needs_recovery = sb.incompat().has(Incompat::RECOVER);
        if log.is_some() && needs_recovery && opts.no_recovery && !opts.read_only {
            return Err(MountError::Options("norecovery needs ro: the journal holds changes"));
        }
        match &log {
            Some(log) if needs_recovery && !opts.no_recovery => {
                let block_size = sb.block_size();
                let replay = jbd2::recovery::scan(dev.as_ref(), block_size, log)?;
                let replayed = Overlay::new(dev.clone(), block_size, replay);
                sb = read_superblock(&replayed, &opts)?;
                judge(&sb, dev.as_ref(), &mut opts)?;
                recovery::judge(&replayed, block_size, &sb, log).map_err(contradicts)?;
                if opts.read_only && !opts.recover_on_device {
                    info!("the journal's contents are shown from memory; the device is not written to");
                    dev = Arc::new(replayed);
                } else {
                    let done = replayed.replay().apply(dev.as_ref(), block_size, log)?;
                    info!(target: VOLUME_EVENTS, "recovery complete");
                    if done.errno != 0 {
                        take_over_error(dev.as_ref(), &opts, log)?;
                        sb = read_superblock(dev.as_ref(), &opts)?;
                    }
                }
            }
            Some(log) => recovery::apart_from_metadata(dev.as_ref(), &sb, log).map_err(contradicts)?,
            None => {}
        }
        if !opts.read_only {
            recommend_check(&sb);
        }
        let journal_opts = jbd2::Options {
            blocks: sb.blocks_count().0,
            cache_bytes: opts.cache_bytes,
            barrier: opts.barrier,
            features: Some(LogFeatures {
                checksum: if sb.ro_compat().has(RoCompat::METADATA_CSUM) {
                    LogChecksum::V3
                } else {
                    LogChecksum::None
                },
                wide: sb.incompat().has(Incompat::BIT64),
            }),
            clock: env.clock.clone(),
            ..jbd2::Options::default()
        };
        let journal = match log {
            _ if opts.read_only && !opts.recover_on_device => {
                Journal::read_only(dev.clone(), sb.block_size(), journal_opts)
            }
            Some(log) => Journal::open(dev.clone(), sb.block_size(), log, journal_opts)?,
            None => Journal::without_log(dev.clone(), sb.block_size(), journal_opts),
        };
        if opts.recover_on_device && !sb.incompat().has(Incompat::RECOVER) {
            // Nothing is written before something has to change.
            journal.suspend(|| Ok(true))?;
        }
        let vol = Arc::new(Volume::new(dev, journal, sb, opts, env));
        if vol.is_active() {
            mark_mounted(&vol)?;
        }
        assemble(vol, claim)
    }

    /// Opens the filesystem in an image file or on a block device, for reading and writing. See
    /// [`crate::OpenOptions`] for more.
    ///
    /// # Errors
    /// [`MountError`] says what is in the way.
    pub fn open(path: impl AsRef<std::path::Path>) -> std::result::Result<Arc<Filesystem>, MountError> {
        crate::OpenOptions::new().open(path)
    }

    /// Writes everything out, empties the journal and marks the volume clean. Files that were removed while
    /// there were handles of them are deleted. Whatever is asked of a handle from here on fails; a second
    /// call does nothing. Dropping the last handle of a filesystem that was not closed does the same, and logs
    /// what goes wrong.
    ///
    /// # Errors
    /// When something could not be written: the volume then still says that it needs recovery.
    pub fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let closed = self.end();
        if let Some(file) = self.unlock.get() {
            file.give_up_lock();
        }
        closed
    }

    /// Lets others open `file` when the filesystem is closed, whatever handles there are.
    pub(crate) fn unlock_at_close(&self, file: Arc<FileDevice>) {
        let _ = self.unlock.set(file);
    }

    fn end(&self) -> Result<()> {
        info!(target: VOLUME_EVENTS, "unmounting filesystem {}", self.vol.uuid());
        self.background.stop();
        let ended = self.end_writing();
        let released = self.claim.as_ref().map_or(Ok(()), |claim| claim.release());
        ended.and(released)
    }

    fn end_writing(&self) -> Result<()> {
        if self.vol.changeable().is_err() {
            self.vol.shut_down();
            return match self.vol.journal.is_aborted() {
                // That was asked for.
                Some(cause) if matches!(cause.root(), jbd2::Error::ShutDown) => Ok(()),
                Some(cause) => Err(cause.into()),
                None => Ok(()),
            };
        }
        let drained = self.sync_all();
        let (mut rests, mut settled) = (false, false);
        self.delete_unlinked_and(|| {
            let closed = drained.and_then(|()| Ok(self.vol.journal.close()?));
            rests = self.vol.journal.is_suspended();
            settled = rests || self.vol.journal.seal();
            self.vol.shut_down();
            closed
        })?;
        if rests {
            // The volume is marked clean, and nothing has changed since.
            return Ok(());
        }
        // Nothing changes any more. What is still an orphan the next mount, or a check, has to find.
        let clean = settled && !self.orphans.any();
        if !clean {
            warn!("inodes without a name were still in use; the next mount or fsck.rext4 frees them");
        }
        if clean {
            mark_clean(&self.vol)
        } else {
            let now = self.vol.now();
            self.vol.write_super_directly(|sb| sb.set_write_time(now.sec.max(0) as u64))
        }
    }
}

fn contradicts(error: Error) -> MountError {
    match error {
        Error::Corrupt(found) => MountError::Journal { found },
        other => other.into(),
    }
}

fn read_superblock(
    dev: &dyn BlockDevice,
    opts: &MountOptions,
) -> std::result::Result<SuperBlock, MountError> {
    let offset = opts.superblock.map_or(SUPERBLOCK_OFFSET, |block| block.saturating_mul(1024));
    let size = dev.geometry().size;
    if offset.saturating_add(SUPERBLOCK_LEN as u64) > size {
        return Err(MountError::TooSmall { size });
    }
    let mut bytes = [0; SUPERBLOCK_LEN];
    dev.read_at(offset, &mut bytes)?;
    SuperBlock::parse(&bytes).map_err(|found| MountError::SuperBlock { offset, found })
}

/// Whether and how the volume may be mounted; makes `opts` read-only where the features ask it.
fn judge(
    sb: &SuperBlock,
    dev: &dyn BlockDevice,
    opts: &mut MountOptions,
) -> std::result::Result<(), MountError> {
    match sb.access() {
        Access::ReadWrite => {}
        Access::ReadOnly { because } => {
            opts.recover_on_device = false;
            if !opts.read_only {
                warn!("mounting read-only: volumes with {} are not written to", because.join(" "));
            }
            opts.read_only = true;
        }
        Access::Refused { names } => return Err(MountError::Features { names }),
    }
    // Other hosts are told of a volume that is mounted for writing only.
    opts.recover_on_device &= opts.read_only
        && !opts.no_recovery
        && opts.superblock.is_none()
        && !dev.geometry().read_only
        && !sb.incompat().has(Incompat::MMP);
    let device = dev.geometry().size;
    let volume = sb.blocks_count().0.saturating_mul(sb.block_size().into());
    if volume > device {
        return Err(MountError::Truncated { volume, device });
    }
    if dev.geometry().read_only && !opts.read_only {
        return Err(MountError::Options("the device cannot be written to; mount with -o ro"));
    }
    Ok(())
}

/// Says what the volume's state holds against a mount for writing. Nothing stops it: that is for the
/// administrator to decide, and as with the kernel `errors=` says what comes of what is found from here on.
fn recommend_check(sb: &SuperBlock) {
    let state = sb.state();
    if !state.has(State::VALID) {
        warn!("mounting unchecked fs, running fsck.rext4 is recommended");
    } else if state.has(State::ERROR) {
        warn!("mounting fs with errors, running fsck.rext4 is recommended");
    }
}

/// An aborted journal left an error behind: it is moved into the superblock, where fsck looks for it.
fn take_over_error(
    dev: &dyn BlockDevice,
    opts: &MountOptions,
    log: &LogLocation,
) -> std::result::Result<(), MountError> {
    let mut sb = read_superblock(dev, opts)?;
    sb.set_state(sb.state().with(State::ERROR));
    dev.write_at(SUPERBLOCK_OFFSET, &sb.encode())?;
    dev.flush()?;
    Ok(jbd2::recovery::clear_errno(dev, sb.block_size(), log)?)
}

/// Tells the disk that everything is written and nobody writes any more.
pub(crate) fn mark_clean(vol: &Volume) -> Result<()> {
    let now = vol.now();
    vol.write_super_directly(|sb| {
        sb.set_write_time(now.sec.max(0) as u64);
        sb.set_needs_recovery(false);
        sb.set_orphan_present(false);
        // A volume that wanted a check when it was mounted still does.
        if vol.was_valid {
            sb.set_state(sb.state().with(State::VALID));
        }
    })
}

/// Tells the disk that a writer is here, before anything else is written.
pub(crate) fn mark_mounted(vol: &Volume) -> Result<()> {
    let now = vol.now();
    vol.write_super_directly(|sb| {
        sb.set_mount_time(now.sec.max(0) as u64);
        sb.set_mount_count(sb.mount_count().saturating_add(1));
        if !vol.opts.mount_point.is_empty() {
            sb.set_last_mounted(&vol.opts.mount_point);
        }
        if sb.compat().has(Compat::HAS_JOURNAL) {
            sb.set_needs_recovery(true);
            if sb.compat().has(Compat::ORPHAN_FILE) {
                sb.set_orphan_present(true);
            }
        } else {
            sb.set_state(sb.state().without(State::VALID));
        }
    })
}

fn assemble(
    vol: Arc<Volume>,
    claim: Option<Arc<MmpGuard>>,
) -> std::result::Result<Arc<Filesystem>, MountError> {
    let alloc = Arc::new(Allocator::open(vol.clone())?);
    let inodes = Arc::new(Table::new(vol.clone(), alloc.clone()));
    let (orphans, found) = Orphans::open(vol.clone(), inodes.clone(), &alloc)?;
    let orphans = Arc::new(orphans);
    let data = Arc::new(DataPath::new(vol.clone(), alloc.clone(), inodes.clone(), orphans.clone()));
    vol.journal.set_observer(Arc::new(Observer {
        vol: Arc::downgrade(&vol),
        alloc: Arc::downgrade(&alloc),
        data: Arc::downgrade(&data),
    }));
    let dirs = dir::Settings::new(&vol.sb.lock(), &vol.csum);
    let fs = Arc::new(Filesystem {
        dirs,
        xattrs: XattrCache::default(),
        renaming: RankedMutex::new(Rank::Rename, ()),
        reclaim: Reclaim::default(),
        hint: Default::default(),
        unlock: Default::default(),
        closed: AtomicBool::new(true),
        background: Background::new(data.clone()),
        data,
        vol,
        alloc,
        inodes,
        orphans,
        claim,
    });
    if let Some(claim) = &fs.claim {
        claim.start(fs.vol.journal.clone());
    }
    // The root must be a directory, or nothing else can work.
    if !fs.hold(Ino::ROOT)?.is_dir() {
        let c = Corruption::new(ext4_format::What::Inode, "i_mode", 0, 0o040_000).in_inode(Ino::ROOT);
        return Err(fs.vol.corrupt(c).into());
    }
    if fs.vol.changeable().is_ok() {
        fs.recover_orphans(found.into_iter().map(|inode| Held::new(&*fs, inode)).collect())?;
        if fs.vol.opts.recover_on_device {
            fs.suspend()?;
        }
        let rounds: Arc<dyn Rounds> = fs.clone();
        fs.background.start(Arc::downgrade(&rounds), fs.vol.env.workers, fs.vol.opts.commit_interval);
    }
    fs.closed.store(false, Ordering::Release);
    Ok(fs)
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        // After a panic nobody knows what is half done: recovery does.
        if threads::is_panicking() {
            return;
        }
        if let Err(error) = self.close() {
            tracing::error!(%error, "the filesystem was dropped and could not be closed");
        }
    }
}
