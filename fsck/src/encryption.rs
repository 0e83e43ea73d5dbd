//! The encryption context of an inode on the volume, and the policies of a directory and what it names.

use ext4_format::encryption::{self, CONTEXT_NAME};
use ext4_format::inode::{FileType, Inode, flag};
use ext4_format::xattr::{self, Attributes, Home, INDEX_ENCRYPTION, Value};
use ext4_format::{BlockNo, Ino};

use crate::context::Context;
use crate::error::Result;
use crate::problem::Code;

/// The context of an inode, from its record or its attribute block; `None` without one.
///
/// # Errors
/// The device's.
pub fn context(ctx: &Context, record: &[u8], inode: &Inode) -> Result<Option<Vec<u8>>> {
    let held = |region: &[u8], home| match xattr::find(region, home, INDEX_ENCRYPTION, CONTEXT_NAME) {
        Ok(Some(entry)) => match entry.value {
            Value::Here(value) => Some(value.to_vec()),
            Value::InInode { .. } => Some(Vec::new()),
        },
        _ => None,
    };
    let inside = inode.xattr_range(&ctx.layout).and_then(|range| held(&record[range], Home::Inode));
    let block = inode.file_acl;
    if inside.is_some() || block.0 == 0 || !ctx.on_volume(block, 1) {
        return Ok(inside);
    }
    Ok(held(&ctx.disk.read(block)?, Home::Block))
}

/// Takes the context away from an inode.
///
/// # Errors
/// The device's.
pub fn remove_context(ctx: &Context, record: &mut [u8], inode: &mut Inode) -> Result<()> {
    let without = |region: &mut [u8], home| {
        let mut all = Attributes::read(region, home, |ino| crate::pass1::value_hash(ctx, ino)).ok()?;
        all.remove(INDEX_ENCRYPTION, CONTEXT_NAME)?;
        all.write(region, home).then(|| all.list().is_empty())
    };
    if let Some(range) = inode.xattr_range(&ctx.layout)
        && without(&mut record[range], Home::Inode).is_some()
    {
        return Ok(());
    }
    let block = inode.file_acl;
    if block.0 == 0 || !ctx.on_volume(block, 1) {
        return Ok(());
    }
    let mut bytes = ctx.disk.read(block)?;
    match without(&mut bytes, Home::Block) {
        Some(true) => inode.file_acl = BlockNo(0),
        Some(false) => {
            ctx.csum.set_xattr_block(&mut bytes, block);
            ctx.disk.write(block, &bytes)?;
        }
        None => {}
    }
    Ok(())
}

/// The policy of an encrypted inode; `None` for one that is not encrypted, or has no context that holds.
///
/// # Errors
/// The device's.
pub fn policy(ctx: &Context, ino: Ino) -> Result<Option<Vec<u8>>> {
    let record = ctx.read_record(ino)?;
    let inode = Inode::decode_damaged(&record, &ctx.layout);
    if !inode.has(flag::ENCRYPT) {
        return Ok(None);
    }
    let context = context(ctx, &record, &inode)?;
    Ok(context.and_then(|context| encryption::policy(&context).ok().map(<[u8]>::to_vec)))
}

/// What is wrong with an entry of a directory with a policy: the kernel refuses what does not follow it.
///
/// # Errors
/// The device's.
pub fn fault(ctx: &Context, directory: &[u8], name: &[u8], target: Ino) -> Result<Option<Code>> {
    if name.len() < encryption::LEAST_NAME {
        return Ok(Some(Code::EntryEncryptedName));
    }
    let inode = ctx.read_inode(target)?;
    let concerned =
        matches!(inode.file_type(), Some(FileType::Regular | FileType::Directory | FileType::Symlink));
    if !concerned {
        return Ok(None);
    }
    Ok(match policy(ctx, target)? {
        Some(policy) if policy == directory => None,
        Some(_) => Some(Code::EntryOtherPolicy),
        None => Some(Code::EntryNotEncrypted),
    })
}
