//! Where every block of a tree goes, in the free blocks of a volume.

use std::collections::HashMap;
use std::ops::Range;

use ext4_format::inode::FileType;
use ext4_format::xattr::MAX_REFCOUNT;

use super::mapping::{Mapping, extents};
use super::order::FIRST_INO;
use super::plan::{Plan, Runs, Scattered, Shapes, data_runs};
use super::space::Space;
use super::tree::{InodeId, ROOT, Tree};
use crate::volume::Volume;

/// Files looked through for one that fills a gap.
const LOOK_AHEAD: usize = 4096;

/// Where one attempt put everything.
pub(super) struct Places {
    pub(super) starts: Vec<u64>,
    pub(super) scattered: HashMap<InodeId, Scattered>,
    pub(super) files: Vec<InodeId>,
    pub(super) taken: Vec<Range<u64>>,
}

impl Plan {
    /// Places everything in the free blocks of a volume, or says how many blocks are missing.
    pub(super) fn place(&mut self, tree: &Tree, volume: &Volume) -> std::result::Result<Places, u64> {
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
