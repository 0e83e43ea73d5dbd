//! What every pass knows: the volume's shape, the device, and what was found so far. Shared by the threads of
//! a pass; what they change in it is atomic or behind a lock.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ext4_format::casefold;
use ext4_format::csum::Csum;
use ext4_format::extent::Extent;
use ext4_format::features::Incompat;
use ext4_format::geometry::Geometry;
use ext4_format::group_desc::{GroupDesc, GroupFlags};
use ext4_format::inode::{BASE_SIZE, Inode, InodeLayout, flag};
use ext4_format::superblock::{RawSuperBlock, SuperBlock};
use ext4_format::{BlockNo, GroupNo, Ino};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::map::{self, BlockMap, InodeMap};
use crate::options::Options;
use crate::problem::Code;
use crate::release::Released;
use crate::scratch::{PAGE, Scratch};

/// A directory that pass 1 found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dir {
    /// The directory that names it, 0 until pass 2 finds one.
    pub parent: u32,
    /// What its `..` says.
    pub dotdot: u32,
}

/// An attribute block and its users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedBlock {
    /// The count that stands in it.
    pub refcount: u32,
    /// The users found.
    pub users: u32,
}

/// What the passes have found.
pub struct Found {
    /// Clusters in use.
    pub blocks: BlockMap,
    /// Clusters that more than one claims.
    pub multiple: BlockMap,
    /// The scratch file behind the maps, where they do not fit into memory.
    pub scratch: Option<Arc<Scratch>>,
    /// Whether there are such clusters.
    pub any_multiple: AtomicBool,
    /// Inodes in use.
    pub inodes: InodeMap,
    /// Directories by inode number.
    pub dirs: Mutex<BTreeMap<u32, Dir>>,
    /// Attribute blocks.
    pub xattrs: Mutex<HashMap<u64, SharedBlock>>,
    /// References to attribute inodes.
    pub ea_refs: Mutex<BTreeMap<u32, u64>>,
    /// Directories whose index must be rebuilt.
    pub rebuild: Mutex<Vec<Ino>>,
    /// Inodes whose extent tree is larger than its extents need.
    pub wide_trees: Mutex<Vec<Ino>>,
    /// Inodes that get a new extent tree: from what they map, or from extents that were saved.
    pub to_extents: Mutex<Vec<(Ino, Option<Vec<Extent>>)>>,
    /// Inodes of a volume with larger clusters whose extents get clusters of their own.
    pub to_realign: Mutex<BTreeSet<Ino>>,
    /// Extents of trees that cannot stay as they are, saved before anything is written.
    pub saved_trees: Mutex<HashMap<u32, Vec<Extent>>>,
    /// Orphans that the orphan file names, where nothing may be written: they are in use, without a name.
    pub orphans: Mutex<BTreeSet<Ino>>,
    /// Inodes that are flagged as values of attributes.
    pub attributes: Mutex<Vec<Ino>>,
    /// Blocks of metadata that the list of bad blocks names.
    pub bad_metadata: Mutex<BTreeSet<u64>>,
    /// Blocks of trees that may still be visited: a bound on hostile sharing.
    tree_budget: AtomicU64,
    /// Blocks of data that may still be claimed: another one.
    data_budget: AtomicU64,
    /// Blocks of directories that may still be read, where shared ones were not given copies.
    dir_budget: AtomicU64,
    /// Pass 1 has judged every inode.
    pub judged: AtomicBool,
    /// lost+found, and its first file block that may have room.
    pub lost_found: Mutex<Option<(Ino, u64)>>,
    /// Files in more than one piece.
    pub fragmented: AtomicU64,
    /// Which they are, and their pieces, when somebody asked.
    pub pieces: Mutex<Vec<(u32, u64)>>,
    /// Whether a file needs the `large_file` feature.
    pub large_file: AtomicBool,
    /// Groups whose word about unused inodes turned out to be wrong.
    pub distrusted: Mutex<BTreeSet<GroupNo>>,
    /// What orphans held, until it is given back.
    pub released: Mutex<Released>,
}

/// A piece of metadata that lies on an impossible place and gets a new one once pass 1 knows what is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeedsRelocation {
    /// Its group.
    pub group: GroupNo,
    /// Which it is, by the code of the problem.
    pub code: Code,
}

/// The place of metadata that have none (yet): block 0 never holds any of a group's.
pub const UNALLOCATED: BlockNo = BlockNo(0);

/// The volume under check.
pub struct Context {
    /// The device.
    pub disk: Disk,
    /// The superblock as the passes believe it.
    pub sb: SuperBlock,
    /// Its geometry.
    pub geometry: Geometry,
    /// Its checksums.
    pub csum: Csum,
    /// The shape of its inodes.
    pub layout: InodeLayout,
    /// The group descriptors.
    pub descs: Vec<GroupDesc>,
    /// Metadata that need a new place; their descriptors say [`UNALLOCATED`].
    pub needs_relocation: Vec<NeedsRelocation>,
    /// What the caller wants.
    pub options: Options,
    /// What was found.
    pub found: Found,
    /// The volume's own blocks, sorted and disjoint.
    pub metadata: Vec<std::ops::Range<u64>>,
    /// Names of one directory that are remembered at a time to find duplicates.
    pub names_kept: u64,
    /// The superblock to be written at the end.
    pub next_sb: Mutex<SuperBlock>,
}

fn spend(budget: &AtomicU64, amount: u64) -> bool {
    budget.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(amount)).is_ok()
}

/// A mutex that a panicking thread does not take with it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Maps = (BlockMap, BlockMap, InodeMap, Option<Arc<Scratch>>);

/// The maps, in memory when they fit into half of the bound however full the volume is, else in a scratch
/// file.
fn maps(geometry: &Geometry, options: &Options) -> Result<Maps> {
    let (blocks, inodes) = (map::pages_of_blocks(geometry), map::pages_of_inodes(geometry));
    let half = options.memory_bound() / 2;
    if (2 * blocks + inodes).saturating_mul(PAGE as u64) <= half {
        return Ok((BlockMap::new(geometry), BlockMap::new(geometry), InodeMap::new(geometry), None));
    }
    let scratch = Arc::new(Scratch::create(&options.scratch_folder(), half)?);
    Ok((
        BlockMap::spilled(geometry, &scratch, 0),
        BlockMap::spilled(geometry, &scratch, blocks),
        InodeMap::spilled(geometry, &scratch, 2 * blocks),
        Some(scratch),
    ))
}

impl Context {
    /// The volume that a superblock and its descriptors describe.
    pub fn new(
        disk: Disk,
        sb: SuperBlock,
        (descs, needs_relocation): (Vec<GroupDesc>, Vec<NeedsRelocation>),
        options: Options,
    ) -> Result<Context> {
        let geometry = Geometry::new(&sb);
        let (blocks, multiple, inodes, scratch) = maps(&geometry, &options)?;
        let budget = |times: u64| geometry.blocks_count.saturating_mul(times).max(1 << 16);
        let found = Found {
            blocks,
            multiple,
            any_multiple: AtomicBool::new(false),
            inodes,
            scratch,
            dirs: Mutex::default(),
            xattrs: Mutex::default(),
            ea_refs: Mutex::default(),
            rebuild: Mutex::default(),
            to_extents: Mutex::default(),
            wide_trees: Mutex::default(),
            to_realign: Mutex::default(),
            saved_trees: Mutex::default(),
            orphans: Mutex::default(),
            attributes: Mutex::default(),
            bad_metadata: Mutex::default(),
            tree_budget: AtomicU64::new(budget(2)),
            data_budget: AtomicU64::new(budget(64)),
            dir_budget: AtomicU64::new(budget(16)),
            judged: AtomicBool::new(false),
            lost_found: Mutex::default(),
            fragmented: AtomicU64::new(0),
            pieces: Mutex::default(),
            large_file: AtomicBool::new(false),
            distrusted: Mutex::default(),
            released: Mutex::default(),
        };
        let next_sb = Mutex::new(sb);
        let (csum, layout) = (Csum::new(&sb), InodeLayout::new(&sb));
        // A remembered name costs about 24 bytes; half of the bound is left to the maps, a quarter to all the
        // rest.
        let names_kept = (options.memory_bound() / 96 / options.thread_count() as u64).max(1);
        let metadata = Vec::new();
        Ok(Context {
            disk,
            geometry,
            csum,
            layout,
            sb,
            descs,
            needs_relocation,
            options,
            found,
            metadata,
            names_kept,
            next_sb,
        })
    }

    /// What a name in a directory with these flags is compared and hashed by.
    #[must_use]
    pub fn folded<'n>(&self, inode_flags: u32, name: &'n [u8]) -> Cow<'n, [u8]> {
        let folds = inode_flags & (flag::CASEFOLD | flag::ENCRYPT) == flag::CASEFOLD
            && self.sb.raw().encoding.get() == casefold::ENCODING_UTF8;
        if folds { casefold::folded(name) } else { Cow::Borrowed(name) }
    }

    /// Whether names must be text in the volume's encoding.
    #[must_use]
    pub fn strict_names(&self) -> bool {
        self.sb.incompat().has(Incompat::CASEFOLD)
            && self.sb.raw().encoding_flags.get() & casefold::STRICT != 0
    }

    /// Whether the volume has an incompatible feature, or got it back in this round.
    #[must_use]
    pub fn has_incompat(&self, feature: Incompat) -> bool {
        self.sb.incompat().has(feature) || lock(&self.next_sb).incompat().has(feature)
    }

    /// Changes the superblock that is written at the end. A change that makes no sense is not taken.
    pub fn edit_super(&self, change: impl FnOnce(&mut RawSuperBlock)) {
        let _ = lock(&self.next_sb).edit(change);
    }

    /// Whether blocks lie on the volume behind the superblock.
    #[must_use]
    pub fn on_volume(&self, start: BlockNo, len: u64) -> bool {
        self.geometry.contains_blocks(start, len)
    }

    /// Whether any of these blocks belongs to the volume's own metadata.
    #[must_use]
    pub fn is_metadata(&self, start: BlockNo, len: u64) -> bool {
        let end = start.0.saturating_add(len);
        let at = self.metadata.partition_point(|range| range.end <= start.0);
        self.metadata.get(at).is_some_and(|range| range.start < end)
    }

    /// Inodes at the head of a group's table that are looked at: the rest is unused, as far as its descriptor
    /// can be believed. Reserved inodes are looked at even in a group that says it has none.
    #[must_use]
    pub fn inodes_to_scan(&self, group: GroupNo) -> u32 {
        let desc = &self.descs[group.0 as usize];
        let used = match self.csum.group_descs() {
            true if desc.flags.has(GroupFlags::INODE_UNINIT) => 0,
            true => self.geometry.inodes_per_group.saturating_sub(desc.itable_unused),
            false => self.geometry.inodes_per_group,
        };
        used.max(self.reserved_inodes(group))
    }

    /// Inodes at the head of a group that are reserved: where groups are small, in more than the first.
    #[must_use]
    pub fn reserved_inodes(&self, group: GroupNo) -> u32 {
        let per_group = self.geometry.inodes_per_group;
        (self.first_ino() - 1).saturating_sub(group.0.saturating_mul(per_group)).min(per_group)
    }

    /// The block and byte of an inode's record; `None` for one in a table that lies nowhere, too.
    #[must_use]
    pub fn inode_place(&self, ino: Ino) -> Option<(BlockNo, usize)> {
        let at = self.geometry.inode_location(ino)?;
        let table = self.descs.get(at.group.0 as usize)?.inode_table;
        if table == UNALLOCATED {
            return None;
        }
        Some((BlockNo(table.0 + u64::from(at.table_block)), at.byte))
    }

    /// An inode's record; zeros where its table was lost.
    ///
    /// # Errors
    /// The device's, or a number past the last inode.
    pub fn read_record(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut record = vec![0; self.geometry.inode_size];
        let Some((block, byte)) = self.inode_place(ino) else { return self.only_lost(ino, record) };
        let offset = block.0 * u64::from(self.geometry.block_size) + byte as u64;
        self.disk.read_bytes(offset, &mut record)?;
        Ok(record)
    }

    /// An inode, decoded whatever it holds.
    ///
    /// # Errors
    /// As [`Context::read_record`].
    pub fn read_inode(&self, ino: Ino) -> Result<Inode> {
        Ok(Inode::decode_damaged(&self.read_record(ino)?, &self.layout))
    }

    fn only_lost<T>(&self, ino: Ino, instead: T) -> Result<T> {
        match self.geometry.inode_location(ino) {
            Some(_) => Ok(instead),
            None => Err(Error::Unusable(format!("there is no inode {ino}"))),
        }
    }

    /// Writes an inode's record, with its checksum. A lost table gets none: it will be made of zeros.
    ///
    /// # Errors
    /// The device's, or a number past the last inode.
    pub fn write_record(&self, ino: Ino, record: &mut [u8]) -> Result<()> {
        self.csum.set_inode(record, ino);
        let Some((block, byte)) = self.inode_place(ino) else { return self.only_lost(ino, ()) };
        self.disk.write_bytes(block.0 * u64::from(self.geometry.block_size) + byte as u64, record)
    }

    /// Writes the fields of an inode into its record.
    ///
    /// # Errors
    /// As [`Context::write_record`].
    pub fn write_inode(&self, ino: Ino, inode: &Inode) -> Result<()> {
        let mut record = self.read_record(ino)?;
        self.encode(inode, &mut record);
        self.write_record(ino, &mut record)
    }

    /// Writes the fields of an inode into a record. An extra size that makes no sense keeps its fields as
    /// they are.
    pub fn encode(&self, inode: &Inode, record: &mut [u8]) {
        if usize::from(inode.extra_isize) <= record.len() - BASE_SIZE {
            inode.encode_into(record, &self.layout);
        } else {
            let layout = InodeLayout { inode_size: BASE_SIZE as u16, ..self.layout };
            Inode { extra_isize: 0, ..inode.clone() }.encode_into(&mut record[..BASE_SIZE], &layout);
        }
    }

    /// The first inode that files may have.
    #[must_use]
    pub fn first_ino(&self) -> u32 {
        self.sb.first_ino()
    }

    /// Sectors of 512 bytes in a cluster.
    #[must_use]
    pub fn cluster_sectors(&self) -> u64 {
        u64::from(self.geometry.block_size / 512) * u64::from(self.geometry.cluster_ratio)
    }

    /// Whether one more block of a tree may be visited. What pass 1 has put right needs no bound.
    #[must_use]
    pub fn spend_tree(&self) -> bool {
        self.is_trusted() || spend(&self.found.tree_budget, 1)
    }

    /// Whether so many more blocks may be claimed.
    #[must_use]
    pub fn spend_data(&self, blocks: u64) -> bool {
        self.is_trusted() || spend(&self.found.data_budget, blocks)
    }

    /// Whether so many more blocks of directories may be read.
    #[must_use]
    pub fn spend_dir(&self, blocks: u64) -> bool {
        self.is_trusted() || spend(&self.found.dir_budget, blocks)
    }

    fn is_trusted(&self) -> bool {
        self.options.may_write() && self.found.judged.load(Relaxed)
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = GroupNo> + use<> {
        self.geometry.groups()
    }
}
