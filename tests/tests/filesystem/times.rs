//! Times beside the kernel: what an inode can hold from 1901 to 2446, what is cut off, and which reads move
//! the time of access under each of the options.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tests::scale::{Need, can_run};

use crate::beside::Pair;

const NEEDS: [Need; 3] = [Need::Root, Need::Loop, Need::Fuse];
const FIRST: i64 = -(1 << 31);
const LAST: i64 = (1 << 34) - 1 + FIRST;
const SIZE: u64 = 64 << 20;

/// Seconds to set; those beyond the ends are cut to them.
const SECONDS: [i64; 14] = [
    0,
    -1,
    1,
    FIRST,
    FIRST + 1,
    FIRST - 1,
    i32::MAX as i64,
    1 << 31,
    (1 << 31) + 1,
    1 << 32,
    1 << 33,
    LAST,
    LAST + 1,
    1 << 40,
];

fn set(path: &Path, accessed: (i64, i64), modified: (i64, i64)) -> Result<()> {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn told(path: &Path) -> Result<String> {
    let told = fs::symlink_metadata(path)?;
    Ok(format!("{}.{} {}.{}", told.atime(), told.atime_nsec(), told.mtime(), told.mtime_nsec()))
}

#[test]
fn times_from_1901_to_2446() -> Result<()> {
    if !can_run("times_from_1901_to_2446", &NEEDS) {
        return Ok(());
    }
    for mke2fs in ["-t ext4", "-t ext4 -I 128"] {
        let mut pair = Pair::new(SIZE, mke2fs, &[])?;
        let name = |second: i64, kind: &str| format!("{kind}{second}");
        let keeps_all = !mke2fs.contains("128");
        pair.ask(mke2fs, |root| {
            let mut said = Vec::new();
            for second in SECONDS {
                for kind in ["file", "folder", "link"] {
                    let path = root.join(name(second, kind));
                    match kind {
                        "file" => File::create(&path).map(drop)?,
                        "folder" => fs::create_dir(&path)?,
                        _ => std::os::unix::fs::symlink("target", &path)?,
                    }
                    set(&path, (second, 999_999_999), (second, 1))
                        .with_context(|| format!("{kind} {second}"))?;
                    // What is cut off stays in the kernel's memory of a FUSE file.
                    if keeps_all && FIRST < second && second < LAST {
                        said.push(format!("{kind} {second}: {}", told(&path)?));
                    }
                }
            }
            Ok(said.join("\n"))
        })?;
        pair.unmount()?;
        pair.mount(&[])?;
        pair.ask(&format!("{mke2fs}, mounted again"), |root| {
            let all =
                SECONDS.iter().flat_map(|second| ["file", "folder", "link"].map(|kind| name(*second, kind)));
            Ok(all.map(|name| told(&root.join(name))).collect::<Result<Vec<_>>>()?.join("\n"))
        })?;
        pair.finish()?;
    }
    Ok(())
}

#[test]
fn reads_move_the_time_of_access_as_the_options_say() -> Result<()> {
    if !can_run("reads_move_the_time_of_access_as_the_options_say", &NEEDS) {
        return Ok(());
    }
    for words in
        [&["relatime"][..], &["noatime"], &["strictatime"], &["strictatime", "nodiratime"], &["lazytime"]]
    {
        let mut pair = Pair::new(SIZE, "-t ext4", words)?;
        for mounted in pair.both()? {
            for name in ["old", "new"] {
                fs::write(mounted.path().join(name), "content")?;
                fs::create_dir(mounted.path().join(format!("{name} folder")))?;
            }
        }
        // A fresh mount: nothing is read from a page cache that the server knows nothing of.
        pair.unmount()?;
        pair.mount(words)?;
        let moved = |root: &Path| {
            let mut said = Vec::new();
            for (name, accessed) in [("old", 1000), ("new", 3000)] {
                let (file, folder) = (root.join(name), root.join(format!("{name} folder")));
                for path in [&file, &folder] {
                    set(path, (accessed, 5), (2000, 5))?;
                }
                fs::read(&file)?;
                fs::read_dir(&folder)?.count();
                for path in [&file, &folder] {
                    said.push(format!("{name} {}", fs::metadata(path)?.atime() != accessed));
                }
            }
            Ok(said.join(", "))
        };
        pair.ask(&format!("{words:?}"), moved)?;
        pair.finish()?;
    }
    Ok(())
}

/// The kernel stamps what is written through its page cache and the names it changes, the server what it makes:
/// what comes later must not seem to be earlier.
#[test]
fn the_kernel_and_the_server_read_one_clock() -> Result<()> {
    if !can_run("the_kernel_and_the_server_read_one_clock", &NEEDS) {
        return Ok(());
    }
    let pair = Pair::new(SIZE, "-t ext4", &[])?;
    pair.ask("times in the order of events", |root| {
        for i in 0..100 {
            let (file, later) = (root.join(format!("file{i}")), root.join(format!("later{i}")));
            fs::write(&file, [1; 20_000])?;
            let made = fs::metadata(&file)?;
            ensure!(made.modified()? >= made.created()?, "file {i} was written before it was made");
            fs::create_dir(&later)?;
            fs::hard_link(&file, root.join(format!("link{i}")))?;
            let changed = fs::metadata(&file)?;
            let changed = Duration::new(changed.ctime() as u64, changed.ctime_nsec() as u32);
            let before = fs::metadata(&later)?.created()?.duration_since(UNIX_EPOCH)?;
            ensure!(changed >= before, "file {i} was linked before an earlier folder was made");
        }
        Ok(String::new())
    })?;
    pair.finish()
}
