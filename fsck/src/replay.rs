//! Replaying a log, once the volume has been judged as the replay would leave it.

use std::sync::Arc;

use blockdev::BlockDevice;
use ext4_format::superblock::{RawSuperBlock, SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, SuperBlock};
use ext4_format::{BlockNo, Corruption, locate};
use jbd2::recovery::{self, LogLocation, Overlay};
use zerocopy::FromBytes;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::journal::{Outcome, extents_of};
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};
use crate::volume;

/// Replays a log that `device` holds, which is the volume or more.
///
/// # Errors
/// [`Error::Journal`] for a log that cannot be replayed, or that contradicts the volume, and
/// [`Error::Unusable`] for one that would make it a volume that cannot be checked; then nothing was written.
pub fn run(
    ctx: &Context,
    prompter: &mut Prompter<'_>,
    device: &Arc<dyn BlockDevice>,
    location: &LogLocation,
) -> Result<Outcome> {
    if !prompter.ask(Problem::new(Code::JournalReplay))? {
        return Ok(Outcome::AsItWas);
    }
    let block_size = ctx.geometry.block_size;
    let refused = |error: recovery::Error| match error {
        recovery::Error::Unsupported { what } => {
            Error::Unusable(format!("the journal cannot be replayed: {what}"))
        }
        error => Error::Journal(error.to_string()),
    };
    let scan = recovery::scan(&**device, block_size, location).map_err(refused)?;
    let replayed = Overlay::new(Arc::clone(device), block_size, scan);
    confine(ctx, &replayed, location)?;
    let scan = replayed.replay();
    // What is overwritten goes into the undo log first: the replay itself writes through the device.
    let mut bytes = vec![0; block_size as usize];
    for block in scan.blocks().chain(location.extents.first().map(|extent| extent.start)) {
        if ctx.disk.read_into(block, &mut bytes).is_ok() {
            ctx.disk.save(block, 1)?;
        }
    }
    let done = scan.apply(&**device, block_size, location).map_err(refused)?;
    ctx.disk.note_change();
    if prompter.overlaid {
        prompter.ask(Problem::new(Code::JournalOverlaid))?;
    } else {
        prompter.report.replayed = true;
        let (transactions, blocks) = (done.transactions, done.blocks);
        prompter.say(&format!("journal replayed: {transactions} transaction(s), {blocks} block(s)"));
    }
    clear_needs_recovery(ctx)?;
    Ok(Outcome::Reopen)
}

/// Judges a replay by the volume as it would leave it: it writes to no block behind the volume's end, and the
/// journal stays where it is. The log may have made the volume larger, so the superblock in it counts.
fn confine(ctx: &Context, replayed: &Overlay, location: &LogLocation) -> Result<()> {
    let refused = |why: String| Error::Journal(why);
    let (block_size, scan) = (u64::from(ctx.geometry.block_size), replayed.replay());
    let mut sb = ctx.sb;
    if scan.blocks().any(|block| block.0 == SUPERBLOCK_OFFSET / block_size) {
        let mut bytes = [0; SUPERBLOCK_LEN];
        replayed.read_at(SUPERBLOCK_OFFSET, &mut bytes)?;
        let raw = RawSuperBlock::read_from_bytes(&bytes[..]).map_err(|_| refused("superblock".to_owned()))?;
        sb = SuperBlock::from_raw(raw).map_err(|c| refused(format!("the superblock in it: {}", c.field)))?;
    }
    volume::refuse_unknown(&sb)?;
    let bytes = sb.blocks_count().0.saturating_mul(sb.block_size().into());
    if u64::from(sb.block_size()) != block_size || bytes > ctx.disk.size() {
        return Err(refused("the superblock in it is another volume's".to_owned()));
    }
    let first = u64::from(sb.raw().first_data_block.get());
    scan.confine(first..sb.blocks_count().0)
        .map_err(|error| refused(format!("it leads out of the volume: {error}")))?;
    if sb.journal_ino() != ctx.sb.journal_ino() {
        return Err(refused("the superblock in it names another journal".to_owned()));
    }
    let Some(ino) = sb.journal_ino() else { return Ok(()) };
    let mut read = |block: BlockNo| {
        let mut bytes = vec![0; block_size as usize];
        replayed.read_at(block.0.saturating_mul(block_size), &mut bytes)?;
        Ok::<_, Unread>(bytes)
    };
    // An inode that cannot be read was damaged before.
    let after =
        locate::inode(&sb, ino, &mut read).and_then(|inode| locate::runs(&sb, &inode, None, &mut read));
    match after {
        Ok(runs) if extents_of(&runs) != location.extents => Err(refused("it moves itself".to_owned())),
        _ => Ok(()),
    }
}

/// A block that an inode's map needs cannot be read, or makes no sense.
struct Unread;

impl From<Corruption> for Unread {
    fn from(_: Corruption) -> Unread {
        Unread
    }
}

impl From<blockdev::Error> for Unread {
    fn from(_: blockdev::Error) -> Unread {
        Unread
    }
}

/// Takes the flag off the superblock on disk, after the replay: it may itself have been replayed.
///
/// # Errors
/// The device's.
pub fn clear_needs_recovery(ctx: &Context) -> Result<()> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    ctx.disk.read_bytes(SUPERBLOCK_OFFSET, &mut bytes)?;
    if let Ok(mut sb) = SuperBlock::parse(&bytes) {
        sb.set_needs_recovery(false);
        ctx.disk.write_bytes(SUPERBLOCK_OFFSET, &sb.encode())?;
    }
    ctx.disk.flush()
}
