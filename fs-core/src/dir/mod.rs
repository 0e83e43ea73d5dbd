//! Directories: names in blocks, found by scanning (linear) or by hash (htree).
//!
//! [`Dir`] is one directory in the hands of an operation that holds the inode's lock: shared to
//! look, exclusive to change. Changing goes in steps, so that everything that can fail for want
//! of space or by a damaged block has happened before the first name moves:
//!
//! ```text
//! room(name)          looks: is the name free, where would it go, what does that cost
//! make_room(room)     grows or splits; the directory holds the same names as before
//! insert(spot)        fills a place that is certain to be there, if nothing else came in between
//! ```
//!
//! A directory becomes indexed when its only block overflows. It never shrinks.
//!
//! It knows entries and blocks. It does not know what an entry's inode is, nor link counts nor
//! times: those are the operations'.

mod blocks;
pub mod cookie;
mod find;
mod grow;
mod index;
mod insert;
mod list;

use ext4_format::Ino;
use ext4_format::csum::Csum;
use ext4_format::dirent::{At, DirFormat};
use ext4_format::features::{Compat, Incompat, RoCompat};
use ext4_format::hash::{Hash, HashVersion, name_hash};
use ext4_format::inode::flag;
use ext4_format::superblock::SuperBlock;
use jbd2::Buffer;

use crate::alloc::{Allocator, Depth};
use crate::inode::{Core, Inode, Table};
use crate::volume::Volume;

pub use insert::Room;
pub use list::Item;

/// What a volume says about all its directories.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How entries are written.
    pub format: DirFormat,
    /// Feature `dir_index`.
    pub indexed: bool,
    /// Feature `large_dir`: three levels of index.
    pub large: bool,
    /// Feature `dir_nlink`: a directory may stop counting its subdirectories.
    pub links_uncounted: bool,
    /// Feature `casefold`: directories with the flag compare names by their folded form.
    folds: bool,
    /// How new indexes hash, without the signedness.
    hash_base: HashVersion,
    hash_unsigned: bool,
    hash_seed: [u32; 4],
}

impl Settings {
    /// Reads them from the superblock.
    #[must_use]
    pub fn new(sb: &SuperBlock, csum: &Csum) -> Settings {
        Settings {
            format: DirFormat {
                filetype: sb.incompat().has(Incompat::FILETYPE),
                tail: csum.metadata(),
                hashed: false,
            },
            indexed: sb.compat().has(Compat::DIR_INDEX),
            large: sb.incompat().has(Incompat::LARGEDIR),
            links_uncounted: sb.ro_compat().has(RoCompat::DIR_NLINK),
            folds: sb.incompat().has(Incompat::CASEFOLD),
            hash_base: HashVersion::from_raw(sb.hash_version()).unwrap_or(HashVersion::HalfMd4),
            hash_unsigned: sb.hash_unsigned(),
            hash_seed: sb.hash_seed(),
        }
    }

    /// How a directory hashes that has no index yet.
    fn hash_version(&self) -> HashVersion {
        self.hash_base.with_unsigned(self.hash_unsigned)
    }

    fn hash(&self, version: HashVersion, name: &[u8]) -> Option<Hash> {
        name_hash(version, self.hash_seed, name)
    }
}

/// A directory whose inode's lock the caller holds.
#[derive(Clone, Copy)]
pub struct Dir<'a> {
    settings: &'a Settings,
    vol: &'a Volume,
    alloc: &'a Allocator,
    table: &'a Table,
    inode: &'a Inode,
    depth: Depth,
}

/// An entry that was found. It stays true while the directory's lock is held and nothing is split
/// or removed in between.
#[derive(Clone, Debug)]
pub struct Found {
    /// The inode it names.
    pub ino: Ino,
    buffer: Buffer,
    at: At,
}

impl<'a> Dir<'a> {
    /// The directory `inode`. New blocks are taken at `depth`.
    #[must_use]
    pub fn new(
        settings: &'a Settings,
        vol: &'a Volume,
        alloc: &'a Allocator,
        table: &'a Table,
        inode: &'a Inode,
        depth: Depth,
    ) -> Dir<'a> {
        Dir { settings, vol, alloc, table, inode, depth }
    }

    /// Whether the directory is case-insensitive. Such a directory is read, block by block since its index
    /// hashes folded names, and not changed.
    #[must_use]
    pub fn folds(&self, core: &Core) -> bool {
        self.settings.folds && core.disk.has(flag::CASEFOLD)
    }

    /// Whether the directory has an index that counts.
    fn is_indexed(&self, core: &Core) -> bool {
        self.settings.indexed && core.disk.has(flag::INDEX)
    }
}
