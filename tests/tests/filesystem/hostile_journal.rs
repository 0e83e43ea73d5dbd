//! Journals and logs that nobody wrote in good faith, made at random: where the journal lies, and where its log
//! wants to write. The kernel is asked beside us, and nothing behind the volume's end is ever touched.
//!
//! `REXT4_SEED` sets the first seed; a failure names its own.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockdev::BlockDevice;
use ext4_format::inode::flag;
use ext4_format::superblock::{RawSuperBlock, SuperBlock};
use ext4_format::{BlockNo, GroupNo, Ino};
use fs_core::OpenOptions;
use tests::forge::{Forge, contents, scattered};
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, run, tool};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::System;

const NEEDS: [Need; 2] = [Need::Root, Need::Loop];

/// Blocks of 1 KiB everywhere: of the volume, behind it on the device, and of the journal.
const VOLUME: u64 = 16 << 10;
const BEHIND: u64 = 4 << 10;
const JOURNAL: usize = 1024;

const KINDS: [&str; 5] = [
    "-t ext4 -b 1024 -J size=1 -N 512",
    "-t ext4 -b 1024 -J size=1 -N 512 -O ^metadata_csum,^64bit",
    // Groups so small that a journal crosses several, most of which begin with nothing of the volume's own.
    "-t ext4 -b 1024 -J size=1 -N 512 -g 1024",
    "-t ext4 -b 1024 -J size=1 -N 512 -O ^flex_bg,^resize_inode",
    "-t ext3 -b 1024 -J size=1 -N 512",
];

fn base(folder: &Path, kind: &str) -> Result<Forge> {
    let image = folder.join("base");
    File::create(&image)?.set_len(VOLUME << 10)?;
    run(tool("mke2fs").args(["-q", "-F", "-E", "nodiscard"]).args(kind.split(' ')).arg(&image))?;
    let content = folder.join("content");
    fs::write(&content, vec![b'c'; 200_000])?;
    run(tool("debugfs").args(["-w", "-R", &format!("write {} file", content.display())]).arg(&image))?;
    let mut forge = Forge::load(&image)?;
    forge.extend(BEHIND);
    Ok(forge)
}

fn seeds(small: u64) -> impl Iterator<Item = u64> {
    let first = std::env::var("REXT4_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    first..first + pick(small, 100 * small)
}

/// Mounts and unmounts in this process; the device's bytes afterwards.
fn ours(forge: &Forge, read_only: bool) -> (std::result::Result<(), String>, Vec<u8>) {
    let device = forge.device();
    let verdict = match OpenOptions::new().read_only(read_only).open_device(device.clone()) {
        Ok(fs) => fs.close().map_err(|error| format!("closing: {error}")),
        Err(error) => Err(error.to_string()),
    };
    (verdict, contents(&device))
}

/// Whether the kernel mounts a copy of the image.
fn kernel_takes(folder: &Path, forge: &Forge) -> Result<bool> {
    let image = folder.join("kernel");
    fs::write(&image, &forge.bytes)?;
    match System::Kernel.mount(&image) {
        Ok(mounted) => mounted.unmount().map(|_| true),
        Err(_) => Ok(false),
    }
}

/// A repair stays on the volume, leaves nothing to repair, and e2fsck agrees.
fn is_repaired(folder: &Path, forge: &Forge) -> Result<()> {
    let device = forge.device();
    let options = fsck::Options { mode: fsck::Mode::Yes, force: true, ..fsck::Options::default() };
    let check = || fsck::check(Arc::clone(&device) as Arc<dyn BlockDevice>, &options);
    let first = check()?;
    ensure!(first.left == 0, "left after -y: {:?}", first.codes());
    let again = check()?;
    ensure!(again.count == 0, "a second -y finds {:?} after {:?}", again.codes(), first.codes());
    let bytes = contents(&device);
    ensure!(forge.beyond(&bytes) == forge.beyond(&forge.bytes), "fsck wrote behind the volume");
    let image = folder.join("repaired");
    fs::write(&image, &bytes[..(VOLUME << 10) as usize])?;
    e2fsck_is_clean(&image)
}

/// What a mount for writing and one for reading make of it; whether it is taken. A refusal writes nothing.
fn judged(forge: &Forge) -> Result<std::result::Result<(), String>> {
    let (verdict, after) = ours(forge, false);
    ensure!(forge.beyond(&after) == forge.beyond(&forge.bytes), "written behind the volume: {verdict:?}");
    ensure!(verdict.is_ok() || after == forge.bytes, "refused, but written: {verdict:?}");
    let (shown, after) = ours(forge, true);
    ensure!(after == forge.bytes, "a mount for reading wrote");
    ensure!(shown.is_ok() == verdict.is_ok(), "for writing {verdict:?}, for reading {shown:?}");
    Ok(verdict)
}

/// Where a journal is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On free blocks, in any number of pieces.
    Sound,
    /// Partly on the volume's own metadata.
    OnMetadata,
    /// Partly behind the volume's end, on the device.
    Behind,
    /// With a block behind the device's end.
    Nowhere,
    /// With blocks that it names twice.
    Twice,
}

/// Puts the journal on other blocks, as its inode says.
fn move_journal(rng: &mut fastrand::Rng, forge: &mut Forge) -> Result<Place> {
    let old = forge.blocks_of(Ino::JOURNAL)?;
    let mut free = forge.free_blocks()?;
    let mut spare = free.split_off(free.len() - 16);
    let pieces = *rng.choice(&[1, 2, 3, 4, 5, 20]).context("pieces")?;
    let mut places = scattered(rng, &mut free, JOURNAL, pieces);
    // The first block stays sound, so that it is a journal superblock in any case.
    let at = rng.usize(1..JOURNAL - 40);
    let len = rng.usize(1..40);
    let place = *rng
        .choice(&[Place::Sound, Place::Sound, Place::OnMetadata, Place::Behind, Place::Nowhere, Place::Twice])
        .context("place")?;
    match place {
        Place::OnMetadata => {
            let metadata = forge.metadata()?;
            let from = rng.usize(0..metadata.len());
            let here = &metadata[from..(from + len).min(metadata.len())];
            places[at..at + here.len()].copy_from_slice(here);
        }
        Place::Behind => (0..len).for_each(|n| places[at + n] = VOLUME + n as u64),
        Place::Nowhere => places[at] = VOLUME + BEHIND + rng.u64(0..1 << 31),
        Place::Twice => places.copy_within(0..len.min(at), at),
        Place::Sound => {}
    }
    let superblock = forge.block(old[0]).to_vec();
    forge.block_mut(places[0]).copy_from_slice(&superblock);
    let mut inode = forge.inode(Ino::JOURNAL)?;
    forge.map(Ino::JOURNAL, &mut inode, &places, &mut spare)?;
    Ok(place)
}

#[test]
fn a_journal_is_taken_where_the_kernel_takes_it() -> Result<()> {
    if !can_run("a_journal_is_taken_where_the_kernel_takes_it", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let mut sound = 0;
    for seed in seeds(24) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let kind = KINDS[seed as usize % KINDS.len()];
        let mut forge = base(folder.path(), kind)?;
        let place = move_journal(&mut rng, &mut forge)?;
        sound += u64::from(place == Place::Sound);
        verdicts_agree(folder.path(), &forge, place)
            .with_context(|| format!("seed {seed}, {kind}, {place:?}"))?;
    }
    ensure!((1..24).contains(&sound), "one-sided");
    Ok(())
}

fn verdicts_agree(folder: &Path, forge: &Forge, place: Place) -> Result<()> {
    let kernel = kernel_takes(folder, forge)?;
    let verdict = judged(forge)?;
    let sound = place == Place::Sound;
    ensure!(verdict.is_ok() == sound, "{verdict:?}");
    // The kernel does not bound the pointers of a journal without extents.
    let pointers = !forge.inode(Ino::JOURNAL)?.has(flag::EXTENTS);
    let unbounded = pointers && matches!(place, Place::Behind | Place::Nowhere);
    ensure!(unbounded || kernel == sound, "the kernel: {kernel}, we: {verdict:?}");
    is_repaired(folder, forge)
}

/// Something that a log may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logged {
    /// Blocks that nothing uses, and a superblock with another mount count.
    Harmless,
    /// A block behind the volume's end, on the device.
    Behind,
    /// A block behind the device's end.
    Nowhere,
    /// The boot block in front of the volume.
    Boot,
    /// A block of the log itself.
    Itself,
    /// A superblock without its magic.
    NoSuperblock,
    /// A superblock with a feature that nobody knows.
    Feature,
    /// A superblock of a volume that is larger than the device.
    Larger,
    /// A superblock with another journal.
    OtherJournal,
    /// The journal's inode, with the log on other blocks.
    Moved,
    /// A descriptor that puts an inode table onto the journal.
    TableOnJournal,
}

const LOGGED: [Logged; 11] = [
    Logged::Harmless,
    Logged::Behind,
    Logged::Nowhere,
    Logged::Boot,
    Logged::Itself,
    Logged::NoSuperblock,
    Logged::Feature,
    Logged::Larger,
    Logged::OtherJournal,
    Logged::Moved,
    Logged::TableOnJournal,
];

fn logged(rng: &mut fastrand::Rng, forge: &Forge, what: Logged) -> Result<Vec<(u64, Vec<u8>)>> {
    let free = forge.free_blocks()?;
    let mut blocks: Vec<(u64, Vec<u8>)> = Vec::new();
    for _ in 0..rng.usize(1..5) {
        let block = *rng.choice(&free).context("free")?;
        if !blocks.iter().any(|(other, _)| *other == block) {
            blocks.push((block, vec![b'l'; 1024]));
        }
    }
    let superblock = |change: &dyn Fn(&mut SuperBlock)| {
        let mut sb = forge.sb;
        sb.set_needs_recovery(true);
        change(&mut sb);
        (1, sb.encode().to_vec())
    };
    let raw = |change: &dyn Fn(&mut RawSuperBlock)| {
        superblock(&|sb| assert!(sb.edit(change).is_ok(), "{what:?}: a superblock that makes no sense"))
    };
    let journal = forge.blocks_of(Ino::JOURNAL)?;
    let extra = match what {
        Logged::Harmless => superblock(&|sb| sb.set_mount_count(5)),
        Logged::Behind => (VOLUME + rng.u64(0..BEHIND), vec![b'x'; 1024]),
        Logged::Nowhere => (VOLUME + BEHIND + rng.u64(0..1000), vec![b'x'; 1024]),
        Logged::Boot => (0, vec![b'x'; 1024]),
        Logged::Itself => (journal[rng.usize(0..JOURNAL)], vec![b'x'; 1024]),
        Logged::NoSuperblock => (1, vec![b'x'; 1024]),
        Logged::Feature => raw(&|raw| raw.feature_incompat.set(raw.feature_incompat.get() | 1 << 30)),
        Logged::Larger => raw(&|raw| {
            let groups = (VOLUME + BEHIND).div_ceil(raw.blocks_per_group.get().into()) as u32;
            raw.blocks_count_lo.set((VOLUME + BEHIND + 1) as u32);
            raw.inodes_count.set(groups * raw.inodes_per_group.get());
        }),
        Logged::OtherJournal => raw(&|raw| raw.journal_inum.set(12)),
        Logged::Moved => {
            let mut moved = forge.clone();
            let mut inode = moved.inode(Ino::JOURNAL)?;
            let places: Vec<u64> = journal.iter().rev().copied().collect();
            // Only the inode is logged: the blocks of its map may be anything.
            let mut spare = free[free.len() - 16..].to_vec();
            let few = if inode.has(flag::EXTENTS) { &free[..JOURNAL] } else { &places };
            moved.map(Ino::JOURNAL, &mut inode, few, &mut spare)?;
            moved.changed_inode(Ino::JOURNAL, &inode)?
        }
        Logged::TableOnJournal => {
            let last = GroupNo(forge.geo.group_count - 1);
            let at = journal[rng.usize(100..JOURNAL - 200)];
            // Without flexible groups a table lies in its own group.
            let group = if forge.geo.groups_per_flex > 1 {
                Some(last)
            } else {
                forge.geo.group_of_block(BlockNo(journal[0]))
            };
            forge.changed_group(group.context("group")?, |desc| desc.inode_table = BlockNo(at))?
        }
    };
    blocks.push(extra);
    Ok(blocks)
}

#[test]
fn a_log_that_contradicts_its_volume_is_refused_before_anything_is_written() -> Result<()> {
    if !can_run("a_log_that_contradicts_its_volume_is_refused_before_anything_is_written", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    for seed in seeds(22) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut forge = base(folder.path(), KINDS[rng.usize(0..KINDS.len())])?;
        let what = LOGGED[seed as usize % LOGGED.len()];
        let blocks = logged(&mut rng, &forge, what)?;
        forge.log(&blocks)?;
        log_is_judged(folder.path(), &forge, what, &blocks)
            .with_context(|| format!("seed {seed}, {what:?}"))?;
    }
    Ok(())
}

fn log_is_judged(folder: &Path, forge: &Forge, what: Logged, blocks: &[(u64, Vec<u8>)]) -> Result<()> {
    let verdict = judged(forge)?;
    ensure!(verdict.is_ok() == (what == Logged::Harmless), "{verdict:?}");
    // The kernel takes more than we do, since it bounds a log by nothing, but never less.
    ensure!(verdict.is_err() || kernel_takes(folder, forge)?, "the kernel refuses it");
    if what == Logged::Harmless {
        let (_, after) = ours(forge, false);
        let after = Forge::new(after)?;
        for (block, bytes) in blocks.iter().filter(|(block, _)| *block != 1) {
            ensure!(after.block(*block) == bytes, "block {block} was not replayed");
        }
        ensure!(after.sb.mount_count() == 6, "the superblock was not replayed");
    }
    if what == Logged::Feature {
        // Whoever knows that feature may repair it.
        let device = forge.device();
        let options = fsck::Options { mode: fsck::Mode::Yes, force: true, ..fsck::Options::default() };
        let answer = fsck::check(Arc::clone(&device) as Arc<dyn BlockDevice>, &options);
        ensure!(matches!(answer, Err(fsck::Error::Unusable(_))), "{answer:?}");
        ensure!(contents(&device) == forge.bytes, "fsck wrote to what it does not know");
        return Ok(());
    }
    is_repaired(folder, forge)
}

/// A log may make the volume larger, as it does after a crash in the middle of growing: the superblock in it
/// counts, not the one on disk.
#[test]
fn a_volume_grows_by_its_log() -> Result<()> {
    if !can_run("a_volume_grows_by_its_log", &[Need::Root, Need::Loop, Need::Tool("resize2fs")]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    for kind in &KINDS[..2] {
        // The fourth group has copies of superblock and descriptors at its head, behind the old end.
        let mut before = base(folder.path(), kind)?;
        before.extend(8 << 10);
        let grown_blocks = VOLUME + BEHIND + (8 << 10);
        let image = folder.path().join("grown");
        fs::write(&image, &before.bytes)?;
        let answer = output(tool("resize2fs").arg(&image))?;
        ensure!(answer.status.success(), "resize2fs: {}", both(&answer));
        let grown = Forge::load(&image)?;
        ensure!(grown.geo.blocks_count == grown_blocks, "not grown");
        let journal = before.blocks_of(Ino::JOURNAL)?;
        ensure!(journal == grown.blocks_of(Ino::JOURNAL)?, "resize2fs moved the journal");
        let changed: Vec<(u64, Vec<u8>)> = (1..grown.geo.blocks_count)
            .filter(|block| before.block(*block) != grown.block(*block) && !journal.contains(block))
            .map(|block| (block, grown.block(block).to_vec()))
            .collect();
        ensure!(changed.iter().any(|(block, _)| *block >= VOLUME), "nothing behind the old end");
        let mut forge = before.clone();
        forge.log(&changed)?;
        let (verdict, after) = ours(&forge, false);
        verdict.map_err(anyhow::Error::msg).with_context(|| format!("{kind}: {} blocks", changed.len()))?;
        let after = Forge::new(after)?;
        ensure!(after.geo.blocks_count == grown_blocks, "{kind}: the volume did not grow");
        fs::write(&image, &after.bytes)?;
        e2fsck_is_clean(&image).context(*kind)?;

        let device = forge.device();
        let options = fsck::Options { mode: fsck::Mode::Yes, force: true, ..fsck::Options::default() };
        let report = fsck::check(Arc::clone(&device) as Arc<dyn BlockDevice>, &options)?;
        ensure!(report.replayed && report.left == 0, "{kind}: {:?}", report.codes());
        fs::write(&image, contents(&device))?;
        e2fsck_is_clean(&image).context(*kind)?;
    }
    Ok(())
}
