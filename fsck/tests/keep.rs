//! Repairs that must keep what the volume holds, and healthy volumes that must be left alone: what takes more
//! than a row of the corpus to plant.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use blockdev::BlockDevice;
use blockdev::sim::{Fill, MemDevice};
use ext4_format::Ino;
use fsck::{Mode, Options, Report};
use support::{Held, Volume, check, debugfs, e2fsck_of, mounting};

/// Bytes of an inode in front of `i_block`, and of `i_block`.
const BLOCK: (usize, usize) = (0x28, 60);

/// What the files of an image hold, by path.
fn held(image: &[u8]) -> BTreeMap<String, Held> {
    Volume::new(image).unwrap().files().into_iter().map(|(path, (_, held))| (path, held)).collect()
}

/// Runs debugfs commands over an image in memory.
fn edited(image: &[u8], commands: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    debugfs(file.path(), commands);
    std::fs::read(file.path()).unwrap()
}

/// Changes the record of a file, whose checksum is made right again.
fn edit_inode(image: &mut [u8], path: &str, change: impl FnOnce(&mut [u8])) {
    let before = image.to_vec();
    let volume = Volume::new(&before).unwrap();
    let ino = volume.files()[path].0;
    let at = volume.inode_offset(ino).unwrap();
    let record = &mut image[at..at + volume.geometry.inode_size];
    change(record);
    volume.csum.set_inode(record, ino);
}

/// A volume made by mke2fs with `options` from files that `script` makes.
fn copied(options: &str, size: &str, script: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "set -e; cd {}; mkdir from; (cd from; {script}); truncate -s {size} image; mke2fs -Fq -d from {options} image",
        folder.path().display()
    );
    let made = std::process::Command::new("bash").arg("-c").arg(text).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(folder.path().join("image")).unwrap()
}

fn unshare(image: &[u8]) -> (Report, Vec<u8>) {
    let device = Arc::new(MemDevice::new(image.len() as u64, Fill::Zero));
    device.write_at(0, image).unwrap();
    let options = Options {
        mode: Mode::Yes,
        force: true,
        unshare_blocks: true,
        now: 1_700_000_000,
        ..Options::default()
    };
    let report = fsck::check(Arc::clone(&device) as Arc<dyn BlockDevice>, &options).unwrap();
    let mut bytes = vec![0; image.len()];
    device.read_at(0, &mut bytes).unwrap();
    (report, bytes)
}

/// Both checkers are content, and find nothing more.
fn is_clean(image: &[u8]) {
    let (code, words) = e2fsck_of(image);
    assert_eq!(code, 0, "{words}");
    let report = check(image, Mode::CheckOnly).0.unwrap();
    assert_eq!(report.codes(), Vec::<&str>::new());
}

/// Files that share all their blocks stay as they are when there is no room for copies; with room, each gets
/// its own.
#[test]
fn blocks_are_unshared_only_when_there_is_room() {
    let script = "seq 60000 | head -c 300000 > a; : > b; : > c; seq 90000 | head -c 300000 > filler";
    let mut image = copied("-t ext4 -b 1024 -N 64 -O ^has_journal,^resize_inode", "1M", script);
    let mut shape = Vec::new();
    edit_inode(&mut image, "/a", |record| shape = record.to_vec());
    for path in ["/b", "/c"] {
        edit_inode(&mut image, path, |record| {
            record[4..8].copy_from_slice(&shape[4..8]);
            record[0x1c..0x20].copy_from_slice(&shape[0x1c..0x20]);
            record[BLOCK.0..BLOCK.0 + BLOCK.1].copy_from_slice(&shape[BLOCK.0..BLOCK.0 + BLOCK.1]);
        });
    }
    let image = edited(&image, "feature shared_blocks\n");
    let before = held(&image);
    assert_eq!(before["/a"].sum, before["/b"].sum);
    let (report, refused) = unshare(&image);
    assert_eq!(report.exit_code() & 4, 4);
    assert_eq!(report.codes(), ["unshare-no-room"]);
    assert_eq!(held(&refused), before);
    assert!(Volume::new(&refused).unwrap().sb.ro_compat().names().any(|name| name == "shared_blocks"));
    for gone in ["rm /filler\n", "rm /c\n"] {
        let image = edited(&image, gone);
        let before = held(&image);
        let (report, unshared) = unshare(&image);
        assert_eq!(held(&unshared), before, "{gone}");
        assert_eq!(report.exit_code(), 1, "{gone}: {:?}", report.codes());
        is_clean(&unshared);
    }
}

/// Extents that begin in the middle of a cluster of the device, or share one, move to clusters of their own
/// with what they hold.
#[test]
fn misaligned_extents_of_bigalloc_keep_their_bytes() {
    let script = "seq 20000 > big; seq 30000 > other";
    let image = copied("-t ext4 -b 1024 -N 64 -O bigalloc,^has_journal -C 4096", "8M", script);
    let volume = Volume::new(&image).unwrap();
    let blocks = volume.mapped(&volume.inode(volume.files()["/big"].0).unwrap()).0;
    // mke2fs puts the rest of the file in one piece.
    let first = blocks[4].1 as u32;
    assert_eq!(blocks[100].1 as u32, first + 96);
    // File block, length, and how far behind that block of the file: in the middle of a cluster of the
    // file, over its end, and a second extent in the first one's cluster.
    let plans: [&[(u32, u16, u32)]; 4] =
        [&[(1, 40, 0)], &[(7, 1, 0)], &[(0, 2, 0), (6, 2, 2)], &[(0, 2, 0), (5, 7, 10)]];
    for plan in plans {
        let mut image = image.clone();
        edit_inode(&mut image, "/big", |record| {
            let root = &mut record[BLOCK.0..BLOCK.0 + BLOCK.1];
            root.fill(0);
            root[..8].copy_from_slice(&[0x0a, 0xf3, plan.len() as u8, 0, 4, 0, 0, 0]);
            for (slot, (block, len, ahead)) in root[12..].chunks_exact_mut(12).zip(plan) {
                slot[..4].copy_from_slice(&block.to_le_bytes());
                slot[4..6].copy_from_slice(&len.to_le_bytes());
                slot[8..].copy_from_slice(&(first + ahead).to_le_bytes());
            }
            let end = plan.last().map_or(0, |(block, len, _)| block + u32::from(*len));
            record[4..8].copy_from_slice(&(end * 1024).to_le_bytes());
        });
        let before = held(&image);
        let (report, repaired) = check(&image, Mode::Yes);
        let report = report.unwrap();
        assert_eq!(report.exit_code(), 1, "{:?}", report.codes());
        assert!(report.codes().contains(&"extent-cluster"), "{plan:?}: {:?}", report.codes());
        assert_eq!(held(&repaired), before, "{plan:?}");
        is_clean(&repaired);
    }
}

/// Where neither a block nor an inode is left for lost+found, what lost its name gets one in the root.
#[test]
fn a_full_volume_reconnects_to_the_root() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e; cd {}; truncate -s 1M image; \
         mke2fs -Fq -t ext4 -b 1024 -N 64 -m 0 -O ^has_journal,^resize_inode image; mkdir mnt; mount -o loop image mnt; \
         (cd mnt; rmdir lost+found; seq 3000 > victim; mkdir lost; seq 100 > lost/inside; \
          dd if=/dev/zero of=filler bs=1024 status=none || :; sync); umount mnt; seq 200 > block",
        folder.path().display()
    );
    if mounting(&script).is_none() {
        return;
    }
    // The kernel keeps a few blocks back.
    let mut image = std::fs::read(folder.path().join("image")).unwrap();
    let block = folder.path().join("block");
    for at in 0..Volume::new(&image).unwrap().sb.free_blocks() {
        image = edited(&image, &format!("write {} rest{at}\n", block.display()));
    }
    let before = held(&image);
    let numbers: BTreeMap<String, Ino> =
        Volume::new(&image).unwrap().files().into_iter().map(|(path, (ino, _))| (path, ino)).collect();
    let (report, repaired) = check(&edited(&image, "unlink /victim\nunlink /lost\n"), Mode::Yes);
    let report = report.unwrap();
    assert_eq!(report.exit_code(), 1, "{:?}", report.codes());
    let after = held(&repaired);
    assert!(!after.contains_key("/lost+found"), "{:?}", after.keys());
    assert_eq!(after[&format!("/#{}", numbers["/victim"])], before["/victim"]);
    assert_eq!(after[&format!("/#{}/inside", numbers["/lost"])], before["/lost/inside"]);
    is_clean(&repaired);
}

/// A journal that was made on a mounted volume is a file with a name. The superblock's copy of its map brings
/// it back, with the transactions that it holds.
#[test]
fn a_journal_with_a_name_is_left_alone_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e; cd {}; truncate -s 16M image; mke2fs -Fq -t ext4 -b 1024 -O ^has_journal image; mkdir mnt; \
         mount -o loop image mnt; tune2fs -J size=1 $(losetup -j image | cut -d: -f1) > /dev/null; umount mnt; \
         cp image quiet; mount -o loop,commit=1000 image mnt; \
         (cd mnt; mkdir dir; for i in $(seq 100); do echo $i > dir/f$i; done; sync -d dir/f100; sync dir; \
          cp ../image ../copy) || status=$?; umount mnt; exit $status",
        folder.path().display()
    );
    if mounting(&script).is_none() {
        return;
    }
    let quiet = std::fs::read(folder.path().join("quiet")).unwrap();
    is_clean(&quiet);
    let (report, copied) = check(&quiet, Mode::Yes);
    assert_eq!(report.unwrap().codes(), Vec::<&str>::new());
    let words = Volume::new(&copied).unwrap().sb.journal_backup();
    assert!(words.is_some(), "the copy was made");
    // The copy as a checker leaves it, and an inode that leads nowhere.
    let crashed = std::fs::read(folder.path().join("copy")).unwrap();
    let mut damaged = crashed.clone();
    let mut sb = Volume::new(&crashed).unwrap().sb;
    sb.set_journal_backup(words.unwrap());
    damaged[1024..2048].copy_from_slice(&sb.encode());
    edit_inode(&mut damaged, "/.journal", |record| record[BLOCK.0..BLOCK.0 + BLOCK.1].fill(0));
    let (report, repaired) = check(&damaged, Mode::Yes);
    let report = report.unwrap();
    assert!(report.replayed && report.codes().contains(&"journal-from-backup"), "{:?}", report.codes());
    is_clean(&repaired);
    let (_, replayed) = check(&crashed, Mode::Yes);
    let (ours, wanted) = (held(&repaired), held(&replayed));
    assert_eq!(wanted.keys().filter(|path| path.starts_with("/dir/f")).count(), 100);
    for (path, held) in wanted.iter().filter(|(path, _)| *path != "/.journal") {
        assert_eq!(ours.get(path), Some(held), "{path}");
    }
    assert!(ours.contains_key("/.journal"));
}

/// A volume with an orphan file says that it may hold orphans while it is mounted, and after a crash: who
/// only looks does not call that an error.
#[test]
fn orphans_of_a_crash_are_no_errors_for_who_only_looks() {
    let folder = tempfile::tempdir().unwrap();
    if support::interrupted(folder.path(), "-O orphan_file").is_none() {
        return;
    }
    let image = std::fs::read(folder.path().join("copy")).unwrap();
    let report = check(&image, Mode::CheckOnly).0.unwrap();
    assert_eq!((report.left, report.exit_code()), (0, 0), "{:?}", report.codes());
    let (report, repaired) = check(&image, Mode::Yes);
    assert!(report.unwrap().replayed);
    is_clean(&repaired);
}
