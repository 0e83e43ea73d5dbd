//! Hostile images: the work they cause is bounded by their size, in reads and in memory.

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use assert_cmd::cargo::cargo_bin;
use blockdev::sim::{Fill, MemDevice};
use blockdev::{BlockDevice, DeviceGeometry};
use ext4_format::extent::{Extent, Index, NodeMut};
use ext4_format::inode::{FileType, Inode, InodeLayout, flag};
use ext4_format::{BlockNo, FileBlock, Ino};
use fsck::{Mode, Options};
use support::{Kind, Volume, fix_sum};

/// Counts what is read and written.
struct Counted {
    device: MemDevice,
    bytes: AtomicU64,
}

impl BlockDevice for Counted {
    fn geometry(&self) -> DeviceGeometry {
        self.device.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> blockdev::Result<()> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.device.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> blockdev::Result<()> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
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

/// Bytes read and written by a check, per byte of the image.
fn cost(image: &[u8], mode: Mode) -> u64 {
    let device =
        Arc::new(Counted { device: MemDevice::new(image.len() as u64, Fill::Zero), bytes: 0.into() });
    device.device.write_at(0, image).unwrap();
    let options = Options { mode, force: true, threads: 1, ..Options::default() };
    match fsck::check(Arc::clone(&device) as _, &options) {
        Ok(report) => assert!(report.count > 0, "nothing was found"),
        // What is broken everywhere may need more room than there is.
        Err(error) => assert!(mode == Mode::Yes && matches!(error, fsck::Error::Unusable(_)), "{error}"),
    }
    device.bytes.load(Ordering::Relaxed) / image.len() as u64
}

const SIZE: u64 = 16 << 20;

fn base(options: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let made = Command::new("mke2fs").arg("-Fq").args(options.split(' ')).arg(file.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(file.path()).unwrap()
}

/// An image that is being made hostile.
struct Forge {
    before: Vec<u8>,
    image: Vec<u8>,
}

impl Forge {
    fn new(options: &str) -> Forge {
        let image = base(options);
        Forge { before: image.clone(), image }
    }

    fn volume(&self) -> Volume<'_> {
        Volume::new(&self.before).unwrap()
    }

    fn size(&self) -> usize {
        self.volume().geometry.block_size as usize
    }

    /// A block that nothing uses yet.
    fn free(&self, at: u64) -> u64 {
        self.volume().geometry.blocks_count / 2 + at
    }

    fn block(&mut self, block: u64, bytes: &[u8]) {
        let at = block as usize * self.size();
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes inodes from 12 on, all alike, with the group's bookkeeping left as it is: none unused is
    /// promised.
    fn inodes(&mut self, count: u32, shape: impl Fn(u32, &mut Inode)) {
        let before = self.before.clone();
        let volume = Volume::new(&before).unwrap();
        let layout = InodeLayout::new(&volume.sb);
        for number in 12..12 + count {
            let ino = Ino::new(number).unwrap();
            let Some(at) = volume.inode_offset(ino) else { break };
            let mut inode = Inode::decode_damaged(&[], &layout);
            (inode.mode, inode.links) = (FileType::Regular.mode_bits() | 0o644, 1);
            shape(number, &mut inode);
            let record = &mut self.image[at..at + volume.geometry.inode_size];
            inode.encode_into(record, &layout);
            volume.csum.set_inode(record, ino);
        }
    }
}

/// A root with these extents or nodes.
fn tree(depth: u16, extents: &[Extent], nodes: &[Index]) -> [u8; 60] {
    let mut root = [0; 60];
    let mut node = NodeMut::init(&mut root, depth);
    extents.iter().enumerate().for_each(|(at, extent)| assert!(node.insert(at, *extent)));
    nodes.iter().enumerate().for_each(|(at, index)| assert!(node.insert(at, *index)));
    root
}

fn extent(first: u32, len: u32, start: u64) -> Extent {
    Extent { first: FileBlock(first), len, start: BlockNo(start), unwritten: false }
}

const PLAIN: &str = "-t ext4 -b 1024 -N 4096 -O ^metadata_csum,^uninit_bg,^has_journal,^64bit,^resize_inode";

/// Hostile images by name.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = Vec::new();

    // Trees whose nodes lead back to themselves and to each other.
    let mut forge = Forge::new(PLAIN);
    let (one, two) = (forge.free(0), forge.free(1));
    for (block, other) in [(one, two), (two, one)] {
        let mut bytes = vec![0; forge.size()];
        let mut node = NodeMut::init(&mut bytes, 1);
        for at in 0..80 {
            let child = if at % 2 == 0 { block } else { other };
            assert!(node.insert(at, Index { first: FileBlock(at as u32 * 1000), child: BlockNo(child) }));
        }
        forge.block(block, &bytes);
    }
    forge.inodes(3000, |_, inode| {
        inode.flags = flag::EXTENTS;
        inode.size = 1 << 30;
        inode.block = tree(2, &[], &[Index { first: FileBlock(0), child: BlockNo(one) }]);
    });
    all.push(("nodes that lead to each other", forge.image));

    // Every inode claims the whole volume, four times over.
    let mut forge = Forge::new(PLAIN);
    forge.inodes(4000, |_, inode| {
        inode.flags = flag::EXTENTS;
        inode.size = 1 << 25;
        let whole: Vec<Extent> = (0..4).map(|at| extent(at * 16000, 16000, 100)).collect();
        inode.block = tree(0, &whole, &[]);
    });
    all.push(("everything claimed by everybody", forge.image));

    // Directories that share one leaf full of extents, each of which maps the same blocks.
    let mut forge = Forge::new(PLAIN);
    let leaf = forge.free(0);
    let mut bytes = vec![0; forge.size()];
    let mut node = NodeMut::init(&mut bytes, 0);
    for at in 0..80 {
        assert!(node.insert(at, extent(at as u32 * 8000, 8000, 200)));
    }
    forge.block(leaf, &bytes);
    forge.inodes(4000, |_, inode| {
        inode.mode = FileType::Directory.mode_bits() | 0o755;
        inode.flags = flag::EXTENTS;
        inode.size = 80 * 8000 * 1024;
        inode.block = tree(1, &[], &[Index { first: FileBlock(0), child: BlockNo(leaf) }]);
    });
    all.push(("huge directories in the same blocks", forge.image));

    // Maps whose indirect blocks name each other.
    let mut forge = Forge::new("-t ext2 -b 1024 -N 4096 -O ^resize_inode");
    let first = forge.free(0);
    for at in 0..3 {
        let bytes: Vec<u8> =
            (0..256_u64).flat_map(|slot| ((first + (slot + at) % 3) as u32).to_le_bytes()).collect();
        forge.block(first + at, &bytes);
    }
    forge.inodes(1000, |number, inode| {
        if number % 2 == 0 {
            inode.mode = FileType::Directory.mode_bits() | 0o755;
        }
        inode.size = 1 << 33;
        for slot in 0..15 {
            inode.block[slot * 4..slot * 4 + 4]
                .copy_from_slice(&(first as u32 + slot as u32 % 3).to_le_bytes());
        }
    });
    all.push(("maps of maps of maps", forge.image));

    // A directory whose blocks hold one name again and again, and files without any name.
    let mut forge = Forge::new(PLAIN);
    let start = forge.free(0);
    let mut block = Vec::new();
    for at in 0..64_u32 {
        block.extend_from_slice(&(20 + at % 16).to_le_bytes());
        block.extend_from_slice(&16_u16.to_le_bytes());
        block.extend_from_slice(&[6, 1]);
        block.extend_from_slice(b"always\0\0");
    }
    for at in 0..4000 {
        forge.block(start + at, &block);
    }
    forge.inodes(4000, |number, inode| {
        inode.flags = flag::EXTENTS;
        inode.block = tree(0, &[], &[]);
        if number == 12 {
            inode.mode = FileType::Directory.mode_bits() | 0o755;
            inode.size = 4000 * 1024;
            inode.block = tree(0, &[extent(0, 4000, start)], &[]);
        }
        inode.generation = 1;
        inode.dtime = 0;
    });
    all.push(("one name again and again", forge.image));

    // Numbers as large as they can be.
    let mut forge = Forge::new("-t ext4 -b 1024 -N 4096 -O quota,^has_journal");
    forge.inodes(4000, |number, inode| {
        inode.size = u64::MAX >> 1;
        inode.blocks = u64::MAX >> 16;
        inode.links = u16::MAX;
        inode.file_acl = BlockNo(u64::MAX >> 16);
        inode.block = [0xff; 60];
        if number % 2 == 0 {
            inode.flags = flag::EXTENTS;
            inode.block[..2].copy_from_slice(&[0x0a, 0xf3]);
        }
    });
    let before = forge.before.clone();
    for number in 12..4000 {
        let at = Volume::new(&before).unwrap().inode_offset(Ino::new(number).unwrap()).unwrap();
        forge.image[at + 0x80..at + 0x82].fill(0xff);
    }
    for number in [3, 4] {
        let at = Volume::new(&before).unwrap().inode_offset(Ino::new(number).unwrap()).unwrap();
        forge.image[at + 4..at + 8].fill(0xff);
        forge.image[at + 0x6c..at + 0x70].copy_from_slice(&[0xff, 0xff, 0xff, 0]);
        let block = at as u64 / 1024;
        fix_sum(&mut forge.image, &before, block, Kind::InodeTable(0));
    }
    all.push(("numbers without bound", forge.image));
    all
}

/// Reads of a whole image that a check may cost: passes, rounds, and what sharing may claim more than there
/// is.
const MOST: u64 = 400;

#[test]
fn the_work_is_bounded_by_the_image() {
    for (name, image) in hostile() {
        for mode in [Mode::CheckOnly, Mode::Yes] {
            let cost = cost(&image, mode);
            eprintln!("{name}, {mode:?}: {cost} times the image");
            assert!(cost < MOST, "{name}, {mode:?}: {cost} times the image was read or written");
        }
    }
}

/// Bytes of address space for the program, its threads' stacks included.
const SPACE: u64 = 1 << 30;

#[test]
fn so_is_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    for (name, image) in hostile() {
        for arguments in [&["-fn"][..], &["-fy", "-E", "memory=1m"]] {
            std::fs::write(&path, &image).unwrap();
            let output = Command::new("prlimit")
                .arg(format!("--as={SPACE}"))
                .arg(cargo_bin("fsck-rext4"))
                .args(arguments)
                .arg("--json")
                .arg(&path)
                .output()
                .unwrap();
            let code = output.status.code();
            assert!(
                code.is_some_and(|code| code <= 8),
                "{name}, {arguments:?}: {code:?} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}
