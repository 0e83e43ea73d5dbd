//! Why a volume was not made.

use ext4_format::Corruption;
use ext4_format::geometry::PlanError;

/// Why a volume was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options contradict each other, the device or the format. The text says how.
    #[error("{0}")]
    Options(String),
    /// The device is too small for a filesystem of this layout.
    #[error("too small: {blocks} blocks of {block_size} bytes do not hold a filesystem")]
    TooSmall {
        /// Blocks there are.
        blocks: u64,
        /// Their size.
        block_size: u32,
    },
    /// More inodes than the groups can hold.
    #[error("too many inodes ({inodes}): raise the inode ratio (-i) or lower the inode count (-N)")]
    TooManyInodes {
        /// Inodes asked for.
        inodes: u64,
    },
    /// The device cannot be written.
    #[error("the device cannot be written")]
    ReadOnly,
    /// A group has no room for its metadata.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No free block is left for the first files.
    #[error("no space left for {what}")]
    NoSpace {
        /// What was being placed.
        what: &'static str,
    },
    /// The superblock that the options lead to is not a valid one.
    #[error("these options make no valid filesystem")]
    Format(#[from] Corruption),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] blockdev::Error),
}

/// Result of making a volume.
pub type Result<T> = std::result::Result<T, Error>;
