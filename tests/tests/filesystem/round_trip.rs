//! A tree with everything in it goes in through one system and comes out of another unchanged.

use std::fs::{self, File};
use std::path::Path;

use anyhow::Result;
use tests::manifest::{Depth, Manifest};
use tests::oracle::{e2fsck_is_clean, kernel_view, our_fsck_is_clean};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::{Options, System};
use tests::tree::{Plan, build, write_stream};

fn plan(seed: u64) -> Plan {
    pick(Plan::small(seed), Plan::full(seed))
}

fn image_bytes() -> u64 {
    pick(512 << 20, 8 << 30)
}

/// The same tree on a filesystem that is known to be right.
fn expected(plan: &Plan) -> Result<Manifest> {
    let folder = tempfile::tempdir()?;
    build(folder.path(), plan)?;
    Manifest::read(folder.path(), Depth::Copy)
}

#[test]
fn what_we_write_the_kernel_reads() -> Result<()> {
    if !can_run("what_we_write_the_kernel_reads", &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let system = System::under_test();
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    system.mkfs(&image, image_bytes(), &[])?;
    let mounted = system.mount(&image)?;
    build(mounted.path(), &plan(1))?;
    let fresh = Manifest::read(mounted.path(), Depth::Copy)?;
    fresh.expect_same(&expected(&plan(1))?, "the mount just written / the plan")?;
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;

    let mounted = system.mount_with(&image, &Options::words(&["ro"]))?;
    let ours = Manifest::read(mounted.path(), Depth::Same)?;
    mounted.unmount()?;
    ours.expect_same(&kernel_view(&image)?, "ours / the kernel's view of one image")?;
    if system.is_rext4() {
        our_fsck_is_clean(&image)?;
    }
    Ok(())
}

#[test]
fn what_the_kernel_writes_we_read_and_change() -> Result<()> {
    if !can_run("what_the_kernel_writes_we_read_and_change", &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let system = System::under_test();
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Kernel.mkfs(&image, image_bytes(), &[])?;
    let mounted = System::Kernel.mount(&image)?;
    build(mounted.path(), &plan(2))?;
    mounted.unmount()?;
    let theirs = kernel_view(&image)?;

    let mounted = system.mount_with(&image, &Options::words(&["ro"]))?;
    let ours = Manifest::read(mounted.path(), Depth::Same)?;
    mounted.unmount()?;
    ours.expect_same(&theirs, "ours / the kernel's view of one image")?;

    let mounted = system.mount(&image)?;
    change(mounted.path())?;
    let changed = Manifest::read(mounted.path(), Depth::Copy)?;
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    let mounted = System::Kernel.mount_with(&image, &Options::words(&["ro"]))?;
    let seen = Manifest::read(mounted.path(), Depth::Copy)?;
    mounted.unmount()?;
    changed.expect_same(&seen, "changed by us / seen by the kernel")
}

/// Touches every kind of thing that the builder has left.
pub fn change(root: &Path) -> Result<()> {
    let crowd: Vec<_> = fs::read_dir(root.join("crowd"))?.collect::<std::io::Result<_>>()?;
    for (index, entry) in crowd.iter().enumerate() {
        match index % 3 {
            0 => fs::remove_file(entry.path())?,
            1 => fs::rename(entry.path(), root.join("crowd").join(format!("renamed-{index}")))?,
            _ => {}
        }
    }
    for index in 0..crowd.len() / 2 {
        File::create(root.join("crowd").join(format!("late-{index}")))?;
    }
    let sparse = File::options().write(true).open(root.join("sparse"))?;
    let length = sparse.metadata()?.len();
    write_stream(&sparse, 77, length / 2, 50_000)?;
    sparse.set_len(length / 4 * 3)?;
    let solid = File::options().write(true).open(root.join("solid"))?;
    let length = solid.metadata()?.len();
    write_stream(&solid, 78, length - 1000, 100_000)?;
    write_stream(&solid, 79, 12_345, 67_890)?;
    fs::rename(root.join("deep0"), root.join("moved"))?;
    for name in ["fifo", "socket", "symlink-60", "symlink-1"] {
        fs::remove_file(root.join(name))?;
    }
    fs::remove_dir_all(root.join("names"))?;
    fs::create_dir(root.join("names"))?;
    Ok(())
}
