//! The attributes of one inode, in its record and in its block.

use ext4_format::features::Compat;
use ext4_format::inode::{FileType, Inode, flag};
use ext4_format::xattr::{self, Attributes, Home, Value};
use ext4_format::{BlockNo, Ino};

use super::inode::{Effects, Subject};
use crate::context::{Context, lock};
use crate::encryption;
use crate::error::{Error, Result};
use crate::map::Use;
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// Checks both homes of an inode's attributes.
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    check_inside(ctx, ask, s, effects)?;
    if s.inode.file_acl.0 != 0 {
        check_block(ctx, ask, s, effects)?;
    }
    if s.inode.has(flag::ENCRYPT) { check_context(ctx, ask, s) } else { Ok(()) }
}

/// An encrypted inode has a context that makes sense. One without becomes a plain one, and keeps its bytes.
fn check_context(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject) -> Result<()> {
    let context = encryption::context(ctx, &s.record, &s.inode)?;
    let problem = match &context {
        None => Problem::of(Code::EncryptionMissing, s.ino),
        Some(context) => match ext4_format::encryption::policy(context) {
            Ok(_) => return Ok(()),
            Err(why) => Problem::of(Code::EncryptionDamaged, s.ino).named(why),
        },
    };
    if ask.ask(problem)? {
        if context.is_some() {
            encryption::remove_context(ctx, &mut s.record, &mut s.inode)?;
        }
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
        .any(|entry| !hash_holds(ctx, s, &entry));
    if wrong_hash && ask.ask(Problem::of(Code::XattrInode, s.ino).named("e_hash"))? {
        let all = Attributes::read(&s.record[range.clone()], Home::Inode, |ino| value_hash(ctx, ino));
        if let Ok(all) = all {
            s.dirty |= all.write(&mut s.record[range.clone()], Home::Inode);
        }
    }
    let region = s.record[range.clone()].to_vec();
    let bad = references(ctx, s, &region, Home::Inode, effects);
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

/// Whether an entry without a value in the region says that one lies outside it, or in another inode and here,
/// too: the kernel does not mind, e2fsck does.
fn empty_value_outside(region: &[u8]) -> bool {
    let mut at = xattr::INODE_HEADER;
    while let Some(entry) = region.get(at..at + xattr::ENTRY_HEADER).filter(|entry| entry[..4] != [0; 4]) {
        let offset = usize::from(u16::from_le_bytes([entry[2], entry[3]]));
        if entry[4..8] != [0; 4] && offset != 0 {
            return true;
        }
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
            .any(|entry| !hash_holds(ctx, s, &entry));
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
    let bad = references(ctx, s, &bytes, Home::Block, effects);
    if let Some((_, _, target)) = bad.first()
        && ask.ask(Problem::of(Code::EaInodeBad, s.ino).values(target.get(), 0_u32))?
    {
        drop_block(s);
        return Ok(());
    }
    effects.xattr_block = Some((block, refcount));
    Ok(())
}

/// A reference from an attribute that is to go: name index, name, and the inode it names.
type BadReference = (u8, Vec<u8>, Ino);

/// Notes the attribute inodes that a region refers to, and returns the references that lead to none.
fn references(
    ctx: &Context,
    s: &Subject,
    region: &[u8],
    home: Home,
    effects: &mut Effects,
) -> Vec<BadReference> {
    let mut bad = Vec::new();
    for entry in xattr::entries(region, home).filter_map(std::result::Result::ok) {
        let Value::InInode { ino, size } = entry.value else { continue };
        let target = ctx.read_inode(ino).ok().filter(|target| {
            target.has(flag::EA_INODE) && target.links > 0 && target.size == u64::from(size)
        });
        let Some(target) = target else {
            bad.push((entry.index, entry.name.to_vec(), ino));
            continue;
        };
        effects.ea_refs.push(ino);
        // Lustre does not count the blocks of a value among those of its owner.
        if !is_lustre_value(s, &target) || has_hash(ctx, &entry, ino) {
            let cluster = u64::from(ctx.layout.cluster_size);
            effects.ea_blocks += u64::from(size).div_ceil(cluster) * u64::from(ctx.geometry.cluster_ratio);
        }
    }
    bad
}

/// Whether an inode is the value of an attribute of `s` as Lustre made it: it names its owner in the
/// modification time and in the generation, and has neither a hash nor a count of references.
/// Source: kernel documentation, ext4 "Extended Attributes", on values in inodes.
fn is_lustre_value(s: &Subject, target: &Inode) -> bool {
    target.mtime.sec as u32 == s.ino.get() && target.generation == s.inode.generation
}

/// Whether the hash of an entry is that of its value in another inode.
fn has_hash(ctx: &Context, entry: &xattr::Entry<'_>, ino: Ino) -> bool {
    let value = value_hash(ctx, ino);
    [false, true].iter().any(|signed| entry.hash == xattr::entry_hash_of_inode(entry.name, value, *signed))
}

/// Whether an entry's hash, where it has one, is right for signed or unsigned names.
fn hash_holds(ctx: &Context, s: &Subject, entry: &xattr::Entry<'_>) -> bool {
    entry.hash == 0
        || match entry.value {
            Value::Here(value) => {
                [false, true].iter().any(|signed| entry.hash == xattr::entry_hash(entry.name, value, *signed))
            }
            Value::InInode { ino, .. } => {
                has_hash(ctx, entry, ino)
                    || ctx.read_inode(ino).is_ok_and(|target| is_lustre_value(s, &target))
            }
        }
}

/// The hash of a value that lies in an inode of its own: the kernel keeps it in the access time.
pub fn value_hash(ctx: &Context, ino: Ino) -> u32 {
    ctx.read_inode(ino).map_or(0, |inode: Inode| inode.atime.sec as u32)
}

/// The references that an attribute inode counts: in the change time (upper half) and the version (lower half).
#[must_use]
pub fn ea_references(inode: &Inode) -> u64 {
    (inode.ctime.sec as u64 & 0xffff_ffff) << 32 | inode.version & 0xffff_ffff
}

/// Sets the references that an attribute inode counts.
pub fn set_ea_references(inode: &mut Inode, count: u64) {
    inode.ctime.sec = i64::from((count >> 32) as u32 as i32);
    inode.version = inode.version & !0xffff_ffff | count & 0xffff_ffff;
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
        // Lustre's values have no count; their change time is the access time.
        if inode.ctime.sec == inode.atime.sec {
            continue;
        }
        let found = ea_references(&inode);
        if found != expected && ask.ask(Problem::of(Code::EaInodeRefs, ino).values(found, expected))? {
            set_ea_references(&mut inode, expected);
            ctx.write_inode(ino, &inode)?;
        }
    }
    clear_spurious_flags(ctx, ask)
}

/// What no attribute refers to is a file, whatever its flag says.
fn clear_spurious_flags(ctx: &Context, ask: &mut dyn Ask) -> Result<()> {
    let mut flagged = std::mem::take(&mut *lock(&ctx.found.attributes));
    flagged.sort_unstable();
    flagged.retain(|ino| !lock(&ctx.found.ea_refs).contains_key(&ino.get()));
    for ino in flagged {
        if ask.ask(Problem::of(Code::EaInodeSpurious, ino))? {
            let mut inode = ctx.read_inode(ino)?;
            inode.flags &= !flag::EA_INODE;
            ctx.write_inode(ino, &inode)?;
            ctx.found.inodes.set(ino, Use::File(FileType::Regular.dirent_code()), inode.links);
        }
    }
    Ok(())
}
