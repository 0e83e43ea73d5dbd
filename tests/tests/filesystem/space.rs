//! Space to the last block and the last inode, beside the kernel: what statfs says, what a fill is given, and
//! what is left of a volume over which a storm went while it was full.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use tests::load::Storm;
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, tool};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::{Options, System, as_user};

use crate::beside::Pair;

const NEEDS: [Need; 4] = [Need::Root, Need::Loop, Need::Fuse, Need::Tool("setpriv")];
const SIZE: u64 = 32 << 20;
const ROOT: u32 = 0;
const USER: u32 = 1000;

/// What `df` and `df -i` are made of, all that FUSE lets through: the type and the id are the kernel's own
/// there.
fn statfs(root: &Path) -> Result<String> {
    // Delayed data have their pointer blocks, and deletions their effect, after a sync.
    for entry in fs::read_dir(root)? {
        File::open(entry?.path())?.sync_all()?;
    }
    let s = rustix::fs::statvfs(root)?;
    Ok(format!(
        "bsize {} frsize {} blocks {} bfree {} bavail {} files {} ffree {} namemax {}",
        s.f_bsize, s.f_frsize, s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_namemax
    ))
}

/// Waits until so many blocks are free: FUSE tells the end of a file by a message that nobody waits for.
fn comes_back(root: &Path, blocks: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while rustix::fs::statvfs(root)?.f_bfree < blocks {
        ensure!(Instant::now() < deadline, "{blocks} blocks have not come back");
        File::open(root)?.sync_all()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn statfs_says_what_the_kernel_says() -> Result<()> {
    if !can_run("statfs_says_what_the_kernel_says", &NEEDS) {
        return Ok(());
    }
    for (mke2fs, mebibytes) in [
        ("-t ext4 -b 1024", 32),
        ("-t ext4 -b 2048 -m 0", 32),
        ("-t ext4 -b 4096 -m 20", 700),
        ("-t ext4 -O mmp -b 4096", 64),
        ("-t ext4 -O ^has_journal -b 1024", 20),
        ("-t ext4 -O sparse_super2,^resize_inode", 64),
        ("-t ext4 -O meta_bg,^resize_inode -b 1024 -g 2048", 64),
        ("-t ext4 -O ^flex_bg,^64bit", 300),
        ("-t ext4 -O ^orphan_file", 64),
        ("-t ext3 -b 4096", 64),
        ("-t ext2 -b 1024", 32),
        ("-t ext2 -O ^sparse_super,^resize_inode", 40),
    ] {
        for word in ["bsddf", "minixdf"] {
            let pair = Pair::new(mebibytes << 20, mke2fs, &[word])?;
            pair.ask(&format!("mke2fs {mke2fs}, {word}"), statfs)?;
            for mounted in pair.both()? {
                fs::write(mounted.path().join("file"), vec![1; 300_000])?;
                fs::create_dir(mounted.path().join("folder"))?;
            }
            pair.ask(&format!("mke2fs {mke2fs}, {word}, with files"), statfs)?;
            pair.finish()?;
        }
    }
    Ok(())
}

fn is_full(error: std::io::Error) -> std::io::Result<()> {
    if error.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) { Ok(()) } else { Err(error) }
}

/// Writes `file` until there is no room, as `user`: through the page cache, so many bytes at a time, or past
/// it.
fn fill(root: &Path, user: u32, bytes: Option<u64>) -> Result<()> {
    let mut dd = tool("dd");
    dd.args(["if=/dev/zero", "status=none"]).arg(format!("of={}", root.join("file").display()));
    match bytes {
        Some(bytes) => dd.args(["conv=fsync", &format!("bs={bytes}")]),
        None => dd.args(["oflag=direct", "bs=64k"]),
    };
    let answer = output(&mut as_user(dd, (user, user)))?;
    ensure!(both(&answer).contains("No space left"), "it ended otherwise: {}", both(&answer));
    Ok(())
}

#[test]
fn a_fill_is_given_every_block_that_the_kernel_gives() -> Result<()> {
    if !can_run("a_fill_is_given_every_block_that_the_kernel_gives", &NEEDS) {
        return Ok(());
    }
    for (kind, block) in [("-t ext4", 1024), ("-t ext4", 4096), ("-t ext2", 1024), ("-t ext2", 4096)] {
        let mke2fs = &format!("{kind} -b {block} -m 10");
        for (user, word) in [(ROOT, "rw"), (USER, "rw"), (USER, "resuid=1000"), (USER, "resgid=1000")] {
            let pair = Pair::new(SIZE, mke2fs, &[word])?;
            for mounted in pair.both()? {
                chown(mounted.path(), Some(USER), Some(USER))?;
            }
            let what = format!("mke2fs {mke2fs}, user {user}, {word}");
            let empty = rustix::fs::statvfs(pair.both()?[0].path())?.f_bfree;
            // Block by block: the kernel gives up early where a larger request meets the end.
            let mut left = Vec::new();
            for mounted in pair.both()? {
                fill(mounted.path(), user, Some(block))?;
                File::open(mounted.path().join("file"))?.sync_all().or_else(is_full)?;
                left.push(rustix::fs::statvfs(mounted.path())?.f_bfree);
            }
            // The kernel takes some of the map's own blocks from below the reserve.
            ensure!(left[0].abs_diff(left[1]) <= 16, "{what}: kernel and here, left: {left:?}");
            // Requests that are done in full or not at all, on both.
            let mut given = Vec::new();
            for mounted in pair.both()? {
                let file = mounted.path().join("file");
                let root = mounted.path();
                fs::remove_file(&file)?;
                comes_back(root, empty)?;
                fill(root, user, None)?;
                given.push(fs::metadata(&file)?.len());
                fs::remove_file(&file)?;
                comes_back(root, empty)?;
            }
            ensure!(given[1] >= given[0], "{what}: kernel and here, bytes: {given:?}");
            pair.ask(&format!("{what}, empty again"), statfs)?;
            pair.finish().context(what)?;
        }
    }
    Ok(())
}

/// Files of one block until neither a block nor an inode is left.
#[test]
fn small_files_to_the_last_block_and_the_last_inode() -> Result<()> {
    if !can_run("small_files_to_the_last_block_and_the_last_inode", &NEEDS) {
        return Ok(());
    }
    for mke2fs in ["-t ext4 -b 1024 -N 500", "-t ext4 -b 1024 -N 16000", "-t ext2 -b 1024 -N 500"] {
        let pair = Pair::new(12 << 20, mke2fs, &[])?;
        let made = pair.ask(mke2fs, |root| {
            let mut files = 0;
            let error = loop {
                let file = match File::create_new(root.join(files.to_string())) {
                    Ok(file) => file,
                    Err(error) => break error,
                };
                files += 1;
                file.write_all_at(&[7; 1024], 0).and_then(|()| file.sync_data()).or_else(is_full)?;
            };
            is_full(error)?;
            let free = rustix::fs::statvfs(root)?;
            // How a folder is split decides how many blocks it has: the number of files may differ, or, where
            // the inodes come to an end, what the folder has left over.
            let no_inode = free.f_ffree == 0;
            let folder = if no_inode { root.metadata()?.blocks() / 2 } else { 0 };
            Ok(format!("{} blocks left, no inode left: {no_inode}", free.f_bfree + folder))
        })?;
        for mounted in pair.both()? {
            // Files stay usable: what has its block can be read and written, what is removed makes room.
            let first = mounted.path().join("0");
            ensure!(fs::read(&first)? == [7; 1024], "{mke2fs}: {made}");
            File::options().write(true).open(&first)?.write_all_at(&[8; 1024], 0)?;
            ensure!(fs::read(&first)? == [8; 1024]);
            let free = rustix::fs::statvfs(mounted.path())?.f_bfree;
            // In its place a file of the same name: for any other the folder itself may have to grow.
            let second = mounted.path().join("1");
            fs::remove_file(&second)?;
            comes_back(mounted.path(), free + 1)?;
            fs::write(&second, "small").with_context(|| format!("{mke2fs}: in place of what was removed"))?;
        }
        pair.finish()?;
    }
    Ok(())
}

/// A handle that may write can be read from as before, at the end of the file and behind it.
#[test]
fn reading_goes_on_where_writing_finds_no_space() -> Result<()> {
    if !can_run("reading_goes_on_where_writing_finds_no_space", &NEEDS) {
        return Ok(());
    }
    let pair = Pair::new(SIZE, "-t ext4 -b 4096", &[])?;
    pair.ask("a full volume", |root| {
        fill(root, ROOT, Some(4096))?;
        let path = root.join("small");
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        let told = file.write_all_at(&[1; 100_000], 0).and_then(|()| file.sync_all());
        let mut bytes = [0; 100];
        let answers = [
            file.read_at(&mut bytes, 200_000).map(|n| n as u64),
            file.read_at(&mut bytes, u64::from(u32::MAX)).map(|n| n as u64),
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map(|_| 0).map_err(Into::into),
            file.metadata().map(|_| 0),
        ];
        Ok(format!("{:?} {answers:?}", told.map_err(|error| error.kind())))
    })?;
    pair.finish()
}

/// Parallel load on a volume of which a hundredth is left, then deletion of everything.
#[test]
fn a_storm_on_a_full_volume() -> Result<()> {
    if !can_run("a_storm_on_a_full_volume", &NEEDS) {
        return Ok(());
    }
    for args in ["-b 4096", "-b 1024 -N 600"] {
        let folder = tempfile::tempdir_in(scratch())?;
        let image = folder.path().join("image");
        System::under_test().mkfs(&image, 64 << 20, &args.split(' ').collect::<Vec<_>>())?;
        let mounted = System::under_test().mount_with(&image, &Options::default())?;
        let root = mounted.path();
        let free = || rustix::fs::statvfs(root).map(|space| (space.f_bfree, space.f_ffree));
        // The folders that the storm leaves behind.
        Storm { seed: 1, threads: 1, time: Duration::ZERO, may_fill_up: false }.run(root, false)?;
        File::open(root)?.sync_all()?;
        let before = free()?;
        let space = rustix::fs::statvfs(root)?;
        let ballast = File::create(root.join("ballast"))?;
        let most = (space.f_bfree - space.f_blocks / 100 - 1500) * space.f_frsize;
        rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, most)?;
        drop(ballast);
        let time = pick(Duration::from_secs(4), Duration::from_secs(60));
        let done = Storm { seed: 5, threads: 6, time, may_fill_up: true }.run(root, false)?;
        ensure!(done > 100, "only {done} operations");
        // Nobody was given more than there is, and what was written can be read.
        for entry in walkdir::WalkDir::new(root) {
            let entry = entry?;
            if entry.file_type().is_file() {
                fs::read(entry.path()).with_context(|| format!("{}", entry.path().display()))?;
            }
        }
        fs::remove_file(root.join("ballast"))?;
        for index in 0..4 {
            let dir = root.join(format!("storm{index}"));
            fs::remove_dir_all(&dir)?;
            fs::create_dir(&dir)?;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while free()? != before {
            ensure!(Instant::now() < deadline, "{args}: {:?} came back of {before:?}", free()?);
            File::open(root)?.sync_all()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        mounted.unmount()?;
        e2fsck_is_clean(&image).context(args)?;
    }
    Ok(())
}
