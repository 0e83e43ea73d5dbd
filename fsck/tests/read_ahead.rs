//! Read-ahead: what the passes read in bulk is announced to the device before it is read.

mod support;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use blockdev::sim::{Fill, MemDevice};
use blockdev::{BlockDevice, DeviceGeometry};
use ext4_format::Ino;
use fsck::{Mode, Options};
use support::{Kind, Volume, filled};

/// Bytes of a block of the volumes here.
const BLOCK: u64 = 1024;

/// Notes which blocks were announced, and which were read before they were.
struct Listening {
    device: MemDevice,
    announced: Mutex<HashSet<u64>>,
    read_first: Mutex<HashSet<u64>>,
}

fn blocks(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / BLOCK..(offset + len).div_ceil(BLOCK)
}

impl BlockDevice for Listening {
    fn geometry(&self) -> DeviceGeometry {
        self.device.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> blockdev::Result<()> {
        let announced = self.announced.lock().unwrap();
        let unheard = blocks(offset, buf.len() as u64).filter(|block| !announced.contains(block));
        self.read_first.lock().unwrap().extend(unheard);
        self.device.read_at(offset, buf)
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.announced.lock().unwrap().extend(blocks(offset, len));
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> blockdev::Result<()> {
        self.device.write_at(offset, buf)
    }

    fn flush(&self) -> blockdev::Result<()> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        self.device.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        self.device.write_zeroes(offset, len)
    }
}

#[test]
fn tables_trees_directories_and_bitmaps_are_announced() {
    // Many small groups: bitmaps are announced 32 groups ahead.
    for options in ["-t ext4 -b 1024 -g 256 -N 2048", "-t ext3 -b 1024 -g 256 -N 2048"] {
        let Some(image) = filled(options, 16) else { return };
        let device = Arc::new(Listening {
            device: MemDevice::new(image.len() as u64, Fill::Zero),
            announced: Mutex::default(),
            read_first: Mutex::default(),
        });
        device.device.write_at(0, &image).unwrap();
        let options = Options { mode: Mode::CheckOnly, force: true, threads: 1, ..Options::default() };
        assert_eq!(fsck::check(Arc::clone(&device) as _, &options).unwrap().count, 0);
        let read_first = device.read_first.lock().unwrap();
        let volume = Volume::new(&image).unwrap();
        assert!(volume.geometry.group_count > 40);
        // The journal is read before the passes.
        let journal = volume.mapped(&volume.inode(Ino::JOURNAL).unwrap()).1;
        let mut kinds = HashSet::new();
        for (block, kind) in volume.metadata().into_iter().filter(|(block, _)| !journal.contains(block)) {
            let bulk = match kind {
                Kind::InodeTable(group) => group > 0,
                Kind::BlockBitmap(group) | Kind::InodeBitmap(group) => group >= 32,
                Kind::Extent(..) | Kind::Indirect => true,
                Kind::Dir(..) | Kind::HtreeRoot(..) | Kind::HtreeNode(..) => true,
                _ => false,
            };
            assert!(!bulk || !read_first.contains(&block), "block {block}: {kind:?}");
            if bulk {
                kinds.insert(std::mem::discriminant(&kind));
            }
        }
        assert!(kinds.len() >= 6, "tables, two bitmaps, trees, directories and indexes");
    }
}
