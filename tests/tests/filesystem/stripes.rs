//! Where files lie on a striped volume, beside the kernel: what is as long as a stripe begins with one.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use tests::oracle::e2fsck_is_clean;
use tests::run::{run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{Options, System};

const NEEDS: [Need; 5] = [Need::Root, Need::Loop, Need::Fuse, Need::Tool("debugfs"), Need::Tool("dd")];
const BLOCK: u64 = 4096;

/// The extents of a file: first block of the file, first block of the volume, length.
fn extents(image: &Path, name: &str) -> Result<Vec<[u64; 3]>> {
    let said = run(tool("debugfs").args(["-R", &format!("ex /{name}")]).arg(image))?;
    let lines = said.lines().map(|line| line.replace(['/', '-'], " "));
    let numbers =
        lines.map(|line| line.split_whitespace().map_while(|w| w.parse().ok()).collect::<Vec<u64>>());
    // Level and levels, entry and entries, logical, physical, length; a leaf's entries only.
    let leaves = numbers.filter(|n| n.len() >= 9 && n[0] == n[1]);
    Ok(leaves.map(|n| [n[4], n[6], n[8]]).collect())
}

/// Makes files of many lengths in every way, and gives their names and lengths in blocks.
fn make(root: &Path, stripe: u64) -> Result<Vec<(String, u64)>> {
    let mut made = Vec::new();
    for (i, blocks) in
        [1, 3, stripe - 1, stripe, stripe + 1, 5 * stripe, 300, 1024, 5000].into_iter().enumerate()
    {
        // Whatever is not aligned itself stands in the way.
        std::fs::write(root.join(format!("small{i}")), [1; 5000])?;
        for (how, flags) in [("cached", ""), ("direct", "oflag=direct")] {
            let name = format!("{how}{i}");
            let mut dd = tool("dd");
            dd.args(["if=/dev/zero", "status=none", "bs=1M", "iflag=count_bytes"]);
            dd.arg(format!("of={}", root.join(&name).display())).arg(format!("count={}", blocks * BLOCK));
            dd.args(Some(flags).filter(|flags| !flags.is_empty()));
            run(&mut dd)?;
            made.push((name, blocks));
        }
        let name = format!("preallocated{i}");
        let file = File::create(root.join(&name))?;
        fallocate(&file, FallocateFlags::empty(), 0, blocks * BLOCK)?;
        made.push((name, blocks));
    }
    Ok(made)
}

#[test]
fn files_begin_where_a_stripe_does() -> Result<()> {
    if !can_run("files_begin_where_a_stripe_does", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    for (system, extended, word, stripe) in [
        (System::Kernel, "stride=16,stripe_width=64", "rw", 64),
        (System::under_test(), "stride=16,stripe_width=64", "rw", 64),
        (System::under_test(), "stride=16,stripe_width=48", "rw", 48),
        (System::under_test(), "stride=32", "rw", 32),
        (System::under_test(), "stride=16,stripe_width=64", "stripe=80", 80),
    ] {
        let what = format!("{system:?}, {extended}, {word}");
        System::Kernel.mkfs(&image, 512 << 20, &["-t", "ext4", "-b", "4096", "-E", extended])?;
        let mounted = system.mount_with(&image, &Options::words(&[word]))?;
        let made = make(mounted.path(), stripe)?;
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
        for (name, blocks) in made {
            let extents = extents(&image, &name)?;
            let first = extents.first().with_context(|| format!("{what}: {name} has no extent"))?;
            let fits = |[at, start, _]: &[u64; 3]| start % stripe == at % stripe;
            let aligned = if system == System::Kernel { fits(first) } else { extents.iter().all(fits) };
            // The kernel only aligns what is a multiple.
            let kernels = system == System::Kernel && blocks % stripe != 0;
            ensure!(aligned || blocks < stripe || kernels, "{what}: {name} of {blocks} blocks: {extents:?}");
            let total: u64 = extents.iter().map(|extent| extent[2]).sum();
            ensure!(total >= blocks, "{what}: {name}: {extents:?}");
            ensure!(system == System::Kernel || extents.len() <= 3, "{what}: {name} in pieces: {extents:?}");
        }
    }
    Ok(())
}
