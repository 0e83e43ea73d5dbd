//! Inodes that belong to the volume itself, as an old and full volume has them: their blocks scattered, their
//! maps in blocks of their own, their generation not zero. The kernel is asked beside us.
//!
//! `REXT4_SEED` sets the first seed; a failure names its own.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockdev::sim::MemDevice;
use ext4_format::csum::Csum;
use ext4_format::{BlockNo, Ino, orphan};
use fs_core::{Credentials, Filesystem, OpenFile, OpenOptions, WriteKind};
use tests::forge::{Forge, contents, scattered};
use tests::oracle::{e2fsck_is_clean, our_fsck_is_clean};
use tests::run::{output, run, tool};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::System;

const BLOCK: usize = 1024;

const KINDS: [&str; 3] = [
    "-t ext4 -b 1024 -J size=1 -N 512 -O orphan_file,metadata_csum",
    "-t ext4 -b 1024 -J size=1 -N 512 -O orphan_file,^metadata_csum",
    "-t ext4 -b 1024 -J size=1 -N 512 -O orphan_file,metadata_csum,metadata_csum_seed,^flex_bg",
];

fn base(folder: &Path, kind: &str) -> Result<Forge> {
    let image = folder.join("base");
    File::create(&image)?.set_len(16 << 20)?;
    run(tool("mke2fs").args(["-q", "-F", "-E", "nodiscard"]).args(kind.split(' ')).arg(&image))?;
    Forge::load(&image)
}

fn seeds(small: u64) -> impl Iterator<Item = u64> {
    let first = std::env::var("REXT4_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    first..first + pick(small, 50 * small)
}

fn mount(device: &Arc<MemDevice>, read_only: bool) -> Result<Arc<Filesystem>> {
    Ok(OpenOptions::new().read_only(read_only).open_device(device.clone())?)
}

/// Scatters the blocks of the journal and of the orphan file, and gives both inodes a generation.
fn scatter(rng: &mut fastrand::Rng, forge: &mut Forge) -> Result<()> {
    for ino in [Ino::JOURNAL, forge.sb.orphan_file().context("no orphan file")?] {
        let old = forge.blocks_of(ino)?;
        let mut free = forge.free_blocks()?;
        let mut spare = free.split_off(free.len() - 4);
        let pieces = rng.usize(2..30);
        let new = scattered(rng, &mut free, old.len(), pieces);
        let mut inode = forge.inode(ino)?;
        inode.generation = rng.u32(..);
        forge.map(ino, &mut inode, &new, &mut spare)?;
        let csum = Csum::new(&forge.sb);
        for (from, to) in old.iter().zip(&new) {
            let mut bytes = forge.block(*from).to_vec();
            if ino != Ino::JOURNAL {
                csum.set_orphan_block(&mut bytes, BlockNo(*to), ino, inode.generation);
            }
            forge.block_mut(*to).copy_from_slice(&bytes);
        }
        // The bitmaps are e2fsck's to put right, before the next free blocks are looked for.
        let image = tempfile::NamedTempFile::new_in(scratch())?;
        fs::write(image.path(), &forge.bytes)?;
        let answer = output(tool("e2fsck").arg("-fy").arg(image.path()))?;
        ensure!(answer.status.code().is_some_and(|code| code <= 1), "{answer:?}");
        *forge = Forge::load(image.path())?;
    }
    Ok(())
}

/// Makes files, and one that is deleted while it is open, so that the orphan file is used.
fn use_it(fs: &Arc<Filesystem>) -> Result<OpenFile> {
    fs.write("kept", [7; 5000])?;
    let gone = fs.create_file("gone")?;
    gone.write_as(&Credentials::root(), &[7; 5000], 0, WriteKind::Direct)?;
    fs.remove_file("gone")?;
    fs.sync()?;
    Ok(gone)
}

#[test]
fn scattered_special_files_are_read_by_their_own_numbers() -> Result<()> {
    if !can_run("scattered_special_files_are_read_by_their_own_numbers", &[Need::Root, Need::Loop]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    for seed in seeds(6) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let kind = KINDS[seed as usize % KINDS.len()];
        let mut forge = base(folder.path(), kind)?;
        scatter(&mut rng, &mut forge)?;
        let both_serve = || {
            fs::write(&image, &forge.bytes)?;
            System::Kernel.mount(&image).context("the kernel's mount")?.unmount()?;
            let device = forge.device();
            mount(&device, true)?.close()?;
            ensure!(contents(&device) == forge.bytes, "a mount for reading wrote");
            let fs = mount(&device, false)?;
            let _open = use_it(&fs)?;
            // Orphans that a crash leaves behind are found by the next mount.
            let crashed = MemDevice::from_image(device.snapshot());
            fs.close()?;
            mount(&Arc::new(crashed), false)?.close()?;
            fs::write(&image, contents(&device))?;
            our_fsck_is_clean(&image)?;
            e2fsck_is_clean(&image)
        };
        both_serve().with_context(|| format!("seed {seed}, {kind}"))?;
    }
    Ok(())
}

/// Without checksums the magic alone tells a block of the orphan file from any other: one without it is not read
/// as a list of inodes to delete.
#[test]
fn a_block_without_magic_is_no_list_of_orphans() -> Result<()> {
    if !can_run("a_block_without_magic_is_no_list_of_orphans", &[Need::Root, Need::Loop]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    for kind in &KINDS[..2] {
        let mut forge = base(folder.path(), kind)?;
        let ino = forge.sb.orphan_file().context("no orphan file")?;
        let block = *forge.blocks_of(ino)?.last().context("an empty orphan file")?;
        let generation = forge.inode(ino)?.generation;
        // The root, in every slot.
        let mut bytes = 2_u32.to_le_bytes().repeat(BLOCK / 4);
        Csum::new(&forge.sb).set_orphan_block(&mut bytes, BlockNo(block), ino, generation);
        ensure!(orphan::check(&bytes).is_err());
        forge.block_mut(block).copy_from_slice(&bytes);
        forge.set_superblock(|sb| sb.set_orphan_present(true));
        fs::write(&image, &forge.bytes)?;
        ensure!(System::Kernel.mount(&image).is_err(), "{kind}: the kernel takes it");
        let device = forge.device();
        let verdict = mount(&device, false).map(|_| ());
        let said = verdict.err().context("we take it")?.to_string();
        ensure!(said.contains("ob_magic"), "{kind}: {said}");
    }
    Ok(())
}

/// The superblock's copy of the journal's map does not tell its generation, which the map's own blocks have in
/// their checksums.
#[test]
fn a_lost_journal_inode_comes_back_whatever_its_generation_was() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    let mut forge = base(folder.path(), KINDS[0])?;
    scatter(&mut fastrand::Rng::with_seed(3), &mut forge)?;
    ensure!(forge.tree_block(Ino::JOURNAL).is_ok(), "the map fits into the inode");
    let log = forge.blocks_of(Ino::JOURNAL)?;
    fs::write(&image, &forge.bytes)?;
    run(tool("debugfs").args(["-w", "-R", "clri <8>"]).arg(&image))?;
    for expected in [1, 0] {
        let answer = output(tests::system::binary("fsck-rext4").arg("-fy").arg(&image))?;
        ensure!(answer.status.code() == Some(expected), "{answer:?}");
        e2fsck_is_clean(&image)?;
    }
    let after = Forge::load(&image)?;
    ensure!(after.blocks_of(Ino::JOURNAL)? == log, "the journal lies elsewhere");
    mount(&after.device(), false)?.close().context("closing")
}
