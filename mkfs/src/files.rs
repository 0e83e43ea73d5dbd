//! The files a fresh volume has: the root directory, lost+found, and the inodes of growth, journal and
//! orphans.

use ext4_format::dirent::{DirBlockMut, DirFormat, NewEntry};
use ext4_format::features::{Compat, Incompat};
use ext4_format::inode::{FileType, Inode, Time, flag};
use ext4_format::mmp::Mmp;
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, GroupNo, Ino, indirect, jbd2, orphan};
use zerocopy::little_endian::{U16, U32, U64};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::mapping::{Mapped, map};
use crate::options::Options;
use crate::volume::Volume;

/// lost+found is made large enough that fsck need not grow it.
const LOST_AND_FOUND_BYTES: usize = 16 * 1024;

/// A newcomer waits at least this many seconds before it believes that nobody has the volume mounted.
const MMP_MIN_CHECK: u16 = 5;

/// Lays an empty volume out with all its files.
pub fn build(layout: &Layout, options: &Options) -> Result<Volume> {
    let mut volume = Volume::new(layout.superblock)?;
    directories(&mut volume, options)?;
    // Behind the first group's metadata, were it all in one piece: where mke2fs looks.
    let geometry = volume.geometry();
    let metadata = 2 + geometry.reserved_gdt_blocks + geometry.desc_blocks + geometry.inode_table_blocks();
    let goal = u64::from(geometry.first_data_block + metadata);
    system_files(volume, layout, options, goal)
}

/// Lays a volume out with the files that have no name: what else it holds comes from elsewhere.
pub fn reserved(layout: &Layout, options: &Options) -> Result<Volume> {
    // No gap is left in front of what comes first.
    system_files(Volume::new(layout.superblock)?, layout, options, 0)
}

fn system_files(mut volume: Volume, layout: &Layout, options: &Options, goal: u64) -> Result<Volume> {
    bad_blocks_inode(&mut volume, options);
    if volume.superblock.compat().has(Compat::RESIZE_INODE) {
        resize_inode(&mut volume, options, goal)?;
    }
    let mut overhead = volume.overhead();
    if layout.journal_blocks > 0 {
        journal(&mut volume, layout, options)?;
        overhead += u64::from(layout.journal_blocks);
    }
    if volume.superblock.incompat().has(Incompat::MMP) {
        mmp(&mut volume, options)?;
    }
    if layout.orphan_blocks > 0 {
        orphan_file(&mut volume, layout, options)?;
    }
    volume.superblock.edit(|raw| raw.overhead_blocks = U32::new(u32::try_from(overhead).unwrap_or(0)))?;
    Ok(volume)
}

fn new_inode(volume: &Volume, options: &Options, mode: u16, size: u64, mapped: &Mapped) -> Inode {
    let now = Time { sec: options.now as i64, nsec: 0 };
    let extra_isize = volume.superblock.want_extra_isize();
    Inode {
        mode,
        uid: 0,
        gid: 0,
        size,
        atime: now,
        ctime: now,
        mtime: now,
        crtime: (extra_isize > 0).then_some(now),
        dtime: 0,
        links: 1,
        blocks: mapped.blocks * (volume.block_size() / 512) as u64,
        flags: if mapped.extents { flag::EXTENTS } else { 0 },
        version: 0,
        generation: 0,
        file_acl: BlockNo(0),
        project: 0,
        block: mapped.area,
        extra_isize,
    }
}

/// No block is known to be bad: an inode of nothing but times.
fn bad_blocks_inode(volume: &mut Volume, options: &Options) {
    let nothing = Mapped { area: [0; 60], extents: false, runs: Vec::new(), blocks: 0 };
    let inode =
        Inode { links: 0, crtime: None, extra_isize: 0, ..new_inode(volume, options, 0, 0, &nothing) };
    volume.put_inode(Ino::BAD_BLOCKS, &inode);
}

fn directories(volume: &mut Volume, options: &Options) -> Result<()> {
    let block_size = volume.block_size();
    let format = DirFormat {
        filetype: volume.superblock.incompat().has(Incompat::FILETYPE),
        tail: volume.csum().metadata(),
        hashed: false,
    };
    let lost_and_found = first_ino(&volume.superblock, 0)?;

    let mapped = map(volume, Ino::ROOT, volume.goal_of(Ino::ROOT), 1, "the root directory")?;
    let mut bytes = vec![0; block_size];
    let mut block = DirBlockMut::init_first(&mut bytes, format, Ino::ROOT, Ino::ROOT);
    block.insert(&NewEntry { ino: lost_and_found, file_type: FileType::Directory, name: b"lost+found" })?;
    put_dir_block(volume, mapped.runs[0].start, bytes, Ino::ROOT);
    let mut inode = new_inode(volume, options, 0o040_755, block_size as u64, &mapped);
    inode.links = 3;
    (inode.uid, inode.gid) = options.root_owner;
    volume.put_inode(Ino::ROOT, &inode);

    // Twelve blocks are what an ext2 inode names without an indirect block.
    let count = LOST_AND_FOUND_BYTES.div_ceil(block_size).clamp(2, indirect::DIRECT as usize);
    let goal = volume.goal_of(lost_and_found);
    let mapped = map(volume, lost_and_found, goal, count as u32, "lost+found")?;
    for (index, number) in mapped.runs.iter().cloned().flatten().enumerate() {
        let mut bytes = vec![0; block_size];
        let _ = match index {
            0 => DirBlockMut::init_first(&mut bytes, format, lost_and_found, Ino::ROOT),
            _ => DirBlockMut::init(&mut bytes, format),
        };
        put_dir_block(volume, number, bytes, lost_and_found);
    }
    let mut inode = new_inode(volume, options, 0o040_700, (count * block_size) as u64, &mapped);
    inode.links = 2;
    volume.put_inode(lost_and_found, &inode);
    Ok(())
}

fn put_dir_block(volume: &mut Volume, number: u64, mut bytes: Vec<u8>, ino: Ino) {
    if volume.csum().metadata() {
        volume.csum().set_dir_block(&mut bytes, ino, 0);
    }
    volume.put_block(number, bytes);
}

/// The `n`th inode that is not reserved.
fn first_ino(superblock: &SuperBlock, n: u32) -> Result<Ino> {
    Ino::new(superblock.first_ino() + n).ok_or(Error::TooManyInodes { inodes: 0 })
}

/// The resize inode owns the reserved descriptor blocks: its double-indirect block points, at the place that
/// is a block's index among all descriptor blocks, to each one of the first group, and that one, used as an
/// indirect block, to its copies in the backup groups (kernel documentation, ext4 "Special inodes" and
/// `resize.c`'s rules).
fn resize_inode(volume: &mut Volume, options: &Options, goal: u64) -> Result<()> {
    let geometry = *volume.geometry();
    let block_size = volume.block_size();
    let pointers = block_size / 4;
    let head = geometry.head(GroupNo(0));
    let double = volume.free_run(goal, 1, "the resize inode")?.start;
    volume.take(double, 1);
    let mut double_bytes = vec![0; block_size];
    let copies: Vec<u64> = geometry.backup_groups().map(|g| geometry.head(g).reserved.start).collect();
    for (index, block) in head.reserved.clone().enumerate() {
        let slot = (geometry.desc_blocks as usize + index) % pointers;
        indirect::set_pointer(&mut double_bytes, slot as u32, Some(BlockNo(block)));
        let mut bytes = vec![0; block_size];
        for (slot, copy) in copies.iter().enumerate() {
            indirect::set_pointer(&mut bytes, slot as u32, Some(BlockNo(copy + index as u64)));
        }
        volume.put_block(block, bytes);
    }
    volume.put_block(double, double_bytes);
    let mut area = [0; 60];
    indirect::set_pointer(&mut area, indirect::DIRECT + 1, Some(BlockNo(double)));
    let reserved = u64::from(geometry.reserved_gdt_blocks);
    let mapped =
        Mapped { area, extents: false, runs: Vec::new(), blocks: 1 + reserved * (1 + copies.len() as u64) };
    let pointers = pointers as u64;
    let size = (pointers * pointers + pointers + u64::from(indirect::DIRECT)) * block_size as u64;
    let inode = new_inode(volume, options, 0o100_600, size, &mapped);
    volume.put_inode(Ino::RESIZE, &inode);
    Ok(())
}

/// The journal goes to the middle of the volume, into the emptier of the groups there.
fn journal_goal(volume: &Volume) -> u64 {
    let geometry = volume.geometry();
    let middle = (geometry.blocks_count - u64::from(geometry.first_data_block)) / 2;
    let middle = geometry
        .group_of_block(BlockNo(u64::from(geometry.first_data_block).max(middle)))
        .map_or(0, |group| group.0);
    let flex = geometry.groups_per_flex;
    let (first, group) = if flex > 1 && middle > flex {
        let aligned = middle / flex * flex;
        let first = (aligned..geometry.group_count).find(|g| volume.free_in(GroupNo(*g)) > 0).unwrap_or(0);
        (first, first)
    } else {
        (middle.saturating_sub(1), middle)
    };
    let last = (group + 1).min(geometry.group_count - 1);
    // The first of the emptiest.
    let best = (first..=last).rev().max_by_key(|group| volume.free_in(GroupNo(*group))).unwrap_or(first);
    geometry.group_first_block(GroupNo(best)).0
}

fn journal(volume: &mut Volume, layout: &Layout, options: &Options) -> Result<()> {
    let goal = if volume.has_extents() { journal_goal(volume) } else { volume.goal_of(Ino::JOURNAL) };
    let mapped = map(volume, Ino::JOURNAL, goal, layout.journal_blocks, "the journal")?;
    let block_size = volume.block_size();
    let size = u64::from(layout.journal_blocks) * block_size as u64;
    // The first mount that uses fast commits sets the journal's own feature bit.
    let superblock = jbd2::SuperBlock::new(
        block_size as u32,
        layout.journal_blocks,
        layout.fast_commit_blocks,
        volume.superblock.uuid(),
    );
    let mut bytes = vec![0; block_size];
    bytes[..jbd2::SUPERBLOCK_LEN].copy_from_slice(&superblock.encode());
    volume.put_block(mapped.runs[0].start, bytes);
    if !options.lazy_journal_init {
        volume.zeroed.extend(mapped.runs.iter().cloned());
    }
    let inode = new_inode(volume, options, 0o100_600, size, &mapped);
    volume.put_inode(Ino::JOURNAL, &inode);

    volume.superblock.set_journal_backup(inode.journal_backup());
    volume.superblock.edit(|raw| raw.journal_inum = U32::new(Ino::JOURNAL.get()))?;
    Ok(())
}

fn orphan_file(volume: &mut Volume, layout: &Layout, options: &Options) -> Result<()> {
    let ino = first_ino(&volume.superblock, 1)?;
    let goal = u64::from(volume.geometry().first_data_block);
    let mapped = map(volume, ino, goal, layout.orphan_blocks, "the orphan file")?;
    for number in mapped.runs.iter().cloned().flatten() {
        let mut bytes = vec![0; volume.block_size()];
        orphan::init(&mut bytes);
        volume.csum().set_orphan_block(&mut bytes, BlockNo(number), ino, 0);
        volume.put_block(number, bytes);
    }
    let size = u64::from(layout.orphan_blocks) * volume.block_size() as u64;
    let inode = new_inode(volume, options, 0o100_600, size, &mapped);
    volume.put_inode(ino, &inode);
    volume.superblock.edit(|raw| raw.orphan_file_inum = U32::new(ino.get()))?;
    Ok(())
}

fn mmp(volume: &mut Volume, options: &Options) -> Result<()> {
    let first = u64::from(volume.geometry().first_data_block);
    let block = volume.free_run(first, 1, "the multi-mount protection block")?.start;
    volume.take(block, 1);
    let mut bytes = vec![0; volume.block_size()];
    Mmp::clean(options.mmp_interval.max(MMP_MIN_CHECK), options.now).encode_into(&mut bytes, volume.csum());
    volume.put_block(block, bytes);
    volume.superblock.edit(|raw| {
        raw.mmp_block = U64::new(block);
        raw.mmp_interval = U16::new(options.mmp_interval);
    })?;
    Ok(())
}
