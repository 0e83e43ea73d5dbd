//! The options, spelled as e2fsck spells them. docs/FSCK.md lists them side by side.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Parser};
use fsck::{BadBlocks, Mode, Options};

/// Checks and repairs an ext2, ext3 or ext4 volume.
#[derive(Parser, Debug)]
#[command(name = "fsck.rext4", version, disable_help_flag = true)]
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
    /// Tell time, memory and what was read and written; twice, for each pass.
    #[arg(short = 't', action = ArgAction::Count)]
    pub timing: u8,
    /// Use the superblock in this block.
    #[arg(short = 'b', value_name = "BLOCK")]
    pub superblock: Option<u64>,
    /// Block size in bytes, with -b.
    #[arg(short = 'B', value_name = "BYTES")]
    pub block_size: Option<u32>,
    /// Find bad blocks with badblocks(8); twice, with a read-write test that keeps the data.
    #[arg(short = 'c', action = ArgAction::Count)]
    pub scan: u8,
    /// With -c, blocks that are known as bad stay bad.
    #[arg(short = 'k')]
    pub keep: bool,
    /// Add the blocks in this file to the bad ones.
    #[arg(short = 'l', value_name = "FILE")]
    pub add_bad: Option<PathBuf>,
    /// The blocks in this file are the bad ones.
    #[arg(short = 'L', value_name = "FILE")]
    pub set_bad: Option<PathBuf>,
    /// Write progress to this descriptor; 0 shows a bar; a negative one waits for SIGUSR1.
    #[arg(short = 'C', value_name = "FD", allow_negative_numbers = true)]
    pub progress: Option<i32>,
    /// Optimise directories.
    #[arg(short = 'D')]
    pub optimize: bool,
    /// journal_only, fragcheck, discard, nodiscard, unshare_blocks, check_encoding, bmap2extent,
    /// optimize_extents, no_optimize_extents, fixes_only, offset=BYTES, memory=SIZE, scratch=FOLDER.
    #[arg(short = 'E', value_name = "OPTIONS", value_delimiter = ',')]
    pub extended: Vec<String>,
    /// The device of an external journal.
    #[arg(short = 'j', value_name = "DEVICE")]
    pub journal: Option<PathBuf>,
    /// Keep what is overwritten in this file, for rext4-undo or e2undo(8).
    #[arg(short = 'z', value_name = "FILE")]
    pub undo: Option<PathBuf>,
    /// The name of the volume in messages.
    #[arg(short = 'N', value_name = "NAME")]
    pub name: Option<String>,
    /// Flush the device's cache first.
    #[arg(short = 'F')]
    pub flush: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Print this.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// Accepted, and without effect.
    #[command(flatten)]
    idle: Idle,
    /// The device or image: a path, PATH?offset=BYTES, LABEL=..., UUID=..., PARTLABEL=... or PARTUUID=...
    pub device: String,
}

/// Options of e2fsck that are old or for its own tests.
#[derive(clap::Args, Debug)]
struct Idle {
    /// Once asked before repairs, which is what happens anyway.
    #[arg(short = 'r', hide = true)]
    ask: bool,
    /// Debugging words of e2fsck.
    #[arg(short = 'd', hide = true)]
    debug: bool,
    /// Processors of e2fsck's read-ahead.
    #[arg(short = 'P', hide = true, value_name = "NUMBER")]
    inodes: Option<u32>,
    /// Size of e2fsck's inode buffer.
    #[arg(short = 'I', hide = true, value_name = "NUMBER")]
    buffer: Option<u32>,
}

/// Why a check is not begun.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Options that are unknown or make no sense.
    #[error("{0}")]
    Usage(String),
    /// Options that contradict each other.
    #[error("{0}")]
    Contradiction(String),
    /// Nobody is there to answer.
    #[error("need terminal for interactive repairs (or one of -n, -y, -p)")]
    NoTerminal,
}

impl Cli {
    /// Whether only the journal is replayed.
    pub fn journal_only(&self) -> bool {
        self.has("journal_only")
    }

    /// Whether the check prints only what it does: nobody is expected to watch.
    pub fn preens(&self) -> bool {
        self.preen || self.auto
    }

    fn has(&self, wanted: &str) -> bool {
        self.extended.iter().any(|option| option == wanted)
    }

    /// What the checker is asked to do, but for the bad blocks.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn options(&self) -> Result<Options, Refused> {
        self.agree()?;
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
        let mode = match () {
            () if self.no => Mode::CheckOnly,
            () if self.yes => Mode::Yes,
            () if self.preens() => Mode::Preen,
            () if terminal && !self.json => Mode::Ask,
            () => return Err(Refused::NoTerminal),
        };
        let mut options = Options {
            mode,
            force: self.force || self.superblock.is_some() || self.has("unshare_blocks"),
            superblock: self.superblock,
            block_size: self.block_size,
            optimize_dirs: self.optimize,
            // As e2fsck does: whoever repairs without looking leaves sound trees alone.
            optimize_extents: !self.preens() && !self.has("fixes_only"),
            undo: self.undo_file(),
            journal: self.journal.clone(),
            ..Options::default()
        };
        self.extended.iter().try_for_each(|word| extend(&mut options, word))?;
        Ok(options)
    }

    /// The undo file; an empty name is one in e2fsprogs' folder, as the environment names it.
    fn undo_file(&self) -> Option<PathBuf> {
        let path = self.undo.clone()?;
        if !path.as_os_str().is_empty() {
            return Some(path);
        }
        let folder = std::env::var_os("E2FSPROGS_UNDO_DIR").unwrap_or_else(|| "/var/lib/e2fsprogs".into());
        let device = Path::new(&self.device).file_name().unwrap_or_default().to_string_lossy();
        Some(Path::new(&folder).join(format!("fsck.rext4-{device}.e2undo")))
    }

    /// Options that exclude each other.
    fn agree(&self) -> Result<(), Refused> {
        let contradicts = |text: &str| Err(Refused::Contradiction(text.to_owned()));
        let lists = self.add_bad.is_some() || self.set_bad.is_some();
        if [self.no, self.yes, self.preens()].into_iter().filter(|&set| set).count() > 1 {
            return contradicts("only one of -n, -y and -p/-a may be given");
        }
        if self.no && (self.optimize || self.scan > 0 || lists) {
            return contradicts("-n and -c, -l, -L or -D are incompatible");
        }
        if self.has("fixes_only") && (self.optimize || self.has("bmap2extent")) {
            return contradicts("-E fixes_only and -D or -E bmap2extent are incompatible");
        }
        if self.scan > 0 && lists {
            return Err(Refused::Usage("-c and -l or -L may not be used together".into()));
        }
        Ok(())
    }

    /// Where the volume is: a path or a tag, and the byte at which it starts.
    ///
    /// # Errors
    /// [`Refused::Usage`] for an offset that is no number.
    pub fn place(&self) -> Result<(&str, u64), Refused> {
        let number = |text: &str| bytes(text).ok_or_else(|| Refused::Usage(format!("bad offset: {text}")));
        let extended = self.extended.iter().find_map(|option| option.strip_prefix("offset="));
        let (path, within) = match self.device.split_once("?offset=") {
            Some((path, offset)) if !Path::new(&self.device).exists() => (path, Some(offset)),
            _ => (self.device.as_str(), None),
        };
        let offset = within.or(extended).map_or(Ok(0), number)?;
        Ok((path, offset))
    }

    /// The bad blocks that a file lists, as badblocks(8) prints them.
    ///
    /// # Errors
    /// The file's.
    pub fn listed(&self) -> std::io::Result<Option<BadBlocks>> {
        let (path, keep) = match (&self.add_bad, &self.set_bad) {
            (_, Some(path)) => (path, false),
            (Some(path), None) => (path, true),
            (None, None) => return Ok(None),
        };
        let text = std::fs::read_to_string(path)?;
        Ok(Some(BadBlocks { blocks: numbers(&text), keep }))
    }
}

/// The numbers at the starts of lines; other lines are passed over, as e2fsck does.
pub fn numbers(text: &str) -> Vec<u64> {
    text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

/// Takes one extended option.
fn extend(options: &mut Options, word: &str) -> Result<(), Refused> {
    let usage = |text: &str| Err(Refused::Usage(text.to_owned()));
    match word.split_once('=').unwrap_or((word, "")) {
        ("journal_only", "") => options.journal_only = true,
        ("fragcheck", "") => options.fragcheck = true,
        ("discard", "") => options.discard = true,
        ("nodiscard", "") => options.discard = false,
        ("unshare_blocks", "") => options.unshare_blocks = true,
        ("check_encoding", "") => options.check_encoding = true,
        ("bmap2extent", "") => options.to_extents = true,
        ("optimize_extents", "") => options.optimize_extents = true,
        ("no_optimize_extents" | "fixes_only", "") => options.optimize_extents = false,
        ("ea_ver", "2") => {}
        ("ea_ver", "1") => return usage("-E ea_ver=1: attribute blocks of version 1 are not supported"),
        // How e2fsck spends its memory.
        ("inode_count_fullmap" | "no_inode_count_fullmap", "") => {}
        ("readahead_kb", kib) if kib.parse::<u64>().is_ok() => {
            options.no_read_ahead = kib.parse() == Ok(0_u64);
        }
        ("offset", offset) if bytes(offset).is_some() => {}
        ("scratch", folder) if !folder.is_empty() => options.scratch = Some(folder.into()),
        ("memory", size) => match bytes(size) {
            Some(size) => options.memory = size,
            None => return usage(&format!("bad size in -E memory={size}")),
        },
        _ => return usage(&format!("unknown extended option: {word}")),
    }
    Ok(())
}

/// A size with an optional suffix k, m, g or t.
fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}
