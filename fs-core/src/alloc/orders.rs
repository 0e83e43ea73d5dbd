//! Which groups may hold a free run of a given size, without taking any group's lock.
//!
//! For each order k there is one bit a group: set when the group's longest run may have 2^k
//! blocks or more. The bits are hints that err on the hopeful side: a group whose bitmap was not
//! looked at yet is credited with all its free blocks in one run. The truth is under the group's
//! lock, and whoever learns it writes it back here. A search of 131072 groups (16 TiB) reads
//! 2048 words.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Orders 0 to 15: a group has fewer than 2^16 blocks.
const ORDERS: usize = 16;

/// The hints of all groups.
#[derive(Debug)]
pub struct GroupOrders {
    /// Per order, one bit a group.
    bits: [Vec<AtomicU64>; ORDERS],
    /// Per group: how many orders have its bit set.
    height: Vec<AtomicU8>,
    groups: u32,
}

/// The smallest order whose runs all hold `want` blocks.
#[must_use]
pub fn order_for(want: u32) -> u32 {
    want.max(1).next_power_of_two().trailing_zeros()
}

impl GroupOrders {
    /// The hints of groups whose longest runs have at most `longest` blocks.
    #[must_use]
    pub fn new(longest: &[u32]) -> GroupOrders {
        let row = |order: usize| {
            let word = |groups: &[u32]| {
                let fits = |(i, longest): (usize, &u32)| u64::from(height(*longest) as usize > order) << i;
                AtomicU64::new(groups.iter().enumerate().map(fits).sum())
            };
            longest.chunks(64).map(word).collect()
        };
        GroupOrders {
            bits: std::array::from_fn(row),
            height: longest.iter().map(|longest| AtomicU8::new(height(*longest))).collect(),
            groups: longest.len() as u32,
        }
    }

    /// Records that the longest run of `group` has at most `longest` blocks. Called under the
    /// group's lock.
    pub fn set(&self, group: u32, longest: u32) {
        let Some(known) = self.height.get(group as usize) else { return };
        let new = height(longest);
        let old = known.swap(new, Ordering::Relaxed);
        let (word, mask) = (group as usize / 64, 1 << (group % 64));
        for order in old..new {
            self.bits[usize::from(order)][word].fetch_or(mask, Ordering::Relaxed);
        }
        for order in new..old {
            self.bits[usize::from(order)][word].fetch_and(!mask, Ordering::Relaxed);
        }
    }

    /// Whether `group` may have anything free.
    #[must_use]
    pub fn has_any(&self, group: u32) -> bool {
        self.height.get(group as usize).is_some_and(|height| height.load(Ordering::Relaxed) > 0)
    }

    /// The groups that may hold a run of 2^`order` blocks, from `start` on and around the end.
    pub fn groups(&self, order: u32, start: u32) -> impl Iterator<Item = u32> + '_ {
        let row = self.bits.get(order as usize);
        let start = start.min(self.groups);
        let upper = row.map(|row| scan(row, start, self.groups));
        let lower = row.map(|row| scan(row, 0, start));
        upper.into_iter().flatten().chain(lower.into_iter().flatten())
    }
}

/// How many orders a run of `longest` blocks can serve.
fn height(longest: u32) -> u8 {
    (u32::BITS - longest.leading_zeros()).min(ORDERS as u32) as u8
}

/// The set bits in `from..to`; each word is read when the scan reaches it.
fn scan(row: &[AtomicU64], from: u32, to: u32) -> impl Iterator<Item = u32> + '_ {
    let mut next = from;
    std::iter::from_fn(move || {
        while next < to {
            let word = row.get(next as usize / 64)?.load(Ordering::Relaxed) >> (next % 64);
            if word == 0 {
                next = (next / 64 + 1) * 64;
                continue;
            }
            next += word.trailing_zeros();
            if next >= to {
                return None;
            }
            next += 1;
            return Some(next - 1);
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(orders: &GroupOrders, order: u32, start: u32) -> Vec<u32> {
        orders.groups(order, start).collect()
    }

    #[test]
    fn a_group_stands_in_every_order_it_can_serve() {
        let mut longest = [0; 200];
        longest[70] = 255;
        let orders = GroupOrders::new(&longest);
        orders.set(3, 1);
        orders.set(199, 32768);
        assert_eq!(all(&orders, 0, 0), [3, 70, 199]);
        assert_eq!(all(&orders, 0, 70), [70, 199, 3]);
        assert_eq!(all(&orders, 0, 71), [199, 3, 70]);
        assert_eq!(all(&orders, 7, 0), [70, 199]);
        assert_eq!(all(&orders, 8, 0), [199]);
        assert_eq!(all(&orders, 15, 199), [199]);
        orders.set(199, 0);
        assert_eq!(all(&orders, 0, 100), [3, 70]);
        assert!(all(&orders, 16, 0).is_empty());
    }

    #[test]
    fn an_order_is_large_enough_for_what_was_asked() {
        assert_eq!([1, 2, 3, 255, 256, 257].map(order_for), [0, 1, 2, 8, 8, 9]);
    }
}
