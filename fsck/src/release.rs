//! What orphans held is given back at once, in the bitmaps and counts on the device, so that a volume that
//! was only interrupted needs no full check.
//!
//! Where anything about an orphan, a bitmap or a descriptor is not as it should be, nothing of it is given
//! back here: the passes then find out what is free.

use ext4_format::extent::NodeMut;
use ext4_format::features::RoCompat;
use ext4_format::inode::{Inode, flag};
use ext4_format::xattr::{self, Home, Value};
use ext4_format::{BlockNo, Ino};

use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::marks::{self, Run};
use crate::pass1::{self, Effects};
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// What is to be given back.
#[derive(Debug, Default)]
pub struct Released {
    clusters: Vec<Run>,
    /// Inodes, and whether they were directories.
    inodes: Vec<(Ino, bool)>,
    /// Why only the passes can tell what is free.
    doubt: Option<&'static str>,
}

/// An orphan is damaged if anything is wrong with it but what its unfinished end explains.
struct Interrupted;

impl Ask for Interrupted {
    fn ask(&mut self, problem: Problem) -> Result<bool> {
        match problem.code {
            Code::InodeSize | Code::InodeBlocks | Code::InodeDtime | Code::DeletedLowDtime => Ok(false),
            // The record is looked at as if it still had a name.
            Code::InodeChecksum => Ok(false),
            _ => Err(Error::Suspect),
        }
    }
}

/// What an inode uses as it stands, whatever its number of links; `None` when that cannot be told.
fn effects(ctx: &Context, ino: Ino) -> Result<Option<Effects>> {
    const LINKS: std::ops::Range<usize> = 0x1a..0x1c;
    let mut record = ctx.read_record(ino)?;
    if ctx.csum.verify_inode(&record, ino).is_err() {
        return Ok(None);
    }
    record[LINKS].copy_from_slice(&1_u16.to_le_bytes());
    match pass1::effects_with(ctx, &mut Interrupted, ino, record) {
        Ok(effects) => Ok(Some(effects)),
        Err(Error::Suspect) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes an orphan a free inode. What it held is given back by [`apply`].
///
/// # Errors
/// The device's.
pub fn free(ctx: &Context, ino: Ino) -> Result<()> {
    let mut inode = ctx.read_inode(ino)?;
    let held = effects(ctx, ino)?;
    let mut values = Vec::new();
    match &held {
        None => doubt(ctx, "a damaged orphan"),
        Some(held) => {
            let mut released = lock(&ctx.found.released);
            released.clusters.extend(held.cluster_runs(ctx));
            released.inodes.push((ino, inode.is_dir()));
            if let Some(range) = inode.xattr_range(&ctx.layout) {
                let mut record = ctx.read_record(ino)?;
                values.extend(references(&record[range.clone()], Home::Inode));
                record[range].fill(0);
                ctx.write_record(ino, &mut record)?;
            }
        }
    }
    values.extend(free_attributes(ctx, &inode, held.is_some())?);
    inode.file_acl = BlockNo(0);
    inode.links = 0;
    inode.dtime = ctx.options.now();
    inode.size = 0;
    inode.blocks = 0;
    if inode.maps_blocks(&ctx.layout) {
        inode.block = [0; 60];
        if inode.has(flag::EXTENTS) {
            let _ = NodeMut::init(&mut inode.block, 0);
        }
    }
    ctx.write_inode(ino, &inode)?;
    values.into_iter().try_for_each(|value| drop_value(ctx, value))
}

/// Takes one user off an attribute block; with the last one it is given back. Returns the attribute inodes
/// that lose a reference with it.
fn free_attributes(ctx: &Context, inode: &Inode, trusted: bool) -> Result<Vec<Ino>> {
    let block = inode.file_acl;
    if block.0 == 0 || !ctx.on_volume(block, 1) {
        return Ok(Vec::new());
    }
    let mut bytes = ctx.disk.read(block)?;
    let Ok(header) = xattr::block_header(&bytes) else { return Ok(Vec::new()) };
    if header.refcount > 1 {
        xattr::set_refcount(&mut bytes, header.refcount - 1);
        ctx.csum.set_xattr_block(&mut bytes, block);
        ctx.disk.write(block, &bytes)?;
        return Ok(Vec::new());
    }
    if !trusted {
        return Ok(Vec::new());
    }
    let cluster = ctx.found.blocks.cluster(block.0);
    lock(&ctx.found.released).clusters.push((cluster, cluster + 1));
    Ok(references(&bytes, Home::Block))
}

/// The inodes that hold values of the attributes in a region.
fn references(region: &[u8], home: Home) -> Vec<Ino> {
    let entries = xattr::entries(region, home).map_while(std::result::Result::ok);
    entries
        .filter_map(|entry| match entry.value {
            Value::InInode { ino, .. } => Some(ino),
            Value::Here(_) => None,
        })
        .collect()
}

/// Takes a reference off an attribute inode, and frees it with the last one.
fn drop_value(ctx: &Context, ino: Ino) -> Result<()> {
    let outside = ino.get() < ctx.first_ino() || ino.get() > ctx.geometry.inodes_count;
    let inode = if outside { None } else { Some(ctx.read_inode(ino)?) };
    let Some(mut inode) = inode.filter(|inode| inode.has(flag::EA_INODE) && inode.links > 0) else {
        doubt(ctx, "an attribute without its value");
        return Ok(());
    };
    match pass1::ea_references(&inode) {
        // Lustre's values have no count, and one owner.
        0 | 1 => free(ctx, ino),
        count => {
            pass1::set_ea_references(&mut inode, count - 1);
            ctx.write_inode(ino, &inode)
        }
    }
}

/// Clusters of an inode before it is cut; [`cut`] wants them afterwards.
///
/// # Errors
/// The device's.
pub fn held_by(ctx: &Context, ino: Ino) -> Result<Option<Vec<Run>>> {
    Ok(effects(ctx, ino)?.map(|held| held.cluster_runs(ctx)))
}

/// Gives back what a cut inode no longer holds.
///
/// # Errors
/// The device's.
pub fn cut(ctx: &Context, ino: Ino, before: Option<Vec<Run>>) -> Result<()> {
    let (Some(before), Some(after)) = (before, held_by(ctx, ino)?) else {
        doubt(ctx, "a damaged orphan");
        return Ok(());
    };
    lock(&ctx.found.released).clusters.extend(marks::without(&before, &after));
    Ok(())
}

fn doubt(ctx: &Context, why: &'static str) {
    lock(&ctx.found.released).doubt.get_or_insert(why);
}

/// Brings bitmaps, descriptors and the superblock's counts in line with what was freed. Returns why the
/// passes must run, if they must.
///
/// # Errors
/// The device's.
pub fn apply(ctx: &mut Context) -> Result<Option<String>> {
    let released = std::mem::take(&mut *lock(&ctx.found.released));
    let Released { clusters, inodes, mut doubt } = released;
    if clusters.is_empty() && inodes.is_empty() {
        return Ok(doubt.map(str::to_owned));
    }
    let blocks_fit = marks::clusters(ctx, clusters, false)?;
    let inodes_fit = marks::free_inodes(ctx, inodes)?;
    if !blocks_fit || !inodes_fit {
        doubt.get_or_insert("orphans that do not fit the bitmaps");
    }
    if ctx.sb.ro_compat().has(RoCompat::QUOTA) {
        doubt.get_or_insert("orphans that were charged to quotas");
    }
    Ok(doubt.map(str::to_owned))
}
