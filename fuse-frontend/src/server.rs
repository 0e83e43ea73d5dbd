//! One mount from beginning to end: open, recover, mount, serve, unmount.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use blockdev::{BlockDevice, Direct, FileDevice, OpenOptions};
use fs_core::{Filesystem, MountOptions};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;
use tracing::{debug, info, warn};

use crate::auto_unmount::Watcher;
use crate::doors::Ended;
use crate::lock_file::LockFile;
use crate::options::Options;
use crate::remount::Follower;
use crate::session::Preparation;
use crate::{background, log, mountpoint};

/// How long requests that are under way may take to end after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// What the kernel is asked to read ahead.
const READ_AHEAD_KIB: u32 = 1024;

enum Event {
    SessionEnded(Ended),
    Signalled(Signal),
}

/// A mounted volume, which is unmounted once: before DESTROY is answered, where the kernel asks for
/// that, or at the end.
pub struct Volume {
    /// The filesystem.
    pub fs: Arc<Filesystem>,
    unlock: Box<dyn Fn() + Send + Sync>,
    ended: Mutex<Option<fs_core::Result<()>>>,
}

impl Volume {
    /// Writes everything out and lets others have the device.
    pub fn end(&self) {
        let mut ended = self.ended.lock();
        if ended.is_none() {
            *ended = Some(self.fs.close());
            (self.unlock)();
        }
    }
}

/// Serves the volume on `device` at `dir` until it is unmounted or the process is told to end.
pub fn serve(device: &Path, dir: &Path, options: &Options) -> Result<()> {
    let dir = mountpoint::prepare(dir)?;
    let _lock_file = options.lock_file.as_deref().map(LockFile::create).transpose()?;
    let device = device.canonicalize().with_context(|| format!("{}", device.display()))?;
    log::name_volume(&device);
    let mut options = options.clone();
    adapt_to_device(&device, &mut options);
    let options = &options;
    let signals = block_signals()?;
    let mut how = OpenOptions {
        read_only: options.volume.read_only && !options.volume.recover_on_device,
        offset: options.offset,
        direct: options.dio,
        exclusive: true,
        mounted: false,
    };
    let mut preparation = Preparation::new(&device, &dir, options, &how)?;
    how.mounted = preparation.has_claimed();
    let dev = blockdev::open_when_free(&device, &how, say)?;
    log_choice(&device, &dev, options.dio);
    if dev.is_direct() {
        preparation.expect_waiting();
    }
    let unlock = dev.clone();
    run(dev, Box::new(move || unlock.give_up_lock()), preparation, &dir, options, &signals)
}

/// The same for a device that is open already. `name` is what the mount table calls it, `dir` an absolute
/// path.
pub fn serve_device(dev: Arc<dyn BlockDevice>, name: &Path, dir: &Path, options: &Options) -> Result<()> {
    let signals = block_signals()?;
    run(dev, Box::new(|| ()), Preparation::of_file(name, dir, options), dir, options, &signals)
}

/// Has a device that cannot be written mounted read-only, as mount(8) does; and a block device that is mounted
/// read-only, but could be written, recovered as the kernel does. An image file is not touched then.
fn adapt_to_device(device: &Path, options: &mut Options) {
    let is_block = device.metadata().is_ok_and(|m| m.file_type().is_block_device());
    let is_protected = blockdev::is_write_protected(device);
    if is_protected && !options.volume.read_only && !options.must_write {
        warn!("{}: source write-protected, mounted read-only", device.display());
        options.volume.read_only = true;
    }
    options.volume.recover_on_device =
        options.volume.read_only && is_block && !is_protected && !options.volume.no_recovery;
    if let Some(limit) = blockdev::file_size_limit()
        && !options.volume.read_only
        && device.metadata().is_ok_and(|m| m.is_file() && m.len() > limit)
    {
        warn!(
            "the limit on the size of files (ulimit -f, {limit} bytes) is below the image's: writes will fail"
        );
    }
}

/// Tells whoever waits for the mount.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "mount.rext4: {text}");
}

/// Mounts, serves and unmounts. `unlock` lets others have the device.
fn run(
    dev: Arc<dyn BlockDevice>,
    unlock: Box<dyn Fn() + Send + Sync>,
    preparation: Preparation,
    dir: &Path,
    options: &Options,
    signals: &SigSet,
) -> Result<()> {
    let name = preparation.device().to_owned();
    let how = MountOptions { mount_point: dir.as_os_str().as_bytes().to_vec(), ..options.volume.clone() };
    let opened = fs_core::OpenOptions::new().mount_options(how).open_device(dev);
    let fs = opened.with_context(|| format!("cannot mount {}", name.display()))?;
    let volume = Arc::new(Volume { fs, unlock, ended: Mutex::default() });
    let served = serve_mounted(&volume, preparation, dir, options, signals);
    volume.end();
    let ended = volume.ended.lock().take().unwrap_or(Ok(()));
    served.and(ended.with_context(|| format!("unmounting {}", name.display())))
}

/// Says how requests reach the device, and warns when it is not how it was asked for.
fn log_choice(device: &Path, dev: &FileDevice, asked: Direct) {
    let shown = device.display();
    let kind = if dev.is_block_device() { "block device" } else { "image file" };
    let sector = dev.geometry().logical_sector;
    match (dev.is_direct(), asked) {
        (true, _) => {
            let align = dev.geometry().direct_align;
            info!(device = %shown, kind, sector, align, "device opened with O_DIRECT");
        }
        (false, Direct::Always) => {
            warn!(device = %shown, kind, sector, "O_DIRECT does not work here: ordinary IO is used");
        }
        (false, _) => info!(device = %shown, kind, sector, "device opened through the host's page cache"),
    }
}

fn serve_mounted(
    volume: &Arc<Volume>,
    preparation: Preparation,
    dir: &Path,
    options: &Options,
    signals: &SigSet,
) -> Result<()> {
    let (tell, events) = channel();
    spawn_signal_thread(*signals, tell.clone())?;
    let on_end = move |ended| {
        let _ = tell.send(Event::SessionEnded(ended));
    };
    let mut session = preparation.start(volume, options, Arc::new(on_end))?;
    let _follower = Follower::start(&volume.fs, dir).inspect_err(|error| {
        debug!(%error, "remounts are not followed");
    });
    let _watcher = options.auto_unmount.then(|| Watcher::start(dir)).transpose().context("auto_unmount")?;
    mountpoint::raise_read_ahead(dir, READ_AHEAD_KIB);
    if background::is_server() {
        background::report_ready()?;
    }
    let ended = wait(&events, dir)?;
    if matches!(ended, Some(Ended::Unmounted)) {
        session.is_unmounted();
    }
    match ended {
        Some(Ended::Failed(error)) => Err(error).context("the FUSE session failed"),
        Some(Ended::Aborted) => {
            warn!("the connection was aborted");
            Ok(())
        }
        Some(Ended::Unmounted) | None => Ok(()),
    }
}

/// Waits for the end. After a signal the mount is taken away; what still uses it gets [`GRACE`].
fn wait(events: &Receiver<Event>, dir: &Path) -> Result<Option<Ended>> {
    match events.recv().context("waiting for the session")? {
        Event::SessionEnded(ended) => Ok(Some(ended)),
        Event::Signalled(signal) => {
            info!(%signal, "unmounting");
            detach(dir);
            match events.recv_timeout(GRACE) {
                Ok(Event::SessionEnded(ended)) => Ok(Some(ended)),
                _ => {
                    warn!("the mount was still in use; its users get errors from here on");
                    Ok(None)
                }
            }
        }
    }
}

/// Takes the mount out of the tree, busy or not. Dirty pages of its files are written first: the
/// kernel does not wait for those of a detached mount.
fn detach(dir: &Path) {
    if umount2(dir, MntFlags::empty()).is_ok() {
        return;
    }
    if let Ok(root) = std::fs::File::open(dir) {
        let _ = nix::unistd::syncfs(root);
    }
    if umount2(dir, MntFlags::MNT_DETACH).is_err() {
        let unmounter = std::process::Command::new("fusermount3").arg("-uz").arg("--").arg(dir).status();
        if !unmounter.is_ok_and(|s| s.success()) {
            warn!(dir = %dir.display(), "the mount could not be taken away");
        }
    }
}

/// Blocks the signals that ask for an end, in this thread and all that it starts.
fn block_signals() -> Result<SigSet> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().context("blocking signals")?;
    Ok(set)
}

fn spawn_signal_thread(set: SigSet, tell: Sender<Event>) -> Result<()> {
    std::thread::Builder::new().name("rext4-signals".into()).spawn(move || {
        while let Ok(signal) = set.wait() {
            // A background server outlives the terminal it was started from.
            if signal == Signal::SIGHUP && background::is_server() {
                continue;
            }
            if tell.send(Event::Signalled(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
