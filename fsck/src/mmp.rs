//! Multi-mount protection: is the volume in use on another machine, and how others learn that it is checked.
//!
//! Before anything may be written, [`protect`] does what a mount does: it waits whether the sequence moves,
//! writes one of its own, waits whether somebody writes over it, and then leaves the checker's mark there, with
//! a time that moves. The device that it gives writes only while that mark stands.
//! Source: kernel documentation, ext4 "Multiple Mount Protection".

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use blockdev::{BlockDevice, Env, Lease, Leased};
use ext4_format::BlockNo;
use ext4_format::csum::Csum;
use ext4_format::features::Incompat;
use ext4_format::mmp::{Mmp, SEQ_CLEAN, SEQ_FSCK, SEQ_MAX};
use ext4_format::superblock::{SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, SuperBlock};
use zerocopy::IntoBytes;

use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::options::{Mode, Options};
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter, Ui};

/// Seconds that a newcomer waits at least: twice that and one more.
const MIN_CHECK: u16 = 5;

/// Checks the protection block. With `-n` a volume that says it is in use is checked all the same.
pub fn check(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    if !ctx.sb.incompat().has(Incompat::MMP) {
        return Ok(());
    }
    let Some(block) = ctx.sb.mmp_block().filter(|block| ctx.on_volume(*block, 1)) else {
        let why = "the multi-mount protection block lies outside the volume";
        if prompter.ask(Problem::new(Code::SuperFeatures).named(why))? {
            ctx.edit_super(|raw| {
                raw.feature_incompat.set(raw.feature_incompat.get() & !Incompat::MMP.0);
                raw.mmp_block.set(0);
            });
        }
        return Ok(());
    };
    let problem = match Mmp::decode(&ctx.disk.read(block)?, &ctx.csum) {
        Ok(mmp) if mmp.seq.get() == SEQ_CLEAN => return Ok(()),
        Ok(mmp) if mmp.seq.get() == SEQ_FSCK && ctx.options.protected => return Ok(()),
        Ok(mmp) if mmp.seq.get() != SEQ_FSCK && ctx.options.mode == Mode::CheckOnly => {
            prompter.say(&format!("Warning: the volume is in use{}, or was not unmounted there.", at(&mmp)));
            return Ok(());
        }
        Ok(_) => Problem::new(Code::MmpInUse).at(block),
        Err(corruption) => Problem::new(Code::MmpDamaged).at(block).named(corruption.field),
    };
    if prompter.ask(problem)? {
        let mut bytes = vec![0; ctx.disk.block_size()];
        Mmp::clean(ctx.sb.mmp_interval(), u64::from(ctx.options.now())).encode_into(&mut bytes, &ctx.csum);
        ctx.disk.write(block, &bytes)?;
    }
    Ok(())
}

/// Where the volume is in use, as its user says.
fn at(mmp: &Mmp) -> String {
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    };
    match (text(&mmp.nodename), text(&mmp.bdevname)) {
        (host, device) if !host.is_empty() => format!(" on host '{host}' (device {device})"),
        _ => String::new(),
    }
}

/// The volume is marked as being checked until this is released.
pub struct Protection {
    mark: Option<Arc<Mark>>,
    heart: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Marks a volume that has the feature, if `options` allow to write. Gives the device to check; takes more than
/// ten seconds, or twice as long when the last user has not given the volume up. A block that is damaged is
/// left to the check.
///
/// # Errors
/// [`Error::Unusable`] when somebody else uses the volume.
pub fn protect(
    device: Arc<dyn BlockDevice>,
    options: &mut Options,
    ui: &mut dyn Ui,
) -> Result<(Arc<dyn BlockDevice>, Protection)> {
    let cancel = options.cancel.clone();
    protect_pausing(device, options, ui, &|time| {
        let cancelled = || cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed));
        let end = since_boot() + time;
        while since_boot() < end {
            if cancelled() {
                return Err(Error::Cancelled { changed: false });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })
}

fn since_boot() -> Duration {
    Env::system().clock.since_boot()
}

fn protect_pausing(
    device: Arc<dyn BlockDevice>,
    options: &mut Options,
    ui: &mut dyn Ui,
    pause: &dyn Fn(Duration) -> Result<()>,
) -> Result<(Arc<dyn BlockDevice>, Protection)> {
    let unprotected = Protection { mark: None, heart: None };
    if !options.may_write() {
        return Ok((device, unprotected));
    }
    let Some(mark) = Mark::of(&device) else { return Ok((device, unprotected)) };
    let Ok(found) = mark.read() else { return Ok((device, unprotected)) };
    let check = u64::from(found.check_interval.get().max(mark.interval).max(MIN_CHECK));
    let wait = Duration::from_secs((2 * check + 1).min(check + 60));
    let in_use = |mmp: &Mmp| Error::Unusable(format!("the volume is in use{}", at(mmp)));
    if found.seq.get() != SEQ_CLEAN {
        ui.say(&format!("Waiting {} seconds for a sign of another host.", wait.as_secs()));
        pause(wait)?;
        let later = mark.read()?;
        if later.as_bytes() != found.as_bytes() {
            return Err(in_use(&later));
        }
        if found.seq.get() == SEQ_FSCK && options.mode == Mode::Preen {
            let what = "a check that was cut short has left its mark; run fsck.rext4 without -a or -p";
            return Err(Error::Unusable(what.into()));
        }
    }
    let ours = (Env::system().chance.next_u64() % u64::from(SEQ_MAX)) as u32 + 1;
    mark.write(ours, options)?;
    let given_up = |mark: &Mark| {
        let _ = mark.write(SEQ_CLEAN, options);
    };
    pause(wait).inspect_err(|_| given_up(&mark))?;
    let later = mark.read()?;
    if later.seq.get() != ours {
        return Err(in_use(&later));
    }
    mark.write(SEQ_FSCK, options)?;
    let (mark, options_then) = (Arc::new(mark), options.clone());
    let (stop, stopped) = channel::<()>();
    let (beating, interval) = (mark.clone(), Duration::from_secs(mark.interval.into()));
    let heart = std::thread::Builder::new().name("mmp".into()).spawn(move || {
        while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            beating.renew(&options_then);
        }
    });
    let heart = heart.map_err(|error| Error::Unusable(format!("no thread: {error}")))?;
    options.protected = true;
    let device = Arc::new(Leased::new(device, mark.clone()));
    Ok((device, Protection { mark: Some(mark), heart: Some((stop, heart)) }))
}

impl Protection {
    /// Gives the volume up, if it is still ours.
    ///
    /// # Errors
    /// The device's.
    pub fn release(mut self, options: &Options) -> Result<()> {
        self.stop();
        match self.mark.take() {
            Some(mark) if mark.renew(options) => {
                mark.write(SEQ_CLEAN, options)?;
                Ok(mark.device.flush()?)
            }
            _ => Ok(()),
        }
    }

    fn stop(&mut self) {
        if let Some((stop, heart)) = self.heart.take() {
            drop(stop);
            let _ = heart.join();
        }
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The block and what stands in it.
struct Mark {
    device: Arc<dyn BlockDevice>,
    csum: Csum,
    block: BlockNo,
    block_size: u32,
    interval: u16,
    /// What we wrote last, and when we knew it stood there: in time since the machine started.
    ours: Mutex<(Mmp, Duration)>,
    lost: AtomicBool,
}

impl Lease for Mark {
    fn hold(&self) -> io::Result<()> {
        let recent = since_boot() <= lock(&self.ours).1 + Duration::from_secs(2 * u64::from(self.interval));
        let holds = !self.lost.load(Ordering::Acquire) && (recent || self.renew(&Options::default()));
        if holds { Ok(()) } else { Err(io::Error::other("another host has taken the volume")) }
    }
}

impl Mark {
    /// The mark of a volume that has the feature and a block for it.
    fn of(device: &Arc<dyn BlockDevice>) -> Option<Mark> {
        let mut bytes = [0; SUPERBLOCK_LEN];
        device.read_at(SUPERBLOCK_OFFSET, &mut bytes).ok()?;
        let sb = SuperBlock::parse(&bytes).ok()?;
        let size = u64::from(sb.block_size());
        let block = sb.mmp_block()?;
        let fits = block.0 > u64::from(sb.raw().first_data_block.get())
            && block.0 < sb.blocks_count().0
            && block.0.saturating_add(1).saturating_mul(size) <= device.geometry().size;
        let interval = sb.mmp_interval().clamp(1, 60);
        fits.then(|| Mark {
            device: device.clone(),
            csum: Csum::new(&sb),
            block,
            block_size: sb.block_size(),
            interval,
            ours: Mutex::new((Mmp::clean((2 * interval).max(MIN_CHECK), 0), Duration::ZERO)),
            lost: AtomicBool::new(false),
        })
    }

    fn byte(&self) -> u64 {
        self.block.0 * u64::from(self.block_size)
    }

    fn read(&self) -> Result<Mmp> {
        let mut bytes = vec![0; self.block_size as usize];
        self.device.read_past_cache(self.byte(), &mut bytes)?;
        Mmp::decode(&bytes, &self.csum)
            .map_err(|c| Error::Unusable(format!("the multi-mount protection block: {c}")))
    }

    fn write(&self, seq: u32, options: &Options) -> Result<()> {
        let mut ours = lock(&self.ours);
        let put = |field: &mut [u8], text: &[u8]| {
            field.fill(0);
            let len = text.len().min(field.len() - 1);
            field[..len].copy_from_slice(&text[..len]);
        };
        let mmp = &mut ours.0;
        mmp.seq.set(seq);
        mmp.time.set(options.now().into());
        put(&mut mmp.nodename, &blockdev::host_name());
        put(&mut mmp.bdevname, b"fsck.rext4");
        let mut bytes = vec![0; self.block_size as usize];
        mmp.encode_into(&mut bytes, &self.csum);
        Ok(self.device.write_past_cache(self.byte(), &bytes)?)
    }

    /// One sign of life; false when the block is another's, then and from then on.
    fn renew(&self, options: &Options) -> bool {
        let (expected, now) = (lock(&self.ours).0, since_boot());
        let stands =
            self.read().is_ok_and(|found| found.seq == expected.seq && found.nodename == expected.nodename);
        if !stands || self.write(expected.seq.get(), options).is_err() {
            self.lost.store(true, Ordering::Release);
        }
        lock(&self.ours).1 = now;
        !self.lost.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Silent;
    use blockdev::sim::{Fill, MemDevice};
    use ext4_format::superblock::{MAGIC, RawSuperBlock};
    use std::cell::RefCell;
    use zerocopy::FromZeros;

    const BLOCK: u64 = 9;

    fn volume() -> (Arc<dyn BlockDevice>, Csum) {
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
        dev.write_at(SUPERBLOCK_OFFSET, &sb.encode()).unwrap();
        (dev, Csum::new(&sb))
    }

    fn put(dev: &dyn BlockDevice, csum: &Csum, seq: u32, time: u64) {
        let mut bytes = vec![0; 1024];
        let mut mmp = Mmp::clean(5, time);
        mmp.seq.set(seq);
        mmp.encode_into(&mut bytes, csum);
        dev.write_at(BLOCK * 1024, &bytes).unwrap();
    }

    fn seq(dev: &dyn BlockDevice) -> u32 {
        let mut bytes = [0; 4];
        dev.read_at(BLOCK * 1024 + 4, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    type Protected = Result<(Arc<dyn BlockDevice>, Protection)>;

    fn protected(dev: &Arc<dyn BlockDevice>, mode: Mode, pause: &dyn Fn(Duration)) -> Protected {
        let mut options = Options { mode, ..Options::default() };
        let pause = |time| {
            pause(time);
            Ok(())
        };
        protect_pausing(dev.clone(), &mut options, &mut Silent, &pause)
    }

    #[test]
    fn a_volume_is_marked_while_it_is_checked() {
        let (dev, csum) = volume();
        for (before, waits) in [(SEQ_CLEAN, 1), (77, 2), (SEQ_FSCK, 2)] {
            put(dev.as_ref(), &csum, before, 1);
            let waited = RefCell::new(0);
            let done = protected(&dev, Mode::Yes, &|_| *waited.borrow_mut() += 1);
            let (leased, protection) = done.unwrap();
            assert_eq!((seq(dev.as_ref()), waited.into_inner()), (SEQ_FSCK, waits));
            leased.write_at(65536, &[1; 512]).unwrap();
            protection.release(&Options::default()).unwrap();
            assert_eq!(seq(dev.as_ref()), SEQ_CLEAN);
        }
    }

    #[test]
    fn a_volume_in_use_elsewhere_is_not_touched() {
        let (dev, csum) = volume();
        // Its owner goes on; another check goes on, whose sequence stays; somebody comes at the same time.
        for (before, after) in [((77, 1), (78, 1)), ((SEQ_FSCK, 1), (SEQ_FSCK, 2)), ((SEQ_CLEAN, 1), (5, 1))]
        {
            put(dev.as_ref(), &csum, before.0, before.1);
            let refused = protected(&dev, Mode::Yes, &|_| put(dev.as_ref(), &csum, after.0, after.1));
            assert!(matches!(refused, Err(Error::Unusable(_))), "{before:?}");
            assert_eq!(seq(dev.as_ref()), after.0);
        }
        put(dev.as_ref(), &csum, SEQ_FSCK, 1);
        assert!(matches!(protected(&dev, Mode::Preen, &|_| ()), Err(Error::Unusable(_))));
    }

    #[test]
    fn a_check_that_lost_its_volume_writes_nothing_more() {
        let (dev, csum) = volume();
        put(dev.as_ref(), &csum, SEQ_CLEAN, 1);
        let (leased, protection) = protected(&dev, Mode::Yes, &|_| ()).unwrap();
        put(dev.as_ref(), &csum, 5, 1);
        let mark = protection.mark.clone().unwrap();
        assert!(!mark.renew(&Options::default()));
        assert!(leased.write_at(65536, &[1; 512]).is_err());
        protection.release(&Options::default()).unwrap();
        assert_eq!(seq(dev.as_ref()), 5);
    }

    #[test]
    fn who_only_looks_leaves_no_mark() {
        let (dev, csum) = volume();
        put(dev.as_ref(), &csum, 77, 1);
        let (_, protection) = protected(&dev, Mode::CheckOnly, &|_| panic!("waited")).unwrap();
        assert!(protection.mark.is_none());
        assert_eq!(seq(dev.as_ref()), 77);
    }
}
