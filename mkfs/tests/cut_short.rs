//! A format that does not come to its end leaves no filesystem behind: neither the old one nor half a new
//! one.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use blockdev::sim::{Fill, MemDevice};
use blockdev::{BlockDevice, DeviceGeometry, Error, Op, Result};
use mkfs::{Kind, Options};

/// Fails every change after the first few.
struct Failing {
    inner: MemDevice,
    left: AtomicUsize,
}

impl Failing {
    fn spend(&self, op: Op, offset: u64, len: u64) -> Result<()> {
        let spent = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        spent.map(|_| ()).map_err(|_| Error { op, offset, len, source: io::Error::other("cut short") })
    }
}

impl BlockDevice for Failing {
    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.spend(Op::Write, offset, buf.len() as u64)?;
        self.inner.write_at(offset, buf)
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.spend(Op::WriteZeroes, offset, len)?;
        self.inner.write_zeroes(offset, len)
    }
}

#[test]
fn nothing_is_recognised_until_the_last_write() {
    let mut options = Options::new(Kind::Ext4, 1_600_000_000);
    options.discard = false;
    let device = MemDevice::new(64 << 20, Fill::Zero);
    mkfs::format(&device, &options).unwrap();
    let old = device.snapshot();
    for changes in 0.. {
        let device = Failing { inner: MemDevice::from_image(old.clone()), left: AtomicUsize::new(changes) };
        let end = mkfs::format(&device, &options);
        let found = mkfs::probe::probe(&device.inner).unwrap();
        match end {
            Ok(_) => {
                assert!(changes > 5 && found.is_some());
                break;
            }
            Err(_) if changes == 0 => assert!(found.is_some(), "nothing had been touched"),
            Err(_) => assert_eq!(found, None, "after {changes} changes"),
        }
    }
}

#[test]
fn the_library_refuses_before_it_writes() {
    let device = MemDevice::new(64 << 20, Fill::Zero);
    let mut options = Options::new(Kind::Ext4, 0);
    options.size = Some(65 << 20);
    assert!(matches!(mkfs::format(&device, &options), Err(mkfs::Error::Options(_))));
    options.size = Some(30 << 10);
    assert!(mkfs::format(&device, &options).is_err());
    assert_eq!(device.snapshot().resident(), 0);
}
