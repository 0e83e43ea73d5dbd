//! Every mount option of the kernel's documentation (Documentation/admin-guide/ext4.rst): taken, or refused
//! with a reason.

use std::fs;

use anyhow::{Result, ensure};
use tests::oracle::{e2fsck_is_clean, fingerprint};
use tests::run::{both, output, run, tool, umount};
use tests::scale::{Need, can_run, scratch};
use tests::system::{LoopDevice, System, is_mounted};

/// Those that a mount takes, whether they mean something here or are ignored.
const TAKEN: &[&str] = &[
    "ro",
    "rw",
    "journal_checksum",
    "nojournal_checksum",
    "journal_async_commit",
    "ro,norecovery",
    "ro,noload",
    "data=ordered",
    "data=writeback",
    "commit=0",
    "commit=30",
    "barrier",
    "barrier=0",
    "barrier=1",
    "nobarrier",
    "inode_readahead_blks=32",
    "user_xattr",
    "acl",
    "bsddf",
    "minixdf",
    "debug",
    "errors=remount-ro",
    "errors=continue",
    "errors=panic",
    "data_err=ignore",
    "data_err=abort",
    "grpid",
    "bsdgroups",
    "nogrpid",
    "sysvgroups",
    "resgid=5",
    "resuid=5",
    "ro,sb=8193",
    "noquota",
    "usrjquota=",
    "grpjquota=",
    "stripe=16",
    "delalloc",
    "nodelalloc",
    "max_batch_time=100",
    "min_batch_time=0",
    "journal_ioprio=3",
    "auto_da_alloc",
    "auto_da_alloc=0",
    "noauto_da_alloc",
    "noinit_itable",
    "init_itable",
    "init_itable=10",
    "discard",
    "nodiscard",
    "nouid32",
    "block_validity",
    "noblock_validity",
    "dioread_lock",
    "dioread_nolock",
    "nodioread_nolock",
    "max_dir_size_kb=64",
    "i_version",
    "dax=never",
    "dax=inode",
    "inlinecrypt",
    "mb_optimize_scan=1",
    "prefetch_block_bitmaps",
    "no_prefetch_block_bitmaps",
    "nombcache",
    "no_mbcache",
    "oldalloc",
    "orlov",
    "bh",
    "nobh",
    "lazytime",
    "nolazytime",
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
    "sync",
    "dirsync",
    "nodev,nosuid,noexec",
    "silent",
    "defaults",
];

/// Those that cannot be honoured, and a word of the reason.
const REFUSED: &[(&str, &str)] = &[
    ("data=journal", "journal"),
    ("nouser_xattr", "always"),
    ("noacl", "always"),
    ("abort", "EXT4_IOC_SHUTDOWN"),
    ("quota", "quota"),
    ("usrquota", "quota"),
    ("grpquota", "quota"),
    ("prjquota", "quota"),
    ("jqfmt=vfsv0", "quota"),
    ("usrjquota=aquota.user", "quota"),
    ("grpjquota=aquota.group", "quota"),
    ("journal_path=/dev/null", "another device"),
    ("journal_dev=0x801", "another device"),
    ("dax", "persistent memory"),
    ("dax=always", "persistent memory"),
    ("test_dummy_encryption", "encryption"),
    ("commit=soon", "not a number"),
    ("resuid=-1", "not a number"),
    ("errors=ignore", "continue, remount-ro or panic"),
    ("nonsense", "unknown"),
];

#[test]
fn every_documented_option_is_taken_or_refused_with_a_reason() -> Result<()> {
    if !can_run("every_documented_option_is_taken_or_refused_with_a_reason", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    let point = tempfile::tempdir()?;
    System::Kernel.mkfs(&image, 16 << 20, &["-b", "1024"])?;
    let mount = |word: &str| {
        let mut command = System::Rext4Image.mount_command();
        output(command.arg(&image).arg(point.path()).args(["-o", word]))
    };
    let before = fingerprint(&image)?;
    for (word, reason) in REFUSED {
        let answer = mount(word)?;
        let (said, name) = (both(&answer), word.split('=').next().unwrap_or(word));
        ensure!(answer.status.code() == Some(32) && !is_mounted(point.path())?, "{word}: {}", answer.status);
        ensure!(said.contains(name) && said.contains(reason), "{word}: {said}");
    }
    ensure!(before == fingerprint(&image)?, "a refused mount has written");
    for word in TAKEN {
        let answer = mount(word)?;
        ensure!(answer.status.success() && is_mounted(point.path())?, "{word}: {}", both(&answer));
        let written = fs::write(point.path().join("file"), word);
        umount(point.path())?;
        ensure!(written.is_ok() != word.starts_with("ro"), "{word}: {written:?}");
        run(tool("flock").arg("-w30").arg(&image).arg("true"))?;
    }
    e2fsck_is_clean(&image)
}

/// The claim of multi-mount protection: a second mounter is refused by name, and after umount anybody may
/// come, at once.
#[test]
fn a_second_mounter_is_refused_and_the_next_one_is_not() -> Result<()> {
    let name = "a_second_mounter_is_refused_and_the_next_one_is_not";
    if !can_run(name, &[Need::Root, Need::Loop, Need::Fuse]) || !System::under_test().is_rext4() {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    // The least interval, so that a claim is made in seconds.
    System::Kernel.mkfs(&image, 16 << 20, &["-O", "mmp", "-E", "mmp_update_interval=1"])?;
    let mounted = System::under_test().mount(&image)?;
    fs::write(mounted.path().join("file"), "of the first")?;
    let refused = System::Kernel.mount(&image);
    ensure!(refused.is_err(), "the kernel mounted what is in use");
    let device = LoopDevice::attach(&image)?;
    let point = tempfile::tempdir()?;
    let answer = output(System::Rext4Image.mount_command().arg(device.path()).arg(point.path()))?;
    ensure!(!answer.status.success() && both(&answer).contains("use"), "{}", both(&answer));
    drop(device);
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    for system in [System::Kernel, System::under_test()] {
        let mounted = system.mount(&image)?;
        ensure!(fs::read(mounted.path().join("file"))? == b"of the first");
        mounted.unmount()?;
    }
    e2fsck_is_clean(&image)
}
