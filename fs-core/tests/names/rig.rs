//! A volume in a temporary image, mounted in this process.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fs_core::{Dir, Filesystem, Node, OpenFile};
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
        // A mount namespace made meanwhile keeps the kernel's mount, and its loop device, for a moment.
        let fs = patiently(|| Filesystem::open(self.image()));
        self.fs = Some(fs.expect("the volume mounts"));
    }

    /// Unmounts and lets e2fsck judge.
    pub fn unmount(&mut self) {
        self.end();
        fsck(&self.image());
    }

    /// Unmounts.
    pub fn end(&mut self) {
        self.fs.take().expect("mounted").close().expect("a clean end");
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

    pub fn root(&self) -> Dir {
        self.fs().root().expect("the root")
    }

    /// The directory `name` in the root.
    pub fn dir(&self, name: &str) -> Dir {
        self.root().lookup(name).and_then(Node::into_dir).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The file `name` in the root.
    pub fn find(&self, name: &str) -> Node {
        self.root().lookup(name).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// A new regular file.
    pub fn touch(&self, parent: &Dir, name: &str) -> OpenFile {
        parent.create(name, 0o644).unwrap_or_else(|e| panic!("creating {name}: {e}"))
    }

    pub fn mkdir(&self, parent: &Dir, name: &str) -> Dir {
        parent.create_dir(name, 0o755).expect("mkdir")
    }

    pub fn exists(&self, parent: &Dir, name: &[u8]) -> bool {
        parent.lookup(name).is_ok()
    }

    /// All names but the dots, in reading order, `batch` at a time.
    pub fn list(&self, dir: &Dir, batch: usize) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            let more = self.read_some(dir, &mut cookie, batch);
            if more.is_empty() {
                return names;
            }
            names.extend(more.into_iter().filter(|n| n != b"." && n != b".."));
        }
    }

    /// Up to `batch` names from `cookie` on.
    pub fn read_some(&self, dir: &Dir, cookie: &mut u64, batch: usize) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let from = *cookie;
        let read = dir.list(from, |item| {
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
