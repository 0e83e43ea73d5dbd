//! From a path or a device to a filesystem.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockdev::{BlockDevice, Clock, Direct, Env, Window};

use crate::error::MountError;
use crate::fs::Filesystem;
use crate::types::{ErrorPolicy, MountOptions};

/// How to open a filesystem.
///
/// Opening for writing replays the journal, deletes what a crash left half deleted, and starts the
/// background work.
#[derive(Clone)]
pub struct OpenOptions {
    volume: MountOptions,
    device: blockdev::OpenOptions,
    length: Option<u64>,
    env: Env,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions::new()
    }
}

impl OpenOptions {
    /// For reading and writing, as the volume's superblock says.
    #[must_use]
    pub fn new() -> OpenOptions {
        OpenOptions {
            volume: MountOptions::default(),
            device: blockdev::OpenOptions::default(),
            length: None,
            env: Env::system(),
        }
    }

    /// Changes nothing. What the journal holds is shown from memory.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> OpenOptions {
        self.volume.read_only = read_only;
        self
    }

    /// The filesystem starts at this byte of the device.
    #[must_use]
    pub fn offset(mut self, bytes: u64) -> OpenOptions {
        self.device.offset = bytes;
        self
    }

    /// The filesystem has so many bytes of the device at most.
    #[must_use]
    pub fn length(mut self, bytes: u64) -> OpenOptions {
        self.length = Some(bytes);
        self
    }

    /// Does not look at the journal; only for reading.
    #[must_use]
    pub fn no_recovery(mut self, no_recovery: bool) -> OpenOptions {
        self.volume.no_recovery = no_recovery;
        self
    }

    /// What to do when the volume turns out to be damaged, instead of what its superblock says.
    #[must_use]
    pub fn errors(mut self, policy: ErrorPolicy) -> OpenOptions {
        self.volume.errors = Some(policy);
        self
    }

    /// Bound of the metadata cache, in bytes.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> OpenOptions {
        self.volume.cache_bytes = bytes;
        self
    }

    /// How long a change may stay in memory only.
    #[must_use]
    pub fn commit_interval(mut self, interval: Duration) -> OpenOptions {
        self.volume.commit_interval = interval;
        self
    }

    /// Where the times of files come from.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> OpenOptions {
        self.env.clock = clock;
        self
    }

    /// Where everything else comes from that is outside the device: clock, randomness, threads.
    #[must_use]
    pub fn env(mut self, env: Env) -> OpenOptions {
        self.env = env;
        self
    }

    /// Whether to bypass the host's page cache; only for [`OpenOptions::open`].
    #[must_use]
    pub fn direct(mut self, direct: Direct) -> OpenOptions {
        self.device.direct = direct;
        self
    }

    /// All that can be said of the volume, [`OpenOptions::read_only`] and its like included.
    #[must_use]
    pub fn mount_options(mut self, options: MountOptions) -> OpenOptions {
        self.volume = options;
        self
    }

    /// Opens the filesystem in an image file or on a block device, which nobody else can open for writing
    /// until it is closed.
    ///
    /// # Errors
    /// [`MountError`] says what is in the way. Nothing was written unless a replay had begun.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Arc<Filesystem>, MountError> {
        let how = blockdev::OpenOptions { read_only: self.volume.read_only, ..self.device };
        let file = blockdev::open(path, &how)?;
        let fs = Filesystem::mount(window(file.clone(), 0, self.length)?, self.volume, self.env)?;
        fs.unlock_at_close(file);
        Ok(fs)
    }

    /// Opens the filesystem on a device of the caller's.
    ///
    /// # Errors
    /// [`MountError`] says what is in the way. Nothing was written unless a replay had begun.
    pub fn open_device(self, device: Arc<dyn BlockDevice>) -> Result<Arc<Filesystem>, MountError> {
        let device = window(device, self.device.offset, self.length)?;
        Filesystem::mount(device, self.volume, self.env)
    }
}

fn window(
    device: Arc<dyn BlockDevice>,
    start: u64,
    len: Option<u64>,
) -> Result<Arc<dyn BlockDevice>, MountError> {
    if start == 0 && len.is_none() {
        return Ok(device);
    }
    Ok(Arc::new(Window::new(device, start, len)?))
}
