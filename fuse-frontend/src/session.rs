//! Opening the way for requests: which transport, how the mount looks, and what serves it.
//!
//! The order matters. A mount of type `fuseblk` claims the block device for the kernel, so it comes
//! before the volume is opened; any other comes when the volume has turned out to be good. Between
//! mount(2) and the handshake whoever looks into the mount waits; a failure in between takes the
//! mount away again, and they hear of it.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use blockdev::OpenOptions;
use rustix::mount::MountFlags;
use tracing::{info, warn};

use crate::doors::dispatch::Dispatch;
use crate::doors::fuser::Door;
use crate::doors::handshake::{shake_hands, wanted};
use crate::doors::mount::{Mount, Wish};
use crate::doors::notify::Notifier;
use crate::doors::old_pages::OldPages;
use crate::doors::reserve::Reserve;
use crate::doors::ring::{Layout, Rings, possible_processors};
use crate::doors::wire::abi::init;
use crate::doors::{self, Ended, Part};
use crate::options::{Flag, Options, Transport};
use crate::server::{self, Volume};
use crate::service::Service;

/// How many requests a device shall have at once, if there are threads for them.
const DEVICE_DEPTH: usize = 32;

/// Hears how the session ended.
pub type OnEnd = Arc<dyn Fn(Ended) + Send + Sync>;

/// What is decided before the volume is opened.
pub struct Preparation {
    device: PathBuf,
    dir: PathBuf,
    transport: Transport,
    /// The mount, if it had to come first.
    mount: Option<Mount>,
    /// Each request to the device waits for it.
    device_waits: bool,
}

/// A session that serves. Dropped, it takes its mount away.
pub struct Session {
    mount: Option<Mount>,
}

impl Session {
    /// The mount has gone; another one in its place is none of ours.
    pub fn is_unmounted(&mut self) {
        if let Some(mount) = &mut self.mount {
            mount.is_gone();
        }
    }
}

impl Preparation {
    /// Decides, and mounts a block device if we may.
    ///
    /// # Errors
    /// Those of opening the device as `how` says: when it would fail, nothing is mounted.
    pub fn new(device: &Path, dir: &Path, options: &Options, how: &OpenOptions) -> Result<Preparation> {
        let mut preparation = Preparation::of_file(device, dir, options);
        let is_block = device.metadata().is_ok_and(|m| m.file_type().is_block_device());
        if is_block && preparation.transport != Transport::Fuser && rustix::process::geteuid().is_root() {
            drop(blockdev::open_when_free(device, how, server::say)?);
            match Mount::block_device(dir, &preparation.wish(options, options.volume.read_only)) {
                Ok(mount) => preparation.mount = Some(mount),
                // Not every kernel has this type; without it umount(8) does not wait.
                Err(error) => info!(%error, "no mount of type fuseblk"),
            }
        }
        Ok(preparation)
    }

    /// For a device that is open already and called `device` in the mount table.
    #[must_use]
    pub fn of_file(device: &Path, dir: &Path, options: &Options) -> Preparation {
        let transport = options.transport;
        let (device, dir) = (device.to_owned(), dir.to_owned());
        Preparation { device, dir, transport, mount: None, device_waits: false }
    }

    /// What is mounted.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The device has no page cache before it: more requests should be under way at once.
    pub fn expect_waiting(&mut self) {
        self.device_waits = true;
    }

    /// Whether the kernel holds the device for our mount.
    #[must_use]
    pub fn has_claimed(&self) -> bool {
        self.mount.is_some()
    }

    /// Mounts, if that is still to be done, and serves.
    ///
    /// # Errors
    /// When the mount is refused, or the handshake fails.
    pub fn start(mut self, volume: &Arc<Volume>, options: &Options, on_end: OnEnd) -> Result<Session> {
        let service = Service::new(volume.fs.clone(), options);
        let writable = volume.fs.is_writable();
        let threads = options.threads.unwrap_or_else(default_threads);
        if self.transport == Transport::Fuser {
            self.start_fuser(service, options, writable, on_end)?;
            info!("serving through fuser");
            return Ok(Session { mount: None });
        }
        let rings = self.rings(options);
        let serving = rings.as_ref().map_or(threads, |rings| rings.threads().max(threads));
        // One more for old pages.
        let reserve = Arc::new(Reserve::new(serving + 1).context("starting threads")?);
        let mount = match self.mount.take() {
            Some(mount) => mount,
            None => Mount::plain(&self.dir, &self.wish(options, !writable))
                .with_context(|| format!("mounting on {}", self.dir.display()))
                .with_context(missing_rights)?,
        };
        if !writable {
            mount.make_read_only().context("making the mount read-only")?;
        }
        let also = if rings.is_some() { init::OVER_IO_URING } else { 0 };
        let capabilities = shake_hands(mount.device(), wanted(options.async_dio, options.fake_root) | also)
            .context("shaking hands with the kernel")?;
        let volume = volume.clone();
        let dispatch = Dispatch::new(Arc::new(service), Box::new(move || volume.end()));
        let device = Arc::new(mount.device().try_clone().context("the FUSE connection")?);
        let notifier = Notifier::new(device.clone());
        let part = Part {
            device,
            old_pages: OldPages::new(&reserve, move |range| notifier.drop_pages(range))?,
            caller_memory: Arc::default(),
            reserve,
            dispatch: Arc::new(dispatch),
            capabilities,
            splice_from: options.splice_from,
            on_end,
        };
        match doors::serve(part, rings, threads).context("starting to serve")? {
            Transport::Ring => info!(options.pinned, "serving through io_uring"),
            _ => info!(threads, "serving through our own loop on /dev/fuse"),
        }
        Ok(Session { mount: Some(mount) })
    }

    /// The rings, if they are wanted and can be had.
    fn rings(&self, options: &Options) -> Option<Rings> {
        if self.transport == Transport::Dev {
            return None;
        }
        let layout = |queues| {
            let threads = options.ring_threads.unwrap_or_else(|| self.ring_threads(queues));
            Layout { queues, threads, pinned: options.pinned }
        };
        match possible_processors().and_then(|queues| Rings::prepare(layout(queues))) {
            Ok(rings) => Some(rings),
            Err(error) if self.transport == Transport::Ring => {
                warn!(%error, "FUSE over io_uring is not to be had; using /dev/fuse");
                None
            }
            Err(error) => {
                info!(%error, "no FUSE over io_uring here");
                None
            }
        }
    }

    /// Two for each processor, since one may wait; past the page cache, what a device does side by side.
    fn ring_threads(&self, queues: usize) -> usize {
        if self.device_waits { (DEVICE_DEPTH / queues).clamp(2, 8) } else { 2 }
    }

    fn start_fuser(&self, service: Service, options: &Options, writable: bool, on_end: OnEnd) -> Result<()> {
        let config = session_config(&self.device, options, writable);
        let (door, notifier) = Door::new(service, options.async_dio).context("starting threads")?;
        let session = fuser::Session::new(door, &self.dir, &config)
            .with_context(|| format!("mounting on {}", self.dir.display()))
            .with_context(missing_rights)?;
        let _ = notifier.set(session.notifier());
        std::thread::Builder::new().name("rext4-session".into()).spawn(move || {
            on_end(match session.run() {
                Ok(()) => Ended::Unmounted,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ended::Aborted,
                Err(error) => Ended::Failed(error),
            });
        })?;
        Ok(())
    }

    fn wish(&self, options: &Options, read_only: bool) -> Wish {
        let is_root = rustix::process::geteuid().is_root();
        // A volume that root mounts has device nodes and set-user-id programs, as with the kernel's
        // ext4; fusermount3 takes both away from everybody else.
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, read_only);
        for flag in &options.flags {
            match flag {
                Flag::NoDev => flags |= MountFlags::NODEV,
                Flag::NoSuid => flags |= MountFlags::NOSUID,
                Flag::NoExec => flags |= MountFlags::NOEXEC,
                Flag::Exec => flags -= MountFlags::NOEXEC,
                Flag::Sync => flags |= MountFlags::SYNCHRONOUS,
                Flag::DirSync => flags |= MountFlags::DIRSYNC,
                Flag::NoAtime => flags |= MountFlags::NOATIME,
                Flag::Dev | Flag::Suid => {}
            }
        }
        if options.fake_root {
            flags |= MountFlags::NODEV | MountFlags::NOSUID;
        }
        Wish {
            source: self.device.clone(),
            flags,
            allow_other: options.allow_other.unwrap_or(is_root) && !options.fake_root,
            default_permissions: !options.fake_root,
        }
    }
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
        if writable { M::RW } else { M::RO },
    ];
    // A volume that root mounts has device nodes and set-user-id programs, as with the kernel's ext4.
    let has = |flag| is_root && !options.fake_root && !options.flags.contains(flag);
    mount_options.push(if has(&Flag::NoDev) { M::Dev } else { M::NoDev });
    mount_options.push(if has(&Flag::NoSuid) { M::Suid } else { M::NoSuid });
    if !options.fake_root {
        mount_options.push(M::DefaultPermissions);
    }
    for flag in &options.flags {
        mount_options.extend(match flag {
            Flag::Exec => Some(M::Exec),
            Flag::NoExec => Some(M::NoExec),
            Flag::Sync => Some(M::Sync),
            Flag::DirSync => Some(M::DirSync),
            Flag::NoAtime => Some(M::NoAtime),
            Flag::Dev | Flag::NoDev | Flag::Suid | Flag::NoSuid => None,
        });
    }
    let mut config = fuser::Config::default();
    config.mount_options = mount_options;
    config.acl = match options.allow_other.unwrap_or(is_root) && !options.fake_root {
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
