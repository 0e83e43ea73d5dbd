//! The journal before everything else: is it one, and does it hold transactions.

use ext4_format::features::{Compat, Incompat};
use ext4_format::inode::{FileType, Inode, flag};
use ext4_format::jbd2 as format;
use ext4_format::superblock::{SUPERBLOCK_OFFSET, State};
use ext4_format::{BlockNo, Corruption, Ino, locate};
use jbd2::recovery::{self, LogExtent, LogLocation};

use crate::alloc;
use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::external;
use crate::journal_backup as backup;
use crate::map::Use;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};
use crate::replay::{self, clear_needs_recovery};

/// The smallest journal, in blocks.
const MIN_BLOCKS: u64 = 1024;

/// What came of looking at the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The volume stands as it was opened.
    AsItWas,
    /// Something was written: the volume must be opened again.
    Reopen,
}

/// Checks the journal and replays it.
///
/// # Errors
/// The device's, or a journal that cannot be replayed while nobody agreed to throw it away.
pub fn check(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<Outcome> {
    let wants_recovery = ctx.sb.incompat().has(Incompat::RECOVER);
    let raw = ctx.sb.raw();
    let elsewhere = raw.journal_dev.get() != 0 || raw.journal_uuid != [0; 16];
    if ctx.sb.has_external_journal() && elsewhere {
        return external::check(ctx, prompter);
    }
    if !ctx.sb.compat().has(Compat::HAS_JOURNAL) {
        if wants_recovery && prompter.ask(Problem::new(Code::JournalHint))? {
            lock(&ctx.next_sb).set_needs_recovery(false);
        }
        return unannounced(ctx, prompter);
    }
    let Some(ino) = ctx.sb.journal_ino() else {
        if locate_log(ctx, Ino::JOURNAL).is_ok() {
            return renumber(ctx, prompter, Problem::of(Code::JournalInode, Ino::JOURNAL).named("not named"));
        }
        if let Some(copy) = backup::journal(ctx, Ino::JOURNAL) {
            return backup::restore(ctx, prompter, "not named", copy);
        }
        return discard(ctx, prompter, Problem::new(Code::JournalMissing), None);
    };
    let location = match locate_log(ctx, ino) {
        Ok(location) => location,
        Err(why) => {
            let problem = Problem::of(Code::JournalInode, ino).named(&why);
            if ino != Ino::JOURNAL && locate_log(ctx, Ino::JOURNAL).is_ok() {
                return renumber(ctx, prompter, problem);
            }
            if let Some(copy) = backup::journal(ctx, ino) {
                return backup::restore(ctx, prompter, &why, copy);
            }
            // Whatever else the number names is not to be destroyed for it.
            return discard(ctx, prompter, problem, Some(ino).filter(|ino| ino.get() < ctx.first_ino()));
        }
    };
    let Some(first) = location.extents.first().map(|extent| extent.start) else {
        return discard(ctx, prompter, Problem::of(Code::JournalInode, ino).named("empty"), Some(ino));
    };
    let bytes = ctx.disk.read(first)?;
    let parsed =
        bytes.first_chunk().ok_or("length").and_then(|b| format::SuperBlock::parse(b).map_err(|c| c.field));
    let log = match parsed {
        Ok(log)
            if log.block_size() == ctx.geometry.block_size
                && u64::from(log.len_blocks()) <= length(&location) =>
        {
            log
        }
        other => {
            let why = other.err().unwrap_or("size");
            // Where the inode leads to no log and its copy does, it is the inode that is wrong.
            if let Some(copy) = backup::journal(ctx, ino)
                && log_of(ctx, &copy.1).ok().as_ref() != Some(&location)
            {
                return backup::restore(ctx, prompter, why, copy);
            }
            // An empty log would be written over what lies there.
            if on_metadata(ctx, &location) {
                return displaced(ctx, prompter, ino);
            }
            return reset(ctx, prompter, first, why);
        }
    };
    if log.has_stray_fields() && prompter.ask(Problem::new(Code::JournalV2Fields))? {
        let (mut bytes, mut log) = (bytes, log);
        log.clear_stray_fields();
        bytes[..format::SUPERBLOCK_LEN].copy_from_slice(&log.encode());
        ctx.disk.write(first, &bytes)?;
    }
    // An empty log gets blocks of its own in pass 1B.
    if log.start().is_some() && on_metadata(ctx, &location) {
        return displaced(ctx, prompter, ino);
    }
    if log.errno() != 0 && prompter.ask(Problem::new(Code::JournalError))? {
        if let Some(first) = location.extents.first() {
            ctx.disk.save(first.start, 1)?;
        }
        recovery::clear_errno(ctx.disk.device(), ctx.geometry.block_size, &location)
            .map_err(|error| Error::Journal(error.to_string()))?;
        ctx.disk.note_change();
        let mut sb = lock(&ctx.next_sb);
        let state = sb.state();
        sb.set_state(State(state.0 | State::ERROR.0));
    }
    if log.start().is_none() {
        if wants_recovery {
            lock(&ctx.next_sb).set_needs_recovery(false);
        }
        backup::refresh(ctx, prompter, ino)?;
        return Ok(Outcome::AsItWas);
    }
    if !ctx.options.may_write() && !prompter.overlaid {
        prompter.ask(Problem::new(Code::JournalSkipped))?;
        return Ok(Outcome::AsItWas);
    }
    match replay::run(ctx, prompter, ctx.disk.device(), &location) {
        Err(Error::Journal(why)) => reset(ctx, prompter, first, &why),
        other => other,
    }
}

/// Whether a log lies on the volume's own metadata.
pub fn on_metadata(ctx: &Context, location: &LogLocation) -> bool {
    let metadata = pass1::metadata_ranges(ctx);
    location.extents.iter().any(|extent| {
        let (start, end) = (extent.start.0, extent.start.0 + u64::from(extent.len));
        let at = metadata.partition_point(|range| range.end <= start);
        metadata.get(at).is_some_and(|range| range.start < end)
    })
}

/// A log on the volume's own metadata is not replayed: its blocks are somebody else's.
fn displaced(ctx: &Context, prompter: &mut Prompter<'_>, ino: Ino) -> Result<Outcome> {
    let problem = Problem::of(Code::JournalInode, ino).named("on the volume's own metadata");
    discard(ctx, prompter, problem, Some(ino).filter(|ino| ino.get() < ctx.first_ino()))
}

/// The number of the journal's inode is wrong, and the journal is where it always is.
fn renumber(ctx: &Context, prompter: &mut Prompter<'_>, problem: Problem) -> Result<Outcome> {
    if !prompter.ask(problem)? {
        return Ok(Outcome::AsItWas);
    }
    let mut sb = *lock(&ctx.next_sb);
    let _ = sb.edit(|raw| raw.journal_inum.set(Ino::JOURNAL.get()));
    ctx.disk.write_bytes(SUPERBLOCK_OFFSET, &sb.encode())?;
    Ok(Outcome::Reopen)
}

/// A journal without its feature: the feature comes back when the inode holds a log, else the number goes.
fn unannounced(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<Outcome> {
    let Some(ino) = Ino::new(ctx.sb.raw().journal_inum.get()) else { return Ok(Outcome::AsItWas) };
    if !prompter.ask(Problem::of(Code::JournalUnannounced, ino))? {
        return Ok(Outcome::AsItWas);
    }
    let log = locate_log(ctx, ino).ok().and_then(|location| {
        let bytes = ctx.disk.read(location.extents.first()?.start).ok()?;
        format::SuperBlock::parse(bytes.first_chunk()?).ok()
    });
    let mut sb = *lock(&ctx.next_sb);
    let _ = sb.edit(|raw| match log {
        Some(_) => raw.feature_compat.set(raw.feature_compat.get() | Compat::HAS_JOURNAL.0),
        None => raw.journal_inum.set(0),
    });
    ctx.disk.write_bytes(SUPERBLOCK_OFFSET, &sb.encode())?;
    Ok(Outcome::Reopen)
}

/// Where the log of a journal inode lies.
fn locate_log(ctx: &Context, ino: Ino) -> std::result::Result<LogLocation, String> {
    let record = ctx.read_record(ino).map_err(|error| error.to_string())?;
    let inode = Inode::decode(&record, &ctx.layout).map_err(|corruption| corruption.field.to_owned())?;
    log_of(ctx, &inode)
}

/// Where the log lies that an inode maps, or why it is none.
pub fn log_of(ctx: &Context, inode: &Inode) -> std::result::Result<LogLocation, String> {
    enum Failed {
        Corrupt(Corruption),
        Device(Error),
    }
    impl From<Corruption> for Failed {
        fn from(corruption: Corruption) -> Failed {
            Failed::Corrupt(corruption)
        }
    }
    let text = |failed| match failed {
        Failed::Corrupt(corruption) => corruption.field.to_owned(),
        Failed::Device(error) => error.to_string(),
    };
    if inode.links == 0 || inode.file_type() != Some(FileType::Regular) {
        return Err("not a regular file".to_owned());
    }
    if inode.has(flag::INLINE_DATA) {
        return Err("inline data".to_owned());
    }
    let runs = locate::runs(&ctx.sb, inode, None, &mut |block| ctx.disk.read(block).map_err(Failed::Device))
        .map_err(text)?;
    let location = LogLocation { extents: extents_of(&runs) };
    let mut next = 0;
    for extent in &location.extents {
        if u64::from(extent.first) != next {
            return Err("holes".to_owned());
        }
        next += u64::from(extent.len);
    }
    if next < MIN_BLOCKS {
        return Err("too small".to_owned());
    }
    Ok(location)
}

/// The runs of a file, as those of a log.
#[must_use]
pub fn extents_of(runs: &[locate::Run]) -> Vec<LogExtent> {
    runs.iter().map(|run| LogExtent { first: run.first.0, len: run.len, start: run.start }).collect()
}

/// Blocks of a log.
pub fn length(location: &LogLocation) -> u64 {
    location.extents.iter().map(|extent| u64::from(extent.len)).sum()
}

/// A log that cannot be read is made an empty one.
fn reset(ctx: &Context, prompter: &mut Prompter<'_>, first: BlockNo, why: &str) -> Result<Outcome> {
    let has_data = ctx.sb.incompat().has(Incompat::RECOVER);
    let code = if has_data { Code::JournalCorrupt } else { Code::JournalSuper };
    if !prompter.ask(Problem::new(code).at(first).named(why))? {
        return Ok(Outcome::AsItWas);
    }
    let ino = ctx.sb.journal_ino().ok_or_else(|| Error::Journal("no journal inode".to_owned()))?;
    let location = locate_log(ctx, ino).map_err(Error::Journal)?;
    write_empty_log(ctx, first, length(&location) as u32)?;
    lock(&ctx.next_sb).set_needs_recovery(false);
    clear_needs_recovery(ctx)?;
    Ok(Outcome::Reopen)
}

/// Writes the superblock of an empty log of `len` blocks.
///
/// # Errors
/// The device's.
pub fn write_empty_log(ctx: &Context, first: BlockNo, len: u32) -> Result<()> {
    let log = format::SuperBlock::new(ctx.geometry.block_size, len, 0, ctx.sb.uuid());
    let mut bytes = vec![0; ctx.disk.block_size()];
    bytes[..1024].copy_from_slice(&log.encode());
    ctx.disk.write(first, &bytes)
}

/// Takes the journal away; a new one is made after the passes.
fn discard(
    ctx: &Context,
    prompter: &mut Prompter<'_>,
    problem: Problem,
    ino: Option<Ino>,
) -> Result<Outcome> {
    if !prompter.ask(problem)? {
        return Ok(Outcome::AsItWas);
    }
    if let Some(ino) = ino {
        let mut record = vec![0; ctx.geometry.inode_size];
        ctx.write_record(ino, &mut record)?;
    }
    let mut sb = *lock(&ctx.next_sb);
    sb.set_needs_recovery(false);
    let _ = sb.edit(|raw| {
        raw.feature_compat.set(raw.feature_compat.get() & !Compat::HAS_JOURNAL.0);
        raw.journal_inum.set(0);
        raw.jnl_backup_type = 0;
        raw.jnl_blocks = Default::default();
    });
    ctx.disk.write_bytes(1024, &sb.encode())?;
    prompter.journal_lost = true;
    Ok(Outcome::Reopen)
}

/// Makes a new journal in place of one that was thrown away.
///
/// # Errors
/// The device's. A volume without room for one stays without.
pub fn create(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    use ext4_format::extent::Extent;

    let blocks = match ctx.geometry.blocks_count {
        0..32768 => MIN_BLOCKS,
        32768..262_144 => 4096,
        262_144..1_048_576 => 8192,
        _ => 16384,
    };
    let clusters = blocks.div_ceil(u64::from(ctx.geometry.cluster_ratio));
    let goal = ctx.geometry.group_first_block(ext4_format::GroupNo(ctx.geometry.group_count / 2));
    let Some(start) = ctx.found.blocks.find_free(goal, clusters) else { return Ok(()) };
    if !prompter.ask(Problem::new(Code::JournalMissing))? {
        return Ok(());
    }
    ctx.found.blocks.claim(start, blocks, |_| ());
    let zeros = vec![0; ctx.disk.block_size()];
    for ahead in 0..blocks {
        ctx.disk.write(BlockNo(start.0 + ahead), &zeros)?;
    }
    write_empty_log(ctx, start, blocks as u32)?;
    let extent = Extent { first: ext4_format::FileBlock(0), len: blocks as u32, start, unwritten: false };
    let mut inode = alloc::fresh(ctx, FileType::Regular, 0o600);
    inode.links = 1;
    inode.size = blocks * u64::from(ctx.geometry.block_size);
    ctx.write_record(Ino::JOURNAL, &mut vec![0; ctx.geometry.inode_size])?;
    alloc::set_extents(ctx, Ino::JOURNAL, &mut inode, &[extent])?;
    ctx.write_inode(Ino::JOURNAL, &inode)?;
    ctx.found.inodes.set(Ino::JOURNAL, Use::Internal, 1);
    ctx.edit_super(|raw| {
        raw.feature_compat.set(raw.feature_compat.get() | Compat::HAS_JOURNAL.0);
        raw.journal_inum.set(Ino::JOURNAL.get());
    });
    lock(&ctx.next_sb).set_journal_backup(inode.journal_backup());
    Ok(())
}
