//! Single promises of ext4 that programs rely on, each of which was once broken, or could easily be, through
//! FUSE.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, IFlags, Mode, OFlags, SeekFrom, StatxFlags, fallocate, ftruncate,
    ioctl_getflags, ioctl_setflags, seek,
};
use rustix::io::{Errno, pwrite};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use tests::oracle::e2fsck_is_clean;
use tests::run::{run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{Mounted, Options, System};

/// A fresh filesystem of 256 MiB for one test; checked at the end.
fn on_fresh(name: &str, action: impl FnOnce(&Mounted) -> Result<()>) -> Result<()> {
    if !can_run(name, &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 256 << 20, &[])?;
    let mounted = System::under_test().mount(&image)?;
    let outcome = action(&mounted);
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    outcome
}

/// What is freed may be given out again after the commit that frees it, or after a RELEASE that nobody waits
/// for.
fn comes_back(what: &str, wanted: u64, free: impl Fn() -> Result<u64>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while free()? < wanted {
        ensure!(Instant::now() < deadline, "{} of {wanted} {what} came back", free()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// cp looks for data with lseek when a file occupies less than its size: what is only in the kernel's page
/// cache, or only in a server's memory, must be found there.
#[test]
fn seek_sees_what_is_not_yet_written() -> Result<()> {
    on_fresh("seek_sees_what_is_not_yet_written", |mounted| {
        let path = mounted.path().join("file");
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        file.write_all_at(&[7; 10_000], 1 << 20)?;
        file.set_len(4 << 20)?;
        let data = seek(&file, SeekFrom::Data(0))?;
        ensure!((1..=1 << 20).contains(&data), "data at {data}, written at {}", 1 << 20);
        let hole = seek(&file, SeekFrom::Hole(1 << 20))?;
        ensure!(((1 << 20) + 10_000..4 << 20).contains(&hole), "the data end at {hole}");
        ensure!(seek(&file, SeekFrom::Data(2 << 20)) == Err(Errno::NXIO), "data behind the data");
        file.write_all_at(&[8; 5000], 6 << 20)?;
        ensure!(seek(&file, SeekFrom::Data(5 << 20))? <= 6 << 20, "an extension is not seen");
        let copy = mounted.path().join("copy");
        run(tool("cp").arg(&path).arg(&copy))?;
        ensure!(fs::read(&path)? == fs::read(&copy)?, "cp lost data of an open file");
        drop(file);
        Ok(())
    })
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() -> Result<()> {
    on_fresh("an_unlinked_file_lives_until_it_is_closed", |mounted| {
        let free = || rustix::fs::statvfs(mounted.path()).map(|space| space.f_bfree);
        let before = free()?;
        let path = mounted.path().join("file");
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        file.write_all_at(&[7; 1 << 20], 0)?;
        fs::remove_file(&path)?;
        file.write_all_at(&[8; 1 << 20], 1 << 20)?;
        file.sync_all()?;
        ensure!(file.metadata()?.nlink() == 0);
        let mut bytes = vec![0; 2 << 20];
        file.read_exact_at(&mut bytes, 0)?;
        ensure!(
            bytes[..1 << 20].iter().all(|byte| *byte == 7) && bytes[1 << 20..].iter().all(|byte| *byte == 8)
        );
        ensure!(free()? < before, "its space was free before it was closed");
        drop(file);
        File::open(mounted.path())?.sync_all()?;
        comes_back("blocks", before, || Ok(free()?))?;
        Ok(())
    })
}

#[test]
fn immutable_and_append_only_files() -> Result<()> {
    on_fresh("immutable_and_append_only_files", |mounted| {
        let path = mounted.path().join("file");
        fs::write(&path, "as it is")?;
        let file = File::open(&path)?;
        let plain = ioctl_getflags(&file)?;
        let denied = |answer: std::io::Result<()>| {
            answer.is_err_and(|error| error.raw_os_error() == Some(Errno::PERM.raw_os_error()))
        };
        ioctl_setflags(&file, plain.union(IFlags::IMMUTABLE))?;
        ensure!(denied(fs::write(&path, "changed")), "written");
        ensure!(denied(fs::remove_file(&path)), "removed");
        ensure!(denied(fs::rename(&path, mounted.path().join("other"))), "renamed");
        ensure!(denied(fs::hard_link(&path, mounted.path().join("other"))), "linked");
        ensure!(denied(fs::set_permissions(&path, fs::Permissions::from_mode(0o600))), "chmod");
        ensure!(denied(std::os::unix::fs::chown(&path, Some(1), None)), "chown");
        ensure!(denied(File::options().append(true).open(&path).map(drop)), "opened for appending");
        ioctl_setflags(&file, plain.union(IFlags::APPEND))?;
        ensure!(denied(File::options().write(true).open(&path).map(drop)), "opened for writing");
        ensure!(denied(fs::remove_file(&path)), "removed");
        std::io::Write::write_all(&mut File::options().append(true).open(&path)?, b", and more")?;
        ioctl_setflags(&file, plain)?;
        ensure!(fs::read_to_string(&path)? == "as it is, and more");
        fs::remove_file(&path)?;
        Ok(())
    })
}

/// chattr on a file that is open: what was written before arrives, what comes after is refused, whoever else
/// asks for the file's attributes meanwhile; and reading goes on.
#[test]
fn flags_bind_the_handles_from_before() -> Result<()> {
    on_fresh("flags_bind_the_handles_from_before", |mounted| {
        let path = mounted.path().join("file");
        for reads in [false, true] {
            let file = File::options().create(true).truncate(true).write(true).read(reads).open(&path)?;
            file.write_all_at(&[1; 10_000], 0)?;
            let chattr = File::open(&path)?;
            let plain = ioctl_getflags(&chattr)?;
            ioctl_setflags(&chattr, plain.union(IFlags::IMMUTABLE))?;
            let written_at = fs::metadata(&path)?.modified()?;
            for _ in 0..3 {
                let refused = |done: rustix::io::Result<()>| done == Err(Errno::PERM);
                ensure!(refused(pwrite(&file, &[2; 100], 5000).map(drop)), "written, reads: {reads}");
                ensure!(refused(pwrite(&file, &[2; 100], 50_000).map(drop)), "extended, reads: {reads}");
                ensure!(refused(ftruncate(&file, 5)), "cut");
                ensure!(!reads || file.read_at(&mut [0; 100], 20_000)? == 0, "bytes behind the end");
                ensure!(fs::read_dir(mounted.path())?.count() > 0 && fs::metadata(&path)?.len() == 10_000);
            }
            file.sync_all()?;
            ensure!(fs::metadata(&path)?.modified()? == written_at, "the time of the last write is gone");
            // Only now: the kernel moves the time before it asks (docs/COMPATIBILITY.md).
            let allocated = fallocate(&file, FallocateFlags::empty(), 0, 20_000);
            ensure!(allocated == Err(Errno::PERM), "allocated");
            ensure!(fs::read(&path)? == [1; 10_000], "not what was written before");
            ioctl_setflags(&chattr, plain)?;
            file.write_all_at(&[3; 100], 10_000)?;
            ensure!(fs::metadata(&path)?.len() == 10_100, "the flag is gone, and still binds");
        }
        Ok(())
    })
}

/// The kernel has the root before it has its attributes: it must take the first it hears.
#[test]
fn an_immutable_root_is_open_to_all() -> Result<()> {
    let name = "an_immutable_root_is_open_to_all";
    if !can_run(name, &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, system) = (folder.path().join("image"), System::under_test());
    system.mkfs(&image, 64 << 20, &[])?;
    let mounted = system.mount_with(&image, &Options::for_all(system))?;
    fs::write(mounted.path().join("file"), "content")?;
    let root = File::open(mounted.path())?;
    ioctl_setflags(&root, ioctl_getflags(&root)?.union(IFlags::IMMUTABLE))?;
    drop(root);
    mounted.unmount()?;
    let mounted = system.mount_with(&image, &Options::for_all(system))?;
    let read = as_user(1000, || fs::read(mounted.path().join("file")));
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    ensure!(read? == b"content");
    Ok(())
}

/// The mode of an append-only file stays as it is, so nobody may write to it who would take set-id bits away.
#[test]
fn an_append_only_file_keeps_its_set_id_bits() -> Result<()> {
    on_fresh("an_append_only_file_keeps_its_set_id_bits", |mounted| {
        let path = mounted.path().join("file");
        fs::write(&path, [1; 1000])?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777))?;
        let open = |direct: OFlags| {
            rustix::fs::open(&path, OFlags::RDWR | OFlags::APPEND | direct, Mode::empty()).map(File::from)
        };
        let files = [open(OFlags::empty())?, open(OFlags::DIRECT)?];
        let chattr = File::open(&path)?;
        ioctl_setflags(&chattr, ioctl_getflags(&chattr)?.union(IFlags::APPEND))?;
        for file in &files {
            // As root, for whom the bits stay; this changes what the kernel knows of the file.
            rustix::fs::futimens(
                file,
                &rustix::fs::Timestamps {
                    last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                    last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                },
            )?;
            let before = fs::metadata(&path)?.len();
            let written = as_user(1000, || pwrite(file, &[2; 512], 0));
            ensure!(written == Err(Errno::PERM), "{written:?}");
            let allocated = as_user(1000, || fallocate(file, FallocateFlags::empty(), 0, 4096));
            ensure!(allocated == Err(Errno::PERM), "{allocated:?}");
            let about = fs::metadata(&path)?;
            ensure!(about.mode() & 0o7777 == 0o6777 && about.len() == before);
            ensure!(fs::read(&path)?.iter().all(|byte| *byte == 1), "what was refused is in the file");
            pwrite(file, &[1; 512], 0)?;
            ensure!(fs::metadata(&path)?.mode() & 0o7777 == 0o6777);
        }
        ioctl_setflags(&chattr, ioctl_getflags(&chattr)?.difference(IFlags::APPEND))?;
        Ok(())
    })
}

/// The kernel leaves it to the server to take set-id bits away, and must not go on with those it remembers:
/// execve(2) looks at the mode that it has.
#[test]
fn set_id_bits_are_gone_for_the_kernel_too() -> Result<()> {
    on_fresh("set_id_bits_are_gone_for_the_kernel_too", |mounted| {
        let source = mounted.path().join("source");
        fs::write(&source, [7; 4096])?;
        let source = File::open(&source)?;
        fs::set_permissions(mounted.path(), fs::Permissions::from_mode(0o777))?;
        type Change = fn(&File, &File) -> rustix::io::Result<()>;
        let changes: [(&str, OFlags, Change); 4] = [
            ("a cached write", OFlags::empty(), |file, _| pwrite(file, &[1; 512], 0).map(drop)),
            ("a direct write", OFlags::DIRECT, |file, _| pwrite(file, &[1; 512], 0).map(drop)),
            ("fallocate", OFlags::empty(), |file, _| fallocate(file, FallocateFlags::empty(), 0, 8192)),
            ("copy_file_range", OFlags::empty(), |file, source| {
                rustix::fs::copy_file_range(source, Some(&mut 0), file, Some(&mut 0), 4096).map(drop)
            }),
        ];
        for (name, flags, change) in changes {
            let path = mounted.path().join(name);
            fs::write(&path, [0; 4096])?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6777))?;
            let file = File::from(rustix::fs::open(&path, OFlags::RDWR | flags, Mode::empty())?);
            as_user(1000, || change(&file, &source))?;
            // A look at permissions asks us for what the kernel knows to be old, and for nothing else.
            rustix::fs::accessat(CWD, &path, Access::EXEC_OK, AtFlags::empty())?;
            let known = rustix::fs::statx(
                &file,
                "",
                AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
                StatxFlags::MODE,
            )?;
            let mode = known.stx_mode & 0o7777;
            ensure!(mode == 0o777, "after {name} the kernel goes by {mode:o}");
            as_user(1001, || fs::hard_link(&path, mounted.path().join(format!("{name}, linked"))))?;
        }
        Ok(())
    })
}

/// The kernel's FUSE client forwards neither; nothing may happen then.
#[test]
fn ranges_are_neither_collapsed_nor_inserted() -> Result<()> {
    on_fresh("ranges_are_neither_collapsed_nor_inserted", |mounted| {
        let path = mounted.path().join("file");
        fs::write(&path, [7; 65536])?;
        let file = File::options().write(true).open(&path)?;
        for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            ensure!(fallocate(&file, flags, 4096, 8192) == Err(Errno::OPNOTSUPP), "{flags:?}");
        }
        ensure!(fs::read(&path)? == [7; 65536], "the file was changed");
        Ok(())
    })
}

/// On this thread only.
fn as_user<T>(id: u32, action: impl FnOnce() -> T) -> T {
    let become_user = |id| set_thread_res_uid(None, Uid::from_raw(id), None).expect("root may");
    let group = |id| set_thread_res_gid(None, Gid::from_raw(id), None).expect("root may");
    group(id);
    become_user(id);
    let done = action();
    become_user(0);
    group(0);
    done
}

#[test]
fn preallocated_space_reads_as_zeros_and_is_taken() -> Result<()> {
    on_fresh("preallocated_space_reads_as_zeros_and_is_taken", |mounted| {
        let path = mounted.path().join("file");
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 8 << 20)?;
        ensure!(file.metadata()?.len() == 0 && file.metadata()?.blocks() >= (8 << 20) / 512);
        fallocate(&file, FallocateFlags::empty(), 0, 4 << 20)?;
        ensure!(file.metadata()?.len() == 4 << 20);
        ensure!(fs::read(&path)?.iter().all(|byte| *byte == 0), "old bytes of the device");
        file.write_all_at(&[9; 4096], 1 << 20)?;
        fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 8 << 20)?;
        file.sync_all()?;
        // What lies behind the end of the file is not the hole's.
        let left = file.metadata()?.blocks();
        ensure!(left == (4 << 20) / 512, "{left} blocks are left");
        ensure!(fs::read(&path)?.iter().all(|byte| *byte == 0), "the punched hole is not empty");
        Ok(())
    })
}

#[test]
fn the_last_block_and_the_last_inode() -> Result<()> {
    on_fresh("the_last_block_and_the_last_inode", |mounted| {
        let is_full = |error: &std::io::Error| error.raw_os_error() == Some(Errno::NOSPC.raw_os_error());
        let before = rustix::fs::statvfs(mounted.path())?;
        let file = File::create(mounted.path().join("big"))?;
        let block = vec![5; 1 << 20];
        let mut length = 0;
        // Through FUSE the page cache takes what the disk has no room for, and only an fsync tells.
        let error = loop {
            match file.write_at(&block, length).and_then(|written| file.sync_data().map(|()| written)) {
                Ok(written) => length += written as u64,
                Err(error) => break error,
            }
        };
        ensure!(is_full(&error), "{error}");
        let left = rustix::fs::statvfs(mounted.path())?;
        // The kernel's ext4 keeps 4096 clusters for its own emergencies; the last MiB did not fit.
        ensure!(left.f_bfree < 4096 + 1100, "{} blocks were kept back", left.f_bfree);
        drop(file);
        fs::remove_file(mounted.path().join("big"))?;
        comes_back("blocks", before.f_bfree, || Ok(rustix::fs::statvfs(mounted.path())?.f_bfree))?;

        let dir = mounted.path().join("many");
        fs::create_dir(&dir)?;
        let free = rustix::fs::statvfs(mounted.path())?.f_ffree;
        let mut made = 0;
        let error = loop {
            match File::create(dir.join(made.to_string())) {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        ensure!(is_full(&error) && made == free, "{error} after {made} of {free} inodes");
        fs::remove_dir_all(&dir)?;
        comes_back("inodes", before.f_ffree, || Ok(rustix::fs::statvfs(mounted.path())?.f_ffree))?;
        Ok(())
    })
}
