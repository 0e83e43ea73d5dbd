//! The device as the checker uses it: whole blocks, every write saved in the undo log first, and a note
//! whether anything was written at all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockdev::BlockDevice;
use ext4_format::BlockNo;

use crate::error::Result;
use crate::overlay::Overlay;
use crate::undo::UndoLog;

/// The device behind a check.
pub struct Disk {
    device: Arc<dyn BlockDevice>,
    block_size: u32,
    undo: Option<Arc<UndoLog>>,
    changed: Arc<AtomicBool>,
    overlay: Option<Arc<Overlay>>,
    reads_ahead: bool,
}

impl Disk {
    /// The device, the log that keeps what is overwritten, and where it is noted that something was.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>, undo: Option<Arc<UndoLog>>, changed: Arc<AtomicBool>) -> Disk {
        Disk { device, block_size: 1024, undo, changed, overlay: None, reads_ahead: true }
    }

    /// The same without word to the device of what will be read soon.
    #[must_use]
    pub fn without_read_ahead(self) -> Disk {
        Disk { reads_ahead: false, ..self }
    }

    /// The same device for another look, which notes its changes elsewhere.
    #[must_use]
    pub fn again(&self, changed: &Arc<AtomicBool>) -> Disk {
        Disk::new(Arc::clone(&self.device), self.undo.clone(), Arc::clone(changed))
    }

    /// The same with an overlay that takes the changes: for a check that may write nothing.
    ///
    /// # Errors
    /// The overlay's scratch file cannot be made in the folder.
    pub fn overlaid(self, folder: &Path) -> Result<Disk> {
        let overlay = Arc::new(Overlay::new(self.device, folder)?);
        Ok(Disk { device: Arc::clone(&overlay) as _, overlay: Some(overlay), ..self })
    }

    /// Fails when what the overlay keeps was lost.
    ///
    /// # Errors
    /// The first failure of its scratch file.
    pub fn check_overlay(&self) -> Result<()> {
        self.overlay.as_ref().map_or(Ok(()), |overlay| overlay.check())
    }

    /// Sets the size of a block, once the superblock has told it.
    pub fn set_block_size(&mut self, block_size: u32) {
        self.block_size = block_size;
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size as usize
    }

    /// Bytes of the device.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.device.geometry().size
    }

    /// Whether anything was written to the device.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.overlay.is_none() && self.changed.load(Ordering::Relaxed)
    }

    /// The device itself, for the journal's replay. The undo log sees what is written through it only when
    /// [`Disk::save`] was told before.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Notes that something was written around this type.
    pub fn note_change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Fills `buf` from a byte offset.
    ///
    /// # Errors
    /// The device's.
    pub fn read_bytes(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.device.read_at(offset, buf)?)
    }

    /// One or more blocks, as many as `buf` holds.
    ///
    /// # Errors
    /// The device's.
    pub fn read_into(&self, block: BlockNo, buf: &mut [u8]) -> Result<()> {
        self.read_bytes(block.0.saturating_mul(self.block_size.into()), buf)
    }

    /// Says that blocks will be read soon: the device may fetch them meanwhile.
    pub fn will_need(&self, block: BlockNo, count: u64) {
        if !self.reads_ahead {
            return;
        }
        let size = u64::from(self.block_size);
        self.device.will_need(block.0.saturating_mul(size), count.saturating_mul(size));
    }

    /// One block.
    ///
    /// # Errors
    /// The device's.
    pub fn read(&self, block: BlockNo) -> Result<Vec<u8>> {
        let mut buf = vec![0; self.block_size()];
        self.read_into(block, &mut buf)?;
        Ok(buf)
    }

    /// Keeps blocks in the undo log that someone else is about to overwrite.
    ///
    /// # Errors
    /// The device's or the undo log's.
    pub fn save(&self, block: BlockNo, count: u64) -> Result<()> {
        let size = u64::from(self.block_size);
        match &self.undo {
            Some(undo) => undo.save(&*self.device, block.0.saturating_mul(size), count * size),
            None => Ok(()),
        }
    }

    /// Writes at a byte offset, after the old bytes are in the undo log.
    ///
    /// # Errors
    /// The device's or the undo log's.
    pub fn write_bytes(&self, offset: u64, buf: &[u8]) -> Result<()> {
        if let Some(undo) = &self.undo {
            undo.save(&*self.device, offset, buf.len() as u64)?;
        }
        self.note_change();
        Ok(self.device.write_at(offset, buf)?)
    }

    /// Writes one or more blocks.
    ///
    /// # Errors
    /// The device's or the undo log's.
    pub fn write(&self, block: BlockNo, buf: &[u8]) -> Result<()> {
        self.write_bytes(block.0.saturating_mul(self.block_size.into()), buf)
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// The device's.
    pub fn flush(&self) -> Result<()> {
        Ok(self.device.flush()?)
    }

    /// Gives blocks back to the device.
    ///
    /// # Errors
    /// The device's.
    pub fn discard(&self, block: BlockNo, count: u64) -> Result<()> {
        let size = u64::from(self.block_size);
        Ok(self.device.discard(block.0 * size, count * size)?)
    }
}
