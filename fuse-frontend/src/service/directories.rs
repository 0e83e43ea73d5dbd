//! Listing directories. No state is kept between requests: the cookie of an entry says where to
//! go on, whatever has come and gone meanwhile.

use std::ops::ControlFlow;

use fs_core::{DirItem, Entry};

use super::{Answer, Service, inode_of, refuse};

/// Where a door collects the entries of one reply.
pub trait Listing {
    /// Takes one entry, or says that it does not fit.
    fn add(&mut self, item: &DirItem<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(&DirItem<'_>) -> ControlFlow<()>> Listing for F {
    fn add(&mut self, item: &DirItem<'_>) -> ControlFlow<()> {
        self(item)
    }
}

impl Service {
    /// READDIR from `cookie` on.
    pub fn readdir(&self, node: u64, cookie: u64, listing: &mut impl Listing) -> Answer<()> {
        self.fs.readdir(inode_of(node)?, cookie, &mut |item| listing.add(item)).map_err(refuse)
    }

    /// READDIRPLUS from `cookie` on. Every entry that `add` takes has one more reference of the
    /// kernel, the dots excepted, which come without attributes.
    pub fn readdir_plus(
        &self,
        node: u64,
        cookie: u64,
        add: &mut dyn FnMut(&DirItem<'_>, Option<&Entry>) -> ControlFlow<()>,
    ) -> Answer<()> {
        self.fs.readdir_plus(inode_of(node)?, cookie, add).map_err(refuse)
    }

    /// FSYNCDIR.
    pub fn fsyncdir(&self, node: u64, datasync: bool) -> Answer<()> {
        self.fs.fsyncdir(inode_of(node)?, datasync).map_err(refuse)
    }
}
