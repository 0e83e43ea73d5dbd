//! A device as it would be after a replay that is not written: for read-only mounts, and for whoever
//! judges a replay before it is.

use std::sync::Arc;

use blockdev::{BlockDevice, DeviceGeometry, Error, Op, Result};
use ext4_format::BlockNo;

use super::Replay;
use crate::bytes::BlockData;

/// Reads show the replayed blocks; every change is refused. The device below must not change.
pub struct Overlay {
    dev: Arc<dyn BlockDevice>,
    block_size: usize,
    replay: Replay,
}

impl Overlay {
    /// Lays `replay`, scanned from `dev`, over it.
    #[must_use]
    pub fn new(dev: Arc<dyn BlockDevice>, block_size: u32, replay: Replay) -> Overlay {
        Overlay { dev, block_size: block_size as usize, replay }
    }

    /// The replay that lies over the device.
    #[must_use]
    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    fn refuse<T>(&self, op: Op, offset: u64, len: u64) -> Result<T> {
        Err(Error { op, offset, len, source: std::io::ErrorKind::ReadOnlyFilesystem.into() })
    }
}

impl BlockDevice for Overlay {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry { read_only: true, discard: false, ..self.dev.geometry() }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.dev.read_at(offset, buf)?;
        let size = self.block_size as u64;
        let end = offset + buf.len() as u64;
        let mut bytes = BlockData::zeroed(self.block_size);
        for block in offset / size..end.div_ceil(size) {
            let Some(read) = self.replay.read(&*self.dev, BlockNo(block), bytes.make_mut()) else { continue };
            read?;
            // The part of this block that was asked for.
            let (from, to) = ((block * size).max(offset), ((block + 1) * size).min(end));
            let part = &bytes[(from - block * size) as usize..(to - block * size) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.refuse(Op::Write, offset, buf.len() as u64)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.refuse(Op::Discard, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.refuse(Op::WriteZeroes, offset, len)
    }
}
