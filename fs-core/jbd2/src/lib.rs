//! Floor 2: how several blocks change together. Knows no inode.
//!
//! [`Journal`] is a cache of metadata blocks and the transactions over them. An operation opens a
//! [`Handle`], changes blocks through it and closes it; [`Journal::commit`] makes everything up to
//! a transaction durable at once. There are no threads here: commits and checkpoints run in the
//! thread of whoever asks, and any number of threads that ask for the same commit share it.
//!
//! The ext4 superblock's `needs_recovery` flag is not this floor's business: the filesystem sets it
//! when it mounts and clears it after [`Journal::close`].

mod admission;
mod buffer;
mod bytes;
mod cache;
mod checkpoint;
mod commit;
mod error;
mod handle;
mod home;
mod journal;
mod log;
mod map;
pub mod mutants;
pub mod recovery;
mod space;
mod stats;
mod suspend;
mod transaction;

pub use buffer::{Buffer, WriteGuard};
pub use bytes::BlockData;
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use handle::{Credits, Handle};
pub use journal::{CommitObserver, Journal, Options};
pub use log::{LogChecksum, LogFeatures};
pub use map::{LogExtent, LogLocation};
pub use stats::Stats;
