//! Locks that know their place. Every lock of the core has a [`Rank`]; a thread takes locks in
//! rising rank, and locks of one rank in rising key. Debug builds check it on every acquisition,
//! release builds pay nothing.
//!
//! A thread that waits for a condition may hold locks of rank 60 and below, if whoever brings the
//! condition about needs none of them; of those above it holds only the one that it waits with.

#![expect(clippy::disallowed_types, reason = "the locks that the ranked ones are made of")]

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The order of locks, outermost first (ARCHITECTURE.md has the table with what each protects).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rank {
    /// Directory topology in cross-directory renames.
    Rename = 20,
    /// Names of a directory; size and content of a file. Key: see [`RankedRwLock::write_ordered`].
    Inode = 30,
    /// Direct IO in flight against truncate and punch.
    DirectIo = 40,
    /// A journal handle: log space. One per thread.
    Handle = 50,
    /// An inode's extent map and in-core fields.
    Map = 60,
    /// One group's bitmaps and descriptor. Key: the group's number.
    Group = 70,
    /// Cache shards, counters, queues: nothing is taken under them.
    Leaf = 100,
}

/// Proof that this thread holds a rank; dropping it gives the rank up.
#[must_use]
#[derive(Debug)]
pub struct Held {
    #[cfg(debug_assertions)]
    id: u64,
    // Not Send: the rank belongs to the thread that took it.
    _thread: std::marker::PhantomData<*const ()>,
}

#[cfg(debug_assertions)]
mod order {
    use super::Rank;
    use std::cell::{Cell, RefCell};

    thread_local! {
        static STACK: RefCell<Vec<(u64, Rank, u64)>> = const { RefCell::new(Vec::new()) };
        static NEXT: Cell<u64> = const { Cell::new(0) };
    }

    pub fn push(rank: Rank, key: u64, ordered_elsewhere: bool) -> u64 {
        STACK.with_borrow_mut(|stack| {
            if let Some(&(_, r, k)) = stack.iter().max_by_key(|(_, r, k)| (*r, *k)) {
                let allowed = r < rank || (r == rank && (ordered_elsewhere || k < key));
                assert!(allowed, "lock order: {rank:?}/{key} asked for while holding {r:?}/{k}");
            }
            let id = NEXT.get();
            NEXT.set(id + 1);
            stack.push((id, rank, key));
            id
        })
    }

    /// Asserts that `waits_with` is the only lock of a high rank that this thread holds.
    pub fn may_wait(waits_with: u64) {
        STACK.with_borrow(|stack| {
            let others = |(id, rank, _): &&(u64, Rank, u64)| *id != waits_with && *rank >= Rank::Group;
            let held = stack.iter().find(others);
            assert!(held.is_none(), "a condition is waited for while holding {held:?}");
        });
    }

    pub fn pop(id: u64) {
        STACK.with_borrow_mut(|stack| stack.retain(|(i, ..)| *i != id));
    }
}

/// Declares that this thread now holds `rank` by other means than a lock of this module (a
/// journal handle, a count of IO in flight).
pub fn hold(rank: Rank, key: u64) -> Held {
    enter(rank, key, false)
}

fn enter(rank: Rank, key: u64, ordered_elsewhere: bool) -> Held {
    #[cfg(debug_assertions)]
    return Held { id: order::push(rank, key, ordered_elsewhere), _thread: std::marker::PhantomData };
    #[cfg(not(debug_assertions))]
    {
        let _ = (rank, key, ordered_elsewhere);
        Held { _thread: std::marker::PhantomData }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        order::pop(self.id);
    }
}

/// A guard together with the rank it occupies.
#[derive(Debug)]
pub struct Guard<G> {
    // Declared first: the lock is released before the rank.
    guard: G,
    _held: Held,
}

impl<G> Guard<G> {
    fn may_wait(&self) {
        #[cfg(debug_assertions)]
        order::may_wait(self._held.id);
    }
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;
    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

/// A shared guard of a [`RankedRwLock`].
pub type ReadGuard<'a, T> = Guard<RwLockReadGuard<'a, T>>;
/// An exclusive guard of a [`RankedRwLock`].
pub type WriteGuard<'a, T> = Guard<RwLockWriteGuard<'a, T>>;
/// The guard of a [`RankedMutex`].
pub type LockGuard<'a, T> = Guard<MutexGuard<'a, T>>;

/// A mutex with a rank.
#[derive(Debug)]
pub struct RankedMutex<T> {
    rank: Rank,
    key: u64,
    lock: Mutex<T>,
}

impl<T> RankedMutex<T> {
    /// A mutex of `rank`, the only one of its rank that a thread holds at a time.
    pub fn new(rank: Rank, value: T) -> Self {
        Self::keyed(rank, 0, value)
    }

    /// A mutex of `rank` of which several may be held in rising `key`.
    pub fn keyed(rank: Rank, key: u64, value: T) -> Self {
        RankedMutex { rank, key, lock: Mutex::new(value) }
    }

    /// Takes the lock.
    pub fn lock(&self) -> LockGuard<'_, T> {
        let held = hold(self.rank, self.key);
        Guard { guard: self.lock.lock(), _held: held }
    }
}

/// A condition variable for a [`RankedMutex`].
#[derive(Debug, Default)]
pub struct Condvar(parking_lot::Condvar);

impl Condvar {
    /// Waits until somebody notifies; the lock is free meanwhile.
    pub fn wait<T>(&self, guard: &mut LockGuard<'_, T>) {
        guard.may_wait();
        self.0.wait(&mut guard.guard);
    }

    /// The same until `deadline` at most; whether that has passed.
    pub fn wait_until<T>(&self, guard: &mut LockGuard<'_, T>, deadline: Instant) -> bool {
        guard.may_wait();
        self.0.wait_until(&mut guard.guard, deadline).timed_out()
    }

    /// The same for `time` at most; whether that has passed.
    pub fn wait_for<T>(&self, guard: &mut LockGuard<'_, T>, time: Duration) -> bool {
        guard.may_wait();
        self.0.wait_for(&mut guard.guard, time).timed_out()
    }

    /// Wakes one thread that waits.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A reader-writer lock with a rank.
#[derive(Debug)]
pub struct RankedRwLock<T> {
    rank: Rank,
    key: u64,
    lock: RwLock<T>,
}

impl<T> RankedRwLock<T> {
    /// A lock of `rank`; several of one rank are held in rising `key`.
    pub fn keyed(rank: Rank, key: u64, value: T) -> Self {
        RankedRwLock { rank, key, lock: RwLock::new(value) }
    }

    /// Takes the lock shared.
    pub fn read(&self) -> ReadGuard<'_, T> {
        let held = hold(self.rank, self.key);
        Guard { guard: self.lock.read(), _held: held }
    }

    /// Takes the lock exclusively.
    pub fn write(&self) -> WriteGuard<'_, T> {
        let held = hold(self.rank, self.key);
        Guard { guard: self.lock.write(), _held: held }
    }

    /// The same as [`RankedRwLock::write_ordered`] until `deadline` at most.
    pub fn write_ordered_until(&self, deadline: Instant) -> Option<WriteGuard<'_, T>> {
        let held = enter(self.rank, self.key, true);
        Some(Guard { guard: self.lock.try_write_until(deadline)?, _held: held })
    }

    /// Takes the lock exclusively where the caller follows an order of its own among locks of
    /// this rank (ancestors before descendants).
    pub fn write_ordered(&self) -> WriteGuard<'_, T> {
        let held = enter(self.rank, self.key, true);
        Guard { guard: self.lock.write(), _held: held }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::threads::Thread;

    #[test]
    fn rising_ranks_and_rising_keys_pass() {
        let map = RankedRwLock::keyed(Rank::Map, 0, 1);
        let low = RankedMutex::keyed(Rank::Group, 3, 2);
        let high = RankedMutex::keyed(Rank::Group, 4, 3);
        let (a, b, c) = (map.read(), low.lock(), high.lock());
        assert_eq!(*a + *b + *c, 6);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "lock order")]
    fn a_falling_rank_is_caught() {
        let group = RankedMutex::new(Rank::Group, ());
        let map = RankedRwLock::keyed(Rank::Map, 0, ());
        let _group = group.lock();
        let _map = map.read();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "lock order")]
    fn equal_keys_are_caught() {
        let lock = RankedRwLock::keyed(Rank::Inode, 7, ());
        let other = RankedRwLock::keyed(Rank::Inode, 7, ());
        let _a = lock.read();
        let _b = other.read();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "a condition is waited for")]
    fn a_wait_with_another_high_lock_is_caught() {
        let group = RankedMutex::new(Rank::Group, ());
        let leaf = RankedMutex::new(Rank::Leaf, ());
        let _group = group.lock();
        Condvar::default().wait_for(&mut leaf.lock(), Duration::ZERO);
    }

    #[test]
    fn a_wait_ends_with_the_notification_or_the_time() {
        let inode = RankedRwLock::keyed(Rank::Inode, 1, ());
        let shared = Arc::new((RankedMutex::new(Rank::Leaf, false), Condvar::default()));
        let (done, changed) = &*shared;
        let _inode = inode.read();
        assert!(changed.wait_for(&mut done.lock(), Duration::from_millis(1)));
        let other = shared.clone();
        let thread = Thread::spawn("notifier", move || {
            *other.0.lock() = true;
            other.1.notify_all();
        });
        let mut guard = done.lock();
        while !*guard {
            changed.wait(&mut guard);
        }
        drop(guard);
        thread.unwrap().join();
    }

    #[test]
    fn a_rank_is_free_again_after_its_guard() {
        let group = RankedMutex::new(Rank::Group, ());
        drop(group.lock());
        let map = RankedRwLock::keyed(Rank::Map, 0, ());
        drop(map.write());
    }
}
