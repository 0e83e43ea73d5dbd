//! Inline data: the first 60 bytes in `i_block`, the rest in the attribute `system.data`.

use std::ops::Range;

use ext4_format::features::Compat;
use ext4_format::inode::{BLOCK_AREA, Inode, flag};
use ext4_format::xattr::{self, Attributes, Home, INDEX_SYSTEM, OwnedValue, Value};

use super::inode::Subject;
use super::xattr::value_hash;
use crate::context::Context;
use crate::error::Result;
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// Byte of `i_block` in the record.
pub const I_BLOCK: usize = 0x28;

/// Bytes of the smallest record of a directory.
pub const LEAST_RECORD: usize = 12;

/// The part of an inline file behind the first 60 bytes, as a range of the record; `None` when there is none.
pub fn rest(ctx: &Context, record: &[u8], inode: &Inode) -> Option<Range<usize>> {
    let region = inode.xattr_range(&ctx.layout)?;
    let entry = xattr::find(&record[region.clone()], Home::Inode, INDEX_SYSTEM, b"data").ok()??;
    let Value::Here(value) = entry.value else { return None };
    if value.is_empty() {
        return Some(region.end..region.end);
    }
    let start = value.as_ptr().addr() - record.as_ptr().addr();
    Some(start..start + value.len())
}

/// The parts of the record in which the entries of an inline directory lie: behind the number of its parent in
/// `i_block`, and the rest.
pub fn areas(ctx: &Context, record: &[u8], inode: &Inode) -> impl Iterator<Item = Range<usize>> + use<> {
    let first = I_BLOCK + size_of::<u32>()..I_BLOCK + BLOCK_AREA;
    let rest = rest(ctx, record, inode).unwrap_or_default();
    [first, rest].into_iter().filter(|area| area.len() >= LEAST_RECORD)
}

/// The part of an area in which records of a directory can lie: they end at multiples of four bytes.
fn whole_records(len: usize) -> usize {
    if len < LEAST_RECORD { 0 } else { len / 4 * 4 }
}

/// Cuts `system.data` to a length at which a record can end; returns where it lies then.
fn cut(ctx: &Context, s: &mut Subject, rest: Range<usize>) -> Range<usize> {
    let end = rest.start + whole_records(rest.len());
    let value = OwnedValue::Bytes(s.record[rest.start..end].to_vec());
    let Some(region) = s.inode.xattr_range(&ctx.layout) else { return rest };
    let all = Attributes::read(&s.record[region.clone()], Home::Inode, |ino| value_hash(ctx, ino));
    if let Ok(mut all) = all {
        all.set(INDEX_SYSTEM, b"data", value);
        s.dirty |= all.write(&mut s.record[region], Home::Inode);
    }
    self::rest(ctx, &s.record, &s.inode).unwrap_or(rest)
}

/// Checks that the inode has its data and that the size is theirs.
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject) -> Result<()> {
    if !ctx.sb.compat().has(Compat::EXT_ATTR) && ask.ask(Problem::of(Code::XattrFeature, s.ino))? {
        ctx.edit_super(|raw| raw.feature_compat.set(raw.feature_compat.get() | Compat::EXT_ATTR.0));
    }
    let Some(rest) = rest(ctx, &s.record, &s.inode) else {
        if ask.ask(Problem::of(Code::InlineData, s.ino).named("no system.data"))? {
            if s.inode.is_dir() {
                s.clear(ctx);
            } else {
                s.inode.flags &= !flag::INLINE_DATA;
                s.inode.block = [0; BLOCK_AREA];
                s.inode.size = 0;
                s.dirty = true;
            }
        }
        return Ok(());
    };
    let odd = s.inode.is_dir() && rest.len() != whole_records(rest.len());
    let rest = match odd && ask.ask(Problem::of(Code::InlineData, s.ino).named("length of system.data"))? {
        true => cut(ctx, s, rest),
        false => rest,
    };
    let room = (BLOCK_AREA + rest.len()) as u64;
    let wrong = if s.inode.is_dir() { s.inode.size != room } else { s.inode.size > room };
    if wrong && ask.ask(Problem::of(Code::InodeSize, s.ino).values(s.inode.size, room))? {
        s.inode.size = room;
        s.dirty = true;
    }
    Ok(())
}
