//! A volume made by mke2fs, opened as far as the allocator and the maps need it, and the judges
//! that look at what became of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Weak};

use blockdev::{BlockDevice, Env, OpenOptions};
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, Tid, locate};
use fs_core::Error;
use fs_core::MountOptions;
use fs_core::internals::alloc::Allocator;
use fs_core::internals::volume::Volume;
use jbd2::{CommitObserver, Handle, Journal, LogExtent, LogLocation};
use tempfile::TempDir;

/// A formatted image file.
pub struct Image {
    _dir: TempDir,
    pub path: PathBuf,
}

/// Whether e2fsprogs is here; without it these tests skip loudly, and fail where CI is set.
pub fn judges_present() -> bool {
    let present = Command::new("mke2fs").arg("-V").output().is_ok();
    if !present {
        assert!(std::env::var_os("CI").is_none(), "mke2fs is missing");
        eprintln!("SKIPPED: mke2fs is missing");
    }
    present
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{command:?}: {}\n{text}{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

/// Formats an image; `options` is split at blanks.
pub fn format(options: &str, size: &str) -> Image {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("volume");
    run(Command::new("mke2fs").args(["-q", "-F"]).args(options.split_whitespace()).arg(&path).arg(size));
    Image { _dir: dir, path }
}

impl Image {
    /// Runs a debugfs command that may write.
    pub fn debugfs(&self, command: &str) -> String {
        run(Command::new("debugfs").args(["-w", "-R", command]).arg(&self.path))
    }

    /// Asserts that e2fsck has nothing to say.
    pub fn assert_clean(&self) {
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&self.path));
    }

    /// Free blocks, as dumpe2fs lists them group by group.
    pub fn free_blocks(&self) -> Vec<u64> {
        self.listed("  Free blocks: ")
    }

    /// Free inodes, likewise.
    pub fn free_inodes(&self) -> Vec<u64> {
        self.listed("  Free inodes: ")
    }

    /// What `stat -f` says of it under a read-only mount by the kernel: block size, blocks, free,
    /// available, inodes, free inodes. `None`, loudly, where nobody may mount.
    pub fn kernel_statfs(&self) -> Option<Vec<u64>> {
        let at = TempDir::new().unwrap();
        let mounted = Command::new("mount").args(["-o", "loop,ro"]).arg(&self.path).arg(at.path()).output();
        if !mounted.is_ok_and(|out| out.status.success()) {
            assert!(std::env::var_os("CI").is_none(), "a loop mount is refused");
            eprintln!("SKIPPED: a loop mount is refused");
            return None;
        }
        let said = Command::new("stat").args(["-f", "-c", "%s %b %f %a %c %d"]).arg(at.path()).output();
        run(Command::new("umount").arg(at.path()));
        let text = String::from_utf8(said.unwrap().stdout).unwrap();
        Some(text.split_whitespace().map(|number| number.parse().unwrap()).collect())
    }

    fn listed(&self, label: &str) -> Vec<u64> {
        let text = run(Command::new("dumpe2fs").arg(&self.path));
        let lists = text.lines().filter_map(|line| line.strip_prefix(label));
        let ranges = lists.flat_map(|list| list.split(", ")).filter(|range| !range.is_empty());
        ranges
            .flat_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.trim().parse::<u64>().unwrap()..=last.trim().parse().unwrap()
            })
            .collect()
    }
}

/// An opened volume.
pub struct Rig {
    pub vol: Arc<Volume>,
    pub alloc: Arc<Allocator>,
}

// Weak: the journal that holds it is held by the allocator.
struct Observer(Weak<Allocator>);

impl CommitObserver for Observer {
    fn closing(&self, _tid: Tid, handle: &Handle<'_>) -> jbd2::Result<()> {
        self.0.upgrade().map_or(Ok(()), |alloc| alloc.closing(handle))
    }
    fn committed(&self, tid: Tid) {
        if let Some(alloc) = self.0.upgrade() {
            alloc.committed(tid);
        }
    }
    fn aborted(&self, cause: &jbd2::Error) {
        eprintln!("aborted: {cause}");
    }
}

impl Rig {
    pub fn open(image: &Path) -> Rig {
        // A child process of another test's thread may hold the claim until it execs.
        let options = OpenOptions { exclusive: false, ..OpenOptions::default() };
        let dev: Arc<dyn BlockDevice> = blockdev::open(image, &options).unwrap();
        let mut bytes = [0; 1024];
        dev.read_at(1024, &mut bytes).unwrap();
        let sb = SuperBlock::parse(&bytes).unwrap();
        let size = sb.block_size();
        let opts = jbd2::Options::default();
        let journal = match sb.journal_ino() {
            Some(ino) => {
                let mut read = |block: BlockNo| {
                    let mut bytes = vec![0; size as usize];
                    dev.read_at(block.0 * u64::from(size), &mut bytes)?;
                    Ok::<_, Error>(bytes)
                };
                let inode = locate::inode(&sb, ino, &mut read).unwrap();
                let runs = locate::runs(&sb, &inode, Some(ino), &mut read).unwrap();
                let extents = runs
                    .iter()
                    .map(|run| LogExtent { first: run.first.0, len: run.len, start: run.start })
                    .collect();
                Journal::open(dev.clone(), size, LogLocation { extents }, opts).unwrap()
            }
            None => Journal::without_log(dev.clone(), size, opts),
        };
        let vol = Arc::new(Volume::new(dev, journal, sb, MountOptions::default(), Env::system()));
        let alloc = Arc::new(Allocator::open(vol.clone()).unwrap());
        vol.journal.set_observer(Arc::new(Observer(Arc::downgrade(&alloc))));
        Rig { vol, alloc }
    }

    pub fn commit(&self) {
        self.vol.journal.commit_running().unwrap();
    }

    /// Ends everything and leaves a clean volume behind.
    pub fn close(self) {
        self.vol.journal.close().unwrap();
    }
}

/// Numbers that look random and are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides.max(1)
    }
}
