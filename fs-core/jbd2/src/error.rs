//! What can go wrong on this floor.

use std::sync::Arc;

use ext4_format::{BlockNo, Corruption};

/// A failure of the journal or its cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device failed a request.
    #[error(transparent)]
    Io(#[from] blockdev::Error),
    /// A structure on disk contradicts the format.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The journal gave up earlier; nothing will be written any more. Holds the first cause.
    #[error("the journal was aborted: {0}")]
    Aborted(Arc<Error>),
    /// The volume was opened for reading only.
    #[error("the volume is read-only")]
    ReadOnly,
    /// A block beyond the end of the volume.
    #[error("block {block} lies outside the volume")]
    OutOfRange {
        /// The block asked for.
        block: BlockNo,
    },
    /// A handle wanted to change more blocks than it had reserved: a wrong credit formula.
    #[error("a handle ran out of credits at block {block}")]
    OutOfCredits {
        /// The block that did not fit.
        block: BlockNo,
    },
    /// A handle asked for more than a transaction can ever hold.
    #[error("{asked} log blocks asked for, a transaction holds at most {max}")]
    TooManyCredits {
        /// Log blocks that the credits may need, overhead included.
        asked: u64,
        /// The largest transaction of this log.
        max: u64,
    },
    /// A buffer was written to after its block had been forgotten or invalidated.
    #[error("block {block} was forgotten; read or create it again before writing")]
    Forgotten {
        /// The block concerned.
        block: BlockNo,
    },
    /// The log uses something this journal does not implement.
    #[error("unsupported journal feature: {what}")]
    Unsupported {
        /// The feature's name.
        what: String,
    },
    /// The log still holds transactions: recovery has to run first.
    #[error("the journal needs recovery")]
    NeedsRecovery,
    /// Somebody ordered the volume to stop without writing.
    #[error("the volume was shut down")]
    ShutDown,
    /// An observer refused to close a transaction.
    #[error("closing the transaction failed: {0}")]
    Closing(String),
}

impl Error {
    /// The first cause behind an abort, or the error itself.
    #[must_use]
    pub fn root(&self) -> &Error {
        match self {
            Error::Aborted(cause) => cause.root(),
            other => other,
        }
    }
}

/// Result of a journal operation.
pub type Result<T> = std::result::Result<T, Error>;
