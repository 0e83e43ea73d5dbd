//! A volume in a temporary image, mounted in this process.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use blockdev::{Env, OpenOptions};
use ext4_format::Ino;
use fs_core::Filesystem;
use fs_core::types::{Caller, Entry, MountOptions};
use tempfile::TempDir;

pub struct Rig {
    dir: TempDir,
    fs: Option<Arc<Filesystem>>,
}

impl Rig {
    /// A fresh volume of `mib` MiB made by mke2fs with `args`, mounted; `None` (and a failure
    /// where CI is set) on a machine without e2fsprogs.
    pub fn new(mib: u64, args: &[&str]) -> Option<Rig> {
        if Command::new("mke2fs").arg("-V").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "mke2fs is missing");
            eprintln!("SKIPPED: mke2fs is missing");
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).expect("image");
        file.set_len(mib << 20).expect("image size");
        run(Command::new("mke2fs").args(["-q", "-F"]).args(args).arg(&image));
        let mut rig = Rig { dir, fs: None };
        rig.mount();
        Some(rig)
    }

    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn fs(&self) -> &Arc<Filesystem> {
        self.fs.as_ref().expect("mounted")
    }

    pub fn mount(&mut self) {
        let options = OpenOptions::default();
        // A mount namespace made meanwhile keeps the kernel's mount, and its loop device, for a moment.
        let dev = patiently(|| blockdev::open(self.image(), &options)).expect("the image opens");
        let fs = Filesystem::mount(Arc::new(dev), MountOptions::default(), Env::system());
        self.fs = Some(fs.expect("the volume mounts"));
    }

    /// Unmounts and lets e2fsck judge.
    pub fn unmount(&mut self) {
        self.end();
        fsck(&self.image());
    }

    /// Unmounts.
    pub fn end(&mut self) {
        self.fs.take().expect("mounted").unmount().expect("a clean unmount");
    }

    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Lets `change` have the unmounted image.
    pub fn offline(&mut self, change: impl FnOnce(&Path)) {
        self.unmount();
        change(&self.image());
        self.mount();
    }

    /// A new regular file.
    pub fn touch(&self, parent: Ino, name: &str) -> Entry {
        let made = self.fs().mknod(&Caller::root(), parent, name.as_bytes(), 0o100_644, (0, 0));
        made.unwrap_or_else(|e| panic!("creating {name}: {e}"))
    }

    pub fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        self.fs().mkdir(&Caller::root(), parent, name.as_bytes(), 0o755).expect("mkdir").ino
    }

    pub fn exists(&self, parent: Ino, name: &[u8]) -> bool {
        self.fs().lookup(parent, name).is_ok()
    }

    /// All names but the dots, in reading order, `batch` at a time.
    pub fn list(&self, ino: Ino, batch: usize) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            let more = self.read_some(ino, &mut cookie, batch);
            if more.is_empty() {
                return names;
            }
            names.extend(more.into_iter().filter(|n| n != b"." && n != b".."));
        }
    }

    /// Up to `batch` names from `cookie` on.
    pub fn read_some(&self, ino: Ino, cookie: &mut u64, batch: usize) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let from = *cookie;
        let read = self.fs().readdir(ino, from, |item| {
            if names.len() == batch {
                return ControlFlow::Break(());
            }
            assert!(item.next > *cookie, "cookies rise");
            *cookie = item.next;
            names.push(item.name.to_vec());
            ControlFlow::Continue(())
        });
        read.expect("readdir");
        names
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(fs) = self.fs.take() {
            let _ = fs.unmount();
        }
    }
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn fsck(image: &Path) {
    run(Command::new("e2fsck").args(["-fn"]).arg(image));
}

/// Tries for ten seconds: other processes of the machine may look into every mount.
pub fn patiently<T, E>(attempt: impl Fn() -> Result<T, E>) -> Result<T, E> {
    for _ in 0..1000 {
        if let Ok(done) = attempt() {
            return Ok(done);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    attempt()
}
