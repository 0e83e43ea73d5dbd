//! Eight threads in each other's way, and a filesystem that is still one afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::load::Storm;
use tests::manifest::{Depth, Manifest};
use tests::oracle::{e2fsck_is_clean, kernel_view};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::{Options, System};

#[test]
fn eight_writers_renamers_and_unlinkers() -> Result<()> {
    if !can_run("eight_writers_renamers_and_unlinkers", &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let system = System::under_test();
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    system.mkfs(&image, 512 << 20, &[])?;
    let mounted = system.mount(&image)?;
    let time = pick(Duration::from_secs(10), Duration::from_secs(60));
    let done = Storm { seed: 8, threads: 8, time, may_fill_up: false }.run(mounted.path(), false)?;
    ensure!(done > 1000, "only {done} operations");
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    let mounted = system.mount_with(&image, &Options::words(&["ro"]))?;
    let ours = Manifest::read(mounted.path(), Depth::Same)?;
    mounted.unmount()?;
    ours.expect_same(&kernel_view(&image)?, "ours / the kernel's view after the storm")
}
