//! Multi-mount protection: two hosts that reach one device must not both write it.
//!
//! The volume keeps a block with a sequence number. Clean means nobody is there. A newcomer who finds another
//! number waits long enough for its owner to change it; if it changes, the owner is alive. Then it writes a
//! number of its own, waits again, and is the owner if nobody wrote over it. From there on the owner changes
//! the number at an interval, and stops writing to the volume when it finds a number that is not its own.
//! The block is read and written past every cache, for hosts tell each other nothing else.
//!
//! An owner that was stopped for a while (SIGSTOP, a suspended machine) may have lost the volume meanwhile. So
//! every change of the device asks first whether the last heartbeat is recent; if it is not, a heartbeat comes
//! before the change. A newcomer waits longer than that before it writes anything.
//! Source: kernel documentation, ext4 "Multiple Mount Protection". Reading mounts take no part.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blockdev::{BlockDevice, Env, Lease, Leased, Workers};
use ext4_format::csum::Csum;
use ext4_format::mmp::{Mmp, SEQ_CLEAN, SEQ_FSCK, SEQ_MAX};
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, Corruption, What, verify};
use jbd2::Journal;
use tracing::{error, info};

use crate::error::{MountError, Result};
use crate::locks::{Condvar, Rank, RankedMutex};
use crate::threads::{self, Thread};

/// A newcomer waits at least for this many seconds, and twice that and one more.
const MIN_CHECK: u16 = 5;

/// The volume is ours until this is dropped or released.
pub(crate) struct MmpGuard {
    shared: Arc<Shared>,
    heart: RankedMutex<Option<Thread>>,
}

struct Shared {
    dev: Arc<dyn BlockDevice>,
    env: Env,
    csum: Csum,
    block: BlockNo,
    block_size: u32,
    interval: Duration,
    /// How old the last heartbeat may be when something is written, in nanoseconds.
    limit: u64,
    /// When that was, in nanoseconds since the machine started.
    last_beat: AtomicU64,
    /// Another host has the volume, or the block cannot be kept up.
    lost: AtomicBool,
    /// What we last wrote. Rank of a leaf: held across the IO of this one block and nothing else.
    ours: RankedMutex<Mmp>,
    stopping: RankedMutex<bool>,
    wake: Condvar,
}

/// Takes a volume that has the feature; `None` for others. Takes more than ten seconds.
pub(crate) fn acquire(
    dev: &Arc<dyn BlockDevice>,
    sb: &SuperBlock,
    env: &Env,
) -> std::result::Result<Option<MmpGuard>, MountError> {
    // Without workers there is nobody to wait for but the test itself.
    let pause = |time| {
        if env.workers == Workers::Threads {
            threads::sleep(time);
        }
    };
    acquire_pausing(dev, sb, env, &pause)
}

fn acquire_pausing(
    dev: &Arc<dyn BlockDevice>,
    sb: &SuperBlock,
    env: &Env,
    pause: &dyn Fn(Duration),
) -> std::result::Result<Option<MmpGuard>, MountError> {
    let Some(block) = sb.mmp_block() else { return Ok(None) };
    if block.0 <= u64::from(sb.raw().first_data_block.get()) || block.0 >= sb.blocks_count().0 {
        return Err(Corruption::new(What::SuperBlock, "s_mmp_block", block.0, sb.blocks_count().0).into());
    }
    let interval = sb.mmp_interval().max(1);
    let ours = Mmp::clean(interval.saturating_mul(2).max(MIN_CHECK), 0);
    let shared = Shared {
        dev: dev.clone(),
        env: env.clone(),
        csum: Csum::new(sb),
        block,
        block_size: sb.block_size(),
        interval: Duration::from_secs(interval.into()),
        limit: u64::from(ours.check_interval.get()) * 1_000_000_000,
        last_beat: AtomicU64::new(0),
        lost: AtomicBool::new(false),
        // After all others: any write to the device may ask for a heartbeat first.
        ours: RankedMutex::keyed(Rank::Leaf, u64::MAX, ours),
        stopping: RankedMutex::new(Rank::Leaf, false),
        wake: Condvar::default(),
    };
    let found = shared.read()?;
    let check = u64::from(found.check_interval.get().max(interval).max(MIN_CHECK));
    let wait = Duration::from_secs((2 * check + 1).min(check + 60));
    if found.seq.get() == SEQ_FSCK {
        return Err(in_use(&found));
    }
    if found.seq.get() != SEQ_CLEAN {
        info!(seconds = wait.as_secs(), "the volume was not unmounted: waiting for a sign of another host");
        pause(wait);
        let later = shared.read()?;
        if later.seq != found.seq {
            return Err(in_use(&later));
        }
    }
    let seq = (env.chance.next_u64() % u64::from(SEQ_MAX)) as u32 + 1;
    shared.write(&mut shared.ours.lock(), seq)?;
    info!(seconds = wait.as_secs(), "multi-mount protection: waiting for another host's objection");
    pause(wait);
    if !shared.heartbeat()? {
        return Err(in_use(&shared.read()?));
    }
    Ok(Some(MmpGuard { shared: Arc::new(shared), heart: RankedMutex::new(Rank::Leaf, None) }))
}

fn in_use(mmp: &Mmp) -> MountError {
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    };
    MountError::InUse { host: text(&mmp.nodename), device: text(&mmp.bdevname) }
}

impl MmpGuard {
    /// The device as it may be written: as long as the volume is ours.
    pub fn guarded(&self) -> Arc<dyn BlockDevice> {
        Arc::new(Leased::new(self.shared.dev.clone(), self.shared.clone()))
    }

    /// Starts the heartbeat; it aborts the journal when the volume is lost.
    pub fn start(&self, journal: Arc<Journal>) {
        if self.shared.env.workers == Workers::Manual {
            return;
        }
        let shared = self.shared.clone();
        let body = move || {
            while shared.sleep() {
                if shared.hold_by(0).is_err() {
                    return journal.abort(jbd2::Error::ShutDown);
                }
            }
        };
        match Thread::spawn("rext4-mmp", body) {
            Ok(thread) => *self.heart.lock() = Some(thread),
            Err(cause) => {
                error!(%cause, "no thread for multi-mount protection: other hosts may think we are gone")
            }
        }
    }

    /// Gives the volume up: the next newcomer need not wait.
    pub fn release(&self) -> Result<()> {
        self.stop();
        let shared = &self.shared;
        let mut ours = shared.ours.lock();
        if !shared.lost.load(Ordering::Acquire) && shared.read()?.seq == ours.seq {
            shared.write(&mut ours, SEQ_CLEAN)?;
            shared.dev.flush()?;
        }
        Ok(())
    }

    fn stop(&self) {
        *self.shared.stopping.lock() = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.heart.lock().take() {
            thread.join();
        }
    }
}

impl Drop for MmpGuard {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Lease for Shared {
    fn hold(&self) -> io::Result<()> {
        self.hold_by(self.limit)
    }
}

impl Shared {
    /// Sleeps for an interval, or until the volume is lost; `false` when it is time to stop.
    fn sleep(&self) -> bool {
        let mut stopping = self.stopping.lock();
        if !*stopping && !self.lost.load(Ordering::Acquire) {
            self.wake.wait_for(&mut stopping, self.interval);
        }
        !*stopping
    }

    /// Makes sure that the volume is ours, with a heartbeat if the last is older than `limit` nanoseconds.
    fn hold_by(&self, limit: u64) -> io::Result<()> {
        if self.lost.load(Ordering::Acquire) {
            return Err(io::Error::other("another host has taken the volume"));
        }
        if self.now().saturating_sub(self.last_beat.load(Ordering::Acquire)) <= limit && limit > 0 {
            return Ok(());
        }
        let beat = self.heartbeat();
        if let Ok(true) = beat {
            return Ok(());
        }
        if !self.lost.swap(true, Ordering::AcqRel) {
            match &beat {
                Err(cause) => error!(%cause, "the multi-mount protection block cannot be kept up"),
                Ok(_) => error!("another host has taken the volume: nothing more is written to it"),
            }
            // The thread stops the journal.
            self.wake.notify_all();
        }
        Err(io::Error::other("another host has taken the volume, or may have"))
    }

    /// One sign of life; `false` when the block is another's.
    fn heartbeat(&self) -> Result<bool> {
        let mut ours = self.ours.lock();
        // What is true of the block is true from before it was read.
        let now = self.now();
        if self.read()?.seq != ours.seq {
            return Ok(false);
        }
        let seq = ours.seq.get();
        self.write(&mut ours, if seq >= SEQ_MAX { 1 } else { seq + 1 })?;
        self.last_beat.store(now, Ordering::Release);
        Ok(true)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.env.clock.since_boot().as_nanos()).unwrap_or(u64::MAX)
    }

    fn read(&self) -> Result<Mmp> {
        let mut bytes = vec![0; self.block_size as usize];
        self.dev.read_past_cache(self.byte(), &mut bytes)?;
        Ok(verify::mmp(&bytes, &self.csum, self.block)?)
    }

    fn write(&self, mmp: &mut Mmp, seq: u32) -> Result<()> {
        let mut bytes = vec![0; self.block_size as usize];
        mmp.seq.set(seq);
        mmp.time.set(self.env.clock.now().sec.max(0) as u64);
        put_text(&mut mmp.nodename, &blockdev::host_name());
        put_text(&mut mmp.bdevname, b"rext4");
        mmp.encode_into(&mut bytes, &self.csum);
        Ok(self.dev.write_past_cache(self.byte(), &bytes)?)
    }

    fn byte(&self) -> u64 {
        self.block.0 * u64::from(self.block_size)
    }
}

fn put_text(field: &mut [u8], text: &[u8]) {
    field.fill(0);
    let len = text.len().min(field.len() - 1);
    field[..len].copy_from_slice(&text[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::sim::{Fill, MemDevice};
    use ext4_format::features::Incompat;
    use ext4_format::superblock::{MAGIC, RawSuperBlock};
    use zerocopy::FromZeros;

    const BLOCK: u64 = 9;

    fn volume() -> (Arc<dyn BlockDevice>, SuperBlock, Env) {
        let mut raw = RawSuperBlock::new_zeroed();
        raw.magic.set(MAGIC);
        raw.inode_size.set(128);
        raw.first_data_block.set(1);
        raw.blocks_count_lo.set(1024);
        raw.blocks_per_group.set(8192);
        raw.clusters_per_group.set(8192);
        raw.inodes_per_group.set(128);
        raw.inodes_count.set(128);
        raw.feature_incompat.set(Incompat::MMP.0);
        raw.mmp_block.set(BLOCK);
        raw.mmp_interval.set(1);
        let sb = SuperBlock::from_raw(raw).unwrap();
        let dev = Arc::new(MemDevice::new(1 << 20, Fill::Zero));
        put(dev.as_ref(), &sb, SEQ_CLEAN);
        (dev, sb, Env { workers: Workers::Manual, ..Env::system() })
    }

    fn put(dev: &dyn BlockDevice, sb: &SuperBlock, seq: u32) {
        let mut bytes = vec![0; 1024];
        let mut mmp = Mmp::clean(5, 0);
        mmp.seq.set(seq);
        put_text(&mut mmp.nodename, b"other-host");
        mmp.encode_into(&mut bytes, &Csum::new(sb));
        dev.write_at(BLOCK * 1024, &bytes).unwrap();
    }

    fn seq(dev: &dyn BlockDevice) -> u32 {
        let mut bytes = [0; 4];
        dev.read_at(BLOCK * 1024 + 4, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_clean_volume_is_taken_kept_and_given_up() {
        let (dev, sb, env) = volume();
        let guard = acquire(&dev, &sb, &env).unwrap().unwrap();
        let first = seq(dev.as_ref());
        assert!(first > 0 && first <= SEQ_MAX);
        assert!(guard.shared.heartbeat().unwrap());
        assert_ne!(seq(dev.as_ref()), first);
        guard.release().unwrap();
        assert_eq!(seq(dev.as_ref()), SEQ_CLEAN);
    }

    #[test]
    fn a_dead_owner_is_waited_for_once_and_replaced() {
        let (dev, sb, env) = volume();
        put(dev.as_ref(), &sb, 77);
        let waits = RankedMutex::new(Rank::Leaf, Vec::new());
        let guard = acquire_pausing(&dev, &sb, &env, &|time| waits.lock().push(time.as_secs()));
        assert!(guard.is_ok_and(|guard| guard.is_some()));
        assert_eq!(*waits.lock(), [11, 11]);
    }

    #[test]
    fn a_living_owner_keeps_its_volume() {
        for other in [78, SEQ_CLEAN] {
            let (dev, sb, env) = volume();
            put(dev.as_ref(), &sb, 77);
            let refused = acquire_pausing(&dev, &sb, &env, &|_| put(dev.as_ref(), &sb, other));
            match refused {
                Err(MountError::InUse { host, .. }) => assert_eq!(host, "other-host"),
                _ => panic!("the volume was taken from its owner"),
            }
            assert_eq!(seq(dev.as_ref()), other, "the owner's block was written");
        }
        let (dev, sb, env) = volume();
        put(dev.as_ref(), &sb, SEQ_FSCK);
        assert!(matches!(acquire(&dev, &sb, &env), Err(MountError::InUse { .. })));
    }

    #[test]
    fn of_two_newcomers_the_later_wins_and_the_earlier_steps_back() {
        let (dev, sb, env) = volume();
        let refused = acquire_pausing(&dev, &sb, &env, &|_| put(dev.as_ref(), &sb, 5));
        assert!(matches!(refused, Err(MountError::InUse { .. })));
        assert_eq!(seq(dev.as_ref()), 5);
    }

    #[test]
    fn a_lost_volume_is_noticed_and_not_given_up_in_anothers_name() {
        let (dev, sb, env) = volume();
        let guard = acquire(&dev, &sb, &env).unwrap().unwrap();
        put(dev.as_ref(), &sb, 5);
        assert!(!guard.shared.heartbeat().unwrap());
        guard.release().unwrap();
        assert_eq!(seq(dev.as_ref()), 5);
    }

    #[test]
    fn a_volume_without_the_feature_needs_no_protection() {
        let (dev, mut sb, env) = volume();
        sb.set_incompat(Incompat(0));
        assert!(acquire(&dev, &sb, &env).unwrap().is_none());
    }

    /// A clock that the test moves.
    struct Stopped(AtomicU64);

    impl blockdev::Clock for Stopped {
        fn now(&self) -> blockdev::Timestamp {
            blockdev::Timestamp::default()
        }
        fn since_boot(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::Relaxed))
        }
    }

    /// A host that was stopped writes nothing over what the next owner has written.
    #[test]
    fn after_a_pause_the_first_write_looks_first() {
        let (dev, sb, env) = volume();
        let clock = Arc::new(Stopped(AtomicU64::new(1)));
        let env = Env { clock: clock.clone(), ..env };
        let guard = acquire(&dev, &sb, &env).unwrap().unwrap();
        let guarded = guard.guarded();
        guarded.write_at(65536, &[1; 512]).unwrap();
        let before = seq(dev.as_ref());
        // A pause that nobody used: the write is a sign of life.
        clock.0.fetch_add(60_000_000_000, Ordering::Relaxed);
        guarded.write_at(65536, &[2; 512]).unwrap();
        assert_ne!(seq(dev.as_ref()), before);
        clock.0.fetch_add(60_000_000_000, Ordering::Relaxed);
        put(dev.as_ref(), &sb, 5);
        assert!(guarded.write_at(65536, &[3; 512]).is_err());
        assert!(guarded.write_zeroes(65536, 512).is_err());
        // The other one ends: that makes the volume no more ours.
        put(dev.as_ref(), &sb, SEQ_CLEAN);
        assert!(guarded.write_at(65536, &[3; 512]).is_err());
        guard.release().unwrap();
        let mut seen = [0; 512];
        dev.read_at(65536, &mut seen).unwrap();
        assert_eq!(seen, [2; 512]);
        assert_eq!(seq(dev.as_ref()), SEQ_CLEAN);
    }
}
