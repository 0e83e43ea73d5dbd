//! What can go wrong, in four families: the caller's (`Posix`), no room (`NoSpace`), the device
//! (`Io`), and a volume that must not be written to any more (`Corrupt`, `Journal`, `ReadOnly`).
//!
//! `errno` at the end is the only place in the core where an errno value stands.

use ext4_format::{Corruption, Fault};

/// Failures of normal life, each standing for one POSIX answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Posix {
    /// ENOENT
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST
    #[error("file exists")]
    Exists,
    /// ENOTDIR
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR
    #[error("is a directory")]
    IsDirectory,
    /// ENOTEMPTY
    #[error("directory not empty")]
    NotEmpty,
    /// ENAMETOOLONG
    #[error("name too long")]
    NameTooLong,
    /// EINVAL
    #[error("invalid argument")]
    Invalid,
    /// EPERM
    #[error("operation not permitted")]
    NotPermitted,
    /// EACCES
    #[error("permission denied")]
    Access,
    /// EMLINK
    #[error("too many links")]
    TooManyLinks,
    /// EFBIG
    #[error("file too large")]
    FileTooBig,
    /// EXDEV
    #[error("cross-device link")]
    CrossDevice,
    /// EOPNOTSUPP
    #[error("operation not supported")]
    NotSupported,
    /// ENODATA
    #[error("no data available")]
    NoData,
    /// ERANGE
    #[error("result too large for the buffer")]
    Range,
    /// E2BIG
    #[error("argument too large")]
    ArgTooBig,
    /// EBUSY
    #[error("device or resource busy")]
    Busy,
    /// ESTALE
    #[error("stale file handle")]
    Stale,
    /// ENXIO
    #[error("no such device or address")]
    NoDevice,
    /// EOVERFLOW
    #[error("value too large")]
    Overflow,
    /// EAGAIN
    #[error("try again")]
    TryAgain,
    /// ETXTBSY
    #[error("text file busy")]
    TextBusy,
    /// ENOTTY
    #[error("inappropriate ioctl")]
    NotTty,
    /// EBADF
    #[error("not opened for writing")]
    BadHandle,
    /// ELOOP
    #[error("too many symbolic links")]
    TooManySymlinks,
    /// ENOMEM
    #[error("cannot allocate memory")]
    NoMemory,
}

/// Any failure of an operation of the core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller's doing.
    #[error(transparent)]
    Posix(#[from] Posix),
    /// No block or inode is left for this caller.
    #[error("no space left on the volume")]
    NoSpace,
    /// The device failed.
    #[error(transparent)]
    Io(#[from] blockdev::Error),
    /// The volume contradicts the format.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The journal cannot go on, or refused a request.
    #[error(transparent)]
    Journal(jbd2::Error),
    /// The volume is mounted read-only, or became so after an error.
    #[error("the volume is read-only")]
    ReadOnly,
    /// The volume was shut down on request.
    #[error("the volume was shut down")]
    ShutDown,
}

/// Result of an operation of the core.
pub type Result<T> = std::result::Result<T, Error>;

impl From<jbd2::Error> for Error {
    fn from(e: jbd2::Error) -> Self {
        match e {
            jbd2::Error::Io(e) => Error::Io(e),
            jbd2::Error::Corrupt(c) => Error::Corrupt(c),
            jbd2::Error::ReadOnly => Error::ReadOnly,
            e => Error::Journal(e),
        }
    }
}

impl Error {
    /// The same failure once more, for a second one who must be told.
    #[must_use]
    pub fn echo(&self) -> Error {
        match self {
            Error::Posix(p) => Error::Posix(*p),
            Error::NoSpace => Error::NoSpace,
            Error::Io(e) => Error::Io(echo_io(e)),
            Error::Corrupt(c) => Error::Corrupt(c.clone()),
            Error::Journal(_) | Error::ReadOnly => Error::ReadOnly,
            Error::ShutDown => Error::ShutDown,
        }
    }

    /// For the call that met the failure which stopped the journal: the device's own error.
    #[must_use]
    pub fn at_first_sight(self) -> Error {
        match &self {
            Error::Journal(e) => match e.root() {
                jbd2::Error::Io(cause) => Error::Io(echo_io(cause)),
                _ => self,
            },
            _ => self,
        }
    }

    /// The errno that a Linux caller of this operation gets.
    #[must_use]
    pub fn errno(&self) -> i32 {
        use libc as e;
        match self {
            Error::Posix(p) => match p {
                Posix::NotFound => e::ENOENT,
                Posix::Exists => e::EEXIST,
                Posix::NotDirectory => e::ENOTDIR,
                Posix::IsDirectory => e::EISDIR,
                Posix::NotEmpty => e::ENOTEMPTY,
                Posix::NameTooLong => e::ENAMETOOLONG,
                Posix::Invalid => e::EINVAL,
                Posix::NotPermitted => e::EPERM,
                Posix::Access => e::EACCES,
                Posix::TooManyLinks => e::EMLINK,
                Posix::FileTooBig => e::EFBIG,
                Posix::CrossDevice => e::EXDEV,
                Posix::NotSupported => e::EOPNOTSUPP,
                Posix::NoData => e::ENODATA,
                Posix::Range => e::ERANGE,
                Posix::ArgTooBig => e::E2BIG,
                Posix::Busy => e::EBUSY,
                Posix::Stale => e::ESTALE,
                Posix::NoDevice => e::ENXIO,
                Posix::Overflow => e::EOVERFLOW,
                Posix::TryAgain => e::EAGAIN,
                Posix::TextBusy => e::ETXTBSY,
                Posix::NotTty => e::ENOTTY,
                Posix::BadHandle => e::EBADF,
                Posix::TooManySymlinks => e::ELOOP,
                Posix::NoMemory => e::ENOMEM,
            },
            Error::NoSpace => e::ENOSPC,
            Error::Io(cause) if cause.source.kind() == std::io::ErrorKind::OutOfMemory => e::ENOMEM,
            // The server's limit on the size of files, below the size of its image.
            Error::Io(cause) if cause.source.raw_os_error() == Some(e::EFBIG) => e::EFBIG,
            Error::Io(_) | Error::ShutDown => e::EIO,
            // EFSBADCRC and EFSCORRUPTED, as Linux spells them.
            Error::Corrupt(c) => match c.fault {
                Fault::Checksum => e::EBADMSG,
                Fault::Structure => e::EUCLEAN,
            },
            Error::Journal(_) | Error::ReadOnly => e::EROFS,
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        std::io::Error::from_raw_os_error(error.errno())
    }
}

/// Why a volume could not be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The device ends before the superblock does.
    #[error("the device has only {size} bytes; no ext4 volume is that small")]
    TooSmall {
        /// Size of the device in bytes.
        size: u64,
    },
    /// What lies where the superblock should be is none.
    #[error("no ext4 superblock at byte {offset}: {found}")]
    SuperBlock {
        /// Where it was looked for.
        offset: u64,
        /// What is wrong with what lies there.
        found: Corruption,
    },
    /// Features that can be neither read nor written.
    #[error("the volume uses features that rext4 does not support: {}", names.join(" "))]
    Features {
        /// The features, as e2fsprogs spells them.
        names: Vec<String>,
    },
    /// The volume is larger than the device.
    #[error("the volume has {volume} bytes but the device only {device}: the image is truncated")]
    Truncated {
        /// Size that the superblock claims, in bytes.
        volume: u64,
        /// Size of the device, in bytes.
        device: u64,
    },
    /// The journal, or what its log would write, contradicts the volume.
    #[error("the journal contradicts the volume: {found}; check it with fsck.rext4")]
    Journal {
        /// The contradiction.
        found: Corruption,
    },
    /// Multi-mount protection says that another host has the volume mounted, or is checking it.
    #[error("the volume is in use on host '{host}' (device {device})")]
    InUse {
        /// The host, as it calls itself.
        host: String,
        /// The device there.
        device: String,
    },
    /// The options contradict each other or the volume.
    #[error("{0}")]
    Options(&'static str),
    /// The device could not be opened.
    #[error(transparent)]
    Open(#[from] blockdev::OpenError),
    /// Something on the way failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl MountError {
    /// The errno that tells a Linux caller most.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            MountError::TooSmall { .. } | MountError::SuperBlock { .. } | MountError::Options(_) => {
                libc::EINVAL
            }
            MountError::Features { .. } => libc::EOPNOTSUPP,
            MountError::Journal { .. } => libc::EUCLEAN,
            MountError::Truncated { .. } => libc::EINVAL,
            MountError::InUse { .. } => libc::EBUSY,
            MountError::Open(error) => match error {
                blockdev::OpenError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
                blockdev::OpenError::WrongKind { .. } => libc::ENOTBLK,
                blockdev::OpenError::ReadOnlyMedium { .. } => libc::EROFS,
                blockdev::OpenError::Offset { .. } => libc::EINVAL,
                blockdev::OpenError::InUse { .. } => libc::EBUSY,
            },
            MountError::Failed(error) => error.errno(),
        }
    }
}

impl From<MountError> for std::io::Error {
    fn from(error: MountError) -> Self {
        std::io::Error::from_raw_os_error(error.errno())
    }
}

impl From<blockdev::Error> for MountError {
    fn from(e: blockdev::Error) -> Self {
        MountError::Failed(e.into())
    }
}

impl From<jbd2::Error> for MountError {
    fn from(e: jbd2::Error) -> Self {
        MountError::Failed(e.into())
    }
}

impl From<Corruption> for MountError {
    fn from(c: Corruption) -> Self {
        MountError::Failed(c.into())
    }
}

fn echo_io(e: &blockdev::Error) -> blockdev::Error {
    let source = match e.source.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => e.source.kind().into(),
    };
    blockdev::Error { op: e.op, offset: e.offset, len: e.len, source }
}
