//! Why an image was not built.

use std::io;
use std::path::{Path, PathBuf};

use crate::show_path;

/// Why an image was not built. Nothing is left under the image's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of the host cannot be read.
    #[error("cannot read {}: {source}", show_path(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file of the host cannot be written.
    #[error("cannot write {}: {source}", show_path(path))]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file is not what it was when the folder was listed.
    #[error("{} changed while it was read", show_path(path))]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// An archive that cannot be understood, or that ends too early.
    #[error("{}: {problem}", show_path(archive))]
    Archive {
        /// The archive.
        archive: PathBuf,
        /// What is wrong, and with which member.
        problem: String,
    },
    /// An entry that an ext4 volume cannot hold.
    #[error("{}: {problem}", name.escape_ascii())]
    Entry {
        /// Its path in the image.
        name: Vec<u8>,
        /// What is wrong with it.
        problem: String,
    },
    /// An OCI image or `docker save` archive that cannot be understood.
    #[error("{}: {problem}", show_path(image))]
    Image {
        /// The folder or archive.
        image: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A line of a specification file.
    #[error("{}:{line}: {problem}", show_path(file))]
    Spec {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The tree needs more than the size that was asked for.
    #[error(
        "the tree does not fit: it needs {needed} bytes ({blocks} blocks of {block_size} bytes and {inodes} inodes), \
         the image has {available}; give a larger size or none"
    )]
    DoesNotFit {
        /// Bytes of the smallest image that holds the tree with these options.
        needed: u64,
        /// Blocks of the tree.
        blocks: u64,
        /// Their size in bytes.
        block_size: u32,
        /// Inodes of the tree.
        inodes: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// The sources hold more than `max_size` allows.
    #[error("{what} grows past the limit of {limit} bytes (--max-size)")]
    TooLarge {
        /// What was being read or built.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Options that contradict each other.
    #[error("{0}")]
    Options(String),
    /// The volume could not be laid out or written.
    #[error(transparent)]
    Volume(#[from] crate::Error),
    /// The image cannot be opened.
    #[error(transparent)]
    Open(#[from] blockdev::OpenError),
}

/// Result of building an image.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn read(path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::Read { path: path.as_ref().to_owned(), source: source.into() }
    }

    pub(super) fn write(path: impl AsRef<Path>, source: impl Into<io::Error>) -> Error {
        Error::Write { path: path.as_ref().to_owned(), source: source.into() }
    }

    pub(super) fn entry(name: impl Into<Vec<u8>>, problem: impl Into<String>) -> Error {
        Error::Entry { name: name.into(), problem: problem.into() }
    }
}

impl From<blockdev::Error> for Error {
    fn from(error: blockdev::Error) -> Error {
        Error::Volume(error.into())
    }
}
