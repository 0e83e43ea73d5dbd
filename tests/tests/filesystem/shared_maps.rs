//! Block maps of the ext2 and ext3 kind in which many pointers lead to one block: a map of a few blocks then
//! has paths without number. Whatever walks one costs what the blocks cost that are there.
//!
//! `REXT4_SEED` sets the first seed; a failure names its own.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blockdev::sim::MemDevice;
use blockdev::{BlockDevice, DeviceGeometry};
use ext4_format::geometry::Geometry;
use ext4_format::group_desc::GroupDesc;
use ext4_format::indirect::{DIRECT, set_pointer, span};
use ext4_format::inode::{Inode, InodeLayout};
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, Ino, locate};
use fs_core::{OpenFlags, OpenOptions, SeekWhence, SetAttr};
use tests::forge::{Forge, contents};
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, run, tool};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::{System, binary, is_mounted};

/// A device that counts the bytes read from it.
struct Counted {
    device: Arc<MemDevice>,
    read: AtomicU64,
}

impl BlockDevice for Counted {
    fn geometry(&self) -> DeviceGeometry {
        self.device.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> blockdev::Result<()> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.device.read_at(offset, buf)
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

/// In blocks of 4 KiB: three levels of full indirect blocks make a thousand million paths.
const VOLUME: u64 = 32 << 20;
const POINTERS: u32 = 1024;

/// Most bytes that mounting, or checking, reads of a volume of this size.
const MOST_READ: u64 = 8 * VOLUME;

/// Longest that anything may take here, on a busy machine.
const LONGEST: Duration = Duration::from_secs(20);

/// A map whose indirect blocks name a few blocks each, over and over: up to four nodes a level, and data of
/// which there may be none. A dense one has three levels full of pointers, and data at the end of all its paths.
/// Gives the first file block that is mapped.
fn share(rng: &mut fastrand::Rng, forge: &mut Forge, inode: &mut Inode, dense: bool) -> Result<u64> {
    let free = forge.free_blocks()?;
    let mut fresh = free[free.len() - 64..].to_vec();
    rng.shuffle(&mut fresh);
    let mut below: Vec<u64> = match rng.u8(0..3) {
        0 if !dense => vec![0],
        _ => fresh.split_off(fresh.len() - rng.usize(1..4)),
    };
    inode.block = [0; 60];
    let deepest = if dense { 3 } else { rng.u32(2..4) };
    for level in 1..=deepest {
        let nodes = fresh.split_off(fresh.len() - if level == deepest { 1 } else { rng.usize(1..4) });
        // A block full of pointers, or a few.
        let full = dense || rng.u8(0..4) > 0;
        for node in &nodes {
            let count = if full { POINTERS } else { rng.u32(1..8) };
            let bytes = forge.block_mut(*node);
            bytes.fill(0);
            for slot in 0..count {
                let to = *rng.choice(&below).context("below")?;
                set_pointer(bytes, if full { slot } else { slot * 31 }, (to != 0).then_some(BlockNo(to)));
            }
        }
        below = nodes;
    }
    set_pointer(&mut inode.block, DIRECT + deepest - 1, Some(BlockNo(below[0])));
    inode.size = rng.u64(1 << 33..1 << 42);
    inode.blocks = rng.u64(0..1 << 31);
    Ok(u64::from(DIRECT) + (1..deepest as usize).map(|levels| span(4096, levels)).sum::<u64>())
}

fn base(folder: &Path) -> Result<Forge> {
    let image = folder.join("base");
    File::create(&image)?.set_len(VOLUME)?;
    run(tool("mke2fs")
        .args(["-q", "-F", "-t", "ext3", "-b", "4096", "-J", "size=4", "-N", "256"])
        .arg(&image))?;
    run(tool("debugfs").args(["-w", "-R", "write /dev/null file"]).arg(&image))?;
    Forge::load(&image)
}

fn seeds(small: u64) -> impl Iterator<Item = u64> {
    let first = std::env::var("REXT4_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    first..first + pick(small, 100 * small)
}

/// fsck repairs it within bounds, and e2fsck finds nothing left.
fn is_repaired(folder: &Path, forge: &Forge) -> Result<()> {
    let device = Arc::new(Counted { device: forge.device(), read: 0.into() });
    for mode in [fsck::Mode::CheckOnly, fsck::Mode::Yes, fsck::Mode::Yes] {
        let options = fsck::Options { mode, force: true, ..fsck::Options::default() };
        let (started, before) = (Instant::now(), device.read.load(Ordering::Relaxed));
        let report = fsck::check(Arc::clone(&device) as Arc<dyn BlockDevice>, &options)?;
        let read = device.read.load(Ordering::Relaxed) - before;
        ensure!(
            read < MOST_READ && started.elapsed() < LONGEST,
            "{mode:?}: {read} bytes, {:?}",
            started.elapsed()
        );
        ensure!(mode == fsck::Mode::CheckOnly || report.left == 0, "left: {:?}", report.codes());
    }
    let image = folder.join("repaired");
    fs::write(&image, contents(&device.device))?;
    e2fsck_is_clean(&image)
}

#[test]
fn a_journal_with_a_shared_map_is_refused_at_once() -> Result<()> {
    if !can_run("a_journal_with_a_shared_map_is_refused_at_once", &[Need::Root, Need::Loop]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    for seed in seeds(6) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut forge = base(folder.path())?;
        let mut inode = forge.inode(Ino::JOURNAL)?;
        let size = inode.size;
        share(&mut rng, &mut forge, &mut inode, seed % 8 < 4)?;
        inode.size = size;
        forge.set_inode(Ino::JOURNAL, &inode)?;
        journal_is_refused(folder.path(), &forge).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

fn journal_is_refused(folder: &Path, forge: &Forge) -> Result<()> {
    let image = folder.join("kernel");
    fs::write(&image, &forge.bytes)?;
    ensure!(System::Kernel.mount(&image).is_err(), "the kernel mounts it");
    let device = Arc::new(Counted { device: forge.device(), read: 0.into() });
    let started = Instant::now();
    let mounted = OpenOptions::new().open_device(device.clone());
    ensure!(mounted.is_err(), "we mount it");
    let read = device.read.load(Ordering::Relaxed);
    ensure!(read < VOLUME && started.elapsed() < LONGEST, "{read} bytes, {:?}", started.elapsed());
    ensure!(contents(&device.device) == forge.bytes, "refused, but written");
    is_repaired(folder, forge)
}

#[test]
fn a_file_with_a_shared_map_costs_what_is_there() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    for seed in seeds(12) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut forge = base(folder.path())?;
        let ino = Ino::new(12).context("the file")?;
        let mut inode = forge.inode(ino)?;
        let first = share(&mut rng, &mut forge, &mut inode, seed % 8 < 4)?;
        forge.set_inode(ino, &inode)?;
        let way = seed % 4;
        file_is_bounded(folder.path(), &forge, ino, first * 4096, way)
            .with_context(|| format!("seed {seed}, way {way}"))?;
    }
    Ok(())
}

fn file_is_bounded(folder: &Path, forge: &Forge, ino: Ino, data: u64, way: u64) -> Result<()> {
    let device = Arc::new(Counted { device: forge.device(), read: 0.into() });
    let fs = OpenOptions::new().open_device(device.clone())?;
    let file = fs.open_file("file", OpenFlags::default())?;
    ensure!(file.ino() == ino);
    let started = Instant::now();
    // Whether each succeeds depends on the map; it ends, and says so where it does not.
    let shrink = SetAttr { size: Some(5000), ..SetAttr::default() };
    match way {
        0 => drop([SeekWhence::Data, SeekWhence::Hole].map(|whence| file.seek_to(data, whence))),
        1 => drop(file.set_attributes(&shrink)),
        2 => drop(fs.remove_file("file")),
        _ => drop(file.read_at(&mut vec![0; 1 << 20], data)),
    }
    drop(file);
    ensure!(started.elapsed() < LONGEST, "{:?}", started.elapsed());
    // A volume that was found damaged may not end clean.
    drop(fs.close());
    ensure!(device.read.load(Ordering::Relaxed) < MOST_READ, "{} bytes", device.read.load(Ordering::Relaxed));
    let after = Forge::new(contents(&device.device))?;
    is_repaired(folder, &after)
}

/// Address space for the programs, their threads' stacks included.
const SPACE: u64 = 1 << 30;

/// A volume of 2 GiB in an image of 5 MiB, with three blocks of pointers to each other in the journal's inode
/// or a file's.
fn volume_of_2_gib(image: &Path, ino: Ino) -> Result<()> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image)?;
    file.set_len(2 << 30)?;
    let words = ["-q", "-F", "-t", "ext3", "-b", "4096", "-J", "size=4", "-N", "128", "-E", "nodiscard"];
    run(tool("mke2fs").args(words).arg(image))?;
    run(tool("debugfs").args(["-w", "-R", "write /dev/null file"]).arg(image))?;
    let mut bytes = [0; 1024];
    file.read_exact_at(&mut bytes, 1024)?;
    let sb = SuperBlock::parse(&bytes)?;
    let geo = Geometry::new(&sb);
    let block = |at: u64| {
        let mut bytes = vec![0; 4096];
        file.read_exact_at(&mut bytes, at << 12).map(|()| bytes)
    };
    let mut inode = locate::inode::<_, anyhow::Error>(&sb, ino, &mut |at| Ok(block(at.0)?))?;
    inode.block = [0; 60];
    let last = geo.blocks_count - 10;
    for (at, to) in [(last, last - 1), (last - 1, last - 2), (last - 2, last - 3)] {
        file.write_all_at(&(to as u32).to_le_bytes().repeat(1024), at << 12)?;
    }
    set_pointer(&mut inode.block, DIRECT + 2, Some(BlockNo(last)));
    if ino != Ino::JOURNAL {
        inode.size = 1 << 41;
    }
    let place = geo.inode_location(ino).context("inode number")?;
    let (descriptor, byte) = geo.descriptor(place.group);
    let table = GroupDesc::decode(&block(descriptor.0)?[byte..byte + geo.desc_size])?.inode_table.0;
    let at = table + u64::from(place.table_block);
    let mut records = block(at)?;
    inode.encode_into(&mut records[place.byte..place.byte + geo.inode_size], &InodeLayout::new(&sb));
    file.write_all_at(&records, at << 12)?;
    Ok(())
}

#[test]
fn the_memory_of_a_walk_is_bounded() -> Result<()> {
    if !can_run("the_memory_of_a_walk_is_bounded", &[Need::Root, Need::Fuse, Need::Tool("prlimit")]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, point) = (folder.path().join("image"), folder.path().join("point"));
    fs::create_dir(&point)?;
    let limited = |program: &str| {
        let mut command = tool("timeout");
        command.args(["60", "prlimit"]).arg(format!("--as={SPACE}")).arg(binary(program).get_program());
        command
    };
    volume_of_2_gib(&image, Ino::JOURNAL)?;
    let answer = output(limited("mount-rext4").arg(&image).arg(&point))?;
    ensure!(answer.status.code() == Some(32) && !is_mounted(&point)?, "{}", both(&answer));
    for ino in [Ino::JOURNAL, Ino::new(12).context("the file")?] {
        volume_of_2_gib(&image, ino)?;
        for (flags, code) in [("-fn", 4), ("-fy", 1), ("-fn", 0)] {
            let answer = output(limited("fsck-rext4").arg(flags).arg(&image))?;
            ensure!(answer.status.code() == Some(code), "{ino} {flags}: {}", both(&answer));
        }
    }
    Ok(())
}
