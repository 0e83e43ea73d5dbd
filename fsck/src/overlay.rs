//! A device whose changes stay here: what a check that may write nothing needs to see the volume as it will be
//! after the journal's replay.
//!
//! Changed pages lie in a scratch file with a bound of memory in front of it; all others are read from the
//! device.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use blockdev::{BlockDevice, DeviceGeometry};

use crate::context::lock;
use crate::error::Result;
use crate::scratch::{PAGE, Scratch};

/// Memory for changed pages; more of them go to the scratch file.
const MEMORY: u64 = 16 << 20;

/// A device and the changes that are kept from it.
pub struct Overlay {
    device: Arc<dyn BlockDevice>,
    scratch: Scratch,
    /// Numbers of the pages that were changed.
    changed: Mutex<BTreeSet<u64>>,
}

impl Overlay {
    /// An overlay without changes, with its scratch file in a folder.
    ///
    /// # Errors
    /// The scratch file cannot be made.
    pub fn new(device: Arc<dyn BlockDevice>, folder: &Path) -> Result<Overlay> {
        let scratch = Scratch::create(folder, MEMORY)?;
        Ok(Overlay { device, scratch, changed: Mutex::default() })
    }

    /// Fails when the scratch file has failed at any time.
    ///
    /// # Errors
    /// Its first failure.
    pub fn check(&self) -> Result<()> {
        self.scratch.check()
    }

    /// Changes bytes of one page, which is read from the device first when some of it stays.
    fn change(&self, offset: u64, part: &[u8]) -> blockdev::Result<()> {
        let page = offset / PAGE as u64;
        if lock(&self.changed).insert(page) {
            let start = page * PAGE as u64;
            let len = (self.geometry().size - start).min(PAGE as u64) as usize;
            let mut below = [0; PAGE];
            self.device.read_at(start, &mut below[..len])?;
            self.scratch.with(page, true, |bytes| *bytes = below);
        }
        let at = (offset % PAGE as u64) as usize;
        self.scratch.with(page, true, |bytes| bytes[at..at + part.len()].copy_from_slice(part));
        Ok(())
    }
}

impl BlockDevice for Overlay {
    fn geometry(&self) -> DeviceGeometry {
        DeviceGeometry { read_only: false, discard: false, ..self.device.geometry() }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> blockdev::Result<()> {
        self.device.read_at(offset, buf)?;
        let end = offset + buf.len() as u64;
        let pages: Vec<u64> =
            lock(&self.changed).range(offset / PAGE as u64..end.div_ceil(PAGE as u64)).copied().collect();
        for page in pages {
            let start = page * PAGE as u64;
            let (from, to) = (start.max(offset), (start + PAGE as u64).min(end));
            self.scratch.with(page, false, |bytes| {
                buf[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
            });
        }
        Ok(())
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.device.will_need(offset, len);
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> blockdev::Result<()> {
        self.geometry().check(blockdev::Op::Write, offset, buf.len() as u64)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let len = rest.len().min(PAGE - (at % PAGE as u64) as usize);
            self.change(at, &rest[..len])?;
            (at, rest) = (at + len as u64, &rest[len..]);
        }
        Ok(())
    }

    fn flush(&self) -> blockdev::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> blockdev::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        let zeros = vec![0; PAGE];
        let mut at = 0;
        while at < len {
            let part = (len - at).min(PAGE as u64);
            self.write_at(offset + at, &zeros[..part as usize])?;
            at += part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use blockdev::sim::{Fill, MemDevice};

    use super::*;

    #[test]
    fn changes_are_seen_and_stay_here() {
        let below = Arc::new(MemDevice::new(5 * PAGE as u64 + 512, Fill::Zero));
        below.write_at(0, &vec![7; 5 * PAGE + 512]).unwrap();
        let overlay = Overlay::new(Arc::clone(&below) as _, &std::env::temp_dir()).unwrap();
        overlay.write_at(PAGE as u64 - 3, &[1, 2, 3, 4, 5]).unwrap();
        overlay.write_at(5 * PAGE as u64 + 500, &[9; 12]).unwrap();
        overlay.write_zeroes(3 * PAGE as u64 - 1, 2).unwrap();
        let mut all = vec![0; 5 * PAGE + 512];
        overlay.read_at(0, &mut all).unwrap();
        let mut wanted = vec![7; 5 * PAGE + 512];
        wanted[PAGE - 3..PAGE + 2].copy_from_slice(&[1, 2, 3, 4, 5]);
        wanted[5 * PAGE + 500..].fill(9);
        wanted[3 * PAGE - 1..3 * PAGE + 1].fill(0);
        assert_eq!(all, wanted);
        below.read_at(0, &mut all).unwrap();
        assert!(all.iter().all(|&byte| byte == 7));
        assert!(overlay.write_at(5 * PAGE as u64 + 512, &[1]).is_err());
        overlay.check().unwrap();
    }
}
