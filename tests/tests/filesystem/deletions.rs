//! What a deleted file took is free for whoever asks next, as it is on the kernel's ext4.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use blockdev::{Op, OpenOptions};
use fs_core::{Credentials, OpenFile, WriteKind};
use tests::gate::{Gate, Gated, Opening};
use tests::oracle::e2fsck_is_clean;
use tests::scale::scratch;
use tests::system::System;

/// Much shorter than anybody's patience, on a busy machine as well.
const WHILE: Duration = Duration::from_millis(50);

/// The commit timer writes two files out, one after the other, and holds the second one while the first one's
/// data wait for the device. Then the second one loses its name and its last handle.
#[test]
fn space_is_there_although_a_worker_holds_the_file() -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 64 << 20, &[])?;
    let gate = Arc::new(Gate::default());
    let device = Gated { inner: blockdev::open(&image, &OpenOptions::default())?, gate: gate.clone() };
    let options = fs_core::OpenOptions::new().commit_interval(Duration::from_millis(50));
    let fs = options.open_device(Arc::new(device))?;
    let root = fs.root()?;
    let file = |name: &str| -> Result<OpenFile> {
        let file = root.create(name, 0o644)?;
        file.write_as(&Credentials::root(), &[7; 8192], 0, WriteKind::Direct)?;
        Ok(file)
    };
    let slow = file("slow")?;
    let free = || -> Result<_> {
        let found = fs.statfs()?;
        Ok((found.files_free, found.blocks_free))
    };
    let before = free()?;
    for round in 0..3 {
        let gone = file("gone")?;
        fs.sync()?;
        gate.close(Op::Write);
        let opening = Opening(&gate);
        slow.write_at(&[8; 4096], 0)?;
        gone.write_at(&[8; 4096], 0)?;
        ensure!(gate.holds(1, Duration::from_secs(60)), "the timer writes nothing");
        root.unlink("gone")?;
        drop(gone);
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(move || {
                std::thread::sleep(WHILE);
                drop(opening);
            });
            let after = free()?;
            ensure!(after == before, "round {round}: {before:?} files and blocks before, {after:?} now");
            Ok(())
        })?;
    }
    fs.close()?;
    e2fsck_is_clean(&image)
}
