//! How large an image becomes: a size that was asked for and its inodes, or the fewest blocks that hold the
//! tree. The metadata grows with the size and the journal in steps, so the least size is searched for, and
//! then tried by placing everything.

use super::error::{Error, Result};
use super::place::Places;
use super::plan::{Plan, Runs, map_of};
use super::tree::{InodeId, Tree};
use crate::files;
use crate::layout::Layout;
use crate::options::{Options, Usage};
use crate::volume::Volume;

/// The first group holds the reserved inodes and lost+found.
const LEAST_PER_GROUP: u32 = 16;
/// Blocks at which the default size of a journal changes; just below, it is smaller.
const JOURNAL_STEPS: &[u64] = &[2048, 32768, 1 << 18, 1 << 19, 1 << 22, 1 << 23, 1 << 24, 1 << 25];
/// Free space that an image shall have besides the tree.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Free {
    /// So many bytes that any user can write.
    Bytes(u64),
    /// So much of the image, in percent.
    Percent(f64),
}

/// How large the image shall be.
#[derive(Clone, Debug, Default)]
pub struct Sizing {
    /// Bytes of the image, or, with `shrink`, at most; `None` for the smallest that holds the tree.
    pub size: Option<u64>,
    /// Free space.
    pub free: Option<Free>,
    /// Free inodes.
    pub free_inodes: Option<u64>,
    /// The smallest image even where there is a size.
    pub shrink: bool,
    /// The largest image.
    pub max_size: Option<u64>,
    /// Bytes of the device's sectors.
    pub sector: u32,
}
impl Sizing {
    /// Whether the size follows from the tree.
    pub fn is_computed(&self) -> bool {
        self.size.is_none() || self.shrink
    }
}

/// A volume that a tree could be placed on.
type Candidate = (Options, Layout, Volume);
/// Makes a volume of so many blocks.
type Sized<'s> = &'s dyn Fn(&Plan, u64) -> Result<Candidate>;

impl Plan {
    /// Finds the size, or checks the one there is, and places everything.
    pub(super) fn fit(&mut self, tree: &Tree, sizing: &Sizing) -> Result<(Options, Layout)> {
        let block_size = u64::from(self.mapping.block_size);
        let blocks = self.blocks(tree);
        if let Some(size) = sizing.size.filter(|_| !sizing.is_computed()) {
            let (options, layout, volume) = self.given(size, sizing)?;
            let available = volume_bytes(&layout);
            if let Some(limit) = sizing.max_size.filter(|limit| available > *limit) {
                return Err(Error::TooLarge { what: "the image".into(), limit });
            }
            if let Ok(places) = self.place(tree, &volume) {
                self.keep(tree, places);
                return Ok((options, layout));
            }
            let sized = |plan: &Plan, blocks: u64| plan.given(blocks * block_size, sizing);
            let (_, layout, _) = self.smallest(tree, blocks, &sized, &|_, _| true)?;
            return Err(self.does_not_fit(volume_bytes(&layout), blocks, available));
        }
        let sized = |plan: &Plan, blocks: u64| plan.sized(blocks, sizing);
        let enough = |layout: &Layout, rest: u64| has_free_space(layout, rest, sizing.free);
        let (options, layout, places) = self.smallest(tree, blocks, &sized, &enough)?;
        let size = volume_bytes(&layout);
        if let Some(limit) = sizing.max_size.filter(|limit| size > *limit) {
            return Err(Error::TooLarge { what: "the image".into(), limit });
        }
        if let Some(most) = sizing.size.filter(|most| size > *most) {
            return Err(self.does_not_fit(size, blocks, most));
        }
        self.keep(tree, places);
        Ok((options, layout))
    }

    fn keep(&mut self, tree: &Tree, places: Places) {
        let block_size = u64::from(self.mapping.block_size);
        let Places { starts, scattered, files, taken } = places;
        (self.starts, self.scattered, self.files, self.taken) = (starts, scattered, files, taken);
        let count = |id: &InodeId| Runs::File(tree.inode(*id).size, map_of(tree, *id)).count(block_size);
        self.data_blocks = self.files.iter().map(count).sum();
    }

    fn does_not_fit(&self, needed: u64, blocks: u64, available: u64) -> Error {
        Error::DoesNotFit {
            needed,
            blocks,
            block_size: self.mapping.block_size,
            inodes: self.inodes(),
            available,
        }
    }

    /// The volume of a size that was asked for.
    fn given(&self, size: u64, sizing: &Sizing) -> Result<Candidate> {
        let used = self.inodes() + sizing.free_inodes.unwrap_or(0);
        let mut options = Options { size: Some(size), ..self.options.clone() };
        let mut layout = Layout::new(&options, size, sizing.sector)?;
        let count = u64::from(layout.superblock.inodes_count());
        if count < used && options.inode_count.is_some() {
            return Err(Error::Options(format!("the tree has {used} inodes, -N gives {count}")));
        }
        if count < used {
            (options, layout) = with_inodes(options, used, size, sizing.sector)?;
        }
        let volume = files::reserved(&layout, &options)?;
        Ok((options, layout, volume))
    }

    /// A volume of so many blocks, with as many inodes as are wanted there.
    fn sized(&self, blocks: u64, sizing: &Sizing) -> Result<Candidate> {
        let block_size = u64::from(self.mapping.block_size);
        let size = blocks * block_size;
        let ratio = |bytes: u64| bytes / u64::from(self.options.inode_ratio.unwrap_or(16384));
        let spare = sizing.free_inodes.unwrap_or(match sizing.free {
            Some(Free::Bytes(bytes)) => ratio(bytes),
            Some(Free::Percent(percent)) => ratio((size as f64 * percent / 100.0) as u64),
            None => 0,
        });
        let mut inodes = self.inodes() + spare;
        if self.options.inode_ratio.is_some() {
            inodes = inodes.max(ratio(size));
        }
        if let Some(count) = self.options.inode_count {
            if count < self.inodes() {
                let used = self.inodes();
                return Err(Error::Options(format!("the tree has {used} inodes, -N gives {count}")));
            }
            inodes = count;
        }
        let options = Options { size: Some(size), ..self.options.clone() };
        let (mut options, mut layout) = with_inodes(options, inodes, size, sizing.sector)?;
        let geometry = layout.geometry();
        if geometry.inodes_per_group < LEAST_PER_GROUP && self.options.inode_count.is_none() {
            let least = u64::from(LEAST_PER_GROUP) * u64::from(geometry.group_count);
            (options, layout) = with_inodes(options, least, size, sizing.sector)?;
        }
        let volume = files::reserved(&layout, &options)?;
        Ok((options, layout, volume))
    }

    /// The smallest volume that holds the tree and that is `enough`: `sized` makes one of so many blocks.
    fn smallest(
        &mut self,
        tree: &Tree,
        blocks: u64,
        sized: Sized<'_>,
        enough: &dyn Fn(&Layout, u64) -> bool,
    ) -> Result<(Options, Layout, Places)> {
        let mut needed = blocks;
        for _ in 0..64 {
            let count = self.smallest_size(needed, sized, enough)?;
            let (options, layout, volume) = sized(self, count)?;
            match self.place(tree, &volume) {
                Ok(places) => return Ok((options, layout, places)),
                // Gaps that no file fits in, or maps of files that were cut.
                Err(missing) => needed += missing,
            }
        }
        Err(Error::Options("no size was found that holds the tree".into()))
    }

    /// The fewest blocks of a volume that has `needed` free ones and is then `enough`.
    fn smallest_size(
        &self,
        needed: u64,
        sized: Sized<'_>,
        enough: &dyn Fn(&Layout, u64) -> bool,
    ) -> Result<u64> {
        let block_size = u64::from(self.mapping.block_size);
        let fits = |blocks: u64| -> Result<bool> {
            let (_, layout, volume) = sized(self, blocks)?;
            let rest = volume.free_blocks().checked_sub(needed);
            Ok(layout.superblock.blocks_count().0 == blocks && rest.is_some_and(|rest| enough(&layout, rest)))
        };
        let journal = u64::from(self.options.journal_mib.unwrap_or(0)) * ((1 << 20) / block_size);
        let mut low = needed;
        let mut high = (needed + needed / 64 + 64).max(2 * journal + 64);
        let mut tries = 0;
        loop {
            match fits(high) {
                Ok(true) => break,
                Err(error) if tries > 40 || high > 1 << 44 => return Err(error),
                Ok(false) | Err(_) => low = high,
            }
            if tries > 64 {
                return Err(Error::Options("no size was found that holds the tree".into()));
            }
            tries += 1;
            high += (high / 8).max(64);
        }
        // A journal is smaller below some sizes: the largest volume there may do where a smaller larger one
        // does not.
        for step in JOURNAL_STEPS.iter().map(|step| step - 1).filter(|step| *step > needed && *step < high) {
            if fits(step).unwrap_or(false) {
                high = step;
                break;
            }
        }
        low = low.min(high - 1);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if fits(middle).unwrap_or(false) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Ok(high)
    }
}

/// The layout with at least so many inodes: a group's number of them is rounded, perhaps down.
fn with_inodes(options: Options, wanted: u64, size: u64, sector: u32) -> Result<(Options, Layout)> {
    let mut count = wanted;
    loop {
        let options = Options { inode_count: Some(count), ..options.clone() };
        let layout = Layout::new(&options, size, sector)?;
        match u64::from(layout.superblock.inodes_count()) {
            has if has < wanted => count += (wanted - has).max(8),
            _ => return Ok((options, layout)),
        }
    }
}

fn volume_bytes(layout: &Layout) -> u64 {
    layout.superblock.blocks_count().0 * u64::from(layout.superblock.block_size())
}

/// Whether a volume has the free space that is wanted, when `rest` blocks of it are left.
fn has_free_space(layout: &Layout, rest: u64, wanted: Option<Free>) -> bool {
    let superblock = &layout.superblock;
    let all = superblock.blocks_count().0;
    match wanted {
        None => true,
        Some(Free::Bytes(bytes)) => {
            // The kernel keeps these for itself, besides the reserved ones.
            let kept = (all / 50).min(4096) + superblock.reserved_blocks();
            rest.saturating_sub(kept) >= bytes.div_ceil(superblock.block_size().into())
        }
        Some(Free::Percent(percent)) => rest as f64 * 100.0 >= all as f64 * percent,
    }
}

/// Block size: as asked for, else by the size asked for, else 4096.
pub fn block_size(options: &Options, sizing: &Sizing) -> u32 {
    options.block_size.unwrap_or_else(|| match sizing.size.filter(|_| !sizing.is_computed()) {
        Some(size) => {
            let by_size = Usage::by_size(size);
            options.usage.last().copied().unwrap_or(by_size).block_size().max(sizing.sector)
        }
        None => options.usage.last().map_or(4096, |usage| usage.block_size()).max(sizing.sector),
    })
}
