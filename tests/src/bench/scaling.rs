//! How costs grow: with the number of files in a folder and in a tree, with the number of extents of a file,
//! with the size of the image.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;

use super::Setup;
use super::report::figure;
use crate::oracle::e2fsck_is_clean;
use crate::system::{Mounted, System};

/// Microseconds for each of `count` actions.
fn each(count: u64, mut action: impl FnMut(u64) -> std::io::Result<()>) -> Result<f64> {
    let start = Instant::now();
    for index in 0..count {
        action(index)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / count as f64)
}

/// One table: rows are operations, with the cost of the small and of the large case and their ratio.
struct Growth(Vec<(String, f64, f64)>);

impl Growth {
    fn markdown(&self, title: &str, small: &str, large: &str) -> String {
        let mut text = format!("\n| {title} | {small} | {large} | growth |\n|---|---|---|---|\n");
        for (name, first, second) in &self.0 {
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {:.2} |",
                figure(*first),
                figure(*second),
                second / first
            );
        }
        text
    }
}

/// A fresh sparse image, mounted, given to `action`, and checked.
fn on_fresh<T>(
    setup: &Setup,
    system: System,
    bytes: u64,
    args: &[&str],
    action: impl FnOnce(&Mounted) -> Result<T>,
) -> Result<T> {
    let folder = tempfile::Builder::new().prefix("rext4-bench-").tempdir_in(&setup.backing)?;
    let image = folder.path().join("image");
    System::Kernel.mkfs(&image, bytes, args)?;
    let mounted = system.mount(&image)?;
    let value = action(&mounted)?;
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    Ok(value)
}

/// All growth tables for one system, with `files` as the large number of files.
pub fn tables(setup: &Setup, system: System, files: u64) -> Result<String> {
    let mut text = format!("\n## {}\n", system.name());
    for (title, path) in
        [("one folder", in_one_folder as Place), ("a tree with a hundred files a folder", in_a_tree)]
    {
        let title = format!("µs per operation, {title}");
        text +=
            &names(setup, system, files, path)?.markdown(&title, "10 000 files", &format!("{files} files"));
    }
    text += &extents(setup, system)?.markdown("µs per operation, one file", "contiguous", "100 000 extents");
    text += &image_size(setup, system)?.markdown("ms", "1 GiB image", "1 TiB sparse image");
    Ok(text)
}

/// Where the file of a number lies below a folder.
type Place = fn(u64) -> PathBuf;

fn in_one_folder(index: u64) -> PathBuf {
    format!("file-{index}").into()
}

fn in_a_tree(index: u64) -> PathBuf {
    format!("{}/{}/file-{index}", index / 10_000, index / 100).into()
}

fn names(setup: &Setup, system: System, files: u64, place: Place) -> Result<Growth> {
    const SMALL: u64 = 10_000;
    let inodes = (files + 50_000).to_string();
    on_fresh(setup, system, 8 << 30, &["-N", &inodes], |mounted| {
        let measure = |name: &str, from: u64, to: u64| -> Result<[f64; 3]> {
            let dir = mounted.path().join(name);
            let path = |index: u64| dir.join(place(index));
            let make = |index: u64| {
                if index.is_multiple_of(100) {
                    fs::create_dir_all(path(index).parent().unwrap_or(&dir))?;
                }
                File::create(path(index)).map(drop)
            };
            // The last ten thousand of each size.
            each(from, make)?;
            let create = each(to - from, |index| make(from + index))?;
            mounted.drop_caches()?;
            let stat = each(SMALL, |index| Ok(rustix::fs::lstat(path(index * (to / SMALL))).map(drop)?))?;
            let unlink = each(SMALL, |index| fs::remove_file(path(index * (to / SMALL))))?;
            Ok([create, stat, unlink])
        };
        let small = measure("small", 0, SMALL)?;
        let large = measure("large", files - SMALL, files)?;
        Ok(Growth(["create", "stat, cold", "unlink"].iter().zip(small.iter().zip(large)).map(row).collect()))
    })
}

fn row((name, (small, large)): (&&str, (&f64, f64))) -> (String, f64, f64) {
    ((*name).to_owned(), *small, large)
}

fn extents(setup: &Setup, system: System) -> Result<Growth> {
    const BLOCK: u64 = 4096;
    const COUNT: u64 = 100_000;
    on_fresh(setup, system, 4 << 30, &[], |mounted| {
        let measure = |name: &str, stride: u64| -> Result<[f64; 3]> {
            let block = [7; BLOCK as usize];
            let file = File::options()
                .create(true)
                .read(true)
                .write(true)
                .truncate(true)
                .open(mounted.path().join(name))?;
            each(COUNT, |index| file.write_all_at(&block, index * stride * BLOCK))?;
            file.sync_all()?;
            mounted.drop_caches()?;
            let mut rng = fastrand::Rng::with_seed(1);
            // Past the page cache, whose readahead would serve a contiguous file's neighbours for nothing.
            let direct = File::options()
                .read(true)
                .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
                .open(mounted.path().join(name))?;
            let mut space = [0; 2 * BLOCK as usize];
            let aligned = space.as_ptr().align_offset(BLOCK as usize);
            let buffer = &mut space[aligned..][..BLOCK as usize];
            let read = each(10_000, |_| direct.read_exact_at(buffer, rng.u64(0..COUNT) * stride * BLOCK))?;
            // At the end, and in one piece in both files: what differs is the tree before it.
            let append = each(1000, |index| {
                file.write_all_at(&block, (COUNT * stride + index) * BLOCK)?;
                if index % 100 == 99 { file.sync_data() } else { Ok(()) }
            })?;
            let punch = each(1000, |index| {
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(&file, flags, index * 90 * stride * BLOCK, BLOCK)?)
            })?;
            Ok([read, append, punch])
        };
        let small = measure("contiguous", 1)?;
        let large = measure("scattered", 2)?;
        Ok(Growth(
            ["random read, direct", "append", "punch"].iter().zip(small.iter().zip(large)).map(row).collect(),
        ))
    })
}

fn image_size(setup: &Setup, system: System) -> Result<Growth> {
    let measure = |bytes: u64| -> Result<[f64; 2]> {
        let folder = tempfile::Builder::new().prefix("rext4-bench-").tempdir_in(&setup.backing)?;
        let image = folder.path().join("image");
        // One journal size for both: its scan is not what is asked here.
        System::Kernel.mkfs(&image, bytes, &["-J", "size=32"])?;
        let (mut mount, mut unmount) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..5 {
            let start = Instant::now();
            let mounted = system.mount(&image)?;
            touch(mounted.path())?;
            mount = mount.min(start.elapsed().as_secs_f64() * 1e3);
            let start = Instant::now();
            mounted.unmount()?;
            unmount = unmount.min(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok([mount, unmount])
    };
    let (small, large) = (measure(1 << 30)?, measure(1 << 40)?);
    Ok(Growth(["mount and first file", "unmount"].iter().zip(small.iter().zip(large)).map(row).collect()))
}

fn touch(root: &Path) -> std::io::Result<()> {
    fs::write(root.join("first"), "first")
}
