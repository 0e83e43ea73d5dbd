//! Deliberate faults for the crash lab, which has to catch every one of them. Without the feature
//! `mutants`, as in every program that is installed, [`is`] is `false` at compile time and nothing
//! can switch a fault on.

/// A fault, here or in the filesystem above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mutant {
    /// The commit block is written before the blocks it vouches for.
    CommitBlockFirst = 1,
    /// No flush between a transaction's blocks and its commit block.
    NoFlushBeforeCommit,
    /// No flush after the commit block.
    NoFlushAfterCommit,
    /// Freed blocks that the log holds are not revoked.
    NoRevoke,
    /// A checkpoint moves the tail before the blocks are home.
    TailBeforeHomes,
    /// A hole gets blocks that count as written before their data are.
    WrittenBeforeData,
    /// A deleted or extended file is not recorded as an orphan.
    OrphanForgotten,
    /// fsync does not convert what has completed.
    FsyncSkipsCompleted,
    /// fsync trusts that overwritten data need no flush.
    FsyncSkipsFlush,
    /// An inode read from disk again has forgotten in which transaction it was changed.
    EarlierLifeForgotten,
}

/// Every fault.
pub const ALL: [Mutant; 10] = [
    Mutant::CommitBlockFirst,
    Mutant::NoFlushBeforeCommit,
    Mutant::NoFlushAfterCommit,
    Mutant::NoRevoke,
    Mutant::TailBeforeHomes,
    Mutant::WrittenBeforeData,
    Mutant::OrphanForgotten,
    Mutant::FsyncSkipsCompleted,
    Mutant::FsyncSkipsFlush,
    Mutant::EarlierLifeForgotten,
];

#[cfg(feature = "mutants")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// Switches one fault on in this process, or all off.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.store(mutant.map_or(0, |mutant| mutant as u8), Ordering::SeqCst);
    }

    /// Whether the fault is on.
    #[must_use]
    pub fn is(mutant: Mutant) -> bool {
        ACTIVE.load(Ordering::SeqCst) == mutant as u8
    }
}

#[cfg(feature = "mutants")]
pub use switch::{activate, is};

/// Whether the fault is on: never.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn is(_: Mutant) -> bool {
    false
}
