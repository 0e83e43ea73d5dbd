//! `-o stats`: counters as an extended attribute of the root directory, which no listing shows:
//! `getfattr --only-values -n rext4.stats /mnt`. One `name: value` a line.

use super::{ROOT_NODE, Service};

const NAME: &[u8] = b"rext4.stats";

impl Service {
    /// The counters, if they are what is asked for and may be shown.
    pub(super) fn stats(&self, node: u64, name: &[u8]) -> Option<Vec<u8>> {
        (self.shows_stats && node == ROOT_NODE && name == NAME).then(|| {
            let geometry = self.fs.device().geometry();
            let counters = self.fs.data_stats();
            // An alignment of one byte means the host's page cache.
            format!(
                "device_sector: {}\ndevice_io_alignment: {}\n{counters}",
                geometry.logical_sector, geometry.direct_align
            )
            .into_bytes()
        })
    }
}
