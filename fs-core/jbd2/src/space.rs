//! What the log holds and how much room is left: the in-memory side of the ring.
//!
//! Invariants (under `Journal::core`):
//! 1. `free` plus the lengths of `logged` is the size of the ring.
//! 2. `logged` is in sequence order without gaps; its first entry is the tail on disk or newer than it,
//!    its last may still be being committed.
//! 3. `home` has exactly the newest *committed* version of each block not written home yet, unless that
//!    block was freed since. It belongs to the list of the transaction that committed it: a transaction
//!    may leave the log when none of its blocks is the newest version any more.
//! 4. `holds` names every block that a replay from the tail on disk, or of what is being written,
//!    could bring back, with the newest transaction that logged it.
//! 5. `in_flight` are the blocks a checkpoint is writing now; no commit may hand one of them back for
//!    reuse before it is out of there.

use std::collections::VecDeque;

use ext4_format::{BlockNo, Tid};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::buffer::Buffer;
use crate::bytes::BlockData;
use crate::transaction::Snapshot;

/// A transaction in the log.
pub(crate) struct Logged {
    pub tid: Tid,
    pub start: u32,
    pub len: u32,
    pub blocks: Vec<BlockNo>,
}

/// A committed version that is not home yet.
struct Version {
    tid: Tid,
    data: BlockData,
    /// Keeps the buffer cached: the device still has older bytes.
    _pin: Buffer,
}

pub(crate) struct Space {
    pub head: u32,
    pub free: u32,
    pub logged: VecDeque<Logged>,
    home: FxHashMap<BlockNo, Version>,
    holds: FxHashMap<BlockNo, Tid>,
    pub in_flight: FxHashSet<BlockNo>,
}

impl Space {
    pub fn new(head: u32, size: u32) -> Space {
        Space {
            head,
            free: size,
            logged: VecDeque::new(),
            home: FxHashMap::default(),
            holds: FxHashMap::default(),
            in_flight: FxHashSet::default(),
        }
    }

    /// Takes `len` blocks at the head for a transaction; `next_head` is the head after them.
    pub fn reserve(&mut self, snapshot: &Snapshot, len: u32, next_head: u32) -> u32 {
        debug_assert!(len <= self.free, "transaction {} was promised more than the log has", snapshot.tid);
        let start = self.head;
        self.head = next_head;
        self.free -= len;
        let blocks: Vec<BlockNo> = snapshot.blocks.iter().map(|(block, _)| *block).collect();
        self.holds.extend(blocks.iter().map(|block| (*block, snapshot.tid)));
        self.logged.push_back(Logged { tid: snapshot.tid, start, len, blocks });
        start
    }

    /// Whether a replay could bring `block` back.
    pub fn holds(&self, block: BlockNo) -> bool {
        self.holds.contains_key(&block)
    }

    /// The transaction is durable: its versions replace older ones, what it freed needs no writing.
    pub fn committed(&mut self, snapshot: Snapshot) {
        for block in &snapshot.forgotten {
            self.home.remove(block);
        }
        for ((block, data), pin) in snapshot.blocks.into_iter().zip(snapshot.pins) {
            self.home.insert(block, Version { tid: snapshot.tid, data, _pin: pin });
        }
    }

    /// Chooses what to write home so that at least `goal` blocks become free: the versions of the oldest
    /// transactions up to `committed`, and how many of those leave the log. They count as in flight.
    pub fn choose(&mut self, goal: u32, committed: Tid) -> (Vec<(BlockNo, BlockData)>, usize) {
        let (mut blocks, mut leaving, mut freed) = (Vec::new(), 0, self.free);
        for logged in self.logged.iter().take_while(|logged| committed.is_at_least(logged.tid)) {
            if freed >= goal {
                break;
            }
            freed += logged.len;
            leaving += 1;
            for block in &logged.blocks {
                if let Some(version) = self.home.get(block).filter(|version| version.tid == logged.tid) {
                    blocks.push((*block, version.data.clone()));
                }
            }
        }
        self.in_flight.extend(blocks.iter().map(|(block, _)| *block));
        (blocks, leaving)
    }

    /// The chosen blocks are home and flushed; versions committed meanwhile stay.
    pub fn landed(&mut self, leaving: usize) {
        for logged in self.logged.iter().take(leaving) {
            for block in &logged.blocks {
                if self.home.get(block).is_some_and(|version| version.tid == logged.tid) {
                    self.home.remove(block);
                }
            }
        }
        self.in_flight.clear();
    }

    /// The tail once the `leaving` oldest transactions are gone: log block and sequence. `next` is the
    /// sequence that follows the newest one logged.
    pub fn tail(&self, leaving: usize, next: Tid) -> (u32, Tid) {
        self.logged.get(leaving).map_or((self.head, next), |logged| (logged.start, logged.tid))
    }

    /// The new tail is durable: the space may be used again.
    pub fn release(&mut self, leaving: usize) {
        for logged in self.logged.drain(..leaving) {
            self.free += logged.len;
            for block in logged.blocks {
                if self.holds.get(&block) == Some(&logged.tid) {
                    self.holds.remove(&block);
                }
            }
        }
    }
}
