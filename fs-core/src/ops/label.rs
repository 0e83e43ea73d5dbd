//! The volume's label, which the superblock and every copy of it hold.

use ext4_format::GroupNo;
use ext4_format::superblock::{SUPERBLOCK_LEN, SuperBlock};
use jbd2::{Checkpoint, Credits, Handle};

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::tx;

/// Superblocks that one transaction changes: without `sparse_super` every group has one.
const BATCH: usize = 32;

impl Filesystem {
    /// The volume's label, at most 16 bytes.
    pub fn label(&self) -> Result<Vec<u8>> {
        self.vol.alive()?;
        Ok(self.vol.sb.lock().volume_name().to_vec())
    }

    /// Gives the volume a label. It is on the device when this returns, where blkid(8) reads it.
    ///
    /// # Errors
    /// `Invalid` for more than 16 bytes.
    pub fn set_label(&self, label: &[u8]) -> Result<()> {
        self.vol.writable()?;
        if label.len() > SuperBlock::LABEL_LEN {
            return Err(Posix::Invalid.into());
        }
        self.edit_superblocks(|sb| sb.set_volume_name(label))
    }

    /// Changes the superblock and its copies, and writes them to their places. A crash may leave the last of
    /// the copies as they were.
    fn edit_superblocks(&self, edit: impl Fn(&mut SuperBlock)) -> Result<()> {
        let geo = &self.vol.geo;
        let groups: Vec<GroupNo> = geo.groups().filter(|group| geo.has_super(*group)).collect();
        for batch in groups.chunks(BATCH) {
            let tx = tx::start(&self.vol.journal, Credits::blocks(batch.len() as u32))?;
            for group in batch {
                match group.0 {
                    0 => self.vol.edit_super(&tx, &edit)?,
                    _ => self.edit_copy(&tx, *group, &edit)?,
                }
            }
            let tid = tx.tid();
            tx.finish()?;
            self.vol.journal.commit(tid)?;
        }
        Ok(self.vol.journal.checkpoint(Checkpoint::All)?)
    }

    /// Changes the copy of the superblock in `group` (one credit). One that is damaged is left to fsck.
    fn edit_copy(&self, handle: &Handle<'_>, group: GroupNo, edit: impl Fn(&mut SuperBlock)) -> Result<()> {
        let Some(block) = self.vol.geo.head(group).superblock else { return Ok(()) };
        let buffer = self.vol.read_meta(block, |_| Ok(()))?;
        let parsed = buffer.data().first_chunk::<SUPERBLOCK_LEN>().map(SuperBlock::parse);
        match parsed {
            Some(Ok(mut sb)) => {
                edit(&mut sb);
                handle.write(&buffer)?[..SUPERBLOCK_LEN].copy_from_slice(&sb.encode());
            }
            Some(Err(damage)) => tracing::warn!(%group, %damage, "a copy of the superblock is not changed"),
            None => {}
        }
        Ok(())
    }
}
