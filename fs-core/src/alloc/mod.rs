//! Who owns which block and which inode number.
//!
//! The truth is on disk: bitmaps and group descriptors, changed through journal handles, always
//! together and with their checksums. Each group's part is guarded by the group's own lock
//! (rank 70); volume-wide numbers are atomics. Beside the truth stands what makes searching fast
//! and may be thrown away at any time: the `runs::FreeRuns` of groups in use, and hints about
//! every group's longest run (`orders::GroupOrders`).
//!
//! Invariants:
//! 1. A block freed in a transaction is clear in the bitmap at once, but is not handed out before
//!    that transaction is durable: until then the old owner's data must survive a crash.
//! 2. No device IO under a group's lock: a bitmap is loaded first, then the lock is taken.
//! 3. Blocks are taken only under a claim of `space::Space`, so an accepted promise is kept.
//! 4. No block of the `zone::SystemZone` is ever handed out or freed.
//! 5. An inode-table block is zeroed, in the handle that first allocates an inode of it, while
//!    nobody can look at it: nothing behind `bg_itable_unused` is ever read.

mod blocks;
mod group;
mod inodes;
mod loading;
mod orders;
mod orlov;
mod release;
mod runs;
mod space;
mod stripe;
mod trim;
mod windows;
mod zone;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, Corruption, GroupNo, Ino, What, locate, verify};
use jbd2::{Buffer, Handle};

use crate::error::{Error, Result};
use crate::locks::{Rank, RankedMutex};
use crate::volume::Volume;

use group::Group;
use orders::GroupOrders;
use orlov::FlexTotals;
use space::Space;
use zone::{Collector, SystemZone};

pub use blocks::{BlockRequest, Run};
pub use inodes::InodeKind;
pub use space::{Depth, Reservation};
pub use trim::TrimRange;
pub use windows::Stream;

/// Blocks that [`Allocator::alloc_blocks`] changes: a bitmap and a descriptor block.
pub const ALLOC_CREDITS: u32 = 2;
/// Blocks that [`Allocator::alloc_inode`] changes: both bitmaps (the block bitmap when the group
/// is first used), a descriptor block and a block of the inode table.
pub const ALLOC_INODE_CREDITS: u32 = 4;
/// Blocks that [`Allocator::free_inode`] changes: a bitmap and a descriptor block.
pub const FREE_INODE_CREDITS: u32 = 2;

/// Groups whose bitmaps are kept in memory, at most about 18 KiB each.
const MAX_LOADED: usize = 1024;

/// The kernel's pool for metadata of delayed data: 2 % of the volume, at most this many blocks.
const MAX_POOL: u64 = 4096;

/// Volume-wide numbers. Blocks in units of the block size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Free blocks.
    pub free_blocks: u64,
    /// Blocks promised to data not allocated yet; part of the free ones.
    pub reserved: u64,
    /// Free blocks that an ordinary caller does not get: root's, and the pool for metadata.
    pub withheld: u64,
    /// Free inodes.
    pub free_inodes: u32,
    /// Directories.
    pub directories: u64,
    /// Blocks that can never hold a file: superblocks, descriptors, bitmaps, tables, the journal.
    pub overhead: u64,
}

/// The allocator of a volume.
pub struct Allocator {
    vol: Arc<Volume>,
    /// Rank 70, keyed by number.
    groups: Vec<RankedMutex<Group>>,
    /// First block of each group's inode table.
    tables: Vec<BlockNo>,
    /// The blocks of the descriptor table, kept in the cache by being held.
    desc_blocks: Vec<Buffer>,
    orders: GroupOrders,
    space: Arc<Space>,
    free_inodes: AtomicU32,
    directories: AtomicU64,
    /// The first inode that is not reserved for the volume itself.
    first_ino: u32,
    flex: Vec<FlexTotals>,
    /// Free inodes of each group, for a look without its lock.
    group_inodes: Vec<AtomicU32>,
    zone: SystemZone,
    overhead: u64,
    /// Groups that have blocks waiting for a transaction, oldest transaction first.
    waiting: RankedMutex<VecDeque<release::Waiting>>,
    /// Blocks of a stripe, on a striped volume.
    stripe: Option<u32>,
    /// Transactions whose freed blocks were given back.
    released: AtomicU64,
    /// Files that have blocks kept for them, the longest unused first.
    windows: RankedMutex<windows::Windows>,
    /// Groups that have a bitmap in memory, in the order of loading.
    loaded: RankedMutex<VecDeque<GroupNo>>,
    /// Free blocks and inodes as last written to the superblock.
    written: RankedMutex<(u64, u32)>,
}

impl Allocator {
    /// Reads the group descriptors. Bitmaps are read when they are needed.
    ///
    /// # Errors
    /// A descriptor that contradicts the format: without it nothing can be found.
    pub fn open(vol: Arc<Volume>) -> Result<Allocator> {
        let geo = vol.geo;
        let desc_blocks = read_descriptors(&vol)?;
        let count = geo.group_count as usize;
        let mut groups = Vec::with_capacity(count);
        let mut tables = Vec::with_capacity(count);
        let mut group_inodes = Vec::with_capacity(count);
        let flex_count = geo.group_count.div_ceil(geo.groups_per_flex) as usize;
        let flex: Vec<FlexTotals> = (0..flex_count).map(|_| FlexTotals::default()).collect();
        let mut hopes = Vec::with_capacity(count);
        let mut zone = Collector::default();
        let (mut free_blocks, mut free_inodes, mut directories) = (0_u64, 0_u32, 0_u64);
        let mut data = None;
        for no in geo.groups() {
            let index = (no.0 / geo.descs_per_block()) as usize;
            if no.0 % geo.descs_per_block() == 0 {
                data = desc_blocks.get(index).map(Buffer::data);
            }
            let at = geo.descriptor(no).1;
            let bytes =
                data.as_deref().and_then(|d: &[u8]| d.get(at..at + geo.desc_size)).unwrap_or_default();
            let desc = verify::group_desc(bytes, &vol.csum, &geo, no).map_err(|c| vol.corrupt(c))?;
            hopes.push(desc.free_blocks);
            free_blocks += u64::from(desc.free_blocks) * u64::from(geo.cluster_ratio);
            free_inodes = free_inodes.saturating_add(desc.free_inodes);
            directories += u64::from(desc.used_dirs);
            flex[geo.flex_group(no) as usize].add(&desc);
            let head = geo.head(no).len();
            if head > 0 {
                zone.add(geo.group_first_block(no).0, head.into());
            }
            zone.add(desc.block_bitmap.0, 1);
            zone.add(desc.inode_bitmap.0, 1);
            zone.add(desc.inode_table.0, geo.inode_table_blocks().into());
            tables.push(desc.inode_table);
            group_inodes.push(AtomicU32::new(desc.free_inodes));
            groups.push(RankedMutex::keyed(Rank::Group, no.0.into(), Group::new(desc)));
        }
        let sb = *vol.sb.lock();
        for run in journal_runs(&vol, &sb)? {
            zone.add(run.start.0, run.len.into());
        }
        if let Some(mmp) = sb.mmp_block() {
            zone.add(mmp.0, 1);
        }
        let zone = zone.finish();
        Ok(Allocator {
            groups,
            tables,
            desc_blocks,
            orders: GroupOrders::new(&hopes),
            space: Space::new(free_blocks, sb.reserved_blocks(), pool_of(&sb)),
            free_inodes: AtomicU32::new(free_inodes),
            directories: AtomicU64::new(directories),
            first_ino: sb.first_ino().max(1),
            flex,
            group_inodes,
            // As the kernel counts it, which leaves the multi-mount block out.
            overhead: u64::from(geo.first_data_block) + zone.blocks() - u64::from(sb.mmp_block().is_some()),
            zone,
            waiting: RankedMutex::new(Rank::Leaf, VecDeque::new()),
            stripe: stripe::stripe_of(&sb, vol.opts.stripe),
            released: AtomicU64::new(0),
            windows: RankedMutex::new(Rank::Leaf, VecDeque::new()),
            loaded: RankedMutex::new(Rank::Leaf, VecDeque::new()),
            written: RankedMutex::new(Rank::Leaf, (sb.free_blocks(), sb.free_inodes())),
            vol,
        })
    }

    /// Volume-wide numbers as of now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            free_blocks: self.space.free(),
            reserved: self.space.promised(),
            withheld: self.space.withheld(),
            free_inodes: self.free_inodes.load(Ordering::Relaxed),
            directories: self.directories.load(Ordering::Relaxed),
            overhead: self.overhead,
        }
    }

    /// Promises `blocks` to data that will be allocated later, or says now that there is no room.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn reserve(&self, blocks: u64, privileged: bool) -> Result<Reservation> {
        self.space.reserve(blocks, Depth::of(privileged))
    }

    /// Blocks that a promise to such a caller could be for, now.
    #[must_use]
    pub fn available(&self, privileged: bool) -> u64 {
        self.space.available(Depth::of(privileged))
    }

    /// Whether a file may own the `len` blocks from `start`: they lie on the volume and are not
    /// its metadata.
    #[must_use]
    pub fn may_hold_data(&self, start: BlockNo, len: u64) -> bool {
        self.vol.geo.contains_blocks(start, len) && !self.zone.touches(start, len)
    }

    /// The group that all of the `len` blocks from `start` lie in, if it is one.
    #[must_use]
    pub fn only_group(&self, start: BlockNo, len: u32) -> Option<GroupNo> {
        let (group, index) = self.vol.geo.locate_block(start)?;
        (u64::from(index) + u64::from(len) <= self.vol.geo.blocks_per_group.into()).then_some(group)
    }

    /// Where the record of `ino` lies: block and byte.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a number past the last inode.
    pub fn inode_place(&self, ino: Ino) -> Result<(BlockNo, usize)> {
        let geo = &self.vol.geo;
        let place = geo.inode_location(ino).and_then(|at| {
            let table = self.tables.get(at.group.0 as usize)?;
            Some((table.checked_add(at.table_block.into())?, at.byte))
        });
        place.ok_or_else(|| {
            let most = geo.inodes_count.into();
            Corruption::new(What::Inode, "inode number", ino.get().into(), most).in_inode(ino).into()
        })
    }

    /// Where the blocks of a new file of inode `ino` had best begin: for directories and other
    /// metadata its flexible group's first group, for file data (`data`) the group behind that,
    /// so that metadata stays together.
    #[must_use]
    pub fn goal_for(&self, ino: Ino, data: bool) -> BlockNo {
        let geo = &self.vol.geo;
        let mut group = (ino.get() - 1) / geo.inodes_per_group;
        // With smaller flexible groups the metadata is not concentrated enough to be worth it.
        if geo.groups_per_flex >= 4 {
            group -= group % geo.groups_per_flex;
            if data && group + 1 < geo.group_count {
                group += 1;
            }
        }
        geo.group_first_block(GroupNo(group.min(geo.group_count - 1)))
    }

    /// Writes the free counts to the superblock if they changed. The journal's observer calls it
    /// when a transaction closes (one block).
    ///
    /// # Errors
    /// Those of the journal.
    pub fn closing(&self, handle: &Handle<'_>) -> jbd2::Result<()> {
        let now = (self.space.free(), self.free_inodes.load(Ordering::Relaxed));
        if *self.written.lock() == now {
            return Ok(());
        }
        let edited = self.vol.edit_super(handle, |sb| {
            sb.set_free_blocks(now.0);
            sb.set_free_inodes(now.1);
        });
        match edited {
            Ok(()) => {
                *self.written.lock() = now;
                Ok(())
            }
            Err(Error::Journal(e)) => Err(e),
            Err(e) => Err(jbd2::Error::Closing(e.to_string())),
        }
    }
}

/// Reads every block of the descriptor table, neighbours with one request.
fn read_descriptors(vol: &Volume) -> Result<Vec<Buffer>> {
    let count = vol.geo.desc_blocks;
    let places: Vec<BlockNo> = (0..count).map(|index| vol.geo.descriptor_block(index)).collect();
    for run in places.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        for part in run.chunks(256) {
            if let [first, _, ..] = part {
                vol.journal.read_ahead(*first, part.len() as u32);
            }
        }
    }
    places.into_iter().map(|block| vol.read_meta(block, |_| Ok(()))).collect()
}

/// Where the journal lies.
fn journal_runs(vol: &Volume, sb: &SuperBlock) -> Result<Vec<locate::Run>> {
    let Some(ino) = sb.journal_ino() else { return Ok(Vec::new()) };
    let mut read = |block| Ok::<_, Error>(vol.journal.read(block, |_| Ok(()))?.data());
    let inode = locate::inode(sb, ino, &mut read)?;
    locate::runs(sb, &inode, Some(ino), &mut read)
}

fn pool_of(sb: &SuperBlock) -> u64 {
    use ext4_format::features::Incompat;
    if !sb.incompat().has(Incompat::EXTENTS) {
        return 0;
    }
    (sb.blocks_count().0 / 50).min(MAX_POOL)
}
