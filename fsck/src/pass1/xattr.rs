//! The attributes of one inode, in its record and in its block.

use ext4_format::features::Compat;
use ext4_format::inode::{Inode, flag};
use ext4_format::xattr::{self, Attributes, Home, Value};
use ext4_format::{BlockNo, Ino};

use super::inode::{Effects, Subject};
use crate::ask::Ask;
use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::problem::{Code, Problem};

/// Checks both homes of an inode's attributes.
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    check_inside(ctx, ask, s, effects)?;
    if s.inode.file_acl.0 != 0 {
        check_block(ctx, ask, s, effects)?;
    }
    if s.inode.has(flag::ENCRYPT)
        && !has_encryption_context(ctx, s)?
        && ask.ask(Problem::of(Code::EncryptionMissing, s.ino))?
    {
        s.inode.flags &= !flag::ENCRYPT;
        s.dirty = true;
    }
    Ok(())
}

fn check_inside(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    let Some(range) = s.inode.xattr_range(&ctx.layout) else { return Ok(()) };
    if !xattr::in_use(&s.record[range.clone()]) {
        return Ok(());
    }
    if let Err(corruption) = xattr::check(&s.record[range.clone()], Home::Inode) {
        if ask.ask(Problem::of(Code::XattrInode, s.ino).named(corruption.field))? {
            keep_sound(&mut s.record[range.clone()]);
            s.dirty = true;
        } else {
            return Ok(());
        }
    }
    if empty_value_outside(&s.record[range.clone()]) && ask.ask(Problem::of(Code::XattrEmptyValue, s.ino))? {
        let all = Attributes::read(&s.record[range.clone()], Home::Inode, |ino| value_hash(ctx, ino));
        if let Ok(all) = all {
            s.dirty |= all.write(&mut s.record[range.clone()], Home::Inode);
        }
    }
    let wrong_hash = xattr::entries(&s.record[range.clone()], Home::Inode)
        .filter_map(std::result::Result::ok)
        .any(|entry| !hash_holds(ctx, &entry));
    if wrong_hash && ask.ask(Problem::of(Code::XattrInode, s.ino).named("e_hash"))? {
        let all = Attributes::read(&s.record[range.clone()], Home::Inode, |ino| value_hash(ctx, ino));
        if let Ok(all) = all {
            s.dirty |= all.write(&mut s.record[range.clone()], Home::Inode);
        }
    }
    let region = s.record[range.clone()].to_vec();
    let bad = references(ctx, &region, Home::Inode, effects);
    for (index, name, target) in bad {
        if ask.ask(Problem::of(Code::EaInodeBad, s.ino).values(target.get(), 0_u32))? {
            let hash_of = |ino| value_hash(ctx, ino);
            if let Ok(mut all) = Attributes::read(&s.record[range.clone()], Home::Inode, hash_of) {
                all.remove(index, &name);
                s.dirty |= all.write(&mut s.record[range.clone()], Home::Inode);
            }
        }
    }
    Ok(())
}

/// Whether an entry without a value says that it lies outside the region: the kernel does not mind, e2fsck
/// does.
fn empty_value_outside(region: &[u8]) -> bool {
    let mut at = xattr::INODE_HEADER;
    while let Some(entry) = region.get(at..at + xattr::ENTRY_HEADER).filter(|entry| entry[..4] != [0; 4]) {
        let offset = usize::from(u16::from_le_bytes([entry[2], entry[3]]));
        if entry[4..12] == [0; 8] && offset > region.len() - xattr::INODE_HEADER {
            return true;
        }
        at += (xattr::ENTRY_HEADER + usize::from(entry[0])).next_multiple_of(4);
    }
    false
}

fn check_block(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    let block = s.inode.file_acl;
    let drop_block = |s: &mut Subject| {
        s.inode.file_acl = BlockNo(0);
        s.dirty = true;
    };
    if !ctx.on_volume(block, 1) || ctx.is_metadata(block, 1) {
        if ask.ask(Problem::of(Code::XattrPlace, s.ino).at(block))? {
            drop_block(s);
        }
        return Ok(());
    }
    if !ctx.sb.compat().has(Compat::EXT_ATTR) && ask.ask(Problem::of(Code::XattrFeature, s.ino))? {
        ctx.edit_super(|raw| raw.feature_compat.set(raw.feature_compat.get() | Compat::EXT_ATTR.0));
    }
    let mut bytes = match ctx.disk.read(block) {
        Ok(bytes) => bytes,
        Err(Error::Device(_)) => {
            if ask.ask(Problem::of(Code::XattrBlock, s.ino).at(block).named("unreadable"))? {
                drop_block(s);
            }
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let refcount = match xattr::block_header(&bytes) {
        Ok(header) => header.refcount,
        Err(corruption) => {
            if ask.ask(Problem::of(Code::XattrBlock, s.ino).at(block).named(corruption.field))? {
                drop_block(s);
            }
            return Ok(());
        }
    };
    let known = lock(&ctx.found.xattrs).contains_key(&block.0);
    if !known {
        // The kernel passes over a name of no kind; nobody could have written one.
        let nameless = xattr::entries(&bytes, Home::Block)
            .filter_map(std::result::Result::ok)
            .any(|entry| entry.index == 0)
            .then_some("e_name_index");
        if let Some(why) = xattr::check(&bytes, Home::Block).err().map(|c| c.field).or(nameless) {
            if ask.ask(Problem::of(Code::XattrBlock, s.ino).at(block).named(why))? {
                drop_block(s);
            }
            return Ok(());
        }
        let wrong_hash = xattr::entries(&bytes, Home::Block)
            .filter_map(std::result::Result::ok)
            .any(|entry| !hash_holds(ctx, &entry));
        if wrong_hash && ask.ask(Problem::of(Code::XattrHash, s.ino).at(block))? {
            drop_block(s);
            return Ok(());
        }
        if ctx.csum.verify_xattr_block(&bytes, block).is_err()
            && ask.ask(Problem::of(Code::XattrChecksum, s.ino).at(block))?
        {
            ctx.csum.set_xattr_block(&mut bytes, block);
            ctx.disk.write(block, &bytes)?;
        }
    }
    let bad = references(ctx, &bytes, Home::Block, effects);
    if let Some((_, _, target)) = bad.first()
        && ask.ask(Problem::of(Code::EaInodeBad, s.ino).values(target.get(), 0_u32))?
    {
        drop_block(s);
        return Ok(());
    }
    effects.xattr_block = Some((block, refcount));
    Ok(())
}

/// Notes the attribute inodes that a region refers to, and returns the references that lead nowhere.
fn references(ctx: &Context, region: &[u8], home: Home, effects: &mut Effects) -> Vec<(u8, Vec<u8>, Ino)> {
    let mut bad = Vec::new();
    for entry in xattr::entries(region, home).filter_map(std::result::Result::ok) {
        let Value::InInode { ino, size } = entry.value else { continue };
        let holds = ctx
            .read_inode(ino)
            .is_ok_and(|inode| inode.has(flag::EA_INODE) && inode.links > 0 && inode.size == u64::from(size));
        if holds {
            effects.ea_refs.push(ino);
            let cluster = u64::from(ctx.layout.cluster_size);
            effects.ea_blocks += u64::from(size).div_ceil(cluster) * u64::from(ctx.geometry.cluster_ratio);
        } else {
            bad.push((entry.index, entry.name.to_vec(), ino));
        }
    }
    bad
}

/// Whether an encrypted inode has the attribute that says how.
fn has_encryption_context(ctx: &Context, s: &Subject) -> Result<bool> {
    let holds =
        |region: &[u8], home| matches!(xattr::find(region, home, xattr::INDEX_ENCRYPTION, b"c"), Ok(Some(_)));
    if let Some(range) = s.inode.xattr_range(&ctx.layout)
        && xattr::in_use(&s.record[range.clone()])
        && holds(&s.record[range], Home::Inode)
    {
        return Ok(true);
    }
    let block = s.inode.file_acl;
    Ok(block.0 != 0 && ctx.on_volume(block, 1) && holds(&ctx.disk.read(block)?, Home::Block))
}

/// Whether an entry's hash, where it has one, is right for signed or unsigned names.
fn hash_holds(ctx: &Context, entry: &xattr::Entry<'_>) -> bool {
    let expected = |signed| match entry.value {
        Value::Here(value) => xattr::entry_hash(entry.name, value, signed),
        Value::InInode { ino, .. } => xattr::entry_hash_of_inode(entry.name, value_hash(ctx, ino), signed),
    };
    entry.hash == 0 || entry.hash == expected(false) || entry.hash == expected(true)
}

/// The hash of a value that lies in an inode of its own: the kernel keeps it in the access time.
pub(super) fn value_hash(ctx: &Context, ino: Ino) -> u32 {
    ctx.read_inode(ino).map_or(0, |inode: Inode| inode.atime.sec as u32)
}

/// Keeps the leading entries of a damaged region that make sense together.
fn keep_sound(region: &mut [u8]) {
    let mut kept = Attributes::default();
    for entry in xattr::entries(region, Home::Inode).map_while(std::result::Result::ok) {
        if let Value::Here(value) = entry.value
            && xattr::prefix(entry.index).is_some()
            && kept.get(entry.index, entry.name).is_none()
        {
            let mut next = kept.clone();
            next.set(entry.index, entry.name, xattr::OwnedValue::Bytes(value.to_vec()));
            if next.size(Home::Inode) <= region.len() {
                kept = next;
            }
        }
    }
    if !kept.write(region, Home::Inode) {
        region.fill(0);
    }
}

/// After pass 1: the counts in the attribute blocks and inodes against the users found.
pub fn check_counts(ctx: &Context, ask: &mut dyn Ask) -> Result<()> {
    let mut wrong: Vec<(u64, u32, u32)> = lock(&ctx.found.xattrs)
        .iter()
        .filter(|(_, shared)| shared.refcount != shared.users)
        .map(|(&block, shared)| (block, shared.refcount, shared.users))
        .collect();
    wrong.sort_unstable();
    for (block, found, expected) in wrong {
        let at = BlockNo(block);
        if ask.ask(Problem::new(Code::XattrRefcount).at(at).values(found, expected))? {
            let mut bytes = ctx.disk.read(at)?;
            xattr::set_refcount(&mut bytes, expected);
            ctx.csum.set_xattr_block(&mut bytes, at);
            ctx.disk.write(at, &bytes)?;
        }
    }
    let refs: Vec<(u32, u64)> = lock(&ctx.found.ea_refs).iter().map(|(&ino, &refs)| (ino, refs)).collect();
    for (number, expected) in refs {
        let Some(ino) = Ino::new(number) else { continue };
        let mut inode = ctx.read_inode(ino)?;
        // The count stands in the change time (upper half) and the version (lower half).
        let found = (inode.ctime.sec as u64 & 0xffff_ffff) << 32 | inode.version & 0xffff_ffff;
        if found != expected && ask.ask(Problem::of(Code::EaInodeRefs, ino).values(found, expected))? {
            inode.ctime.sec = i64::from((expected >> 32) as u32 as i32);
            inode.version = inode.version & !0xffff_ffff | expected & 0xffff_ffff;
            ctx.write_inode(ino, &inode)?;
        }
    }
    Ok(())
}
