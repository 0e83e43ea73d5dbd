//! A disk in memory. Every request is atomic and a flush does nothing: losing writes is the business of
//! the recorder and the crash states made from its log.

use parking_lot::RwLock;

use super::image::{Fill, Image};
use crate::{BlockDevice, DeviceGeometry, Op, Result};

/// What discarded bytes read as: neither the old data nor zeros, since the contract promises neither.
pub(crate) const DISCARDED: Fill = Fill::Stale(0xd15c);

/// An [`Image`] behind a lock.
pub struct MemDevice {
    image: RwLock<Image>,
    geometry: DeviceGeometry,
}

impl MemDevice {
    /// A device of `size` bytes that reads as `fill`, with sectors of 512 bytes.
    #[must_use]
    pub fn new(size: u64, fill: Fill) -> MemDevice {
        MemDevice::from_image(Image::new(size, fill))
    }

    /// A device that starts as `image`, with sectors of 512 bytes.
    #[must_use]
    pub fn from_image(image: Image) -> MemDevice {
        let geometry = DeviceGeometry {
            size: image.size(),
            logical_sector: 512,
            direct_align: 1,
            read_only: false,
            discard: true,
        };
        MemDevice { image: RwLock::new(image), geometry }
    }

    /// The same with another geometry; the size stays the image's.
    #[must_use]
    pub fn with_geometry(self, geometry: DeviceGeometry) -> MemDevice {
        let size = self.geometry.size;
        MemDevice { geometry: DeviceGeometry { size, ..geometry }, ..self }
    }

    /// What it holds now; later writes do not change the copy.
    #[must_use]
    pub fn snapshot(&self) -> Image {
        self.image.read().clone()
    }
}

impl BlockDevice for MemDevice {
    fn geometry(&self) -> DeviceGeometry {
        self.geometry
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.geometry.check(Op::Read, offset, buf.len() as u64)?;
        self.image.read().read(offset, buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.geometry.check(Op::Write, offset, buf.len() as u64)?;
        self.image.write().write(offset, buf);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.geometry.check(Op::Discard, offset, len)?;
        self.image.write().fill(offset, len, DISCARDED);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.geometry.check(Op::WriteZeroes, offset, len)?;
        self.image.write().fill(offset, len, Fill::Zero);
        Ok(())
    }
}
