//! Quota files against what the files really use.
//!
//! Usage is counted from the inodes as the passes left them: the blocks an inode says it has (pass 1 made
//! that true) and one inode each, charged to its owner, group and project; attribute values in inodes of
//! their own are charged to each file that refers to them, as the kernel does. A file that is damaged or says
//! something else is written anew with the limits that could still be read.

use std::collections::BTreeMap;
use std::sync::Mutex;

use ext4_format::extent::Extent;
use ext4_format::features::{Incompat, RoCompat};
use ext4_format::inode::FileType;
use ext4_format::quota::{self, Kind, QuotaFile, Usage};
use ext4_format::{BlockNo, FileBlock, GroupNo, Ino};

use crate::alloc;
use crate::context::{Context, lock};
use crate::error::Result;
use crate::map::Use;
use crate::parallel;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// A quota file larger than this is not read: it would hold more ids than a volume can have inodes.
const LARGEST: u64 = 1 << 30;

/// What an id uses: bytes and inodes.
type Used = BTreeMap<u32, (u64, u64)>;

/// Compares every quota file with what is used, and writes those anew that are wrong.
pub fn run(ctx: &Context, ask: &mut dyn Ask) -> Result<()> {
    if !ctx.sb.ro_compat().has(RoCompat::QUOTA) {
        return Ok(());
    }
    let raw = *lock(&ctx.next_sb).raw();
    let inodes = [raw.usr_quota_inum.get(), raw.grp_quota_inum.get(), raw.prj_quota_inum.get()];
    let mut used = None;
    for (at, (kind, ino)) in Kind::ALL.into_iter().zip(inodes).enumerate() {
        let Some(ino) = Ino::new(ino) else { continue };
        let there = match ctx.found.inodes.get(ino) {
            Use::Internal => true,
            Use::Reserved => false,
            Use::Free => {
                forget(ctx, ask, ino)?;
                continue;
            }
            _ => continue,
        };
        let used = match &used {
            Some(used) => used,
            None => used.insert(count(ctx)?),
        };
        if there {
            check(ctx, ask, kind, ino, &used[at])?;
        } else if ask.ask(Problem::of(Code::QuotaFile, ino).named("no file"))? {
            let mut inode = alloc::fresh(ctx, FileType::Regular, 0o600);
            inode.links = 1;
            ctx.write_record(ino, &mut vec![0; ctx.geometry.inode_size])?;
            ctx.write_inode(ino, &inode)?;
            ctx.found.inodes.set(ino, Use::Internal, 1);
            write(ctx, kind, ino, QuotaFile::empty(), &used[at])?;
        }
    }
    Ok(())
}

/// A number that names no file in use is forgotten.
fn forget(ctx: &Context, ask: &mut dyn Ask, ino: Ino) -> Result<()> {
    if ask.ask(Problem::of(Code::QuotaFile, ino).named("no file"))? {
        ctx.edit_super(|raw| {
            for field in [&mut raw.usr_quota_inum, &mut raw.grp_quota_inum, &mut raw.prj_quota_inum] {
                if field.get() == ino.get() {
                    field.set(0);
                }
            }
        });
    }
    Ok(())
}

/// What users, groups and projects use.
fn count(ctx: &Context) -> Result<[Used; 3]> {
    let totals: Mutex<[Used; 3]> = Mutex::default();
    let shared_values = ctx.sb.incompat().has(Incompat::EA_INODE);
    parallel::for_each(
        ctx.options.thread_count(),
        ctx.geometry.group_count.into(),
        &mut |_| Ok(()),
        || (),
        |(), group| {
            let mut here: [Used; 3] = Default::default();
            let group = GroupNo(group as u32);
            if !ctx.found.inodes.touched(group.0) {
                return Ok(());
            }
            for index in 0..ctx.geometry.inodes_per_group {
                let Some(ino) = ctx.geometry.inode_at(group, index) else { break };
                if !matches!(ctx.found.inodes.get(ino), Use::File(_)) {
                    continue;
                }
                let inode = ctx.read_inode(ino)?;
                let values = match shared_values {
                    true => pass1::effects_of(ctx, ino)?.ea_refs.len() as u64,
                    false => 0,
                };
                for (used, id) in here.iter_mut().zip([inode.uid, inode.gid, inode.project]) {
                    let entry = used.entry(id).or_default();
                    entry.0 += inode.blocks * 512;
                    entry.1 += 1 + values;
                }
            }
            let mut totals = lock(&totals);
            for (total, here) in totals.iter_mut().zip(here) {
                for (id, (space, inodes)) in here {
                    let entry = total.entry(id).or_default();
                    *entry = (entry.0 + space, entry.1 + inodes);
                }
            }
            Ok(())
        },
    )?;
    Ok(totals.into_inner().unwrap_or_default())
}

fn check(ctx: &Context, ask: &mut dyn Ask, kind: Kind, ino: Ino, used: &Used) -> Result<()> {
    let read = read(ctx, ino)?.and_then(|bytes| quota::read(&bytes, kind).map_err(|c| c.field));
    let (stated, problem) = match read {
        Ok(file) => {
            let differs = |(id, (space, inodes)): (&u32, &(u64, u64))| {
                let stated = file.entries.get(id).copied().unwrap_or_default();
                (stated.space != *space || stated.inodes != *inodes).then_some(*id)
            };
            let stale = file
                .entries
                .iter()
                .find(|(id, usage)| !used.contains_key(id) && (usage.space != 0 || usage.inodes != 0));
            let wrong = used.iter().find_map(differs).or(stale.map(|(&id, _)| id));
            let Some(id) = wrong else { return Ok(()) };
            let stated = file.entries.get(&id).map_or(0, |usage| usage.space);
            let space = used.get(&id).map_or(0, |used| used.0);
            let problem = Problem::of(Code::QuotaUsage, ino).named(id.to_string()).values(stated, space);
            (file, problem)
        }
        Err(why) => (QuotaFile::empty(), Problem::of(Code::QuotaFile, ino).named(why)),
    };
    if ask.ask(problem)? { write(ctx, kind, ino, stated, used) } else { Ok(()) }
}

/// The bytes of a quota file, or why it cannot be one.
fn read(ctx: &Context, ino: Ino) -> Result<std::result::Result<Vec<u8>, &'static str>> {
    let inode = ctx.read_inode(ino)?;
    let size = ctx.disk.block_size();
    let most = LARGEST.min(ctx.geometry.blocks_count * size as u64);
    if inode.size > most || inode.size < 2 * quota::BLOCK as u64 {
        return Ok(Err("size"));
    }
    let mut bytes = vec![0; (inode.size as usize).next_multiple_of(size)];
    for extent in pass1::extents_of(ctx, &inode).iter().filter(|extent| !extent.unwritten) {
        for ahead in 0..extent.len {
            let start = (extent.first.0 + ahead) as usize * size;
            if let Some(place) = bytes.get_mut(start..start + size) {
                ctx.disk.read_into(BlockNo(extent.start.0 + u64::from(ahead)), place)?;
            }
        }
    }
    bytes.truncate(inode.size as usize);
    Ok(Ok(bytes))
}

/// Writes a quota file anew, into the blocks it has and as many more as it needs.
fn write(ctx: &Context, kind: Kind, ino: Ino, mut file: QuotaFile, used: &Used) -> Result<()> {
    for usage in file.entries.values_mut() {
        (usage.space, usage.inodes) = (0, 0);
    }
    for (&id, &(space, inodes)) in used {
        let entry = file.entries.entry(id).or_default();
        *entry = Usage { space, inodes, ..*entry };
    }
    file.entries.retain(|_, usage| !usage.is_empty());
    let mut bytes = quota::encode(&file, kind);
    let size = bytes.len() as u64;
    let block_size = ctx.disk.block_size();
    bytes.resize(bytes.len().next_multiple_of(block_size), 0);
    let mut inode = ctx.read_inode(ino)?;
    let ratio = u64::from(ctx.geometry.cluster_ratio);
    let mut have: BTreeMap<u32, BlockNo> = BTreeMap::new();
    for extent in pass1::extents_of(ctx, &inode) {
        have.extend((0..extent.len).map(|i| (extent.first.0 + i, BlockNo(extent.start.0 + u64::from(i)))));
    }
    let mut extents: Vec<Extent> = Vec::new();
    for (at, data) in bytes.chunks_exact(block_size).enumerate() {
        let at = at as u32;
        let in_cluster = u64::from(at) % ratio;
        let neighbour = extents.last().filter(|_| in_cluster > 0).map(|last| BlockNo(last.start.0 + 1));
        let block = match have.remove(&at).or(neighbour) {
            Some(block) => block,
            None => alloc::cluster(ctx, ctx.geometry.group_first_block(GroupNo(0)))?,
        };
        ctx.disk.write(block, data)?;
        extents.push(Extent { first: FileBlock(at), len: 1, start: block, unwritten: false });
    }
    // What is left over has no use; a cluster's blocks are given back together.
    if ratio == 1 {
        have.into_values().for_each(|block| ctx.found.blocks.release(block, 1));
    }
    alloc::set_extents(ctx, ino, &mut inode, &extents)?;
    inode.size = size;
    ctx.write_inode(ino, &inode)
}
