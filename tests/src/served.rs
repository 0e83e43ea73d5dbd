//! A volume on a device of ours, mounted through FUSE and served by threads of this process: real programs
//! run on it, and the test sees, records or stops what reaches the device.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use blockdev::BlockDevice;
use fuse_frontend::options::Options;
use fuse_frontend::server;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use crate::rings;
use crate::system::is_mounted;

/// A served volume; unmounted when dropped.
pub struct Served {
    point: TempDir,
    server: Option<JoinHandle<Result<()>>>,
}

impl Served {
    /// Mounts `device` with these words for `-o`, and the transport that `REXT4_TRANSPORT` names.
    ///
    /// # Errors
    /// Those of the options and of the mount.
    pub fn start(device: Arc<dyn BlockDevice>, words: &str) -> Result<Served> {
        let mut options = Options::default();
        if let Ok(transport) = std::env::var("REXT4_TRANSPORT") {
            ensure!(transport != "ring" || rings::are_on(), "this machine has no FUSE over io_uring");
            options.apply(&format!("transport={transport}"))?;
        }
        options.apply(words)?;
        let point = tempfile::Builder::new().prefix("rext4-own-").tempdir()?;
        let dir = point.path().to_owned();
        let server = std::thread::spawn(move || {
            server::serve_device(device, &PathBuf::from("rext4-tests"), &dir, &options)
        });
        let served = Served { point, server: Some(server) };
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

    /// Unmounts and waits for the server's end.
    ///
    /// # Errors
    /// Those of both.
    pub fn end(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_mounted(self.path())? {
            match unmount(self.path(), UnmountFlags::empty()) {
                // Another process of the machine may look into every mount for a moment.
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                answer => answer.context("unmounting the served volume")?,
            }
        }
        server.join().map_err(|_| anyhow!("the server panicked"))?
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(why) = self.stop() {
            eprintln!("served volume: {why:#}");
        }
    }
}
