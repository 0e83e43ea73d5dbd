//! Where a new directory goes: Orlov's policy. Directories at the top of the tree are spread over
//! the volume, so that each has room to grow; others stay near their parent unless its
//! neighbourhood is crowded. It works on flexible groups, whose inode tables lie together.
//! Pure: it sees totals and returns a choice.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ext4_format::group_desc::GroupDesc;

/// What one flexible group has; read without a lock, so only good for choosing.
#[derive(Debug, Default)]
pub(super) struct FlexTotals {
    free_blocks: AtomicU64,
    free_inodes: AtomicU32,
    directories: AtomicU32,
}

impl FlexTotals {
    pub fn add(&self, desc: &GroupDesc) {
        self.free_blocks.fetch_add(desc.free_blocks.into(), Ordering::Relaxed);
        self.free_inodes.fetch_add(desc.free_inodes, Ordering::Relaxed);
        self.directories.fetch_add(desc.used_dirs, Ordering::Relaxed);
    }

    pub fn take_blocks(&self, count: u32) {
        self.free_blocks.fetch_sub(count.into(), Ordering::Relaxed);
    }

    pub fn return_blocks(&self, count: u32) {
        self.free_blocks.fetch_add(count.into(), Ordering::Relaxed);
    }

    pub fn take_inode(&self, directory: bool) {
        self.free_inodes.fetch_sub(1, Ordering::Relaxed);
        self.directories.fetch_add(directory.into(), Ordering::Relaxed);
    }

    pub fn return_inode(&self, directory: bool) {
        self.free_inodes.fetch_add(1, Ordering::Relaxed);
        self.directories.fetch_sub(directory.into(), Ordering::Relaxed);
    }

    fn get(&self) -> Have {
        Have {
            blocks: self.free_blocks.load(Ordering::Relaxed),
            inodes: self.free_inodes.load(Ordering::Relaxed).into(),
            directories: self.directories.load(Ordering::Relaxed).into(),
        }
    }
}

#[derive(Clone, Copy)]
struct Have {
    blocks: u64,
    inodes: u64,
    directories: u64,
}

/// The volume as the policy sees it.
pub(super) struct Policy<'a> {
    pub flex: &'a [FlexTotals],
    pub free_inodes: u64,
    pub free_blocks: u64,
    pub directories: u64,
    pub inodes_per_flex: u64,
    pub blocks_per_flex: u64,
}

impl Policy<'_> {
    fn count(&self) -> u64 {
        self.flex.len().max(1) as u64
    }

    fn around(&self, start: usize) -> impl Iterator<Item = (usize, Have)> + '_ {
        let count = self.flex.len();
        (0..count).map(move |i| (start + i) % count).map(|at| (at, self.flex[at].get()))
    }

    /// The flexible group for a directory at the top: from a random `start`, the one with the
    /// fewest directories among those that have at least the average of inodes and blocks.
    pub fn spread(&self, start: usize) -> Option<usize> {
        let (inodes, blocks) = (self.free_inodes / self.count(), self.free_blocks / self.count());
        self.around(start)
            .filter(|(_, have)| have.inodes > 0 && have.inodes >= inodes && have.blocks >= blocks)
            .min_by_key(|(_, have)| have.directories)
            .map(|(at, _)| at)
            .or_else(|| self.near(start))
    }

    /// The flexible group for a directory whose parent lives in `parent`: the first from there on
    /// that is not much fuller than the average; then any with an average number of free inodes;
    /// then any with one.
    pub fn near(&self, parent: usize) -> Option<usize> {
        let average = self.free_inodes / self.count();
        let most_dirs = self.directories / self.count() + self.inodes_per_flex / 16;
        let least_inodes = average.saturating_sub(self.inodes_per_flex / 4).max(1);
        let least_blocks = (self.free_blocks / self.count()).saturating_sub(self.blocks_per_flex / 4);
        let roomy = |have: &Have| {
            have.directories < most_dirs && have.inodes >= least_inodes && have.blocks >= least_blocks
        };
        let first =
            |fits: &dyn Fn(&Have) -> bool| self.around(parent).find(|(_, have)| fits(have)).map(|(at, _)| at);
        first(&roomy)
            .or_else(|| first(&|have| have.inodes >= average.max(1)))
            .or_else(|| first(&|have| have.inodes > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flex(rows: &[(u32, u32, u32)]) -> Vec<FlexTotals> {
        let totals = |(free_blocks, free_inodes, used_dirs): &(u32, u32, u32)| {
            let all = FlexTotals::default();
            let (free_blocks, free_inodes, used_dirs) = (*free_blocks, *free_inodes, *used_dirs);
            all.add(&GroupDesc { free_blocks, free_inodes, used_dirs, ..GroupDesc::default() });
            all
        };
        rows.iter().map(totals).collect()
    }

    fn policy(flex: &[FlexTotals]) -> Policy<'_> {
        let sum = |get: fn(Have) -> u64| flex.iter().map(|f| get(f.get())).sum();
        Policy {
            flex,
            free_inodes: sum(|h| h.inodes),
            free_blocks: sum(|h| h.blocks),
            directories: sum(|h| h.directories),
            inodes_per_flex: 1000,
            blocks_per_flex: 10000,
        }
    }

    #[test]
    fn the_top_of_the_tree_is_spread() {
        let flex = flex(&[(5000, 900, 10), (5000, 900, 2), (100, 900, 0), (5000, 900, 2)]);
        let policy = policy(&flex);
        assert_eq!(policy.spread(0), Some(1));
        assert_eq!(policy.spread(2), Some(3));
    }

    #[test]
    fn others_stay_with_their_parent_until_it_is_crowded() {
        let flex = flex(&[(5000, 900, 10), (5000, 100, 10), (5000, 900, 400), (5000, 900, 3)]);
        let policy = policy(&flex);
        assert_eq!(policy.near(0), Some(0));
        assert_eq!(policy.near(1), Some(3), "few inodes, then many directories");
        assert_eq!(policy.near(3), Some(3));
    }

    #[test]
    fn the_last_inode_is_found() {
        let flex = flex(&[(0, 0, 10), (0, 0, 10), (0, 1, 10)]);
        assert_eq!(policy(&flex).near(0), Some(2));
        assert_eq!(policy(&flex).spread(1), Some(2));
        let none = [FlexTotals::default(), FlexTotals::default()];
        assert_eq!(policy(&none).spread(1), None);
    }
}
