//! What the image will be like before any of it is written: block and inode counts, the size, and the place
//! of every block.

use std::collections::HashMap;
use std::ops::Range;

use ext4_format::dirent::DirFormat;
use ext4_format::extent::Extent;
use ext4_format::features::{Compat, Incompat, RoCompat};
use ext4_format::inode::{FileType, MAX_FAST_SYMLINK, MAX_LINKS};
use ext4_format::xattr::MAX_REFCOUNT;

use super::attributes::Division;
use super::content::{Run, SparseMap, runs};
use super::directory::{Rules, Shape};
use super::error::{Error, Result};
use super::mapping::{Mapping, extents};
use super::order::{FIRST_INO, Hashing, LOST_AND_FOUND_INO, Order};
use super::space::Space;
use super::tree::{Body, InodeId, ROOT, Tree};
use crate::files;
use crate::layout::Layout;
use crate::options::{Features, Options, Usage};
use crate::volume::Volume;

/// Files looked through for one that fills a gap.
const LOOK_AHEAD: usize = 4096;
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

/// Where a set's attributes lie, for all inodes that have it.
#[derive(Debug, Default)]
pub struct SetPlace {
    /// Inodes that have it.
    pub users: u32,
    /// What lies where.
    pub division: Division,
    /// Blocks, each for up to 1024 inodes.
    pub blocks: Vec<u64>,
    /// The values that have inodes: which attribute, and the inode's number and blocks.
    pub values: Vec<(usize, u32, Vec<Range<u64>>)>,
}

/// Where the blocks of an inode lie that are not simply in a row.
#[derive(Debug)]
pub struct Scattered {
    /// Its data blocks in file order.
    pub places: Vec<Range<u64>>,
    /// The blocks of its map.
    pub nodes: Vec<u64>,
}

/// A plan that fits.
pub struct Plan {
    options: Options,
    /// Inode numbers and order.
    pub order: Order,
    /// How directories are written.
    pub rules: Rules,
    /// The shape of each directory.
    pub shapes: Vec<Shape>,
    /// How files are mapped.
    pub mapping: Mapping,
    /// Attributes.
    pub sets: Vec<SetPlace>,
    /// The attribute block of inodes that have one.
    pub attribute_blocks: HashMap<InodeId, u64>,
    /// Inodes for values; they have the numbers behind the tree's.
    pub value_inodes: u32,
    /// Regular files with data, in the order of their blocks.
    pub files: Vec<InodeId>,
    /// Blocks taken by the tree.
    pub taken: Vec<Range<u64>>,
    /// Blocks with data of regular files.
    pub data_blocks: u64,
    starts: Vec<u64>,
    scattered: HashMap<InodeId, Scattered>,
}

/// Where one attempt put everything.
struct Places {
    starts: Vec<u64>,
    scattered: HashMap<InodeId, Scattered>,
    files: Vec<InodeId>,
    taken: Vec<Range<u64>>,
}

/// Data blocks of an inode.
fn data_runs<'t>(tree: &'t Tree, id: InodeId, shapes: &Shapes<'_>) -> Runs<'t> {
    let inode = tree.inode(id);
    match inode.body {
        Body::File(_) => Runs::File(inode.size, map_of(tree, id)),
        Body::Directory(_) => Runs::Whole(shapes.0[shapes.1.directory(id)].blocks().into()),
        Body::Symlink(_, len) => Runs::Whole(u64::from(usize::from(len) > MAX_FAST_SYMLINK)),
        _ => Runs::Whole(0),
    }
}

struct Shapes<'p>(&'p [Shape], &'p Order);

enum Runs<'t> {
    File(u64, Option<&'t SparseMap>),
    Whole(u64),
}

impl<'t> Runs<'t> {
    fn iter(&self, block_size: u64) -> Box<dyn Iterator<Item = Run> + 't> {
        match *self {
            Runs::File(size, map) => Box::new(runs(size, map, block_size)),
            Runs::Whole(0) => Box::new(std::iter::empty()),
            Runs::Whole(len) => Box::new(std::iter::once(Run { first: 0, len })),
        }
    }

    fn count(&self, block_size: u64) -> u64 {
        match *self {
            Runs::File(size, None) => size.div_ceil(block_size),
            Runs::File(..) => self.iter(block_size).map(|run| run.len).sum(),
            Runs::Whole(len) => len,
        }
    }

    fn is_dense(&self) -> bool {
        !matches!(self, Runs::File(_, Some(_)))
    }
}

/// The map of a sparse file.
pub fn map_of(tree: &Tree, id: InodeId) -> Option<&SparseMap> {
    tree.inode(id).map.map(|map| &tree.maps[map.get() as usize - 1])
}

impl Plan {
    /// Plans an image of a tree, and makes the choices that the volume's `options` leave. `notes` gets what
    /// the user should know.
    pub fn new(
        tree: &Tree,
        mut options: Options,
        sizing: &Sizing,
        seed: [u32; 4],
        notes: &mut Vec<String>,
    ) -> Result<(Plan, Options, Layout)> {
        let computed = sizing.size.is_none() || sizing.shrink;
        let block_size = block_size(&options, sizing, computed);
        options.block_size = Some(block_size);
        let mut features = Features::of(options.kind);
        for edit in &options.features {
            features.edit(edit)?;
        }
        let hashing = Hashing { seed, indexed: features.compat.has(Compat::DIR_INDEX) };
        let order = Order::new(tree, hashing)?;
        let mut rules = Rules {
            format: DirFormat {
                filetype: features.incompat.has(Incompat::FILETYPE),
                tail: features.ro_compat.has(RoCompat::METADATA_CSUM),
                hashed: false,
            },
            block_size: block_size as usize,
            hashing,
            three_levels: features.incompat.has(Incompat::LARGEDIR),
        };
        let shapes = shapes(tree, &order, &mut rules, &mut options, notes)?;
        let mapping = Mapping { extents: features.incompat.has(Incompat::EXTENTS), block_size };
        let mut plan = Plan {
            options,
            rules,
            shapes,
            mapping,
            sets: Vec::new(),
            attribute_blocks: HashMap::new(),
            value_inodes: 0,
            files: Vec::new(),
            taken: Vec::new(),
            data_blocks: 0,
            starts: Vec::new(),
            scattered: HashMap::new(),
            order,
        };
        plan.check(tree, &features)?;
        plan.divide_attributes(tree, &features, notes)?;
        let (options, layout) = plan.fit(tree, sizing, computed)?;
        Ok((plan, options, layout))
    }

    /// What no size can help with.
    fn check(&mut self, tree: &Tree, features: &Features) -> Result<()> {
        let capacity = self.mapping.capacity().saturating_mul(u64::from(self.mapping.block_size));
        let name = |id: InodeId| {
            let node = self.order.entries.iter().find(|node| tree.inode_of(**node) == id);
            node.map_or_else(Vec::new, |node| tree.path(*node))
        };
        let counted = features.ro_compat.has(RoCompat::DIR_NLINK);
        for directory in &self.order.directories {
            if directory.subdirectories + 2 > u32::from(MAX_LINKS) && !counted {
                let problem =
                    format!("{} subdirectories need the feature dir_nlink", directory.subdirectories);
                return Err(Error::entry(tree.path(directory.node), problem));
            }
        }
        if tree.live_inodes().any(|(_, inode)| inode.size >= 1 << 31)
            && !features.ro_compat.has(RoCompat::LARGE_FILE)
        {
            self.options.features.push("large_file".to_owned());
        }
        for id in &self.order.inodes {
            let inode = tree.inode(*id);
            let data = map_of(tree, *id).map_or(inode.size, SparseMap::data_len);
            if data >= 1 << 41 && !features.ro_compat.has(RoCompat::HUGE_FILE) {
                return Err(Error::entry(name(*id), "2 TiB of data and more need the feature huge_file"));
            }
            if inode.size > capacity {
                let problem = format!("a file of {} bytes; ext4 holds {capacity} here", inode.size);
                return Err(Error::entry(name(*id), problem));
            }
            if inode.links > MAX_LINKS.into() && !inode.is_directory() {
                let problem = format!("{} hard links; ext4 allows {MAX_LINKS}", inode.links);
                return Err(Error::entry(name(*id), problem));
            }
            if let Body::Symlink(_, len) = inode.body
                && usize::from(len) >= self.rules.block_size
            {
                return Err(Error::entry(name(*id), "a target longer than a block; use a larger -b"));
            }
        }
        Ok(())
    }

    fn divide_attributes(&mut self, tree: &Tree, features: &Features, notes: &mut Vec<String>) -> Result<()> {
        let (compat, ea_inode) = (features.compat, features.incompat.has(Incompat::EA_INODE));
        let inode_size = self.options.inode_size.unwrap_or(256);
        let room = (inode_size as usize).saturating_sub(128 + 32);
        let block_size = self.rules.block_size;
        self.sets = (0..tree.attributes.len()).map(|_| SetPlace::default()).collect();
        for (_, inode) in tree.live_inodes() {
            self.sets[inode.attributes as usize].users += 1;
        }
        let forbidden = self.options.features.iter().any(|edit| edit == "^ea_inode");
        let used = |number: &usize| self.sets[*number].users > 0;
        let numbers: Vec<usize> = (1..self.sets.len()).filter(used).collect();
        let divide = |number: usize, ea_inode: bool| {
            Division::new(tree.attributes.get(number as u32), room, block_size, ea_inode)
        };
        // All sets are divided by the same rule, whichever of them needs the feature.
        let needed = numbers.iter().any(|number| divide(*number, false).is_none());
        let enabled = ea_inode || (needed && !forbidden);
        for number in numbers {
            let division = divide(number, enabled);
            let Some(division) = division else {
                let owner = tree.live_inodes().find(|(_, inode)| inode.attributes == number as u32);
                let name = owner.and_then(|(id, _)| {
                    self.order
                        .entries
                        .iter()
                        .find(|node| tree.inode_of(**node) == id)
                        .map(|node| tree.path(*node))
                });
                let problem =
                    "more attributes than fit; use -O ea_inode, or larger inodes (-I) or blocks (-b)";
                return Err(Error::entry(name.unwrap_or_default(), problem));
            };
            self.value_inodes += division.values.len() as u32;
            self.sets[number].division = division;
        }
        if self.sets.iter().skip(1).any(|set| set.users > 0) && !compat.has(Compat::EXT_ATTR) {
            self.options.features.push("ext_attr".to_owned());
        }
        if enabled && !ea_inode {
            notes.push("large attributes need the feature ea_inode, which is set".to_owned());
            self.options.features.push("ea_inode".to_owned());
        }
        Ok(())
    }

    /// Inodes in use, the reserved ones included.
    fn inodes(&self) -> u64 {
        u64::from(FIRST_INO) - 1 + self.order.inodes.len() as u64 + u64::from(self.value_inodes)
    }

    /// Blocks of the tree, but for the maps of files that will be scattered.
    fn blocks(&self, tree: &Tree) -> u64 {
        let block_size = u64::from(self.mapping.block_size);
        let shapes = Shapes(&self.shapes, &self.order);
        let ids = || self.order.inodes.iter().copied();
        let special = [tree.inode_of(ROOT), self.lost_and_found(tree)];
        let mut blocks = 0;
        for id in special.into_iter().chain(ids()) {
            let runs = data_runs(tree, id, &shapes);
            blocks += runs.count(block_size);
            if !runs.is_dense() || !self.mapping.extents || tree.inode(id).size > 4 * 32768 * block_size {
                let whole = [0..u64::MAX];
                blocks += self.mapping.nodes(&extents(runs.iter(block_size), &whole));
            }
        }
        blocks
            + self.sets.iter().enumerate().map(|(at, set)| set_blocks(tree, at, set, block_size)).sum::<u64>()
    }

    /// The inode of lost+found.
    pub fn lost_and_found(&self, tree: &Tree) -> InodeId {
        let mut entries = self.order.entries_of(&self.order.directories[0]).iter();
        let found = entries.find(|node| self.order.number(tree.inode_of(**node)) == LOST_AND_FOUND_INO);
        found.map_or(0, |node| tree.inode_of(*node))
    }

    /// Finds the size, or checks the one there is, and places everything.
    fn fit(&mut self, tree: &Tree, sizing: &Sizing, computed: bool) -> Result<(Options, Layout)> {
        let block_size = u64::from(self.mapping.block_size);
        let blocks = self.blocks(tree);
        if let Some(size) = sizing.size.filter(|_| !computed) {
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
    fn given(&self, size: u64, sizing: &Sizing) -> Result<(Options, Layout, Volume)> {
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
    fn sized(&self, blocks: u64, sizing: &Sizing) -> Result<(Options, Layout, Volume)> {
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
        sized: &dyn Fn(&Plan, u64) -> Result<(Options, Layout, Volume)>,
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
        sized: &dyn Fn(&Plan, u64) -> Result<(Options, Layout, Volume)>,
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

    /// Places everything in the free blocks of a volume, or says how many blocks are missing.
    fn place(&mut self, tree: &Tree, volume: &Volume) -> std::result::Result<Places, u64> {
        let block_size = u64::from(self.mapping.block_size);
        let mut space = Space::new(volume);
        let mut placing = Placing {
            tree,
            mapping: self.mapping,
            starts: vec![0; tree.inode_count()],
            scattered: HashMap::new(),
            missing: 0,
        };
        let shapes = Shapes(&self.shapes, &self.order);
        let of = |id: InodeId| data_runs(tree, id, &shapes);
        // Directories and other small things in front, where one look at the disk finds many of them.
        for directory in &self.order.directories {
            let id = tree.inode_of(directory.node);
            placing.put(&mut space, id, &of(id));
        }
        for id in self.order.inodes.iter().copied() {
            if tree.inode(id).file_type() == FileType::Symlink {
                placing.put(&mut space, id, &of(id));
            }
        }
        let mut next_value = FIRST_INO + self.order.inodes.len() as u32;
        for number in self.sets_in_order(tree) {
            let set = &mut self.sets[number];
            let blocks = if set.division.block.is_empty() { 0 } else { set.users.div_ceil(MAX_REFCOUNT) };
            set.blocks = placing.take(&mut space, blocks.into()).into_iter().flatten().collect();
            set.values.clear();
            for at in set.division.values.clone() {
                let len = tree.attributes.get(number as u32)[at].value.len() as u64;
                let places = placing.take(&mut space, len.div_ceil(block_size));
                set.values.push((at, next_value, places));
                next_value += 1;
            }
        }
        let files: Vec<InodeId> = self
            .order
            .inodes
            .iter()
            .copied()
            .filter(|id| tree.inode(*id).file_type() == FileType::Regular && of(*id).count(block_size) > 0)
            .collect();
        let count = |id: InodeId| of(id).count(block_size);
        let mut placed = vec![false; files.len()];
        let mut in_order = Vec::with_capacity(files.len());
        let mut at = 0;
        while at < files.len() {
            if placed[at] {
                at += 1;
                continue;
            }
            if placing.missing == 0 && space.should_wait(count(files[at])) {
                for later in at + 1..files.len().min(at + LOOK_AHEAD) {
                    if space.here() == 0 {
                        break;
                    }
                    if !placed[later] && count(files[later]) <= space.here() {
                        placing.put(&mut space, files[later], &of(files[later]));
                        placed[later] = true;
                        in_order.push(files[later]);
                    }
                }
                if space.may_waste() {
                    space.next_run();
                    continue;
                }
            }
            placing.put(&mut space, files[at], &of(files[at]));
            placed[at] = true;
            in_order.push(files[at]);
        }
        if placing.missing > 0 {
            return Err(placing.missing);
        }
        self.assign_attribute_blocks(tree);
        let Placing { starts, scattered, .. } = placing;
        Ok(Places { starts, scattered, files: in_order, taken: space.taken })
    }

    /// The sets in the order of the inodes that have them first: their numbers follow the sources.
    fn sets_in_order(&self, tree: &Tree) -> Vec<usize> {
        let special = [tree.inode_of(ROOT), self.lost_and_found(tree)];
        let mut seen = vec![false; self.sets.len()];
        let all = special.into_iter().chain(self.order.inodes.iter().copied());
        all.map(|id| tree.inode(id).attributes as usize)
            .filter(|set| !std::mem::replace(&mut seen[*set], true))
            .collect()
    }

    fn assign_attribute_blocks(&mut self, tree: &Tree) {
        let mut users = vec![0_u32; self.sets.len()];
        self.attribute_blocks.clear();
        let special = [tree.inode_of(ROOT), self.lost_and_found(tree)];
        for id in special.into_iter().chain(self.order.inodes.iter().copied()) {
            let set = tree.inode(id).attributes as usize;
            if let Some(block) = self.sets[set].blocks.get((users[set] / MAX_REFCOUNT) as usize) {
                self.attribute_blocks.insert(id, *block);
                users[set] += 1;
            }
        }
    }

    /// Where the data of an inode lie, in file order.
    pub fn places(&self, tree: &Tree, id: InodeId) -> Vec<Range<u64>> {
        match (self.scattered.get(&id), self.starts[id as usize]) {
            (Some(scattered), _) => scattered.places.clone(),
            (None, 0) => Vec::new(),
            (None, start) => {
                let runs = data_runs(tree, id, &Shapes(&self.shapes, &self.order));
                vec![start..start + runs.count(self.mapping.block_size.into())]
            }
        }
    }

    /// The first block of a file whose blocks are in a row, without a hole.
    pub fn row(&self, id: InodeId) -> Option<u64> {
        Some(self.starts[id as usize]).filter(|start| *start != 0)
    }

    /// Whether an inode's blocks are not simply in a row, or its map has blocks of its own.
    pub fn is_scattered(&self, id: InodeId) -> bool {
        self.scattered.contains_key(&id)
    }

    /// The extents of an inode, and the blocks of its map.
    pub fn extents(&self, tree: &Tree, id: InodeId) -> (Vec<Extent>, &[u64]) {
        let runs = data_runs(tree, id, &Shapes(&self.shapes, &self.order));
        let nodes = self.scattered.get(&id).map_or(&[][..], |scattered| &scattered.nodes);
        (extents(runs.iter(self.mapping.block_size.into()), &self.places(tree, id)), nodes)
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

fn set_blocks(tree: &Tree, number: usize, set: &SetPlace, block_size: u64) -> u64 {
    let shared = if set.division.block.is_empty() { 0 } else { set.users.div_ceil(MAX_REFCOUNT) };
    let attributes = tree.attributes.get(number as u32);
    let values =
        set.division.values.iter().map(|at| (attributes[*at].value.len() as u64).div_ceil(block_size));
    u64::from(shared) + values.sum::<u64>()
}

/// Block size: as asked for, else by the size asked for, else 4096.
fn block_size(options: &Options, sizing: &Sizing, computed: bool) -> u32 {
    options.block_size.unwrap_or_else(|| match sizing.size.filter(|_| !computed) {
        Some(size) => {
            let by_size = Usage::by_size(size);
            options.usage.last().copied().unwrap_or(by_size).block_size().max(sizing.sector)
        }
        None => options.usage.last().map_or(4096, |usage| usage.block_size()).max(sizing.sector),
    })
}

/// lost+found is made large enough that fsck need not grow it.
const LOST_AND_FOUND_BYTES: u32 = 16 * 1024;

fn shapes(
    tree: &Tree,
    order: &Order,
    rules: &mut Rules,
    options: &mut Options,
    notes: &mut Vec<String>,
) -> Result<Vec<Shape>> {
    let mut shapes = Vec::with_capacity(order.directories.len());
    for directory in &order.directories {
        let lengths = order.entries_of(directory).iter().map(|node| tree.name(*node).len());
        let mut shape = rules.shape(lengths.clone());
        if shape.is_none() && !options.features.iter().any(|edit| edit == "^large_dir") {
            notes.push("a large directory needs the feature large_dir, which is set".to_owned());
            options.features.push("large_dir".to_owned());
            rules.three_levels = true;
            shape = rules.shape(lengths);
        }
        let mut shape = shape.ok_or_else(|| {
            let problem = "more names than a directory holds; use -O large_dir or a larger -b";
            Error::entry(tree.path(directory.node), problem)
        })?;
        if order.number(tree.inode_of(directory.node)) == LOST_AND_FOUND_INO && shape.nodes.is_none() {
            let least = LOST_AND_FOUND_BYTES.div_ceil(rules.block_size as u32);
            shape.leaves = shape.leaves.max(least.clamp(2, ext4_format::indirect::DIRECT));
        }
        shapes.push(shape);
    }
    Ok(shapes)
}

/// Places being found.
struct Placing<'t> {
    tree: &'t Tree,
    mapping: Mapping,
    starts: Vec<u64>,
    scattered: HashMap<InodeId, Scattered>,
    missing: u64,
}

impl Placing<'_> {
    fn take(&mut self, space: &mut Space, count: u64) -> Vec<Range<u64>> {
        space.take(count).unwrap_or_else(|missing| {
            self.missing += missing;
            Vec::new()
        })
    }

    /// Places one inode's blocks.
    fn put(&mut self, space: &mut Space, id: InodeId, runs: &Runs<'_>) {
        let block_size = u64::from(self.mapping.block_size);
        let count = runs.count(block_size);
        if count == 0 {
            return;
        }
        let places = self.take(space, count);
        if places.is_empty() {
            return;
        }
        let in_inode = if self.mapping.extents { 32768 } else { u64::from(ext4_format::indirect::DIRECT) };
        if places.len() == 1 && count <= in_inode && runs.is_dense() {
            self.starts[id as usize] = places[0].start;
            return;
        }
        debug_assert!(self.tree.inode(id).links > 0);
        let nodes = self.mapping.nodes(&extents(runs.iter(block_size), &places));
        let nodes = self.take(space, nodes).into_iter().flatten().collect();
        self.scattered.insert(id, Scattered { places, nodes });
    }
}
