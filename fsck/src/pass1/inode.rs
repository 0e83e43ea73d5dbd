//! One inode: its fields against each other, against its kind and against what it maps.
//!
//! [`check`] changes a copy of the record and writes it back at the end, with its checksum. What the inode
//! uses goes into [`Effects`], which the caller joins to the common picture only when the whole inode has
//! been judged.

use std::mem::take;
use std::sync::atomic::Ordering::Relaxed;

use ext4_format::dirent::{DirBlock, DirFormat};
use ext4_format::extent::{Extent, Node, NodeMut};
use ext4_format::features::{Incompat, RoCompat};
use ext4_format::inode::{
    BASE_SIZE, BLOCK_AREA, FULL_EXTRA_ISIZE, FileType, Inode, MAX_FAST_SYMLINK, RawInode, Time, flag,
};
use ext4_format::{BlockNo, FileBlock, Ino};

use super::{extents, flags, indirect, inline, special, xattr};
use crate::context::{Context, lock};
use crate::error::Result;
use crate::map::Use;
use crate::problem::{Code, Problem};
use crate::prompt::Ask;

/// What one inode uses.
#[derive(Debug, Default)]
pub struct Effects {
    /// What it is; `None` when it is free.
    pub what: Option<Use>,
    /// Link count on disk.
    pub links: u16,
    /// Runs of blocks it claims, the attribute block apart.
    pub claims: Vec<(u64, u64)>,
    /// Its attribute block and the reference count in it.
    pub xattr_block: Option<(BlockNo, u32)>,
    /// Attribute inodes it refers to.
    pub ea_refs: Vec<Ino>,
    /// Blocks that attribute values in inodes of their own add to its count.
    pub ea_blocks: u64,
    /// Nodes of its extent tree below the root.
    pub nodes: u64,
    /// Levels of its extent tree below the root.
    pub depth: u16,
    /// Last file block that is mapped.
    pub last: Option<u64>,
    /// Last file block that is mapped and written.
    pub last_written: Option<u64>,
    /// Device block behind the last one, to tell pieces apart.
    pub expected_next: u64,
    /// Pieces after the first.
    pub breaks: u64,
}

impl Effects {
    /// Adds a run of data blocks.
    pub fn data(&mut self, file_block: u64, start: BlockNo, len: u64, unwritten: bool) {
        if self.last.is_some() && self.expected_next != start.0 {
            self.breaks += 1;
        }
        self.expected_next = start.0 + len;
        self.last = Some(file_block + len - 1);
        if !unwritten {
            self.last_written = self.last;
        }
        self.claims.push((start.0, len));
    }

    /// Clusters claimed.
    pub fn clusters(&self, ctx: &Context) -> u64 {
        if ctx.geometry.cluster_ratio == 1 {
            return self.claims.iter().map(|&(_, len)| len).sum();
        }
        self.cluster_runs(ctx).iter().map(|run| run.1 - run.0).sum()
    }

    /// The claims as disjoint runs of clusters: extents of one file may share a cluster.
    pub fn cluster_runs(&self, ctx: &Context) -> Vec<(u64, u64)> {
        let map = &ctx.found.blocks;
        let mut runs: Vec<(u64, u64)> = self
            .claims
            .iter()
            .filter(|claim| claim.1 > 0)
            .map(|&(start, len)| (map.cluster(start), map.cluster(start + len - 1) + 1))
            .collect();
        runs.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
        for run in runs {
            match joined.last_mut() {
                Some(last) if run.0 <= last.1 => last.1 = last.1.max(run.1),
                _ => joined.push(run),
            }
        }
        joined
    }
}

/// An inode under check: its record, the decoded form, and whether either was changed.
pub struct Subject {
    /// Its number.
    pub ino: Ino,
    /// The record as it will be written.
    pub record: Vec<u8>,
    /// The decoded form; written into the record at the end when `dirty`.
    pub inode: Inode,
    /// Whether the decoded form or the record was changed.
    pub dirty: bool,
    /// Whether the inode was made a free one, and nothing was put in its place.
    pub cleared: bool,
}

impl Subject {
    /// Makes the inode a free one.
    pub fn clear(&mut self, ctx: &Context) {
        self.record.fill(0);
        self.inode = Inode::decode_damaged(&self.record, &ctx.layout);
        self.dirty = true;
        self.cleared = true;
    }

    /// Brings the record in line with the decoded form, as far as the record can be believed.
    fn store(&mut self, ctx: &Context) {
        if self.dirty {
            ctx.encode(&self.inode, &mut self.record);
        }
    }
}

/// Checks one inode and fills `effects`. The record is rewritten when something was repaired.
pub fn check(
    ctx: &Context,
    ask: &mut dyn Ask,
    ino: Ino,
    record: Vec<u8>,
    effects: &mut Effects,
) -> Result<()> {
    if record.iter().all(|&byte| byte == 0) {
        return special::check_empty(ctx, ask, ino, effects);
    }
    let sum_holds = ctx.csum.verify_inode(&record, ino).is_ok();
    let inode = Inode::decode_damaged(&record, &ctx.layout);
    let mut subject = Subject { ino, record, inode, dirty: false, cleared: false };
    examine(ctx, ask, &mut subject, sum_holds, effects)?;
    if subject.cleared {
        // A reserved inode stays in use, whatever it holds.
        let what = effects.what.filter(|what| *what == Use::Reserved);
        *effects = Effects { what, ..Effects::default() };
        return ctx.write_record(ino, &mut subject.record);
    }
    let large = subject.inode.size > i32::MAX as u64 && !ctx.sb.ro_compat().has(RoCompat::LARGE_FILE);
    if large && effects.what.is_some() && subject.inode.file_type() == Some(FileType::Regular) {
        ctx.found.large_file.store(true, Relaxed);
    }
    if subject.dirty {
        subject.store(ctx);
        ctx.write_record(ino, &mut subject.record)?;
    } else if !sum_holds && ask.ask(Problem::of(Code::InodeChecksum, ino))? {
        ctx.write_record(ino, &mut subject.record)?;
    }
    Ok(())
}

fn examine(
    ctx: &Context,
    ask: &mut dyn Ask,
    s: &mut Subject,
    sum_holds: bool,
    effects: &mut Effects,
) -> Result<()> {
    let ino = s.ino;
    let reserved = ino.get() < ctx.first_ino();
    // So small a time is a link of an orphan list that was torn.
    let low = s.inode.dtime != 0 && s.inode.dtime < ctx.geometry.inodes_count && clock_was_set(ctx);
    if low && ask.ask(Problem::of(Code::DeletedLowDtime, ino))? {
        s.inode.dtime = if s.inode.links > 0 { 0 } else { ctx.options.now() };
        s.dirty = true;
    }
    if s.inode.links == 0 && lock(&ctx.found.orphans).contains(&ino) {
        return unprocessed_orphan(ctx, ask, s, effects);
    }
    if s.inode.links == 0 && !reserved {
        if s.inode.dtime == 0 && s.inode.mode != 0 && ask.ask(Problem::of(Code::DeletedNoDtime, ino))? {
            s.inode.dtime = ctx.options.now();
            s.dirty = true;
        }
        return Ok(());
    }
    recognise_directory(ctx, ask, s)?;
    let kind = s.inode.file_type();
    if !sum_holds && kind.is_none() && !reserved {
        if ask.ask(Problem::of(Code::InodeDamagedChecksum, ino))? {
            s.clear(ctx);
        }
        return Ok(());
    }
    check_extra_isize(ctx, ask, s)?;
    if special::check(ctx, ask, s, effects)? {
        return Ok(());
    }
    if s.inode.dtime != 0 && s.inode.links > 0 && !low && ask.ask(Problem::of(Code::InodeDtime, ino))? {
        s.inode.dtime = 0;
        s.dirty = true;
    }
    let Some(kind) = kind else {
        if ask.ask(Problem::of(Code::InodeMode, ino).values(s.inode.mode, 0_u32))? {
            s.clear(ctx);
        }
        return Ok(());
    };
    check_fields(ctx, ask, s)?;
    flags::check(ctx, ask, s, kind)?;
    check_times(ask, s)?;
    xattr::check(ctx, ask, s, effects)?;
    effects.what = Some(Use::File(kind.dirent_code()));
    effects.links = s.inode.links;
    if s.inode.has(flag::EA_INODE) && ctx.sb.incompat().has(Incompat::EA_INODE) {
        effects.what = Some(Use::Attribute);
    }
    match kind {
        FileType::Regular | FileType::Directory => {
            if s.inode.has(flag::INLINE_DATA) {
                inline::check(ctx, ask, s)?;
            } else {
                map_blocks(ctx, ask, s, effects)?;
            }
        }
        FileType::Symlink => check_symlink(ctx, ask, s, effects)?,
        _ => check_special_file(ask, s)?,
    }
    if s.inode.mode == 0 {
        *effects = Effects::default();
        return Ok(());
    }
    check_sizes(ctx, ask, s, effects)
}

/// A file without a name that is still open, or was when the machine crashed: what it uses is in use.
fn unprocessed_orphan(
    ctx: &Context,
    ask: &mut dyn Ask,
    s: &mut Subject,
    effects: &mut Effects,
) -> Result<()> {
    xattr::check(ctx, ask, s, effects)?;
    if s.inode.maps_blocks(&ctx.layout) {
        map_blocks(ctx, ask, s, effects)?;
    }
    effects.what = Some(Use::Internal);
    Ok(())
}

/// Whether the machines that used the volume knew the time: else a small time may be a true one.
fn clock_was_set(ctx: &Context) -> bool {
    let raw = ctx.sb.raw();
    // A time of zero is one that was never stamped.
    let stamps = [raw.wtime, raw.mtime, raw.mkfs_time];
    stamps.iter().all(|time| time.get() == 0 || time.get() >= ctx.geometry.inodes_count)
}

/// A device, pipe or socket whose block map leads to a directory that names this inode `.` is that directory.
fn recognise_directory(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject) -> Result<()> {
    let special = match s.inode.file_type() {
        None => s.ino.get() >= ctx.first_ino(),
        Some(kind) => !matches!(kind, FileType::Regular | FileType::Directory | FileType::Symlink),
    };
    if !special || s.inode.block[..12].iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let first = if s.inode.has(flag::EXTENTS) {
        let node = ext4_format::extent::Node::parse(&s.inode.block).ok();
        node.and_then(|node| node.extent(0)).filter(|extent| extent.first.0 == 0).map(|extent| extent.start)
    } else {
        ext4_format::indirect::pointer(&s.inode.block, 0)
    };
    let Some(block) = first.filter(|block| ctx.on_volume(*block, 1) && !ctx.is_metadata(*block, 1)) else {
        return Ok(());
    };
    let Ok(bytes) = ctx.disk.read(block) else { return Ok(()) };
    let format = DirFormat { tail: false, ..DirFormat::new(&ctx.sb, 0) };
    let mut entries = DirBlock::new(&bytes, format).entries().map_while(std::result::Result::ok);
    let dot = entries.next().is_some_and(|entry| entry.name == b"." && entry.ino == Some(s.ino));
    let dotdot = entries.next().is_some_and(|entry| entry.name == b"..");
    if dot && dotdot && ask.ask(Problem::of(Code::IsDirectory, s.ino))? {
        s.inode.mode = s.inode.mode & !FileType::MODE_MASK | FileType::Directory.mode_bits();
        s.dirty = true;
        s.store(ctx);
    }
    Ok(())
}

fn check_extra_isize(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject) -> Result<()> {
    let room = s.record.len() - BASE_SIZE;
    let stated = s.inode.extra_isize;
    let sane = stated == 0 || (stated >= 4 && usize::from(stated) <= room && stated.is_multiple_of(4));
    if room == 0 || sane {
        return Ok(());
    }
    if ask.ask(Problem::of(Code::ExtraIsize, s.ino).values(stated, FULL_EXTRA_ISIZE))? {
        let wanted = match ctx.sb.want_extra_isize() {
            0 => FULL_EXTRA_ISIZE,
            wanted => wanted,
        };
        let wanted =
            if usize::from(wanted) <= room && wanted.is_multiple_of(4) { wanted } else { FULL_EXTRA_ISIZE };
        s.store(ctx);
        s.record[BASE_SIZE..BASE_SIZE + 2].copy_from_slice(&wanted.to_le_bytes());
        s.inode = Inode::decode_damaged(&s.record, &ctx.layout);
        s.dirty = true;
    }
    Ok(())
}

/// Fields that must be zero, or zero without a feature.
fn check_fields(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject) -> Result<()> {
    let is_dir_or_special = s.inode.file_type() != Some(FileType::Regular);
    let large_dir = ctx.layout.large_dir && s.inode.is_dir();
    // `take` leaves 0 in a field of the record and gives what stood there.
    let mut zero = |s: &mut Subject, code, take: fn(&mut RawInode) -> u32| -> Result<()> {
        let value = RawInode::of(&s.record).map_or(0, |raw| take(&mut raw.clone()));
        if value != 0 && ask.ask(Problem::of(code, s.ino).values(value, 0_u32))? {
            s.store(ctx);
            RawInode::of_mut(&mut s.record).map(take);
            s.inode = Inode::decode_damaged(&s.record, &ctx.layout);
            s.dirty = true;
        }
        Ok(())
    };
    zero(s, Code::InodeFaddr, |raw| take(&mut raw.obsolete_faddr).get())?;
    if is_dir_or_special && !large_dir && s.inode.file_type() == Some(FileType::Directory) {
        zero(s, Code::SizeHighBits, |raw| take(&mut raw.size_hi).get())?;
    }
    if !ctx.sb.incompat().has(Incompat::BIT64) {
        zero(s, Code::FileAclHighBits, |raw| take(&mut raw.file_acl_hi).get().into())?;
    }
    if !ctx.layout.huge_file {
        zero(s, Code::BlocksHighBits, |raw| take(&mut raw.blocks_hi).get().into())?;
    }
    Ok(())
}

/// Walks what the inode maps.
fn map_blocks(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    if s.inode.has(flag::EXTENTS) {
        return extents::check(ctx, ask, s, effects);
    }
    indirect::check(ctx, ask, s, effects)?;
    if ctx.geometry.cluster_ratio > 1 && ask.ask(Problem::of(Code::BigallocBlockMap, s.ino))? {
        lock(&ctx.found.to_extents).push((s.ino, None));
    }
    Ok(())
}

fn check_symlink(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    let encrypted = s.inode.has(flag::ENCRYPT);
    let size = s.inode.size;
    let fits = |target: &[u8]| {
        if encrypted {
            return encrypted_len(target) == Some(size);
        }
        let len = target.iter().position(|&b| b == 0).unwrap_or(target.len());
        len < target.len() && len as u64 == size
    };
    let good = if s.inode.has(flag::INLINE_DATA) {
        inline::check(ctx, ask, s)?;
        let rest = inline::rest(ctx, &s.record, &s.inode).unwrap_or_default();
        let mut target = [&s.inode.block[..], &s.record[rest]].concat();
        target.push(0);
        // The size may just have been cut to what is there.
        s.inode.size != size || fits(&target)
    } else if size == 0 || s.inode.has(flag::INDEX) {
        false
    } else if s.inode.is_fast_symlink(&ctx.layout) && !s.inode.has(flag::EXTENTS) {
        size <= MAX_FAST_SYMLINK as u64 && fits(&s.inode.block[..BLOCK_AREA])
    } else if !encrypted && size <= MAX_FAST_SYMLINK as u64 {
        // So short a target is never given a block.
        false
    } else if size >= u64::from(ctx.geometry.block_size) + u64::from(encrypted) {
        false
    } else {
        let before = effects.claims.len();
        map_blocks(ctx, ask, s, effects)?;
        let held = |block: BlockNo| {
            ctx.disk.read(block).is_ok_and(|mut bytes| {
                bytes.push(0);
                fits(&bytes)
            })
        };
        let first = extents::list(ctx, &s.inode).first().filter(|extent| extent.first.0 == 0).copied();
        match first {
            Some(extent) if ctx.on_volume(extent.start, 1) && held(extent.start) => {
                let one = effects.last == Some(0) && effects.claims.len() == before + 1;
                if !one && ask.ask(Problem::of(Code::SymlinkTooBig, s.ino))? {
                    keep_first_block(s, extent.start);
                    effects.claims.truncate(before);
                    (effects.last, effects.last_written, effects.breaks) = (None, None, 0);
                    effects.data(0, extent.start, 1, false);
                    true
                } else {
                    one
                }
            }
            _ => false,
        }
    };
    if s.inode.mode != 0 && !good && ask.ask(Problem::of(Code::SymlinkDamaged, s.ino))? {
        s.clear(ctx);
    }
    Ok(())
}

/// Makes an inode map one block, and no other.
fn keep_first_block(s: &mut Subject, block: BlockNo) {
    s.inode.block = [0; BLOCK_AREA];
    if s.inode.has(flag::EXTENTS) {
        let one = Extent { first: FileBlock(0), len: 1, start: block, unwritten: false };
        let _ = NodeMut::init(&mut s.inode.block, 0).insert(0, one);
    } else {
        ext4_format::indirect::set_pointer(&mut s.inode.block, 0, Some(block));
    }
    s.dirty = true;
}

/// The size of an encrypted target that starts here: its own length stands in front of it, in 16 bits.
#[must_use]
pub fn encrypted_len(target: &[u8]) -> Option<u64> {
    let len = target.first_chunk().map(|len| usize::from(u16::from_le_bytes(*len)))?;
    (len > 0 && len + 2 <= target.len()).then_some(len as u64 + 2)
}

/// Times before 1970 that an old kernel gave the epoch bits of the last epoch.
fn check_times(ask: &mut dyn Ask, s: &mut Subject) -> Result<()> {
    const LAST_EPOCH: i64 = 3 << 32;
    let late = |time: &Time| time.sec < LAST_EPOCH && time.sec >= LAST_EPOCH + Time::MIN_SEC;
    let created = s.inode.crtime.unwrap_or_default();
    let any = [s.inode.atime, s.inode.mtime, s.inode.ctime, created].iter().any(late);
    // The times of an attribute's value are other things.
    if !any || s.inode.has(flag::EA_INODE) {
        return Ok(());
    }
    if ask.ask(Problem::of(Code::TimeEpoch, s.ino))? {
        let times = [&mut s.inode.atime, &mut s.inode.mtime, &mut s.inode.ctime];
        for time in times.into_iter().chain(&mut s.inode.crtime).filter(|time| late(time)) {
            time.sec -= LAST_EPOCH;
        }
        s.dirty = true;
    }
    Ok(())
}

fn check_special_file(ask: &mut dyn Ask, s: &mut Subject) -> Result<()> {
    let mapping = flag::EXTENTS | flag::INDEX | flag::INLINE_DATA;
    for (code, wrong) in
        [(Code::FlagExtentsOnSpecial, mapping), (Code::FlagImmutableSpecial, flag::IMMUTABLE | flag::APPEND)]
    {
        if s.inode.flags & wrong != 0 && ask.ask(Problem::of(code, s.ino))? {
            s.inode.flags &= !wrong;
            // A device keeps its number, which takes two words.
            let device = matches!(s.inode.file_type(), Some(FileType::CharDevice | FileType::BlockDevice));
            if code == Code::FlagExtentsOnSpecial && !device {
                s.inode.block = [0; BLOCK_AREA];
            }
            s.dirty = true;
        }
    }
    let sized = RawInode::of(&s.record).is_some_and(|raw| raw.size_lo.get() | raw.size_hi.get() != 0);
    if sized && ask.ask(Problem::of(Code::SpecialFile, s.ino))? {
        s.inode.size = 0;
        s.dirty = true;
    }
    Ok(())
}

/// Bytes of the largest file that this kind of map can hold.
pub fn largest_size(ctx: &Context, inode: &Inode) -> u64 {
    let block = u64::from(ctx.geometry.block_size);
    if inode.has(flag::EXTENTS) {
        (u64::from(u32::MAX) + 1) * block - 1
    } else {
        ext4_format::indirect::capacity(ctx.geometry.block_size) * block
    }
}

/// Size and block count against what is mapped.
fn check_sizes(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    let block = u64::from(ctx.geometry.block_size);
    let maps = s.inode.maps_blocks(&ctx.layout);
    let attribute_block = u64::from(effects.xattr_block.is_some());
    if maps && s.inode.is_dir() {
        let blocks = effects.last.map_or(0, |last| last + 1);
        let spare = u64::from(ctx.sb.raw().prealloc_dir_blocks);
        let stated = s.inode.size / block;
        let wrong =
            !s.inode.size.is_multiple_of(block) || stated > blocks || blocks - stated.min(blocks) > spare;
        if blocks == 0 {
            // A directory without any block cannot be one: pass 3 gives its children a new home.
            if ask.ask(Problem::of(Code::InodeMode, s.ino).values(s.inode.mode, 0_u32))? {
                s.clear(ctx);
                *effects = Effects::default();
                return Ok(());
            }
        } else if wrong
            && ask.ask(Problem::of(Code::InodeSize, s.ino).values(s.inode.size, blocks * block))?
        {
            s.inode.size = blocks * block;
            s.dirty = true;
        }
    } else if maps && s.inode.file_type() == Some(FileType::Regular) {
        let largest = largest_size(ctx, &s.inode);
        // One written block may lie behind the end, but not below an index node: e2fsck takes the tree to
        // end with the file.
        let has_nodes =
            s.inode.has(flag::EXTENTS) && Node::parse(&s.inode.block).is_ok_and(|root| root.depth() > 0);
        let least = match effects.last_written {
            Some(last) if !s.inode.has(flag::VERITY) => last * block + u64::from(has_nodes),
            _ => 0,
        };
        let right = if s.inode.size < least {
            Some((effects.last_written.unwrap_or(0) + 1) * block)
        } else if s.inode.size > largest {
            Some(effects.last.map_or(0, |last| (last + 1) * block))
        } else {
            None
        };
        if let Some(right) = right
            && ask.ask(Problem::of(Code::InodeSize, s.ino).values(s.inode.size, right))?
        {
            s.inode.size = right;
            s.dirty = true;
        }
    }
    let sectors = (effects.clusters(ctx) + attribute_block) * ctx.cluster_sectors()
        + effects.ea_blocks * u64::from(ctx.geometry.block_size / 512);
    if s.inode.blocks != sectors
        && ask.ask(Problem::of(Code::InodeBlocks, s.ino).values(s.inode.blocks, sectors))?
    {
        s.inode.blocks = sectors;
        s.dirty = true;
    }
    Ok(())
}
