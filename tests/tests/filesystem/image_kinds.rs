//! Every common kind of image: made by mke2fs, filled by the kernel, read and changed by the system under
//! test, judged by both checkers, and read by the kernel again. And those that are not for us: read-only, or
//! refused by name.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, removexattr, setxattr};
use tests::manifest::{Depth, Manifest};
use tests::oracle::{e2fsck_is_clean, fingerprint, kernel_view, our_fsck_is_clean};
use tests::scale::{Need, can_run, scratch};
use tests::system::{Options, System};
use tests::tree::{Plan, build};

use crate::round_trip::change;

/// From 512 MiB on mke2fs makes blocks of 4 KiB.
const BYTES: u64 = 600 << 20;

/// A test of its own for every kind: they run side by side, and a failure names its kind.
macro_rules! kinds {
    ($($name:ident: $args:literal;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            goes_round(stringify!($name), $args)
        })*
    };
}

kinds! {
    ext2: "-t ext2";
    ext2_of_1k_blocks: "-t ext2 -b 1024";
    ext2_without_any_index: "-t ext2 -O ^dir_index,^resize_inode,^sparse_super,^filetype";
    ext3: "-t ext3";
    ext3_of_1k_blocks: "-t ext3 -b 1024";
    without_a_journal: "-t ext4 -O ^has_journal";
    without_checksums: "-t ext4 -O ^metadata_csum,^uninit_bg,^64bit";
    uninit_bg: "-t ext4 -O uninit_bg,^metadata_csum";
    meta_bg: "-t ext4 -O meta_bg,^resize_inode -b 1024 -g 2048";
    meta_bg_64bit_4k: "-t ext4 -O meta_bg,^resize_inode,64bit";
    sparse_super2: "-t ext4 -O sparse_super2,^resize_inode";
    large_dir: "-t ext4 -O large_dir -b 1024";
    inodes_of_128_bytes: "-t ext4 -I 128";
    inodes_of_1024_bytes: "-t ext4 -I 1024";
    blocks_of_1k: "-t ext4 -b 1024";
    blocks_of_2k: "-t ext4 -b 2048";
    ea_inode: "-t ext4 -O ea_inode";
    multi_mount_protection: "-t ext4 -O mmp";
    orphan_file: "-t ext4 -O orphan_file,metadata_csum";
    without_an_orphan_file: "-t ext4 -O ^orphan_file";
    without_flex_bg: "-t ext4 -O ^flex_bg";
    without_64bit: "-t ext4 -O ^64bit";
    checksum_seed: "-t ext4 -O metadata_csum,metadata_csum_seed";
    without_dir_index: "-t ext4 -O ^dir_index";
    without_huge_file_and_dir_nlink: "-t ext4 -O ^huge_file,^dir_nlink,^extra_isize";
    fast_commit: "-t ext4 -O fast_commit";
    stripes_and_few_inodes: "-t ext4 -E stride=16,stripe_width=64 -N 2000";
}

fn goes_round(name: &str, args: &str) -> Result<()> {
    if !can_run(name, &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let system = System::under_test();
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Kernel.mkfs(&image, BYTES, &args.split(' ').collect::<Vec<_>>())?;
    let mounted = System::Kernel.mount(&image).context("the kernel's mount")?;
    build(mounted.path(), &Plan::small(4))?;
    add_attributes(mounted.path(), args.contains("ea_inode"))?;
    mounted.unmount()?;
    let theirs = kernel_view(&image)?;

    let mounted = system.mount_with(&image, &Options::words(&["ro"]))?;
    let ours = Manifest::read(mounted.path(), Depth::Same)?;
    mounted.unmount()?;
    ours.expect_same(&theirs, "ours / the kernel's view of what the kernel wrote")?;

    let mounted = system.mount(&image)?;
    change(mounted.path())?;
    change_attributes(mounted.path())?;
    build_beside(mounted.path())?;
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    our_fsck_is_clean(&image)?;
    let mounted = system.mount_with(&image, &Options::words(&["ro"]))?;
    let ours = Manifest::read(mounted.path(), Depth::Same)?;
    mounted.unmount()?;
    ours.expect_same(&kernel_view(&image)?, "ours / the kernel's view of what we changed")
}

/// A second tree, by the system under test from its first byte on.
fn build_beside(root: &Path) -> Result<()> {
    let beside = root.join("beside");
    fs::create_dir(&beside)?;
    build(&beside, &Plan { files: 60, dirs: 10, big_dir: 300, ..Plan::small(5) })
}

/// Values in the inode, in a block, in a block that files share, and, `if_large`, in an inode of their own.
fn add_attributes(root: &Path, if_large: bool) -> Result<()> {
    for index in 0..6 {
        let path = root.join(format!("attributes{index}"));
        File::create(&path)?;
        setxattr(&path, "user.short", b"in the inode", XattrFlags::empty())?;
        // Alike in all files: the kernel keeps one block for them.
        setxattr(&path, "user.shared", &[b'x'; 700], XattrFlags::empty())?;
        if if_large {
            setxattr(&path, "user.large", &[b'l'; 20_000], XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn change_attributes(root: &Path) -> Result<()> {
    let path = |index: usize| root.join(format!("attributes{index}"));
    setxattr(path(0), "user.shared", &[b'y'; 600], XattrFlags::REPLACE)?;
    removexattr(path(1), "user.shared")?;
    fs::remove_file(path(2))?;
    setxattr(path(3), "user.more", b"and more", XattrFlags::CREATE)?;
    let fresh = root.join("attributes-of-ours");
    File::create(&fresh)?;
    setxattr(&fresh, "user.shared", &[b'x'; 700], XattrFlags::empty())?;
    Ok(())
}

/// Kinds that are not for writing: read-only by a warning that names the feature, and refused when that is
/// not enough.
#[test]
fn what_is_beyond_us_is_read_or_refused_by_name() -> Result<()> {
    let needs = [Need::Root, Need::Loop, Need::Fuse];
    let system = System::under_test();
    if !can_run("what_is_beyond_us_is_read_or_refused_by_name", &needs) || !system.is_rext4() {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    let log = folder.path().join("log");
    for (feature, args, is_read) in [
        ("quota", "-t ext4 -O quota", true),
        ("project", "-t ext4 -O project,quota", true),
        ("bigalloc", "-t ext4 -O bigalloc", true),
        ("verity", "-t ext4 -O verity", true),
        ("shared_blocks", "-t ext4 -E hash_seed=00000000-0000-0000-0000-000000000001", true),
        ("inline_data", "-t ext4 -O inline_data", false),
        ("encrypt", "-t ext4 -O encrypt", false),
        ("casefold with encoding 7", "-t ext4 -O casefold", false),
    ] {
        System::Kernel.mkfs(&image, BYTES, &args.split(' ').collect::<Vec<_>>())?;
        let edit = match feature {
            "shared_blocks" => Some("feature shared_blocks"),
            "casefold with encoding 7" => Some("ssv encoding 7"),
            _ => None,
        };
        if let Some(edit) = edit {
            tests::run::run(tests::run::tool("debugfs").args(["-w", "-R", edit]).arg(&image))?;
        }
        let before = fingerprint(&image)?;
        let mounted = system.mount_with(&image, &Options { log: Some(log.clone()), ..Options::default() });
        match (mounted, is_read) {
            (Ok(mounted), true) => {
                let refused = File::create(mounted.path().join("new")).map(drop);
                ensure!(
                    refused.is_err_and(|error| error.raw_os_error() == Some(30)),
                    "{feature}: not a read-only filesystem"
                );
                ensure!(fs::read_dir(mounted.path())?.count() == 1, "{feature}: the root is not read");
                mounted.unmount()?;
            }
            (Err(_), false) => {}
            (answer, _) => anyhow::bail!("{feature}: {answer:?}"),
        }
        let said = fs::read_to_string(&log)?;
        ensure!(said.contains(feature), "{feature} is not named: {said}");
        ensure!(before == fingerprint(&image)?, "{feature}: something was written");
        fs::remove_file(&log)?;
    }
    Ok(())
}
