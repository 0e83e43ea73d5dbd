//! After a crash: the log is replayed, orphans are freed, and a volume that is sound then is clean, without a
//! pass. And repairs that do not hold are told.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockdev::sim::{Fill, MemDevice};
use blockdev::{BlockDevice, DeviceGeometry};
use fsck::{Mode, Options};
use support::{Volume, debugfs, e2fsck, ends_clean, mounting, run, volume_file};

/// A volume that the kernel was stopped on: with files unlinked but open, some with large attributes, and one
/// that was to be cut. `None` where the machine cannot mount.
fn stopped(folder: &Path, options: &str) -> Option<PathBuf> {
    let program = r#"
import os, fcntl, struct
os.chdir('mnt')
for i in range(60): open('kept%d' % i, 'w').write('x' * 3000)
held = []
for i in range(30):
    file = open('gone%d' % i, 'w+')
    file.write('y' * 9000)
    file.flush()
    if i % 10 == 0:
        os.setxattr('gone%d' % i, 'user.large', b'v' * 5000 if 'ea_inode' in OPTIONS else b'v' * 500)
    held.append(file)
os.mkdir('dir')
below = os.open('dir', os.O_RDONLY)
os.sync()
for i in range(30): os.unlink('gone%d' % i)
os.rmdir('dir')
os.sync()
for i in range(20): open('late%d' % i, 'w').write('z' * 2000)
fd = os.open('.', os.O_RDONLY)
os.fsync(fd)
# As a power cut: the log is flushed, nothing else is.
fcntl.ioctl(fd, 0x8004587d, struct.pack('I', 1))
"#;
    let script = format!(
        "set -e; cd {dir}; truncate -s 16M image; mke2fs -Fq -t ext4 -b 1024 {options} image; mkdir mnt; \
         mount -o loop image mnt; python3 - <<'EOF' || status=$?\nOPTIONS = '{options}'{program}\nEOF\n\
         umount mnt; exit $status",
        dir = folder.display()
    );
    mounting(&script)?;
    Some(folder.join("image"))
}

#[test]
fn a_volume_that_was_interrupted_is_clean_without_a_pass() {
    // Not with quotas, for which the kernel of these tests is not built.
    for options in [
        "-O ^orphan_file",
        "-O orphan_file",
        "-O orphan_file,ea_inode -I 256",
        "-O ^orphan_file,ea_inode -I 256",
        "-O bigalloc,orphan_file -C 4096",
        "-O ^metadata_csum,^orphan_file",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let Some(image) = stopped(folder.path(), options) else { return };
        let crashed = std::fs::read(&image).unwrap();
        for flags in ["-p", "-a", "-y"] {
            std::fs::write(&image, &crashed).unwrap();
            let (code, words) = run(&[flags], &image);
            assert_eq!(code, 0, "{options} {flags}: {words}");
            assert!(words.contains("clean, "), "{options} {flags}: {words}");
            assert!(!words.contains("Pass "), "{options} {flags}: {words}");
            ends_clean(&image);
            let after = std::fs::read(&image).unwrap();
            let volume = Volume::new(&after).unwrap();
            let names = volume.files();
            assert!(names.contains_key("/kept59") && names.contains_key("/late19"), "{options}");
            assert!(!names.contains_key("/gone0"), "{options}");
            assert!(volume.sb.last_orphan().is_none());
        }
        // Only the journal, and then the rest.
        std::fs::write(&image, &crashed).unwrap();
        let (code, words) = run(&["-y", "-E", "journal_only"], &image);
        assert!(code == 0 && words.contains("journal replayed"), "{options}: {words}");
        assert_eq!(run(&["-p"], &image).0, 0);
        ends_clean(&image);
        // Who may write nothing sees the volume as it will be, and writes nothing.
        for flags in ["-n", "-fn"] {
            std::fs::write(&image, &crashed).unwrap();
            let (code, words) = run(&[flags, "--json"], &image);
            assert_eq!(code, 0, "{options} {flags}: {words}");
            assert!(words.contains("journal-overlaid") && words.contains("\"changed\":false"), "{words}");
            assert_eq!(std::fs::read(&image).unwrap(), crashed);
        }
    }
}

#[test]
fn a_cut_that_was_not_finished_is_finished() {
    let (folder, image) = volume_file("-t ext4 -b 1024");
    let content = folder.path().join("content");
    std::fs::write(&content, vec![7; 100 * 1024]).unwrap();
    debugfs(&image, &format!("write {} file\n", content.display()));
    assert!(e2fsck(&image, "-y").0 <= 1);
    let ino = Volume::new(&std::fs::read(&image).unwrap()).unwrap().files()["/file"].0;
    debugfs(&image, &format!("sif file size 10000\nssv last_orphan {ino}\n"));
    let (code, words) = run(&["-p"], &image);
    assert!(
        code == 0 && words.contains("truncation to 10000") && words.contains("clean, "),
        "{code}: {words}"
    );
    ends_clean(&image);
    let bytes = std::fs::read(&image).unwrap();
    let volume = Volume::new(&bytes).unwrap();
    let inode = volume.inode(ino).unwrap();
    let blocks = volume.mapped(&inode).0;
    assert_eq!((inode.size, blocks.len()), (10_000, 10));
    // A file that grows again must not show what was behind its end.
    let last = volume.block(blocks[9].1).unwrap();
    assert!(last[..784].iter().all(|&byte| byte == 7) && last[784..].iter().all(|&byte| byte == 0));
}

#[test]
fn an_orphan_that_does_not_fit_the_bitmaps_has_everything_looked_at() {
    let (folder, image) = volume_file("-t ext4 -b 1024");
    let content = folder.path().join("content");
    std::fs::write(&content, vec![7; 20 * 1024]).unwrap();
    debugfs(&image, &format!("write {} file\n", content.display()));
    assert!(e2fsck(&image, "-y").0 <= 1);
    let bytes = std::fs::read(&image).unwrap();
    let volume = Volume::new(&bytes).unwrap();
    let ino = volume.files()["/file"].0;
    let block = volume.mapped(&volume.inode(ino).unwrap()).0[3].1;
    debugfs(
        &image,
        &format!("freeb {block}\nunlink file\nsif <{ino}> links_count 0\nssv last_orphan {ino}\n"),
    );
    let (code, words) = run(&["-p"], &image);
    assert!(
        code == 1 && words.contains("orphans that do not fit the bitmaps, check forced"),
        "{code}: {words}"
    );
    ends_clean(&image);
}

/// A device that takes writes of one place and keeps the old bytes.
struct Stuck {
    device: MemDevice,
    place: std::ops::Range<u64>,
}

impl BlockDevice for Stuck {
    fn geometry(&self) -> DeviceGeometry {
        self.device.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> blockdev::Result<()> {
        self.device.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> blockdev::Result<()> {
        let (start, end) = (self.place.start.max(offset), self.place.end.min(offset + buf.len() as u64));
        let mut bytes = buf.to_vec();
        if start < end {
            self.device.read_at(start, &mut bytes[(start - offset) as usize..(end - offset) as usize])?;
        }
        self.device.write_at(offset, &bytes)
    }

    fn flush(&self) -> blockdev::Result<()> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        self.device.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> blockdev::Result<()> {
        self.device.write_zeroes(offset, len)
    }
}

#[test]
fn repairs_that_do_not_hold_are_no_success() {
    let (_folder, image) = volume_file("-t ext4 -b 1024");
    debugfs(&image, "write /etc/hostname file\nsif file links_count 7\n");
    let bytes = std::fs::read(&image).unwrap();
    let volume = Volume::new(&bytes).unwrap();
    let start = volume.inode_offset(volume.files()["/file"].0).unwrap() as u64;
    for mode in [Mode::Yes, Mode::Preen] {
        let device = MemDevice::new(bytes.len() as u64, Fill::Zero);
        device.write_at(0, &bytes).unwrap();
        let stuck = Arc::new(Stuck { device, place: start..start + 256 });
        let options = Options { mode, force: true, ..Options::default() };
        let report = fsck::check(Arc::clone(&stuck) as _, &options).unwrap();
        assert_eq!(report.exit_code() & 4, 4, "{report:?}");
        let cycle = report.findings.iter().find(|finding| finding.problem.code.row().name == "repair-cycle");
        let named = cycle.and_then(|finding| finding.problem.name.as_deref());
        assert_eq!(named, Some("link-count"), "{:?}", report.codes());
        assert!(report.findings.iter().any(|f| !f.fixed && f.problem.code.row().name == "link-count"));
        // The volume says that it needs a check.
        let mut superblock = [0; 1024];
        stuck.read_at(1024, &mut superblock).unwrap();
        assert_eq!(superblock[58] & 1, 0);
    }
}
