//! The flags of an inode against its kind, the volume's features, and what its `i_block` holds: where they
//! contradict each other, the contents tell which is right.

use ext4_format::extent::{Bounds, Node};
use ext4_format::features::{Compat, Incompat, RoCompat};
use ext4_format::inode::{BLOCK_AREA, FileType, MAX_FAST_SYMLINK, flag};
use ext4_format::{BlockNo, Ino};

use super::inode::{Effects, Subject};
use super::{indirect, inline};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, DryRun};

/// Slots of a root node.
const ROOT_SLOTS: u16 = 4;

/// Checks the flags of an inode of a kind.
///
/// # Errors
/// As [`Ask::ask`].
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, kind: FileType) -> Result<()> {
    let (dir, file) = (kind == FileType::Directory, kind == FileType::Regular);
    inline_feature(ctx, ask, s)?;
    let has = |feature| ctx.has_incompat(feature);
    let rules = [
        (!ctx.sb.compat().has(Compat::IMAGIC_INODES), Code::FlagImagic, flag::IMAGIC),
        (!dir, Code::FlagIndexFile, flag::INDEX),
        (!ctx.sb.compat().has(Compat::DIR_INDEX), Code::FlagIndexFeature, flag::INDEX),
        (!has(Incompat::INLINE_DATA), Code::FlagInlineFeature, flag::INLINE_DATA),
        (!has(Incompat::ENCRYPT), Code::FlagEncrypt, flag::ENCRYPT),
        (!dir || !has(Incompat::CASEFOLD), Code::FlagCasefold, flag::CASEFOLD),
        (!file || !has(Incompat::EA_INODE), Code::FlagEaInode, flag::EA_INODE),
        (!ctx.sb.ro_compat().has(RoCompat::HUGE_FILE), Code::FlagHugeFile, flag::HUGE_FILE),
    ];
    for (wrong, code, bits) in rules {
        if wrong && s.inode.flags & bits != 0 && ask.ask(Problem::of(code, s.ino))? {
            drop_bits(s, bits);
        }
    }
    if s.inode.has(flag::INLINE_DATA) && s.inode.has(flag::EXTENTS) {
        let tree = holds_tree(ctx, s);
        let what = if tree { "an extent tree" } else { "inline data" };
        if ask.ask(Problem::of(Code::FlagInlineAndExtents, s.ino).named(what))? {
            drop_bits(s, if tree { flag::INLINE_DATA } else { flag::EXTENTS });
        }
    }
    if s.inode.has(flag::INLINE_DATA)
        && s.inode.has(flag::INDEX)
        && ask.ask(Problem::of(Code::FlagIndexInline, s.ino))?
    {
        drop_bits(s, flag::INDEX);
    }
    if dir || file || kind == FileType::Symlink {
        extents(ctx, ask, s, kind)?;
    }
    Ok(())
}

fn drop_bits(s: &mut Subject, bits: u32) {
    s.inode.flags &= !bits;
    s.record[0x20..0x24].copy_from_slice(&s.inode.flags.to_le_bytes());
    s.dirty = true;
}

/// An inode with all that inline data need shows that it is the feature which is missing.
fn inline_feature(ctx: &Context, ask: &mut dyn Ask, s: &Subject) -> Result<()> {
    let inline = s.inode.has(flag::INLINE_DATA) && inline::rest(ctx, &s.record, &s.inode).is_some();
    if inline
        && !ctx.has_incompat(Incompat::INLINE_DATA)
        && ask.ask(Problem::of(Code::InlineFeature, s.ino))?
    {
        ctx.edit_super(|raw| {
            raw.feature_incompat.set(raw.feature_incompat.get() | Incompat::INLINE_DATA.0);
        });
    }
    Ok(())
}

/// The extent flag, its feature, and the contents.
fn extents(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, kind: FileType) -> Result<()> {
    let feature = ctx.has_incompat(Incompat::EXTENTS);
    let flagged = s.inode.has(flag::EXTENTS);
    if flagged && !has_header(s) {
        if kind == FileType::Symlink && holds_target(s) {
            if ask.ask(Problem::of(Code::FlagExtentsFastSymlink, s.ino))? {
                drop_bits(s, flag::EXTENTS);
            }
        } else if holds_map(ctx, s)? && ask.ask(Problem::of(Code::FlagExtentsOnMap, s.ino))? {
            drop_bits(s, flag::EXTENTS);
        }
        return Ok(());
    }
    let text = s.inode.has(flag::INLINE_DATA) || kind == FileType::Symlink && holds_target(s);
    let tree = if feature { has_header(s) } else { holds_tree(ctx, s) };
    let missing = tree && !flagged && !text;
    if missing && ask.ask(Problem::of(Code::FlagExtentsMissing, s.ino))? {
        s.inode.flags |= flag::EXTENTS;
        s.dirty = true;
    }
    if s.inode.has(flag::EXTENTS) && !feature && ask.ask(Problem::of(Code::FlagExtentsFeature, s.ino))? {
        ctx.edit_super(|raw| {
            raw.feature_incompat.set(raw.feature_incompat.get() | Incompat::EXTENTS.0);
        });
    }
    Ok(())
}

/// Whether `i_block` begins as the root of an extent tree does.
fn has_header(s: &Subject) -> bool {
    let word = |at: usize| u16::from_le_bytes([s.inode.block[at], s.inode.block[at + 1]]);
    word(0) == ext4_format::extent::MAGIC && word(4) == ROOT_SLOTS
}

/// Whether `i_block` is the root of an extent tree, with entries that make sense.
fn holds_tree(ctx: &Context, s: &Subject) -> bool {
    let volume = Bounds::of_volume(BlockNo(ctx.geometry.first_data_block.into()), ctx.geometry.blocks_count);
    has_header(s) && Node::parse(&s.inode.block).is_ok_and(|node| node.check(&volume, false).is_ok())
}

/// Whether `i_block` is a target as long as the size says.
fn holds_target(s: &Subject) -> bool {
    let text = s.inode.block[..BLOCK_AREA].iter().position(|&byte| byte == 0).unwrap_or(BLOCK_AREA);
    let encrypted =
        s.inode.has(flag::ENCRYPT) && super::inode::encrypted_len(&s.inode.block) == Some(s.inode.size);
    (1..=MAX_FAST_SYMLINK as u64).contains(&s.inode.size) && (encrypted || text as u64 == s.inode.size)
}

/// Whether `i_block` is a block map without a fault that holds as much as the inode says.
fn holds_map(ctx: &Context, s: &mut Subject) -> Result<bool> {
    if s.ino.get() < ctx.first_ino() && s.ino != Ino::ROOT || ctx.geometry.cluster_ratio > 1 {
        return Ok(false);
    }
    let mut seen = Effects::default();
    match indirect::check(ctx, &mut DryRun, s, &mut seen) {
        Ok(()) => {}
        Err(Error::Suspect) => return Ok(false),
        Err(error) => return Err(error),
    }
    let attributes = u64::from(s.inode.file_acl.0 != 0);
    let sectors = (seen.clusters(ctx) + attributes) * ctx.cluster_sectors();
    Ok(seen.last.is_some() && s.inode.blocks == sectors)
}
