//! The options, spelled as e2fsck spells them.

use std::path::PathBuf;

use clap::{ArgAction, Parser};
use fsck::{Mode, Options};

/// Checks and repairs an ext2, ext3 or ext4 volume.
#[derive(Parser, Debug)]
#[command(name = "fsck.rext4", version)]
pub struct Cli {
    /// Check only, write nothing, answer "no" to everything.
    #[arg(short = 'n')]
    pub no: bool,
    /// Answer "yes" to everything.
    #[arg(short = 'y')]
    pub yes: bool,
    /// Repair what is safe without questions.
    #[arg(short = 'p')]
    pub preen: bool,
    /// The same as -p.
    #[arg(short = 'a')]
    pub auto: bool,
    /// Check even if the volume says it is clean.
    #[arg(short = 'f')]
    pub force: bool,
    /// More words.
    #[arg(short = 'v')]
    pub verbose: bool,
    /// Tell how long it took.
    #[arg(short = 't', action = ArgAction::SetTrue)]
    pub timing: bool,
    /// Use the superblock in this block.
    #[arg(short = 'b', value_name = "BLOCK")]
    pub superblock: Option<u64>,
    /// Block size in bytes, with -b.
    #[arg(short = 'B', value_name = "BYTES")]
    pub block_size: Option<u32>,
    /// Write progress to this descriptor; 0 shows a bar.
    #[arg(short = 'C', value_name = "FD", allow_negative_numbers = true)]
    pub progress: Option<i32>,
    /// Optimise directories.
    #[arg(short = 'D')]
    pub optimize: bool,
    /// journal_only, fragcheck, discard, unshare_blocks, check_encoding, memory=SIZE, scratch=FOLDER.
    #[arg(short = 'E', value_name = "OPTIONS", value_delimiter = ',')]
    pub extended: Vec<String>,
    /// The device of an external journal.
    #[arg(short = 'j', value_name = "DEVICE")]
    pub journal: Option<PathBuf>,
    /// Keep what is overwritten in this file.
    #[arg(short = 'z', value_name = "FILE")]
    pub undo: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// The device or image.
    pub device: PathBuf,
}

/// Why a check is not begun.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Options that contradict each other or are unknown.
    #[error("{0}")]
    Usage(String),
    /// Nobody is there to answer.
    #[error("need terminal for interactive repairs (or one of -n, -y, -p)")]
    NoTerminal,
}

impl Cli {
    /// Whether only the journal is replayed.
    pub fn journal_only(&self) -> bool {
        self.extended.iter().any(|option| option == "journal_only")
    }

    /// What the checker is asked to do.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn options(&self) -> Result<Options, Refused> {
        let usage = |text: &str| Err(Refused::Usage(text.to_owned()));
        let preen = self.preen || self.auto;
        if [self.no, self.yes, preen].into_iter().filter(|&set| set).count() > 1 {
            return usage("only one of -n, -y and -p/-a may be given");
        }
        if self.no && (self.optimize || self.undo.is_some()) {
            return usage("-n and -D or -z are incompatible");
        }
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
        let mode = match () {
            () if self.no => Mode::CheckOnly,
            () if self.yes => Mode::Yes,
            () if preen => Mode::Preen,
            () if terminal && !self.json => Mode::Ask,
            () => return Err(Refused::NoTerminal),
        };
        let mut options = Options {
            mode,
            force: self.force
                || self.superblock.is_some()
                || self.optimize
                || self.extended.iter().any(|o| o == "unshare_blocks"),
            superblock: self.superblock,
            block_size: self.block_size,
            optimize_dirs: self.optimize,
            undo: self.undo.clone(),
            journal: self.journal.clone(),
            ..Options::default()
        };
        for word in &self.extended {
            match word.split_once('=').unwrap_or((word, "")) {
                ("journal_only", "") => options.journal_only = true,
                ("fragcheck", "") => options.fragcheck = true,
                ("discard", "") => options.discard = true,
                // What these change in e2fsck is its own way of working.
                (
                    "nodiscard"
                    | "no_optimize_extents"
                    | "optimize_extents"
                    | "fixes_only"
                    | "inode_count_fullmap"
                    | "no_inode_count_fullmap",
                    "",
                )
                | ("readahead_kb", _) => {}
                ("scratch", folder) if !folder.is_empty() => options.scratch = Some(folder.into()),
                ("unshare_blocks", "") => options.unshare_blocks = true,
                ("check_encoding", "") => options.check_encoding = true,
                ("memory", size) => match bytes(size) {
                    Some(size) => options.memory = size,
                    None => return usage(&format!("bad size in -E memory={size}")),
                },
                _ => return usage(&format!("unknown extended option: {word}")),
            }
        }
        Ok(options)
    }
}

/// A size with an optional suffix k, m or g.
fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_shl(unit)
}
