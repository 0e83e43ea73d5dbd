//! The inodes below the first ordinary one, and those the superblock names: bad blocks, root, quota, journal,
//! resize and the orphan file.

use ext4_format::features::{Compat, Incompat, RoCompat};
use ext4_format::indirect::pointer;
use ext4_format::inode::{FileType, flag};
use ext4_format::{BlockNo, Ino};

use super::inode::{Effects, Subject, largest_size};
use super::{bad_blocks, extents, flags, indirect, xattr};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::map::Use;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, DryRun};

/// A record of zeros: free, or a reserved inode that is not used.
pub fn check_empty(ctx: &Context, ask: &mut dyn Ask, ino: Ino, effects: &mut Effects) -> Result<()> {
    if ino == Ino::RESIZE && ctx.sb.compat().has(Compat::RESIZE_INODE) {
        let may = ctx.geometry.reserved_gdt_blocks > 0;
        if may && ask.ask(Problem::of(Code::ResizeInode, ino).named("empty"))? {
            drop_resize_feature(ctx);
        }
    }
    if ino.get() < ctx.first_ino() {
        effects.what = Some(Use::Reserved);
    }
    Ok(())
}

/// Checks a special inode; true when nothing more is to be checked of it.
pub fn check(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<bool> {
    let ino = s.ino;
    let compat = ctx.sb.compat();
    if ino == Ino::ROOT {
        if s.inode.is_dir() {
            return Ok(false);
        }
        if ask.ask(Problem::of(Code::RootNotDir, ino))? {
            s.clear(ctx);
        }
        effects.what = Some(Use::Reserved);
        return Ok(true);
    }
    if ino == Ino::BAD_BLOCKS {
        bad_blocks::check(ctx, ask, s, effects)?;
        return Ok(true);
    }
    if ino == Ino::RESIZE {
        effects.what = Some(Use::Internal);
        check_resize(ctx, ask, s, effects)?;
        return Ok(true);
    }
    let journal = ctx.sb.journal_ino().filter(|_| compat.has(Compat::HAS_JOURNAL));
    if journal == Some(ino) && (ino.get() < ctx.first_ino() || s.inode.file_type() == Some(FileType::Regular))
    {
        if s.inode.file_type() != Some(FileType::Regular) && ask.ask(Problem::of(Code::JournalMode, ino))? {
            s.inode.mode = FileType::Regular.mode_bits() | 0o600;
            s.dirty = true;
        }
        internal(ctx, ask, s, effects)?;
        if ino.get() >= ctx.first_ino() {
            // A journal that was made on a mounted volume is a file with a name, mostly `/.journal`.
            effects.what = Some(Use::File(FileType::Regular.dirent_code()));
            effects.links = s.inode.links;
        }
        return Ok(true);
    }
    if ctx.sb.orphan_file() == Some(ino) {
        return internal(ctx, ask, s, effects);
    }
    let raw = ctx.sb.raw();
    let quota = [raw.usr_quota_inum.get(), raw.grp_quota_inum.get(), raw.prj_quota_inum.get()];
    if ctx.sb.ro_compat().has(RoCompat::QUOTA) && quota.contains(&ino.get()) {
        let wrong = s.inode.file_type() != Some(FileType::Regular) || s.inode.links == 0;
        if wrong && ask.ask(Problem::of(Code::QuotaInode, ino))? {
            // One of the reserved inodes gets a new file in the end; another's number is forgotten.
            if ino.get() >= ctx.first_ino() {
                ctx.edit_super(|raw| {
                    for field in [&mut raw.usr_quota_inum, &mut raw.grp_quota_inum, &mut raw.prj_quota_inum] {
                        if field.get() == ino.get() {
                            field.set(0);
                        }
                    }
                });
            } else {
                effects.what = Some(Use::Reserved);
            }
            s.clear(ctx);
            return Ok(true);
        }
        return internal(ctx, ask, s, effects);
    }
    if ino.get() < ctx.first_ino() {
        return reserved(ctx, ask, s, effects);
    }
    Ok(false)
}

/// Numbers of quota files and of the orphan file on a volume without the feature: one that names an ordinary
/// inode is forgotten, or a file could not keep its name, and a free inode would count as one in use.
pub fn check_numbers(ctx: &Context, ask: &mut dyn Ask) -> Result<()> {
    let raw = ctx.sb.raw();
    let ordinary = |number: u32| {
        let exists = number <= ctx.geometry.inodes_count;
        let what = Ino::new(number).filter(|_| exists).map(|ino| ctx.found.inodes.get(ino));
        match what {
            Some(Use::File(_)) => true,
            Some(Use::Free) => number >= ctx.first_ino(),
            _ => false,
        }
    };
    let quota = [raw.usr_quota_inum.get(), raw.grp_quota_inum.get(), raw.prj_quota_inum.get()];
    if !ctx.sb.ro_compat().has(RoCompat::QUOTA) && quota.into_iter().any(ordinary) {
        let why = "a file is named as a quota file, but the feature is off";
        if ask.ask(Problem::new(Code::SuperFeatures).named(why))? {
            ctx.edit_super(|raw| {
                for field in [&mut raw.usr_quota_inum, &mut raw.grp_quota_inum, &mut raw.prj_quota_inum] {
                    field.set(if ordinary(field.get()) { 0 } else { field.get() });
                }
            });
        }
    }
    if !ctx.sb.compat().has(Compat::ORPHAN_FILE) && ordinary(raw.orphan_file_inum.get()) {
        let why = "a file is named as the orphan file, but the feature is off";
        if ask.ask(Problem::new(Code::SuperFeatures).named(why))? {
            ctx.edit_super(|raw| raw.orphan_file_inum.set(0));
        }
    }
    Ok(())
}

/// An inode below the first ordinary one that nothing uses: without a mode, and what it maps is its own.
fn reserved(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<bool> {
    effects.what = Some(Use::Reserved);
    let odd = flag::INDEX | flag::CASEFOLD | flag::ENCRYPT | flag::INLINE_DATA | flag::IMAGIC;
    let tree = s.inode.has(flag::EXTENTS) && !ctx.sb.incompat().has(Incompat::EXTENTS);
    let flagged = s.inode.flags & odd != 0 || tree;
    let unused = match s.ino {
        Ino::JOURNAL => Some(Code::JournalUnused),
        Ino::USER_QUOTA | Ino::GROUP_QUOTA => Some(Code::QuotaUnused),
        _ => None,
    };
    if let Some(code) = unused {
        // The upper half of the block count means nothing here.
        let blocks = s.inode.blocks & 0xffff_ffff;
        let holds_data = flagged || s.inode.links != 0 || blocks != 0 || s.inode.block[..4] != [0; 4];
        if holds_data && ask.ask(Problem::of(code, s.ino))? {
            s.clear(ctx);
        }
        return Ok(true);
    }
    // The boot loader's inode may be a file.
    let wrong = match s.inode.file_type() {
        Some(kind) if s.ino == Ino::BOOT_LOADER => kind == FileType::Directory,
        _ => s.inode.mode != 0,
    };
    // Nobody reads what such an inode maps: if that makes no sense, all of it goes. Without a mode it maps
    // nothing.
    let mut seen = Effects::default();
    let mapped = if s.inode.mode != 0 { internal(ctx, &mut DryRun, s, &mut seen) } else { Ok(true) };
    let sound = match mapped {
        Ok(_) => {
            let mapless = s.inode.mode != 0 && !wrong || s.inode.blocks == 0;
            let size_holds = s.inode.size <= largest_size(ctx, &s.inode);
            mapless && !flagged && s.inode.file_acl.0 == 0 && size_holds
        }
        Err(Error::Suspect) => false,
        Err(error) => return Err(error),
    };
    if !sound {
        if ask.ask(Problem::of(Code::ReservedData, s.ino))? {
            s.clear(ctx);
        }
        return Ok(true);
    }
    if wrong && ask.ask(Problem::of(Code::ReservedMode, s.ino).values(s.inode.mode, 0_u32))? {
        s.inode.mode = 0;
        s.dirty = true;
    }
    *effects = Effects { what: Some(Use::Reserved), ..seen };
    Ok(true)
}

/// A regular file that belongs to the volume itself: it needs no name.
fn internal(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<bool> {
    if s.inode.file_type() == Some(FileType::Regular) {
        flags::check(ctx, ask, s, FileType::Regular)?;
    }
    if s.inode.file_acl.0 != 0 {
        xattr::check(ctx, ask, s, effects)?;
    }
    map(ctx, ask, s, effects)?;
    effects.what = Some(Use::Internal);
    // The journal and the orphan file are used to their last block.
    let whole = ctx.sb.journal_ino() == Some(s.ino) || ctx.sb.orphan_file() == Some(s.ino);
    let block = u64::from(ctx.geometry.block_size);
    let size = effects.last.map_or(0, |last| last + 1) * block;
    // Old tools mapped one block behind the end of a journal.
    let longer = ctx.sb.journal_ino() == Some(s.ino) && s.inode.size.checked_add(block) == Some(size);
    if whole
        && !s.cleared
        && s.inode.size != size
        && !longer
        && ask.ask(Problem::of(Code::InodeSize, s.ino).values(s.inode.size, size))?
    {
        s.inode.size = size;
        s.dirty = true;
    }
    let attributes = u64::from(effects.xattr_block.is_some());
    let sectors = (effects.clusters(ctx) + attributes) * ctx.cluster_sectors();
    if !s.cleared
        && s.inode.blocks != sectors
        && ask.ask(Problem::of(Code::InodeBlocks, s.ino).values(s.inode.blocks, sectors))?
    {
        s.inode.blocks = sectors;
        s.dirty = true;
    }
    Ok(true)
}

fn map(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    if s.inode.has(flag::EXTENTS) {
        extents::check(ctx, ask, s, effects)
    } else {
        indirect::check(ctx, ask, s, effects)
    }
}

fn drop_resize_feature(ctx: &Context) {
    ctx.edit_super(|raw| {
        raw.feature_compat.set(raw.feature_compat.get() & !Compat::RESIZE_INODE.0);
        raw.reserved_gdt_blocks.set(0);
    });
}

/// The resize inode maps the reserved descriptor blocks: its doubly indirect block names those of group 0,
/// and each of these names its copies in the backup groups.
fn check_resize(ctx: &Context, ask: &mut dyn Ask, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    if !ctx.sb.compat().has(Compat::RESIZE_INODE) {
        let nameless = s.inode.mode == 0 && s.inode.links == 0;
        let mapless = s.inode.blocks == 0 && s.inode.block == [0; 60] && s.inode.file_acl.0 == 0;
        let unused = nameless && mapless && s.inode.size <= largest_size(ctx, &s.inode);
        if !unused && ask.ask(Problem::of(Code::ResizeFeature, s.ino))? {
            s.clear(ctx);
        }
        return Ok(());
    }
    if ctx.geometry.reserved_gdt_blocks == 0 && s.inode.blocks == 0 && s.inode.block == [0; 60] {
        return Ok(());
    }
    if ctx.needs_relocation.iter().any(|piece| piece.code == Code::InodeTablePlace) {
        // A table may lie where the inode's blocks would be written: the next round looks at it.
        return Ok(());
    }
    if let Some(why) = resize_damage(ctx, s)? {
        if ask.ask(Problem::of(Code::ResizeInode, s.ino).named(why))? {
            rebuild_resize(ctx, s, effects)?;
        }
        return Ok(());
    }
    if let Some(block) = pointer(&s.inode.block, 13) {
        effects.claims.push((block.0, 1));
    }
    let blocks: u64 = 1 + wanted_resize(ctx).iter().map(|(.., copies)| 1 + copies.len() as u64).sum::<u64>();
    let sectors = blocks * ctx.cluster_sectors();
    if s.inode.blocks != sectors
        && ask.ask(Problem::of(Code::InodeBlocks, s.ino).values(s.inode.blocks, sectors))?
    {
        s.inode.blocks = sectors;
        s.dirty = true;
    }
    Ok(())
}

fn resize_damage(ctx: &Context, s: &Subject) -> Result<Option<&'static str>> {
    let inode = &s.inode;
    let only_double = (0..15).all(|slot| (slot == 13) == pointer(&inode.block, slot).is_some());
    let regular = inode.file_type() == Some(FileType::Regular);
    let odd = inode.has(flag::EXTENTS) || inode.has(flag::INLINE_DATA) || inode.file_acl.0 != 0;
    // The doubly indirect block begins behind the direct ones and those of the indirect block.
    let least = u64::from(ctx.geometry.block_size / 4 + 12) * u64::from(ctx.geometry.block_size);
    let size_holds = (least..=2 * resize_size(ctx)).contains(&inode.size);
    if !only_double || !regular || odd || !size_holds {
        return Ok(Some("shape"));
    }
    let Some(double) = pointer(&inode.block, 13) else { return Ok(Some("i_block")) };
    if !ctx.on_volume(double, 1) || ctx.is_metadata(double, 1) {
        return Ok(Some("i_block"));
    }
    let bytes = ctx.disk.read(double)?;
    let wanted = wanted_resize(ctx);
    let per_block = ctx.geometry.block_size / 4;
    let used = |bytes: &[u8]| (0..per_block).filter(|slot| pointer(bytes, *slot).is_some()).count();
    for (slot, gdt, copies) in &wanted {
        if pointer(&bytes, *slot) != Some(*gdt) {
            return Ok(Some("doubly indirect block"));
        }
        let names = ctx.disk.read(*gdt)?;
        for (at, copy) in copies.iter().enumerate() {
            if pointer(&names, at as u32) != Some(*copy) {
                return Ok(Some("indirect block"));
            }
        }
        if used(&names) != copies.len() {
            return Ok(Some("indirect block"));
        }
    }
    if used(&bytes) != wanted.len() {
        return Ok(Some("doubly indirect block"));
    }
    Ok(None)
}

/// The size says how far the doubly indirect block reaches.
fn resize_size(ctx: &Context) -> u64 {
    let per_block = u64::from(ctx.geometry.block_size / 4);
    (per_block * per_block + per_block + 12) * u64::from(ctx.geometry.block_size)
}

/// Slot in the doubly indirect block, the reserved block it names, and that block's copies.
fn wanted_resize(ctx: &Context) -> Vec<(u32, BlockNo, Vec<BlockNo>)> {
    let geometry = &ctx.geometry;
    let per_block = geometry.block_size / 4;
    let start = geometry.head(ext4_format::GroupNo(0)).reserved.start;
    (0..geometry.reserved_gdt_blocks)
        .map(|at| {
            let gdt = start + u64::from(at);
            let copies = geometry
                .backup_groups()
                .map(|group| BlockNo(gdt + u64::from(group.0) * u64::from(geometry.blocks_per_group)))
                .collect();
            ((geometry.desc_blocks + at) % per_block, BlockNo(gdt), copies)
        })
        .collect()
}

fn rebuild_resize(ctx: &Context, s: &mut Subject, effects: &mut Effects) -> Result<()> {
    use ext4_format::indirect::set_pointer;
    let kept = pointer(&s.inode.block, 13).filter(|block| {
        ctx.on_volume(*block, 1) && !ctx.is_metadata(*block, 1) && !ctx.found.blocks.has(*block)
    });
    let Some(double) = kept.or_else(|| ctx.found.blocks.find_free(BlockNo(0), 1)) else {
        drop_resize_feature(ctx);
        s.clear(ctx);
        return Ok(());
    };
    let wanted = wanted_resize(ctx);
    let mut bytes = vec![0; ctx.disk.block_size()];
    let mut blocks = 1;
    for (slot, gdt, copies) in &wanted {
        set_pointer(&mut bytes, *slot, Some(*gdt));
        let mut names = vec![0; ctx.disk.block_size()];
        for (at, copy) in copies.iter().enumerate() {
            set_pointer(&mut names, at as u32, Some(*copy));
        }
        ctx.disk.write(*gdt, &names)?;
        blocks += 1 + copies.len() as u64;
    }
    ctx.disk.write(double, &bytes)?;
    s.clear(ctx);
    s.cleared = false;
    if ctx.layout.inode_size > 128 {
        s.inode.extra_isize = ext4_format::inode::FULL_EXTRA_ISIZE;
    }
    let now = i64::from(ctx.options.now());
    s.inode.mode = FileType::Regular.mode_bits() | 0o600;
    s.inode.links = 1;
    s.inode.size = resize_size(ctx);
    s.inode.blocks = blocks * ctx.cluster_sectors();
    for time in [&mut s.inode.atime, &mut s.inode.mtime, &mut s.inode.ctime] {
        time.sec = now;
    }
    set_pointer(&mut s.inode.block, 13, Some(double));
    effects.claims.push((double.0, 1));
    Ok(())
}
