//! The superblock's copy of the journal inode's map and size (`s_jnl_blocks`): it brings back a journal whose
//! inode was damaged, and is kept true to a journal that is sound.

use ext4_format::extent;
use ext4_format::inode::{FileType, Inode, flag};
use ext4_format::jbd2 as format;
use ext4_format::superblock::SUPERBLOCK_OFFSET;
use ext4_format::{BlockNo, Ino};

use crate::alloc;
use crate::context::{Context, lock};
use crate::error::Result;
use crate::journal::{Outcome, length, log_of, on_metadata};
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};

/// Words of `i_block` in the copy; the upper and the lower half of the size follow.
const MAP_WORDS: usize = 15;

/// The copy that an inode should have.
#[must_use]
pub fn words_of(inode: &Inode) -> [u32; MAP_WORDS + 2] {
    std::array::from_fn(|at| match at {
        0..MAP_WORDS => u32::from_le_bytes(std::array::from_fn(|i| inode.block[4 * at + i])),
        MAP_WORDS => (inode.size >> 32) as u32,
        _ => inode.size as u32,
    })
}

/// The journal inode that the copy describes, if a log lies where it says, and its number: the one that the
/// superblock names, or the one reserved for it where another file has that number.
#[must_use]
pub fn journal(ctx: &Context, named: Ino) -> Option<(Ino, Inode)> {
    let words = ctx.sb.journal_backup()?;
    let mut inode = alloc::fresh(ctx, FileType::Regular, 0o600);
    inode.links = 1;
    inode.size = u64::from(words[MAP_WORDS]) << 32 | u64::from(words[MAP_WORDS + 1]);
    inode.flags = if words[0] & 0xffff == u32::from(extent::MAGIC) { flag::EXTENTS } else { 0 };
    for (place, word) in inode.block.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let location = log_of(ctx, &inode).ok().filter(|location| !on_metadata(ctx, location))?;
    let bytes = ctx.disk.read(location.extents.first()?.start).ok()?;
    let log = format::SuperBlock::parse(bytes.first_chunk()?).ok()?;
    let fits =
        log.block_size() == ctx.geometry.block_size && u64::from(log.len_blocks()) <= length(&location);
    let ino = if may_be_journal(ctx, named, &inode) { named } else { Ino::JOURNAL };
    // An inode whose table is lost has no place to come back to.
    ctx.inode_place(ino)?;
    fits.then_some((ino, inode))
}

/// Makes the journal inode anew from the copy.
///
/// # Errors
/// The device's.
pub fn restore(
    ctx: &Context,
    prompter: &mut Prompter<'_>,
    why: &str,
    (ino, mut inode): (Ino, Inode),
) -> Result<Outcome> {
    if !prompter.ask(Problem::of(Code::JournalFromBackup, ino).named(why))? {
        return Ok(Outcome::AsItWas);
    }
    if ctx.sb.raw().journal_inum.get() != ino.get() {
        let mut sb = *lock(&ctx.next_sb);
        let _ = sb.edit(|raw| raw.journal_inum.set(ino.get()));
        ctx.disk.write_bytes(1024, &sb.encode())?;
    }
    ctx.write_record(ino, &mut vec![0; ctx.geometry.inode_size])?;
    ctx.write_inode(ino, &inode)?;
    inode.blocks = pass1::effects_of(ctx, ino)?.clusters(ctx) * ctx.cluster_sectors();
    ctx.write_inode(ino, &inode)?;
    Ok(Outcome::Reopen)
}

/// Whether an inode is the journal's or free: one of the volume's own, or a file of the journal's size.
fn may_be_journal(ctx: &Context, ino: Ino, journal: &Inode) -> bool {
    let free = |inode: Inode| {
        let same_size = inode.file_type() == Some(FileType::Regular) && inode.size == journal.size;
        ino.get() >= ctx.first_ino() && (inode.links == 0 || same_size)
    };
    ino == Ino::JOURNAL || ctx.read_inode(ino).is_ok_and(free)
}

/// Brings the copy in line with a journal inode that is sound, where anything may be written. That is no
/// repair: a volume with an old copy, or none, is clean.
///
/// # Errors
/// The device's.
pub fn refresh(ctx: &Context, prompter: &mut Prompter<'_>, ino: Ino) -> Result<()> {
    let words = words_of(&ctx.read_inode(ino)?);
    if !ctx.options.may_write() || ctx.sb.journal_backup() == Some(words) {
        return Ok(());
    }
    prompter.say("Backing up journal inode block information.");
    let mut sb = lock(&ctx.next_sb);
    sb.set_journal_backup(words);
    // The stamp alone is no change that another round must look at.
    let mut first = ctx.sb;
    first.set_journal_backup(words);
    ctx.disk.save(BlockNo(SUPERBLOCK_OFFSET / u64::from(ctx.geometry.block_size)), 1)?;
    ctx.disk.device().write_at(SUPERBLOCK_OFFSET, &first.encode())?;
    Ok(())
}
