//! What the image will be like before any of it is written: block and inode counts, the size, and the place
//! of every block.

use std::collections::HashMap;
use std::ops::Range;

use ext4_format::dirent::DirFormat;
use ext4_format::extent::Extent;
use ext4_format::features::{Compat, Incompat, RoCompat};
use ext4_format::inode::{MAX_FAST_SYMLINK, MAX_LINKS};
use ext4_format::xattr::MAX_REFCOUNT;

use super::attributes::Division;
use super::content::{Run, SparseMap, runs};
use super::directory::{Rules, Shape};
use super::error::{Error, Result};
use super::mapping::{Mapping, extents};
use super::order::{FIRST_INO, Hashing, LOST_AND_FOUND_INO, Order};
use super::tree::{Body, InodeId, ROOT, Tree};
use crate::options::{Features, Options};
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
    pub(super) options: Options,
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
    pub(super) starts: Vec<u64>,
    pub(super) scattered: HashMap<InodeId, Scattered>,
}
/// Data blocks of an inode.
pub(super) fn data_runs<'t>(tree: &'t Tree, id: InodeId, shapes: &Shapes<'_>) -> Runs<'t> {
    let inode = tree.inode(id);
    match inode.body {
        Body::File(_) => Runs::File(inode.size, map_of(tree, id)),
        Body::Directory(_) => Runs::Whole(shapes.0[shapes.1.directory(id)].blocks().into()),
        Body::Symlink(_, len) => Runs::Whole(u64::from(usize::from(len) > MAX_FAST_SYMLINK)),
        _ => Runs::Whole(0),
    }
}

pub(super) struct Shapes<'p>(pub &'p [Shape], pub &'p Order);

pub(super) enum Runs<'t> {
    File(u64, Option<&'t SparseMap>),
    Whole(u64),
}

impl<'t> Runs<'t> {
    pub(super) fn iter(&self, block_size: u64) -> Box<dyn Iterator<Item = Run> + 't> {
        match *self {
            Runs::File(size, map) => Box::new(runs(size, map, block_size)),
            Runs::Whole(0) => Box::new(std::iter::empty()),
            Runs::Whole(len) => Box::new(std::iter::once(Run { first: 0, len })),
        }
    }

    pub(super) fn count(&self, block_size: u64) -> u64 {
        match *self {
            Runs::File(size, None) => size.div_ceil(block_size),
            Runs::File(..) => self.iter(block_size).map(|run| run.len).sum(),
            Runs::Whole(len) => len,
        }
    }

    pub(super) fn is_dense(&self) -> bool {
        !matches!(self, Runs::File(_, Some(_)))
    }
}

/// The map of a sparse file.
pub fn map_of(tree: &Tree, id: InodeId) -> Option<&SparseMap> {
    tree.inode(id).map.map(|map| &tree.maps[map.get() as usize - 1])
}

impl Plan {
    /// Numbers and measures a tree for a volume with these options; nothing has a place yet. `notes` gets
    /// what the user should know.
    pub fn new(
        tree: &Tree,
        mut options: Options,
        block_size: u32,
        seed: [u32; 4],
        notes: &mut Vec<String>,
    ) -> Result<Plan> {
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
        Ok(plan)
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
    pub(super) fn inodes(&self) -> u64 {
        u64::from(FIRST_INO) - 1 + self.order.inodes.len() as u64 + u64::from(self.value_inodes)
    }

    /// Blocks of the tree, but for the maps of files that will be scattered.
    pub(super) fn blocks(&self, tree: &Tree) -> u64 {
        let block_size = u64::from(self.mapping.block_size);
        let shapes = Shapes(&self.shapes, &self.order);
        let ids = || self.order.inodes.iter().copied();
        let special = [tree.inode_of(ROOT), self.lost_and_found(tree)];
        let mut blocks = 0;
        for id in special.into_iter().chain(ids()) {
            let runs = data_runs(tree, id, &shapes);
            blocks += runs.count(block_size);
            if !runs.is_dense() || !self.mapping.extents || tree.inode(id).size > 4 * 32768 * block_size {
                let whole = 0..u64::MAX;
                blocks += self.mapping.nodes(&extents(runs.iter(block_size), std::slice::from_ref(&whole)));
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
    /// Where the data of an inode lie, in file order.
    pub fn places(&self, tree: &Tree, id: InodeId) -> Vec<Range<u64>> {
        match (self.scattered.get(&id), self.starts[id as usize]) {
            (Some(scattered), _) => scattered.places.clone(),
            (None, 0) => Vec::new(),
            (None, start) => {
                let runs = data_runs(tree, id, &Shapes(&self.shapes, &self.order));
                Vec::from_iter(std::iter::once(start..start + runs.count(self.mapping.block_size.into())))
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

fn set_blocks(tree: &Tree, number: usize, set: &SetPlace, block_size: u64) -> u64 {
    let shared = if set.division.block.is_empty() { 0 } else { set.users.div_ceil(MAX_REFCOUNT) };
    let attributes = tree.attributes.get(number as u32);
    let values =
        set.division.values.iter().map(|at| (attributes[*at].value.len() as u64).div_ceil(block_size));
    u64::from(shared) + values.sum::<u64>()
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
