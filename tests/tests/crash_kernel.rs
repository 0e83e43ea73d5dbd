//! The judges judged: a power cut of the kernel's own ext4 leads e2fsck 1.47.0 to free the block with the
//! attributes of a file that it cuts as an orphan and that goes on living. So its opinion is not asked in
//! that case (`crashlab::kernel::replayed_by_e2fsck`), and docs/DURABILITY.md makes an exception of it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use blockdev::AlignedBuf;
use rustix::fs::{OFlags, XattrFlags, lgetxattr, lsetxattr};
use tests::oracle::{copy_image, e2fsck_is_clean};
use tests::run::{output, run, tool};
use tests::scale::{Need, can_run};
use tests::system::System;

const ATTRIBUTE: &str = "user.large";
/// Bytes of a direct write.
const CHUNK: usize = 8 << 20;

fn attribute(file: &Path) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let len = lgetxattr(file, ATTRIBUTE, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

/// The attribute on a disk that is recovered by being mounted.
fn recovered_by(system: System, image: &Path) -> Result<Option<Vec<u8>>> {
    let mounted = system.mount(image)?;
    let found = attribute(&mounted.path().join("file"));
    mounted.unmount()?;
    Ok(found)
}

/// Cuts the kernel's ext4 off while a file grows by direct writes and another one is fsynced. True if the log
/// holds the file as an orphan then.
fn cut(image: &Path) -> Result<bool> {
    // Small inodes have no room for attributes.
    System::Kernel.mkfs(image, 256 << 20, &["-I", "128", "-O", "^orphan_file"])?;
    let mounted = System::Kernel.mount(image)?;
    let (path, other) = (mounted.path().join("file"), mounted.path().join("other"));
    fs::write(&path, [0; 4096])?;
    lsetxattr(&path, ATTRIBUTE, &[b'v'; 700], XattrFlags::empty())?;
    rustix::fs::syncfs(File::open(mounted.path())?)?;
    let direct = File::options().write(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(&path)?;
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| -> std::io::Result<()> {
            let chunk = AlignedBuf::zeroed(CHUNK);
            // Ends with the filesystem, however long that takes.
            loop {
                direct.set_len(4096)?;
                (0..20).try_for_each(|n| direct.write_all_at(&chunk, 4096 + n * CHUNK as u64))?;
            }
        });
        for _ in 0..3 {
            fs::write(&other, "x")?;
            File::open(&other)?.sync_all()?;
        }
        // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH.
        let script =
            r#"open F, "<", $ARGV[0] or die; my $f = pack "L", 2; ioctl F, 0x8004587d, $f or die $!"#;
        run(tool("perl").args(["-e", script]).arg(&other))?;
        drop(writer.join());
        Ok(())
    })?;
    drop(direct);
    mounted.unmount()?;
    let probe = image.with_extension("probe");
    copy_image(image, &probe)?;
    let said = output(tool("e2fsck").arg("-fy").arg(&probe))?;
    Ok(String::from_utf8_lossy(&said.stdout).contains("Truncating orphaned inode"))
}

#[test]
fn e2fsck_takes_the_attributes_of_an_orphan_that_lives() -> Result<()> {
    let name = "e2fsck_takes_the_attributes_of_an_orphan_that_lives";
    if !can_run(name, &[Need::Root, Need::Loop, Need::Fuse, Need::Tool("perl")]) {
        return Ok(());
    }
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    let mut tries = 0;
    while !cut(&image).context("cutting the kernel off")? {
        tries += 1;
        ensure!(tries < 200, "no orphan after {tries} cuts");
    }
    for system in [System::Kernel, System::Rext4Image] {
        copy_image(&image, &copy)?;
        ensure!(recovered_by(system, &copy)?.is_some(), "{} has lost the attribute", system.name());
        e2fsck_is_clean(&copy).with_context(|| format!("after {}", system.name()))?;
    }
    output(tool("e2fsck").arg("-fy").arg(&image))?;
    if recovered_by(System::Kernel, &image)?.is_some() {
        bail!("this e2fsck keeps the attribute: the exception made for it is not needed any more");
    }
    Ok(())
}
