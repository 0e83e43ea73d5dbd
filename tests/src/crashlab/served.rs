//! A volume over a recorder, mounted through FUSE and served by threads of this process: real programs run on
//! it, and the recorder sees what reaches the device.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use blockdev::sim::{Image, Recorder};
use fuse_frontend::options::Options;
use fuse_frontend::server;
use tempfile::TempDir;

use super::kernel::unmount;
use super::subject::SUPERBLOCK;
use crate::system::is_mounted;

/// A served volume; unmounted when dropped.
pub struct Served {
    recorder: Recorder,
    point: TempDir,
    server: Option<JoinHandle<Result<()>>>,
}

impl Served {
    /// Mounts a copy of `base`.
    pub fn start(base: &Image) -> Result<Served> {
        let recorder = Recorder::with_whole(base.clone(), SUPERBLOCK);
        let point = tempfile::Builder::new().prefix("crashlab-").tempdir()?;
        let (device, dir) = (Arc::new(recorder.clone()), point.path().to_owned());
        let server = std::thread::spawn(move || {
            server::serve_device(device, &PathBuf::from("crashlab"), &dir, &Options::default())
        });
        let served = Served { recorder, point, server: Some(server) };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_mounted(served.path())? {
            if served.server.as_ref().is_none_or(JoinHandle::is_finished) {
                served.end()?;
                bail!("the server ended before it mounted");
            }
            ensure!(Instant::now() < deadline, "no mount after a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(served)
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// What sees the device.
    #[must_use]
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Unmounts and waits for the server's end.
    pub fn end(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        if is_mounted(self.path())? {
            unmount(self.path()).context("the served volume")?;
        }
        server.join().map_err(|_| anyhow!("the server panicked"))?
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(why) = self.stop() {
            eprintln!("crash lab: {why:#}");
        }
    }
}
