//! What this crate adds to the parts that it puts together: image files by path, and one error for each of them.

mod support;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use rext4::fsck::{self, CheckError};
use rext4::mkfs::{self, FormatError};
use rext4::{Filesystem, MountError, OpenOptions, device};
use support::assert_clean;

#[test]
fn no_image_file_is_left_of_a_failure_and_none_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    for (size, options) in [
        (0, mkfs::Options::default()),
        (4096, mkfs::Options::default()),
        (16 << 20, mkfs::Options { block_size: Some(3000), ..mkfs::Options::default() }),
        (u64::MAX, mkfs::Options::default()),
    ] {
        let error = mkfs::format_file(&image, size, &options).unwrap_err();
        assert!(!image.exists() && !error.to_string().is_empty(), "{size}: {error}");
    }
    fs::write(&image, "mine").unwrap();
    let error = mkfs::format_file(&image, 16 << 20, &mkfs::Options::default()).unwrap_err();
    assert!(matches!(error, FormatError::Create { .. }), "{error}");
    assert_eq!(fs::read(&image).unwrap(), b"mine");
    let error = mkfs::format_file(folder.path().join("none/disk.img"), 16 << 20, &mkfs::Options::default());
    assert!(matches!(error, Err(FormatError::Create { .. })));
}

#[test]
fn a_check_by_path_says_what_is_wrong_and_repairs_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    assert!(matches!(rext4::check(&image), Err(CheckError::Open(device::OpenError::Io { .. }))));
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    assert!(matches!(rext4::check(&image), Err(CheckError::Check(fsck::Error::Unusable(_)))));
    fs::remove_file(&image).unwrap();

    let options = mkfs::Options { block_size: Some(4096), ..mkfs::Options::default() };
    mkfs::format_file(&image, 32 << 20, &options).unwrap();
    let volume = Filesystem::open(&image).unwrap();
    volume.write("file", "content").unwrap();
    let error = rext4::check(&image).unwrap_err();
    assert!(matches!(error, CheckError::Open(device::OpenError::InUse { .. })), "{error}");
    let error = Filesystem::open(&image).err().unwrap();
    assert!(matches!(error, MountError::Open(device::OpenError::InUse { .. })), "{error}");
    volume.close().unwrap();
    assert_clean(&image);

    // The free blocks of the superblock, at byte 12 in it: a count that its checksum does not fit, either.
    let mut file = File::options().read(true).write(true).open(&image).unwrap();
    let mut damaged = vec![0; 1024];
    file.seek(SeekFrom::Start(1024)).unwrap();
    file.read_exact(&mut damaged).unwrap();
    damaged[12] ^= 1;
    file.seek(SeekFrom::Start(1024)).unwrap();
    file.write_all(&damaged).unwrap();
    drop(file);
    let before = fs::read(&image).unwrap();
    let report = rext4::check(&image).unwrap();
    assert!(!report.is_clean() && !report.changed, "{report:?}");
    assert!(fs::read(&image).unwrap() == before, "a check wrote");
    let repair = fsck::Options { mode: fsck::Mode::Yes, force: true, ..fsck::Options::default() };
    let report = fsck::check_path(&image, &repair).unwrap();
    assert!(report.is_clean() && report.changed && report.count > 0, "{report:?}");
    assert_clean(&image);
    let volume = OpenOptions::new().read_only(true).open(&image).unwrap();
    assert_eq!(volume.read("file").unwrap(), b"content");
}
