//! Windows: free blocks kept for the file that grows right before them, so that files which grow
//! side by side do not interleave. Only in memory: on disk the blocks are free, they count as
//! free, and when nothing else is left they are given to whoever asks.
//!
//! A group's windows are guarded by its lock; the list of all, oldest first, bounds their number.

use std::collections::VecDeque;
use std::ops::Range;

use ext4_format::{GroupNo, Ino};

use super::Allocator;
use super::group::Group;

/// Most files that have a window at a time.
const MAX_WINDOWS: usize = 64;

/// A file that grows at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stream {
    /// The file.
    pub owner: Ino,
    /// How many blocks behind what it gets now are to be kept for it.
    pub ahead: u32,
}

/// Blocks of a group kept for a file.
#[derive(Debug)]
pub(super) struct Window {
    owner: Ino,
    /// Counted from the group's first block.
    pub blocks: Range<u32>,
}

/// All windows: whose, and in which group.
pub(super) type Windows = VecDeque<(Ino, GroupNo)>;

impl Allocator {
    /// Makes the blocks of `owner`'s window in this group free to take. The group's free runs are
    /// in memory.
    pub(super) fn open_window(&self, group: &mut Group, owner: Ino) {
        let Group { windows, blocks: Some(map), .. } = group else { return };
        windows.retain(|window| {
            let own = window.owner == owner;
            if own {
                map.runs.set(window.blocks.clone(), true);
            }
            !own
        });
    }

    /// Keeps what is free in group `no` from `from` on for `stream`. Gives the window that has to
    /// be given up for it once the group's lock is free: an older one of the same file elsewhere,
    /// or the oldest of all.
    pub(super) fn keep_window(
        &self,
        no: GroupNo,
        group: &mut Group,
        stream: Stream,
        from: u32,
    ) -> Option<(Ino, GroupNo)> {
        let Group { windows, blocks: Some(map), .. } = group else { return None };
        let len = map.runs.run_at(from, stream.ahead);
        if len == 0 {
            return None;
        }
        map.runs.set(from..from + len, false);
        windows.push(Window { owner: stream.owner, blocks: from..from + len });
        // Listed before the lock is free, so that whoever gives up all misses none.
        let mut all = self.windows.lock();
        if all.back() == Some(&(stream.owner, no)) {
            return None;
        }
        let before = all.iter().position(|(owner, _)| *owner == stream.owner).and_then(|at| all.remove(at));
        all.push_back((stream.owner, no));
        match before {
            Some((_, elsewhere)) if elsewhere != no => before,
            None if all.len() > MAX_WINDOWS => all.pop_front(),
            _ => None,
        }
    }

    /// `owner` does not grow any more: its window, if it has one, is anybody's.
    pub fn close_stream(&self, owner: Ino) {
        let found = {
            let mut all = self.windows.lock();
            all.iter().position(|(o, _)| *o == owner).and_then(|at| all.remove(at))
        };
        if let Some((owner, no)) = found {
            self.give_up(owner, no);
        }
    }

    /// Gives up every window; whether there was one.
    pub(super) fn give_up_all(&self) -> bool {
        let all = std::mem::take(&mut *self.windows.lock());
        for (owner, no) in &all {
            self.give_up(*owner, *no);
        }
        !all.is_empty()
    }

    /// Gives up `owner`'s window in group `no`. The caller holds no group's lock.
    pub(super) fn give_up(&self, owner: Ino, no: GroupNo) {
        let mut group = self.lock(no);
        match group.blocks {
            Some(_) => self.open_window(&mut group, owner),
            None => group.windows.retain(|window| window.owner != owner),
        }
        self.orders.set(no.0, group.longest());
    }
}
