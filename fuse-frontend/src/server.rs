//! One mount from beginning to end: open, recover, mount, serve, unmount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use blockdev::{BlockDevice, Direct, Env, FileDevice, OpenOptions};
use fs_core::Filesystem;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};
use tracing::{info, warn};

use crate::doors::fuser::Door;
use crate::options::{Flag, Options};
use crate::service::Service;
use crate::{background, mountpoint};

/// How long requests that are under way may take to end after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// What the kernel is asked to read ahead.
const READ_AHEAD_KIB: u32 = 1024;

enum Event {
    SessionEnded(std::io::Result<()>),
    Signalled(Signal),
}

/// Serves the volume on `device` at `dir` until it is unmounted or the process is told to end.
pub fn serve(device: &Path, dir: &Path, options: &Options) -> Result<()> {
    mountpoint::check(dir)?;
    let dir = dir.canonicalize().with_context(|| format!("mount point {}", dir.display()))?;
    let device = device.canonicalize().with_context(|| format!("{}", device.display()))?;
    let dev = blockdev::open(
        &device,
        &OpenOptions {
            read_only: options.volume.read_only,
            offset: options.offset,
            direct: options.dio,
            exclusive: true,
        },
    )?;
    log_choice(&device, &dev, options.dio);
    serve_device(dev, &device, &dir, options)
}

/// The same for a device that is open already. `name` is what the mount table calls it, `dir` an absolute path.
pub fn serve_device(dev: Arc<dyn BlockDevice>, name: &Path, dir: &Path, options: &Options) -> Result<()> {
    let signals = block_signals()?;
    let fs = Filesystem::mount(dev, options.volume.clone(), Env::system())
        .with_context(|| format!("cannot mount {}", name.display()))?;
    let served = serve_mounted(&fs, name, dir, options, &signals);
    let unmounted = fs.unmount().with_context(|| format!("unmounting {}", name.display()));
    served.and(unmounted)
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
    fs: &Arc<Filesystem>,
    device: &Path,
    dir: &Path,
    options: &Options,
    signals: &SigSet,
) -> Result<()> {
    let service = Service::new(fs.clone(), options);
    let config = session_config(device, options, fs.is_writable());
    let (door, notifier) = Door::new(service, options.async_dio);
    let session = fuser::Session::new(door, dir, &config)
        .with_context(|| format!("mounting on {}", dir.display()))
        .with_context(missing_rights)?;
    let _ = notifier.set(session.notifier());
    let (tell, events) = channel();
    spawn_signal_thread(*signals, tell.clone())?;
    std::thread::Builder::new().name("rext4-session".into()).spawn(move || {
        let _ = tell.send(Event::SessionEnded(session.run()));
    })?;
    mountpoint::raise_read_ahead(dir, READ_AHEAD_KIB);
    if background::is_server() {
        background::report_ready()?;
    }
    wait(&events, dir)
}

/// Waits for the end. After a signal the mount is taken away; what still uses it gets [`GRACE`].
fn wait(events: &Receiver<Event>, dir: &Path) -> Result<()> {
    match events.recv().context("waiting for the session")? {
        Event::SessionEnded(result) => result.context("the FUSE session failed"),
        Event::Signalled(signal) => {
            info!(%signal, "unmounting");
            detach(dir);
            match events.recv_timeout(GRACE) {
                Ok(Event::SessionEnded(result)) => result.context("the FUSE session failed"),
                _ => {
                    warn!("the mount was still in use; its users get errors from here on");
                    Ok(())
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

/// What an ordinary user is told first when a mount fails.
fn missing_rights() -> String {
    let fuse = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match fuse {
        Err(error) => format!("/dev/fuse cannot be opened ({error}); ask for access to it, or mount as root"),
        Ok(_) => "FUSE refused the mount".into(),
    }
}

fn session_config(device: &Path, options: &Options, writable: bool) -> fuser::Config {
    use fuser::MountOption as M;
    let is_root = nix::unistd::geteuid().is_root();
    let mut mount_options = vec![
        M::FSName(PathBuf::from(device).to_string_lossy().into_owned()),
        M::Subtype("rext4".into()),
        M::DefaultPermissions,
        if writable { M::RW } else { M::RO },
    ];
    // A volume that root mounts has device nodes and set-user-id programs, as with the kernel's ext4.
    if is_root && !options.flags.contains(&Flag::NoDev) {
        mount_options.push(M::Dev);
    }
    if is_root && !options.flags.contains(&Flag::NoSuid) {
        mount_options.push(M::Suid);
    }
    for flag in &options.flags {
        mount_options.extend(match flag {
            Flag::NoDev => Some(M::NoDev),
            Flag::NoSuid => Some(M::NoSuid),
            Flag::Exec => Some(M::Exec),
            Flag::NoExec => Some(M::NoExec),
            Flag::Sync => Some(M::Sync),
            Flag::DirSync => Some(M::DirSync),
            Flag::NoAtime => Some(M::NoAtime),
            Flag::Dev | Flag::Suid => None,
        });
    }
    let mut config = fuser::Config::default();
    config.mount_options = mount_options;
    config.acl = match options.allow_other.unwrap_or(is_root) {
        true => fuser::SessionACL::All,
        false => fuser::SessionACL::Owner,
    };
    config.n_threads = Some(options.threads.unwrap_or_else(default_threads));
    config
}

/// Requests may block on the device, so there are more threads than processors.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(4, |n| n.get() * 2).clamp(4, 16)
}
