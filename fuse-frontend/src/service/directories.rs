//! Listing directories. No state is kept between requests: the cookie of an entry says where to
//! go on, whatever has come and gone meanwhile.

use std::ops::ControlFlow;

use fs_core::{DirItem, Entry};

use super::{Answer, Service, inode_of, refuse};

impl Service {
    /// READDIR from `cookie` on.
    pub fn readdir(
        &self,
        node: u64,
        cookie: u64,
        add: impl FnMut(&DirItem<'_>) -> ControlFlow<()>,
    ) -> Answer<()> {
        self.fs.readdir(inode_of(node)?, cookie, add).map_err(refuse)
    }

    /// READDIRPLUS from `cookie` on. Every entry that `add` takes has one more reference of the
    /// kernel, the dots excepted, which come without attributes.
    pub fn readdir_plus(
        &self,
        node: u64,
        cookie: u64,
        add: impl FnMut(&DirItem<'_>, Option<&Entry>) -> ControlFlow<()>,
    ) -> Answer<()> {
        self.fs.readdir_plus(inode_of(node)?, cookie, add).map_err(refuse)
    }

    /// FSYNCDIR.
    pub fn fsyncdir(&self, node: u64, datasync: bool) -> Answer<()> {
        self.fs.fsyncdir(inode_of(node)?, datasync).map_err(refuse)
    }
}
