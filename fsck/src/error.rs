//! Why a check ends before its last pass.

/// Ends a check, or tells the fast scan that an inode needs the slow one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only between the parallel scan and its caller: something here needs a question, so it is looked at
    /// again.
    #[error("needs a second look")]
    Suspect,
    /// Preening met a problem that it may not fix alone.
    #[error("UNEXPECTED INCONSISTENCY; RUN fsck.rext4 MANUALLY (without -a or -p)")]
    Unexpected,
    /// The user said stop.
    #[error("cancelled")]
    Cancelled {
        /// Whether something was repaired until then.
        changed: bool,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] blockdev::Error),
    /// The volume cannot be checked at all; the text says why.
    #[error("{0}")]
    Unusable(String),
    /// A repair needs a block or an inode, and none is free.
    #[error("there is no free block or inode for the repair")]
    NoSpace,
    /// The journal could not be replayed.
    #[error("the journal cannot be replayed: {0}")]
    Journal(String),
    /// The device of an external journal is missing or another one.
    #[error("the journal's device: {0}")]
    JournalDevice(String),
    /// The scratch file for what does not fit into memory failed.
    #[error("scratch file in {folder}: {source}")]
    Scratch {
        /// Its folder.
        folder: std::path::PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The undo log could not be written; nothing was changed on the device.
    #[error("undo log {path}: {source}")]
    Undo {
        /// The log.
        path: std::path::PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// Result of a step of the check.
pub type Result<T> = std::result::Result<T, Error>;
