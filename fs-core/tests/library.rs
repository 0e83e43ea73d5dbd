//! The crate as a library: handles, and what becomes of files and filesystems when they are dropped; paths.

#![expect(clippy::disallowed_types, reason = "a test has no order of locks")]

use std::io::{Read, Seek, SeekFrom, Write};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use blockdev::sim::{Fill, Image, MemDevice};
use fs_core::{
    Credentials, Error, FallocateMode, FileType, Filesystem, MountError, OpenFlags, OpenOptions, Posix,
    SetTime, SetXattr, Shutdown, Time,
};

const SIZE: u64 = 32 << 20;

/// A disk with an empty volume, which is ext4 with blocks of 4 KiB.
fn disk() -> Arc<MemDevice> {
    let disk = MemDevice::new(SIZE, Fill::Zero);
    mkfs::format(&disk, &mkfs::Options::new(mkfs::Kind::Ext4, 1_700_000_000)).unwrap();
    Arc::new(disk)
}

fn open(disk: &Arc<MemDevice>) -> Arc<Filesystem> {
    OpenOptions::new().open_device(disk.clone()).unwrap()
}

fn write(image: &Image, to: &mut impl Write) {
    let mut buf = vec![0; 1 << 20];
    for at in (0..image.size()).step_by(buf.len()) {
        image.read(at, &mut buf);
        to.write_all(&buf).unwrap();
    }
}

/// Asserts that e2fsck finds nothing to say, where it is installed.
fn assert_clean(disk: &MemDevice) {
    if Command::new("e2fsck").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "e2fsck is missing");
        eprintln!("SKIPPED: e2fsck is missing");
        return;
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write(&disk.snapshot(), &mut file);
    let said = Command::new("e2fsck").arg("-fn").arg(file.path()).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

/// Free inodes and blocks.
fn free(fs: &Filesystem) -> (u64, u64) {
    let free = fs.statfs().unwrap();
    (free.files_free, free.blocks_free)
}

fn is(error: &Error, posix: Posix) -> bool {
    matches!(error, Error::Posix(found) if *found == posix)
}

#[test]
fn a_removed_file_lives_as_long_as_its_last_handle() {
    let disk = disk();
    let fs = open(&disk);
    let root = fs.root().unwrap();
    let before = free(&fs);
    let file = root.create("file", 0o644).unwrap();
    file.write_all_at(&[7; 100_000], 0).unwrap();
    file.sync_all().unwrap();
    let (node, number, generation) = (root.lookup("file").unwrap(), file.ino(), file.generation());
    root.unlink("file").unwrap();
    assert_eq!(file.attributes().unwrap().links, 0);
    assert!(root.lookup("file").is_err());
    let mut byte = [0];
    file.read_exact_at(&mut byte, 99_999).unwrap();
    assert_eq!(byte, [7]);
    drop(file);
    // A handle is a handle: of the node, of an open file, a clone.
    let clone = node.clone();
    drop(node);
    assert_eq!(fs.node(number, generation).unwrap().attributes().unwrap().size, 100_000);
    assert_ne!(free(&fs), before);
    drop(clone);
    assert!(is(&fs.node(number, generation).unwrap_err(), Posix::Stale));
    assert_eq!(free(&fs), before);
    fs.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn directories_and_nameless_files_are_no_exception() {
    let disk = disk();
    let fs = open(&disk);
    let root = fs.root().unwrap();
    let before = free(&fs);
    let dir = root.create_dir("dir", 0o755).unwrap();
    root.rmdir("dir").unwrap();
    assert!(is(&dir.create("file", 0o644).unwrap_err(), Posix::NotFound));
    let nameless = root.tmpfile_as(&Credentials::root(), 0o600).unwrap();
    let kept = root.tmpfile_as(&Credentials::root(), 0o600).unwrap();
    root.link("kept", &kept).unwrap();
    drop((dir, nameless, kept));
    root.unlink("kept").unwrap();
    assert_eq!(free(&fs), before);
    // Replaced by rename.
    let (old, new) = (root.create("old", 0o644).unwrap(), root.create("new", 0o644).unwrap());
    root.rename("new", &root, "old", Default::default()).unwrap();
    assert_eq!((old.attributes().unwrap().links, new.attributes().unwrap().links), (0, 1));
    drop(old);
    root.unlink("old").unwrap();
    drop(new);
    assert_eq!(free(&fs), before);
    fs.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn two_threads_that_drop_the_last_handles_delete_once() {
    let disk = disk();
    let fs = open(&disk);
    let root = fs.root().unwrap();
    let before = free(&fs);
    for round in 0..300 {
        let file = root.create("file", 0o644).unwrap();
        // Now with data that wait to be written out, now without.
        if round % 2 == 0 {
            file.write_all_at(&[1; 5000], 0).unwrap();
        }
        let handles = [file.clone(), file.clone(), file.clone()];
        root.unlink("file").unwrap();
        drop(file);
        let together = Barrier::new(handles.len());
        std::thread::scope(|scope| {
            for handle in handles {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    drop(handle);
                });
            }
        });
        assert_eq!(free(&fs), before, "round {round}");
    }
    fs.close().unwrap();
    assert_clean(&disk);
}

/// What is dropped while others look the same file up again is not lost, and not deleted.
#[test]
fn a_named_file_that_is_dropped_and_found_again_stays() {
    let disk = disk();
    let fs = open(&disk);
    let root = fs.root().unwrap();
    root.create("file", 0o644).unwrap().write_all_at(b"content", 0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let root = &root;
            scope.spawn(move || {
                for _ in 0..500 {
                    let file = root.lookup("file").unwrap().open(OpenFlags::default()).unwrap();
                    let mut content = [0; 7];
                    file.read_exact_at(&mut content, 0).unwrap();
                    assert_eq!(&content, b"content");
                }
            });
        }
    });
    fs.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn a_filesystem_that_is_dropped_is_closed() {
    let disk = disk();
    let fs = open(&disk);
    fs.write("/file", "content").unwrap();
    let file = fs.open_file("/file", OpenFlags::default()).unwrap();
    // A handle keeps it.
    drop(fs);
    assert_eq!(file.filesystem().read("file").unwrap(), b"content");
    drop(file);
    assert_clean(&disk);
    assert_eq!(open(&disk).read("file").unwrap(), b"content");
}

#[test]
fn close_ends_what_is_open_and_removed() {
    let disk = disk();
    let fs = open(&disk);
    let before = free(&fs);
    let file = fs.create_file("file").unwrap();
    file.write_all_at(&[1; 50_000], 0).unwrap();
    fs.remove_file("file").unwrap();
    let dir = fs.root().unwrap();
    fs.close().unwrap();
    assert_clean(&disk);
    // Handles from before are of no use any more, and do no harm.
    let errors = [
        file.write_at(b"x", 0).unwrap_err(),
        file.read_at(&mut [0; 10], 0).unwrap_err(),
        file.sync_all().unwrap_err(),
        file.attributes().unwrap_err(),
        dir.lookup("file").unwrap_err(),
        dir.create("other", 0o644).unwrap_err(),
        fs.root().unwrap_err(),
        fs.sync().unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, Error::ShutDown)), "{errors:?}");
    fs.close().unwrap();
    drop((file, dir, fs));
    assert_clean(&disk);
    assert_eq!(free(&open(&disk)), before);
}

#[test]
fn what_is_shut_down_is_not_written_by_its_drop() {
    let disk = disk();
    let fs = open(&disk);
    fs.write("kept", "1").unwrap();
    fs.sync().unwrap();
    fs.write("lost", "2").unwrap();
    fs.shut_down(Shutdown::Cut).unwrap();
    let cut = disk.snapshot();
    drop(fs);
    let mut bytes = (vec![0; SIZE as usize], vec![0; SIZE as usize]);
    cut.read(0, &mut bytes.0);
    disk.snapshot().read(0, &mut bytes.1);
    assert!(bytes.0 == bytes.1, "the drop wrote");
    let fs = open(&disk);
    assert_eq!(fs.read("kept").unwrap(), b"1");
    assert!(!fs.exists("lost").unwrap());
    fs.close().unwrap();
    assert_clean(&disk);
}

/// Whoever has handles that it has yet to drop is asked to before space is said to have run out.
#[test]
fn space_that_a_dropped_handle_would_free_is_asked_for() {
    let disk = disk();
    let fs = open(&disk);
    let root = fs.root().unwrap();
    let yet_to_drop = Arc::new(std::sync::Mutex::new(Vec::new()));
    let asked = Arc::new(AtomicUsize::new(0));
    let (handles, count) = (yet_to_drop.clone(), asked.clone());
    fs.before_no_space(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let dropped = std::mem::take(&mut *handles.lock().unwrap());
        drop(dropped);
    });
    assert!(!fs.wait_for_reclaim());
    let half = fs.statfs().unwrap().blocks_available * 3 / 5 * u64::from(fs.block_size());
    let allocate = FallocateMode::Allocate { keep_size: false };
    for round in 0..4 {
        let before = asked.load(Ordering::Relaxed);
        let file = root.create("file", 0o644).unwrap();
        file.fallocate(0, half, allocate).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed) > before, round > 0, "round {round}");
        root.unlink("file").unwrap();
        yet_to_drop.lock().unwrap().push(file);
    }
    assert!(fs.wait_for_reclaim() && !fs.wait_for_reclaim());
    fs.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn files_are_streams() {
    let fs = open(&disk());
    let mut file = fs.create_file("file").unwrap();
    file.write_all(b"hello, ").unwrap();
    file.write_all(b"world").unwrap();
    file.seek(SeekFrom::Current(-5)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "world");
    assert_eq!(file.seek(SeekFrom::End(2)).unwrap(), 14);
    file.write_all(b"!").unwrap();
    assert_eq!(fs.read("file").unwrap(), b"hello, world\0\0!");
    assert_eq!(file.seek(SeekFrom::Current(-20)).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let append = OpenFlags { write: true, append: true, ..OpenFlags::default() };
    fs.open_file("file", append).unwrap().write_all(b"?").unwrap();
    assert_eq!(fs.metadata("file").unwrap().size, 16);
    let mut reader = fs.open_file("file", OpenFlags::default()).unwrap();
    assert_eq!(reader.write(b"x").unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert!(is(&reader.set_len(0).unwrap_err(), Posix::BadHandle));
    assert!(is(&reader.fallocate(0, 1, FallocateMode::PunchHole).unwrap_err(), Posix::BadHandle));
    assert_eq!(std::io::copy(&mut reader, &mut fs.create_file("copy").unwrap()).unwrap(), 16);
    assert!(is(&fs.root().unwrap().open(OpenFlags::default()).unwrap_err(), Posix::IsDirectory));
}

#[test]
fn paths_lead_where_those_of_std_do() {
    let disk = disk();
    let fs = open(&disk);
    fs.create_dir_all("/a/b/c").unwrap();
    fs.create_dir_all("a/b/c/").unwrap();
    fs.write("a/b/file", "one").unwrap();
    fs.write("/a/b/file", "two").unwrap();
    assert_eq!(fs.read("a//b/./c/../file").unwrap(), b"two");
    fs.symlink("../b/file", "a/b/link").unwrap();
    fs.symlink("/a/b", "a/dir").unwrap();
    fs.symlink("nowhere", "a/dangling").unwrap();
    assert_eq!(fs.read("a/dir/link").unwrap(), b"two");
    assert_eq!(fs.read_link("a/dir/link").unwrap().to_str(), Some("../b/file"));
    assert!(
        fs.symlink_metadata("a/dir/link").unwrap().is_symlink() && fs.metadata("a/dir").unwrap().is_dir()
    );
    assert!(!fs.exists("a/dangling").unwrap() && fs.symlink_metadata("a/dangling").is_ok());
    // Made where the link leads, as open(2) does.
    fs.write("a/dangling", "three").unwrap();
    assert_eq!(fs.read("a/nowhere").unwrap(), b"three");
    fs.rename("a/b/file", "a/moved").unwrap();
    fs.hard_link("a/moved", "a/again").unwrap();
    assert_eq!(fs.metadata("a/again").unwrap().links, 2);
    assert_eq!(fs.copy("a/moved", "a/copy").unwrap(), 3);
    assert!(is(&fs.copy("a/moved", "a/again").unwrap_err(), Posix::Invalid));
    let mut names: Vec<_> = fs.read_dir("a").unwrap().map(|entry| entry.unwrap().name().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["again", "b", "copy", "dangling", "dir", "moved", "nowhere"]);
    let mut walked: Vec<_> =
        fs.walk("a").unwrap().map(|entry| entry.unwrap().0.to_str().unwrap().to_owned()).collect();
    walked.sort();
    assert_eq!(walked.join(" "), "a a/again a/b a/b/c a/b/link a/copy a/dangling a/dir a/moved a/nowhere");
    for (wrong, path) in [
        (Posix::NotFound, ""),
        (Posix::NotFound, "none"),
        (Posix::NotFound, "none/file"),
        (Posix::NotDirectory, "a/moved/file"),
        (Posix::NotDirectory, "a/moved/"),
        (Posix::NotDirectory, "a/moved/.."),
    ] {
        let error = fs.metadata(path).unwrap_err();
        assert!(is(&error, wrong), "{path}: {error}");
    }
    assert!(is(&fs.remove_file("a/b").unwrap_err(), Posix::IsDirectory));
    assert!(is(&fs.remove_dir("a").unwrap_err(), Posix::NotEmpty));
    assert!(is(&fs.create_dir_all("a/moved/x").unwrap_err(), Posix::NotDirectory));
    assert!(is(&fs.create_dir("a/b").unwrap_err(), Posix::Exists));
    fs.remove_dir_all("a/").unwrap();
    assert!(!fs.exists("a").unwrap());
    fs.close().unwrap();
    assert_clean(&disk);
}

#[test]
fn no_symbolic_link_leads_out_or_round_for_ever() {
    let fs = open(&disk());
    fs.symlink("/../../..", "up").unwrap();
    assert_eq!(fs.metadata("up/../up").unwrap().ino, fs.root().unwrap().ino());
    fs.symlink("loop", "loop").unwrap();
    fs.symlink("b", "a").unwrap();
    fs.symlink("a", "b").unwrap();
    for path in ["loop", "a", "b/file", "loop/.."] {
        assert!(is(&fs.metadata(path).unwrap_err(), Posix::TooManySymlinks), "{path}");
    }
    fs.write("0", "end").unwrap();
    for n in 1..=41 {
        fs.symlink(format!("{}", n - 1), format!("{n}")).unwrap();
    }
    assert_eq!(fs.read("40").unwrap(), b"end");
    assert!(is(&fs.read("41").unwrap_err(), Posix::TooManySymlinks));
    fs.remove_file("41").unwrap();
    assert!(fs.symlink_metadata("41").is_err() && fs.symlink_metadata("40").is_ok());
}

#[test]
fn attributes_by_path() {
    let fs = open(&disk());
    fs.write("file", "x").unwrap();
    fs.set_permissions("file", 0o640).unwrap();
    fs.chown("file", Some(1000), None).unwrap();
    let time = Time { sec: 1_000_000, nsec: 5 };
    fs.set_times("file", None, Some(SetTime::At(time))).unwrap();
    fs.set_xattr("file", "user.a", "value").unwrap();
    let attr = fs.metadata("file").unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.mtime), (0o100_640, 1000, 0, time));
    assert_eq!((attr.kind(), attr.is_file()), (Some(FileType::Regular), true));
    assert_eq!(fs.xattr("file", "user.a").unwrap(), b"value");
    assert_eq!(fs.list_xattrs("file").unwrap(), ["user.a"]);
    fs.remove_xattr("file", "user.a").unwrap();
    assert!(is(&fs.xattr("file", "user.a").unwrap_err(), Posix::NoData));
    let node = fs.lookup("file").unwrap();
    let user = |uid| Credentials { uid, gid: 1, ..Credentials::root() };
    let write = fs_core::Access { write: true, ..Default::default() };
    assert!(node.check_access(&user(1000), write).is_ok() && node.check_access(&user(1001), write).is_err());
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 2, 1001), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes().iter().chain(&perm.to_le_bytes()).chain(&id.to_le_bytes()));
    }
    node.set_xattr("system.posix_acl_access", &list, SetXattr::Any).unwrap();
    assert!(node.check_access(&user(1001), write).is_ok() && node.check_access(&user(1002), write).is_err());
}

#[test]
fn holes_are_copied_as_holes() {
    let fs = open(&disk());
    let file = fs.create_file("sparse").unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"end", 8 << 20).unwrap();
    file.set_len(9 << 20).unwrap();
    assert_eq!(fs.copy("sparse", "copy").unwrap(), 9 << 20);
    assert!(fs.read("copy").unwrap() == fs.read("sparse").unwrap());
    fs.sync().unwrap();
    assert!(fs.metadata("copy").unwrap().sectors < 100);
}

#[test]
fn a_part_of_a_device_is_opened_and_a_file_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut image = std::fs::File::create(&path).unwrap();
    image.write_all(&[0xff; 1 << 20]).unwrap();
    write(&disk().snapshot(), &mut image);
    image.write_all(&[0xff; 1 << 20]).unwrap();
    drop(image);
    assert!(matches!(Filesystem::open(&path), Err(MountError::SuperBlock { .. })));
    let part = || OpenOptions::new().offset(1 << 20).length(SIZE);
    let fs = part().open(&path).unwrap();
    fs.write("file", "content").unwrap();
    let file = fs.lookup("file").unwrap();
    let error = part().open(&path).err().unwrap();
    assert!(matches!(error, MountError::Open(_)), "{error}");
    assert_eq!(std::io::Error::from(error).raw_os_error(), Some(libc::EBUSY));
    // A handle that is left does not keep the file locked.
    fs.close().unwrap();
    let fs = part().read_only(true).open(&path).unwrap();
    assert_eq!(fs.read("file").unwrap(), b"content");
    let error = fs.write("file", "other").unwrap_err();
    assert_eq!(std::io::Error::from(error).raw_os_error(), Some(libc::EROFS));
    drop((file, fs));
    let error = OpenOptions::new().offset(1 << 20).length(SIZE / 2).open(&path).err().unwrap();
    assert!(matches!(error, MountError::Truncated { .. }), "{error}");
    let whole = std::fs::read(&path).unwrap();
    let (before, after) = (&whole[..1 << 20], &whole[(1 << 20) + SIZE as usize..]);
    assert!(before.iter().chain(after).all(|byte| *byte == 0xff), "it wrote outside its part");
    let device: Arc<MemDevice> = disk();
    let fs = OpenOptions::new().length(SIZE).open_device(device.clone()).unwrap();
    fs.write("file", "content").unwrap();
    fs.close().unwrap();
    assert_clean(&device);
}
