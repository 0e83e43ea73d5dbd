//! Listing directories. No state is kept between requests: the cookie of an entry says where to
//! go on, whatever has come and gone meanwhile.

use std::ops::ControlFlow;

use fs_core::{Attr, DirItem};

use super::{Answer, Service, refuse};

impl Service {
    /// READDIR from `cookie` on.
    pub fn readdir(
        &self,
        node: u64,
        cookie: u64,
        add: impl FnMut(&DirItem<'_>) -> ControlFlow<()>,
    ) -> Answer<()> {
        self.nodes.get(node)?.dir()?.list(cookie, add).map_err(refuse)
    }

    /// READDIRPLUS from `cookie` on. Every entry that `add` takes has one more reference of the
    /// kernel, the dots excepted, which come without attributes.
    pub fn readdir_plus(
        &self,
        node: u64,
        cookie: u64,
        mut add: impl FnMut(&DirItem<'_>, Option<&Attr>) -> ControlFlow<()>,
    ) -> Answer<()> {
        let known = self.nodes.get(node)?;
        let listed = known.dir()?.list_nodes(cookie, |item, child| {
            let attr = child.as_ref().and_then(|child| child.attributes().ok());
            let given = add(item, attr.as_ref());
            if let Some(child) = child
                && given.is_continue()
                && attr.is_some()
                && !matches!(item.name, b"." | b"..")
            {
                self.nodes.remember(child);
            }
            given
        });
        listed.map_err(refuse)
    }

    /// FSYNCDIR.
    pub fn fsyncdir(&self, node: u64, datasync: bool) -> Answer<()> {
        self.nodes.get(node)?.node().sync(datasync).map_err(refuse)
    }
}
