//! From a device to a volume that can be checked: the superblock or a copy of it, the group descriptors or
//! copies of them, and what these say about themselves.

use ext4_format::casefold::ENCODING_UTF8;
use ext4_format::csum::Csum;
use ext4_format::features::{self, Compat, Incompat, RoCompat};
use ext4_format::geometry::Geometry;
use ext4_format::group_desc::{GroupDesc, GroupFlags};
use ext4_format::superblock::{
    RawSuperBlock, SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, State, SuperBlock, has_magic,
};
use ext4_format::{BlockNo, GroupNo, Ino};
use zerocopy::FromBytes;

use crate::context::{Context, lock};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::options::{Mode, Options};
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};
use crate::relocate;

/// Features with a name that the checker cannot verify; e2fsck refuses the same.
const REFUSED: [&str; 7] =
    ["compression", "journal_dev", "dirdata", "lazy_bg", "snapshot_bitmap", "snapshot", "replica"];

/// The first ordinary inode of every volume that was made by a mkfs.
const FIRST_INO: u32 = 11;

/// `s_checksum_type`, the only one there is.
const CRC32C: u8 = 1;

/// Bytes of a device in which an unusual place of a superblock's copy is looked for.
const SEARCHED: u64 = 256 << 20;

/// Opens the volume on a device.
///
/// # Errors
/// No superblock anywhere, features this checker does not know, or a failing device.
pub fn open(mut disk: Disk, options: &Options, prompter: &mut Prompter<'_>) -> Result<Context> {
    let (sb, adopted) = find_super(&disk, options, prompter)?;
    refuse_unknown(&sb)?;
    let geometry = Geometry::new(&sb);
    disk.set_block_size(geometry.block_size);
    let device_blocks = disk.size() / u64::from(geometry.block_size);
    if geometry.blocks_count > device_blocks {
        let problem = Problem::new(Code::SizeBeyondDevice).values(device_blocks, geometry.blocks_count);
        prompter.ask(problem)?;
        if options.mode == Mode::Preen {
            return Err(Error::Unexpected);
        }
        let last = geometry.descriptor_block(geometry.desc_blocks.saturating_sub(1)).0;
        if options.may_write() || last >= device_blocks || geometry.blocks_count / 64 > device_blocks {
            return Err(Error::Unusable(format!(
                "the volume has {} blocks, its device only {device_blocks}: it was cut short",
                geometry.blocks_count
            )));
        }
    }
    let mut descs = read_descriptors(&disk, &sb, &geometry, prompter)?;
    let needs_relocation = relocate::find_misplaced(&sb, &geometry, &mut descs, prompter)?;
    let ctx = Context::new(disk, sb, (descs, needs_relocation), options.clone())?;
    if adopted {
        ctx.edit_super(|raw| raw.block_group_nr.set(0));
    }
    if let Some((why, change)) = invalid_superblock(&ctx)?
        && prompter.ask(Problem::new(Code::SuperFeatures).named(why))?
    {
        ctx.edit_super(change);
        let sb = lock(&ctx.next_sb).encode();
        ctx.disk.write_bytes(SUPERBLOCK_OFFSET, &sb)?;
        // A copy that was named still has the fault.
        return open(ctx.disk, &Options { superblock: None, ..options.clone() }, prompter);
    }
    check_features(&ctx, prompter)?;
    if !adopted {
        check_copies(&ctx, prompter)?;
        if ctx.needs_relocation.is_empty() {
            check_descriptor_copies(&ctx, prompter)?;
        }
    }
    Ok(ctx)
}

/// What is wrong with a superblock, and the change that repairs it.
type Fault = (&'static str, fn(&mut RawSuperBlock));

/// A fault that would have every inode judged wrongly.
fn invalid_superblock(ctx: &Context) -> Result<Option<Fault>> {
    if hides_lost_found(ctx)? {
        let why = "the first ordinary inode has a number behind that of lost+found";
        return Ok(Some((why, |raw| raw.first_ino.set(FIRST_INO))));
    }
    // Files of such a volume have extent trees; where clusters are blocks, the feature means nothing.
    let idle = ctx.sb.ro_compat().has(RoCompat::BIGALLOC) && ctx.geometry.cluster_ratio == 1;
    if idle && !ctx.sb.incompat().has(Incompat::EXTENTS) {
        let why = "bigalloc is set, but clusters are single blocks and the feature extents is off";
        return Ok(Some((why, |raw| {
            raw.feature_ro_compat.set(raw.feature_ro_compat.get() & !RoCompat::BIGALLOC.0);
        })));
    }
    Ok(None)
}

/// Whether the volume says that inodes are reserved which every mkfs uses: all files in them would be lost.
fn hides_lost_found(ctx: &Context) -> Result<bool> {
    match Ino::new(FIRST_INO).filter(|_| ctx.first_ino() > FIRST_INO && ctx.geometry.inodes_count > FIRST_INO)
    {
        Some(first) => ctx.read_inode(first).map(|inode| inode.is_dir() && inode.links > 0),
        None => Ok(false),
    }
}

/// Bytes of a block, as the first superblock says.
pub fn block_size(device: &dyn blockdev::BlockDevice) -> Result<u32> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    device.read_at(1024, &mut bytes)?;
    match SuperBlock::parse(&bytes) {
        Ok(sb) => Ok(sb.block_size()),
        Err(corruption) => Err(Error::Unusable(format!("damaged superblock ({})", corruption.field))),
    }
}

/// Whether the first superblock says that the journal must be replayed.
pub fn needs_recovery(disk: &Disk) -> bool {
    parse_at(disk, 1024).is_ok_and(|sb| sb.incompat().has(Incompat::RECOVER))
}

fn parse_at(disk: &Disk, offset: u64) -> std::result::Result<SuperBlock, String> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    disk.read_bytes(offset, &mut bytes).map_err(|error| error.to_string())?;
    let sb = SuperBlock::parse(&bytes).map_err(|corruption| corruption.field.to_owned())?;
    let right = sb.raw().first_data_block.get() == first_data_block(&sb);
    if right { Ok(sb) } else { Err("s_first_data_block".to_owned()) }
}

/// The boot block is before the first group only where blocks of 1 KiB are not taken together in clusters.
fn first_data_block(sb: &SuperBlock) -> u32 {
    u32::from(sb.block_size() == 1024 && Geometry::new(sb).cluster_ratio == 1)
}

/// A copy of the superblock at a byte offset, if there is one and its volume has one there. Some tools leave
/// the number of the first group in all copies.
fn copy_at(disk: &Disk, offset: u64) -> Option<SuperBlock> {
    if offset == SUPERBLOCK_OFFSET || offset.checked_add(1024)? > disk.size() {
        return None;
    }
    let sb = parse_at(disk, offset).ok()?;
    let geometry = Geometry::new(&sb);
    let block_size = u64::from(geometry.block_size);
    let (group, ahead) = geometry.locate_block(BlockNo(offset / block_size))?;
    let stated = sb.raw().block_group_nr.get();
    let here = offset.is_multiple_of(block_size) && ahead == 0 && group.0 > 0 && geometry.has_super(group);
    (here && (stated == 0 || stated == group.0 as u16)).then_some(sb)
}

/// The first superblock with its checksum and its derived fields computed anew, if that makes it a sound one.
fn repaired_primary(disk: &Disk) -> Result<Option<SuperBlock>> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    disk.read_bytes(SUPERBLOCK_OFFSET, &mut bytes)?;
    let Ok(mut raw) = RawSuperBlock::read_from_bytes(&bytes[..]) else { return Ok(None) };
    // No mkfs makes another first inode.
    raw.first_ino.set(FIRST_INO);
    if RoCompat(raw.feature_ro_compat.get()).has(RoCompat::METADATA_CSUM) {
        raw.checksum_type = CRC32C;
    }
    if !RoCompat(raw.feature_ro_compat.get()).has(RoCompat::BIGALLOC) {
        raw.log_cluster_size = raw.log_block_size;
        raw.clusters_per_group = raw.blocks_per_group;
    }
    let boot_block_apart = raw.log_block_size.get() == 0 && raw.log_cluster_size.get() == 0;
    raw.first_data_block.set(boot_block_apart.into());
    let incompat = Incompat(raw.feature_incompat.get());
    let wide = incompat.has(Incompat::BIT64);
    raw.desc_size.set(if wide { 64 } else { 0 });
    let high = if wide { u64::from(raw.blocks_count_hi.get()) << 32 } else { 0 };
    let blocks = (high | u64::from(raw.blocks_count_lo.get())).checked_sub(raw.first_data_block.get().into());
    let groups = blocks.map(|blocks| blocks.div_ceil(u64::from(raw.blocks_per_group.get().max(1))));
    let inodes = groups.and_then(|groups| groups.checked_mul(raw.inodes_per_group.get().into()));
    if let Some(inodes) = inodes.and_then(|inodes| u32::try_from(inodes).ok()) {
        raw.inodes_count.set(inodes);
    }
    match SuperBlock::from_raw(raw) {
        Err(fault) if fault.field == "s_first_meta_bg" => return first_meta_group(disk, raw),
        Err(_) => {}
        Ok(sb) => return Ok(Some(sb)),
    }
    // Or the number of all inodes is right, and that of a group is not.
    let (Ok(stated), Some(groups)) = (RawSuperBlock::read_from_bytes(&bytes[..]), groups) else {
        return Ok(None);
    };
    raw.inodes_count = stated.inodes_count;
    raw.inodes_per_group.set((u64::from(stated.inodes_count.get()) / groups.max(1)) as u32);
    Ok(SuperBlock::from_raw(raw).ok())
}

/// The superblock with the number of the first meta group with which most descriptors are found.
fn first_meta_group(disk: &Disk, mut raw: RawSuperBlock) -> Result<Option<SuperBlock>> {
    raw.first_meta_bg.set(0);
    let Ok(first) = SuperBlock::from_raw(raw) else { return Ok(None) };
    let mut best: Option<(usize, SuperBlock)> = None;
    for number in [0, Geometry::new(&first).desc_blocks] {
        raw.first_meta_bg.set(number);
        let Ok(sb) = SuperBlock::from_raw(raw) else { continue };
        let found = descriptors_found(disk, &sb)?;
        if best.as_ref().is_none_or(|best| best.0 < found) {
            best = Some((found, sb));
        }
    }
    Ok(best.map(|best| best.1))
}

/// How many descriptors name places that make sense, with a right checksum.
fn descriptors_found(disk: &Disk, sb: &SuperBlock) -> Result<usize> {
    let (geometry, csum) = (Geometry::new(sb), Csum::new(sb));
    let mut found = 0;
    let mut bytes = vec![0; geometry.desc_size];
    for group in geometry.groups() {
        let (block, byte) = geometry.descriptor(group);
        let offset = block.0 * u64::from(geometry.block_size) + byte as u64;
        if offset + bytes.len() as u64 > disk.size() {
            continue;
        }
        disk.read_bytes(offset, &mut bytes)?;
        let desc = GroupDesc::decode(&bytes).ok();
        let holds = desc.is_some_and(|desc| places_hold(sb, &geometry, group, &desc));
        found += usize::from(holds && csum.verify_group_desc(&bytes, group).is_ok());
    }
    Ok(found)
}

/// Takes a copy for the superblock.
fn adopt(sb: SuperBlock, offset: u64, why: &str, prompter: &mut Prompter<'_>) -> Result<(SuperBlock, bool)> {
    let block = BlockNo(offset / u64::from(sb.block_size()));
    prompter.ask(Problem::new(Code::SuperDamaged).at(block).named(why))?;
    Ok((sb, true))
}

/// The superblock to believe, and whether it is a copy put in the place of the first.
fn find_super(disk: &Disk, options: &Options, prompter: &mut Prompter<'_>) -> Result<(SuperBlock, bool)> {
    if let Some(block) = options.superblock {
        let sizes: Vec<u64> = match options.block_size {
            Some(size) => vec![size.into()],
            None => (0..7).map(|log| 1024 << log).collect(),
        };
        for size in sizes {
            if let Ok(sb) = parse_at(disk, block.saturating_mul(size))
                && u64::from(sb.block_size()) == size
            {
                return Ok((sb, true));
            }
        }
        return Err(Error::Unusable(format!("there is no superblock in block {block}")));
    }
    let why = match parse_at(disk, SUPERBLOCK_OFFSET) {
        Ok(sb) => return Ok((sb, false)),
        Err(why) => why,
    };
    if options.mode == Mode::Preen && matches!(why.as_str(), "s_magic" | "checksum") {
        // What may not be an ext4 volume at all is nothing to be repaired unseen.
        return Err(Error::Unusable(format!("bad magic number or damaged superblock ({why})")));
    }
    for size in [4096_u64, 1024, 2048, 8192, 16384, 32768, 65536] {
        let per_group = size * 8;
        for group in [1_u64, 3, 5, 7, 9, 25, 27, 49] {
            let offset = (per_group * group + u64::from(size == 1024)).saturating_mul(size);
            if let Some(sb) = copy_at(disk, offset) {
                return adopt(sb, offset, &why, prompter);
            }
        }
    }
    // Groups of an unusual size: the first copy cannot be far.
    let mut chunk = vec![0; 1 << 20];
    for start in (0..disk.size().min(SEARCHED)).step_by(chunk.len()) {
        let len = chunk.len().min((disk.size() - start) as usize);
        disk.read_bytes(start, &mut chunk[..len])?;
        for at in (0..len.saturating_sub(SUPERBLOCK_LEN)).step_by(SUPERBLOCK_LEN) {
            if let Some(sb) = has_magic(&chunk[at..]).then(|| copy_at(disk, start + at as u64)).flatten() {
                return adopt(sb, start + at as u64, &why, prompter);
            }
        }
    }
    // No copy: a superblock that is wrong only in what follows from its other fields is better than none.
    if let Some(sb) = repaired_primary(disk)? {
        return adopt(sb, 1024, &why, prompter);
    }
    Err(Error::Unusable(format!(
        "bad magic number or damaged superblock ({why}), and no copy was found; is this an ext2, ext3 or ext4 volume?"
    )))
}

/// Refuses a volume with features, or an encoding of names, that this checker does not know.
///
/// # Errors
/// [`Error::Unusable`], with their names.
pub fn refuse_unknown(sb: &SuperBlock) -> Result<()> {
    let known = |word| {
        let judged = features::TABLE.iter().filter(|f| f.word == word && !REFUSED.contains(&f.name));
        judged.fold(0, |all, f| all | f.mask)
    };
    let compat = Compat(sb.compat().0 & !known(features::Word::Compat));
    let incompat = Incompat(sb.incompat().0 & !known(features::Word::Incompat));
    let ro_compat = RoCompat(sb.ro_compat().0 & !known(features::Word::RoCompat));
    let names: Vec<String> = compat.names().chain(incompat.names()).chain(ro_compat.names()).collect();
    let encoding = sb.raw().encoding.get();
    if !names.is_empty() {
        Err(Error::Unusable(format!("the volume has unsupported features: {}", names.join(", "))))
    } else if sb.incompat().has(Incompat::CASEFOLD) && encoding != ENCODING_UTF8 {
        Err(Error::Unusable(format!("the volume's names have the unknown encoding {encoding}")))
    } else {
        Ok(())
    }
}

/// The copies of the superblock against the first one, in what changes only by resizing and tuning. Features
/// that the kernel switches on by itself stand in the first one alone. All copies are written when any
/// differs.
fn check_copies(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let own = |sb: &SuperBlock| {
        let by_itself = RoCompat::LARGE_FILE.0 | RoCompat::DIR_NLINK.0 | RoCompat::ORPHAN_PRESENT.0;
        let features = [
            u64::from(sb.compat().0 & !Compat::EXT_ATTR.0),
            u64::from(sb.incompat().0 & !(Incompat::RECOVER.0 | Incompat::EXTENTS.0)),
            u64::from(sb.ro_compat().0 & !by_itself),
        ];
        (features, sb.blocks_count(), sb.inodes_count(), sb.uuid())
    };
    let first = own(&ctx.sb);
    for group in ctx.geometry.backup_groups() {
        let block = ctx.geometry.group_first_block(group);
        let offset = block.0 * u64::from(ctx.geometry.block_size);
        if offset + SUPERBLOCK_LEN as u64 > ctx.disk.size() {
            break;
        }
        let why = match parse_at(&ctx.disk, offset) {
            Ok(copy) if own(&copy) == first => continue,
            Ok(_) => "features or sizes".to_owned(),
            Err(why) => why,
        };
        if prompter.ask(Problem::new(Code::SuperCopy).at(block).named(why))? {
            return write_back(ctx);
        }
        break;
    }
    Ok(())
}

/// Features that exclude or need each other.
fn check_features(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let (compat, ro, incompat) = (ctx.sb.compat(), ctx.sb.ro_compat(), ctx.sb.incompat());
    let both_sums = ro.has(RoCompat::METADATA_CSUM) && ro.has(RoCompat::GDT_CSUM);
    let why = "metadata_csum supersedes uninit_bg; both feature bits cannot be set";
    if both_sums && prompter.ask(Problem::new(Code::SuperFeatureBits).named(why))? {
        ctx.edit_super(|raw| {
            raw.feature_ro_compat.set(raw.feature_ro_compat.get() & !RoCompat::GDT_CSUM.0);
        });
    }
    let narrow = incompat.has(Incompat::BIT64) && !incompat.has(Incompat::EXTENTS);
    let why = "a 64bit volume needs the extents feature";
    if narrow && prompter.ask(Problem::new(Code::SuperFeatureBits).named(why))? {
        ctx.edit_super(|raw| {
            raw.feature_incompat.set(raw.feature_incompat.get() | Incompat::EXTENTS.0);
        });
    }
    let mut fix = |wrong: bool, why: &str, change: &dyn Fn(&mut ext4_format::superblock::RawSuperBlock)| {
        if wrong && prompter.ask(Problem::new(Code::SuperFeatures).named(why))? {
            ctx.edit_super(change);
        }
        Ok::<(), Error>(())
    };
    fix(
        incompat.has(Incompat::CSUM_SEED) && !ro.has(RoCompat::METADATA_CSUM),
        "metadata_csum_seed is not necessary without metadata_csum",
        &|raw| raw.feature_incompat.set(raw.feature_incompat.get() & !Incompat::CSUM_SEED.0),
    )?;
    fix(
        compat.has(Compat::RESIZE_INODE) && incompat.has(Incompat::META_BG),
        "resize_inode and meta_bg are both set; they are not compatible",
        &|raw| {
            raw.feature_compat.set(raw.feature_compat.get() & !Compat::RESIZE_INODE.0);
            raw.reserved_gdt_blocks.set(0);
        },
    )?;
    fix(
        !compat.has(Compat::RESIZE_INODE) && ctx.geometry.reserved_gdt_blocks > 0,
        "there are reserved descriptor blocks, but no resize_inode feature",
        &|raw| raw.reserved_gdt_blocks.set(0),
    )?;
    let raw = *ctx.sb.raw();
    fix(raw.rev_level.get() > 1, "the revision is one that does not exist", &|raw| raw.rev_level.set(1))?;
    fix(
        !incompat.has(Incompat::BIT64) && !matches!(raw.desc_size.get(), 0 | 32 | 64),
        "the size of descriptors makes no sense without 64bit",
        &|raw| raw.desc_size.set(0),
    )?;
    let elsewhere = raw.journal_dev.get() != 0 || raw.journal_uuid != [0; 16];
    fix(
        // The number of a device alone is no name: it changes from one start to the next.
        raw.journal_inum.get() != 0 && raw.journal_uuid != [0; 16],
        "the journal is named both as an inode and as another device",
        &|raw| {
            raw.journal_dev.set(0);
            raw.journal_uuid = [0; 16];
        },
    )?;
    fix(
        !compat.has(Compat::HAS_JOURNAL) && elsewhere,
        "an external journal is named, but the has_journal feature is off",
        &|raw| {
            raw.journal_dev.set(0);
            raw.journal_uuid = [0; 16];
        },
    )?;
    fix(raw.log_groups_per_flex > 31, "the size of flexible groups makes no sense", &|raw| {
        raw.log_groups_per_flex = 0
    })?;
    let last = ctx.geometry.inodes_count;
    let quota = [raw.usr_quota_inum.get(), raw.grp_quota_inum.get(), raw.prj_quota_inum.get()];
    fix(quota.iter().any(|&ino| ino > last), "a quota inode has a number that does not exist", &|raw| {
        for field in [&mut raw.usr_quota_inum, &mut raw.grp_quota_inum, &mut raw.prj_quota_inum] {
            if field.get() > last {
                field.set(0);
            }
        }
    })?;
    fix(
        ctx.sb.reserved_blocks() > ctx.geometry.blocks_count / 2,
        "more than half of the blocks are reserved",
        &|raw| {
            raw.r_blocks_count_lo.set(0);
            raw.r_blocks_count_hi.set(0);
        },
    )
}

/// Where a group's bitmaps and its table lie: what changes only by resizing.
fn places(desc: &GroupDesc) -> [BlockNo; 3] {
    [desc.block_bitmap, desc.inode_bitmap, desc.inode_table]
}

/// The copies of the descriptors against the first ones, in the places they name. All are written when any
/// differs.
fn check_descriptor_copies(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let per_block = ctx.geometry.descs_per_block() as usize;
    if ctx.sb.incompat().has(Incompat::META_BG) {
        // mke2fs leaves the copies in such groups unwritten.
        return Ok(());
    }
    for (index, wanted) in ctx.descs.chunks(per_block).enumerate() {
        for place in copies(&ctx.geometry, index as u32) {
            let Ok(bytes) = ctx.disk.read(place) else { continue };
            let differs = bytes.chunks_exact(ctx.geometry.desc_size).zip(wanted).any(|(bytes, wanted)| {
                GroupDesc::decode(bytes).map(|copy| places(&copy)).ok() != Some(places(wanted))
            });
            if differs {
                let first = GroupNo((index * per_block) as u32);
                if prompter.ask(Problem::of_group(Code::DescCopy, first).at(place))? {
                    write_back(ctx)?;
                }
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether metadata of a group may lie there: on the volume and, without flexible groups, in the group.
pub fn may_lie(sb: &SuperBlock, geometry: &Geometry, group: GroupNo, start: BlockNo, len: u64) -> bool {
    let first = geometry.group_first_block(group).0;
    let end = first + u64::from(geometry.blocks_in_group(group));
    geometry.contains_blocks(start, len)
        && (sb.incompat().has(Incompat::FLEX_BG) || start.0 >= first && start.0 + len <= end)
}

/// Whether what a descriptor names may lie there.
fn places_hold(sb: &SuperBlock, geometry: &Geometry, group: GroupNo, desc: &GroupDesc) -> bool {
    let table = u64::from(geometry.inode_table_blocks());
    [(desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, table)]
        .into_iter()
        .all(|(start, len)| may_lie(sb, geometry, group, start, len) && !on_head(geometry, start, len))
}

/// Whether blocks lie on the superblock, the descriptors or what is reserved for more of them, in the groups
/// where they begin and end.
fn on_head(geometry: &Geometry, start: BlockNo, len: u64) -> bool {
    let end = start.0 + len;
    let touches = |block: u64| {
        geometry.group_of_block(BlockNo(block)).is_some_and(|group| {
            let (first, head) = (geometry.group_first_block(group).0, geometry.head(group).reserved.end);
            start.0 < head && first < end
        })
    };
    touches(start.0) || touches(end - 1)
}

/// The places of the copies of a block of descriptors.
fn copies(geometry: &Geometry, index: u32) -> Vec<BlockNo> {
    let first = GroupNo(index.saturating_mul(geometry.descs_per_block()));
    if geometry.descriptor_block(index).0 != u64::from(geometry.first_data_block) + 1 + u64::from(index) {
        let last = geometry.descs_per_block() - 1;
        return [1, last]
            .into_iter()
            .map(|ahead| GroupNo(first.0.saturating_add(ahead)))
            .filter(|group| group.0 < geometry.group_count)
            .map(|group| BlockNo(geometry.head(group).descriptors.start))
            .collect();
    }
    geometry
        .backup_groups()
        .map(|group| BlockNo(geometry.group_first_block(group).0 + 1 + u64::from(index)))
        .take(8)
        .collect()
}

fn read_descriptors(
    disk: &Disk,
    sb: &SuperBlock,
    geometry: &Geometry,
    prompter: &mut Prompter<'_>,
) -> Result<Vec<GroupDesc>> {
    let csum = Csum::new(sb);
    let mut descs = Vec::with_capacity(geometry.group_count as usize);
    for index in 0..geometry.desc_blocks {
        let first = index * geometry.descs_per_block();
        let count = geometry.descs_per_block().min(geometry.group_count - first);
        let parse = |bytes: &[u8]| -> Vec<(GroupDesc, bool)> {
            bytes
                .chunks_exact(geometry.desc_size)
                .take(count as usize)
                .enumerate()
                .filter_map(|(at, bytes)| {
                    let group = GroupNo(first + at as u32);
                    let sum = csum.verify_group_desc(bytes, group).is_ok();
                    Some((GroupDesc::decode(bytes).ok()?, sum))
                })
                .collect()
        };
        let mut block = parse(&disk.read(geometry.descriptor_block(index))?);
        let holds = |at: usize, desc: &GroupDesc| places_hold(sb, geometry, GroupNo(first + at as u32), desc);
        let first_bad = |block: &[(GroupDesc, bool)]| {
            block.iter().enumerate().position(|(at, (desc, _))| !holds(at, desc))
        };
        let bad = first_bad(&block);
        if let Some(bad) = bad {
            for at in copies(geometry, index) {
                let Ok(bytes) = disk.read(at) else { continue };
                let copy = parse(&bytes);
                if copy.len() == count as usize && first_bad(&copy).is_none() {
                    let group = GroupNo(first + bad as u32);
                    prompter
                        .ask(Problem::of_group(Code::DescFromBackup, group).at(at).named("bad places"))?;
                    block = copy.into_iter().map(|(desc, _)| (distrusted(desc), true)).collect();
                    break;
                }
            }
        }
        let wrong: Vec<usize> = (0..block.len()).filter(|at| !block[*at].1).collect();
        if !wrong.is_empty() {
            for place in copies(geometry, index) {
                let copy = disk.read(place).map(|bytes| parse(&bytes)).unwrap_or_default();
                for &at in &wrong {
                    // A descriptor with a wrong checksum that leads elsewhere than its copy, which is right,
                    // is not believed.
                    let Some(&(desc, true)) = copy.get(at) else { continue };
                    if block[at].1 || !holds(at, &desc) || places(&desc) == places(&block[at].0) {
                        continue;
                    }
                    let group = GroupNo(first + at as u32);
                    prompter
                        .ask(Problem::of_group(Code::DescFromBackup, group).at(place).named("checksum"))?;
                    block[at] = (distrusted(desc), true);
                }
            }
        }
        for (at, (desc, sum)) in block.into_iter().enumerate() {
            let group = GroupNo(first + at as u32);
            if sum {
                descs.push(desc);
            } else {
                prompter.ask(Problem::of_group(Code::DescChecksum, group))?;
                descs.push(distrusted(desc));
            }
        }
    }
    prefer_copies(disk, sb, geometry, prompter, &mut descs)?;
    Ok(descs)
}

/// Takes a copy of a block of descriptors with which fewer tables and bitmaps lie on each other.
fn prefer_copies(
    disk: &Disk,
    sb: &SuperBlock,
    geometry: &Geometry,
    prompter: &mut Prompter<'_>,
    descs: &mut Vec<GroupDesc>,
) -> Result<()> {
    let mut misplaced = relocate::count_misplaced(sb, geometry, descs);
    let per_block = geometry.descs_per_block() as usize;
    for index in 0..geometry.desc_blocks {
        if misplaced == 0 {
            return Ok(());
        }
        for place in copies(geometry, index) {
            let Ok(bytes) = disk.read(place) else { continue };
            let first = index as usize * per_block;
            let mut with_copy = descs.clone();
            for (at, raw) in bytes.chunks_exact(geometry.desc_size).enumerate() {
                if let (Some(desc), Ok(copy)) = (with_copy.get_mut(first + at), GroupDesc::decode(raw)) {
                    *desc = distrusted(copy);
                }
            }
            let left = relocate::count_misplaced(sb, geometry, &with_copy);
            if left < misplaced {
                let group = GroupNo(first as u32);
                prompter
                    .ask(Problem::of_group(Code::DescFromBackup, group).at(place).named("overlapping"))?;
                (misplaced, *descs) = (left, with_copy);
            }
        }
    }
    Ok(())
}

/// A descriptor whose hints may be stale: everything in its group must be looked at.
pub fn distrusted(desc: GroupDesc) -> GroupDesc {
    let flags = GroupFlags(desc.flags.0 & !(GroupFlags::INODE_UNINIT.0 | GroupFlags::BLOCK_UNINIT.0));
    GroupDesc { flags, itable_unused: 0, ..desc }
}

/// Writes the superblock and the descriptors, and their copies.
///
/// # Errors
/// The device's.
pub fn write_back(ctx: &Context) -> Result<()> {
    let geometry = &ctx.geometry;
    let sb = *lock(&ctx.next_sb);
    let csum = Csum::new(&sb);
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(geometry.desc_blocks as usize);
    for index in 0..geometry.desc_blocks {
        let mut bytes = ctx.disk.read(geometry.descriptor_block(index))?;
        let first = index * geometry.descs_per_block();
        for (at, raw) in bytes.chunks_exact_mut(geometry.desc_size).enumerate() {
            let group = first + at as u32;
            if let Some(desc) = ctx.descs.get(group as usize) {
                desc.encode_into(raw, GroupNo(group), &csum);
            }
        }
        let place = geometry.descriptor_block(index);
        if ctx.disk.read(place)? != bytes {
            ctx.disk.write(place, &bytes)?;
        }
        blocks.push(bytes);
    }
    for group in geometry.groups() {
        let head = geometry.head(group);
        if let Some(block) = head.superblock.filter(|_| group.0 > 0) {
            let mut copy = sb;
            let _ = copy.edit(|raw| {
                raw.block_group_nr.set(group.0 as u16);
                raw.feature_incompat.set(raw.feature_incompat.get() & !Incompat::RECOVER.0);
            });
            ctx.disk.write_bytes(block.0 * u64::from(geometry.block_size), &copy.encode())?;
        }
        for (ahead, block) in head.descriptors.enumerate() {
            let bytes = &blocks[head.first_descriptor_block as usize + ahead];
            if ctx.disk.read(BlockNo(block))? != *bytes {
                ctx.disk.write(BlockNo(block), bytes)?;
            }
        }
    }
    ctx.disk.write_bytes(SUPERBLOCK_OFFSET, &sb.encode())
}

/// Says that the volume needs a check, after one that did not come to its end.
///
/// # Errors
/// The device's.
pub fn mark_unfinished(disk: &Disk) -> Result<()> {
    if let Ok(mut sb) = parse_at(disk, SUPERBLOCK_OFFSET) {
        sb.set_state(State(sb.state().0 & !State::VALID.0));
        disk.write_bytes(SUPERBLOCK_OFFSET, &sb.encode())?;
    }
    disk.flush()
}
