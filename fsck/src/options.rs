//! What a caller of the checker can choose.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Who decides about repairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Nobody: nothing is written (`-n`).
    #[default]
    CheckOnly,
    /// Everything is repaired (`-y`).
    Yes,
    /// What is safe is repaired, the rest ends the check (`-p`, `-a`).
    Preen,
    /// A person is asked.
    Ask,
}

/// Blocks that the medium cannot keep.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BadBlocks {
    /// Their numbers, in blocks of the volume, in any order.
    pub blocks: Vec<u64>,
    /// Whether those that the volume knows of stay bad.
    pub keep: bool,
}

/// Options of one check.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Who decides.
    pub mode: Mode,
    /// Check a volume that says it is clean, too (`-f`).
    pub force: bool,
    /// Block of the superblock to use (`-b`), in units of `block_size`.
    pub superblock: Option<u64>,
    /// Block size in bytes, when the superblock is named (`-B`).
    pub block_size: Option<u32>,
    /// Only replay the journal (`-E journal_only`).
    pub journal_only: bool,
    /// List fragmented files (`-E fragcheck`).
    pub fragcheck: bool,
    /// Give each file of a volume with shared blocks its own (`-E unshare_blocks`).
    pub unshare_blocks: bool,
    /// Discard free blocks after a clean check (`-E discard`).
    pub discard: bool,
    /// Names of case-insensitive directories must be text, even if the volume is not strict (`-E
    /// check_encoding`).
    pub check_encoding: bool,
    /// Optimise directories (`-D`).
    pub optimize_dirs: bool,
    /// Rebuild extent trees that are deeper or wider than they need be (`-E optimize_extents`).
    pub optimize_extents: bool,
    /// Give files with block maps extent trees (`-E bmap2extent`).
    pub to_extents: bool,
    /// The list of bad blocks is to be changed (`-c`, `-l`, `-L`).
    pub bad_blocks: Option<BadBlocks>,
    /// Bound of memory in bytes for what grows with the volume (`-E memory=`); 0 is a quarter of the
    /// machine's.
    pub memory: u64,
    /// Folder of the scratch file for what does not fit (`-E scratch=`); the system's temporary one without.
    pub scratch: Option<PathBuf>,
    /// Keep what is overwritten in this file (`-z`).
    pub undo: Option<PathBuf>,
    /// Byte of the device's file at which the volume begins; the undo file names it.
    pub offset: u64,
    /// Do not tell the device what will be read soon (`-E readahead_kb=0`).
    pub no_read_ahead: bool,
    /// Threads of the parallel passes; 0 is one per core.
    pub threads: usize,
    /// The device of an external journal (`-j`); without, it is looked for by its UUID.
    pub journal: Option<PathBuf>,
    /// Set by somebody else, it ends the check at its next step with [`crate::Error::Cancelled`].
    pub cancel: Option<Arc<AtomicBool>>,
    /// The volume's multi-mount protection carries the caller's mark ([`crate::protect`] sets this).
    pub protected: bool,
    /// Somebody has the volume mounted: its journal may change at any moment.
    pub in_use: bool,
    /// The time that repairs stamp, in seconds since 1970; 0 is the machine's clock.
    pub now: u64,
}

impl Options {
    /// Whether anything may be written.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.mode != Mode::CheckOnly
    }

    pub(crate) fn now(&self) -> u32 {
        if self.now != 0 {
            return self.now as u32;
        }
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_secs() as u32)
    }

    pub(crate) fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    pub(crate) fn scratch_folder(&self) -> PathBuf {
        self.scratch.clone().unwrap_or_else(std::env::temp_dir)
    }

    pub(crate) fn memory_bound(&self) -> u64 {
        if self.memory != 0 {
            return self.memory;
        }
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        kib.and_then(|kib| kib.parse::<u64>().ok()).map_or(256 << 20, |kib| kib * 1024 / 4)
    }
}
