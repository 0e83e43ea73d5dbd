//! The journal's own troubles: an inode that only the superblock still describes, copies that are old, and
//! journals on devices of their own.

mod support;

use std::path::Path;
use std::process::Command;

use ext4_format::superblock::SuperBlock;
use support::{
    Volume, check, debugfs, e2fsck, ends_clean, interrupted, is_mended, mounting, run, volume_file,
};

fn superblock(image: &Path) -> SuperBlock {
    let bytes = std::fs::read(image).unwrap();
    SuperBlock::parse(bytes[1024..2048].try_into().unwrap()).unwrap()
}

#[test]
fn a_lost_journal_inode_comes_back_and_its_log_is_replayed() {
    for options in ["-b 1024", "-b 4096", "-O ^extent,^64bit"] {
        let folder = tempfile::tempdir().unwrap();
        if interrupted(folder.path(), options).is_none() {
            return;
        }
        let copy = folder.path().join("copy");
        let dirty = std::fs::read(&copy).unwrap();
        let (_, wanted) = check(&dirty, fsck::Mode::Yes);
        debugfs(&copy, "clri <8>\n");
        assert_eq!(run(&["-fn"], &copy).0, 4, "{options}");
        let (code, words) = run(&["-fy"], &copy);
        assert!(code == 1 && words.contains("copy of its map"), "{options}: {words}");
        assert!(words.contains("journal replayed"), "{options}: {words}");
        ends_clean(&copy);
        let kept = std::fs::read(&copy).unwrap();
        assert_eq!(
            Volume::new(&kept).unwrap().files(),
            Volume::new(&wanted).unwrap().files(),
            "{options}: what the log held is there"
        );
    }
}

#[test]
fn a_copy_that_leads_to_no_log_is_not_believed() {
    let damage = "clri <8>\nssv jnl_blocks[5] 3\n";
    is_mended("-t ext4 -b 1024 -J size=1", damage, "has no journal.  CREATED");
}

#[test]
fn an_old_copy_is_made_new_and_is_no_error() {
    for options in ["-t ext4 -b 1024 -J size=1", "-t ext3 -b 1024 -J size=1"] {
        let (_folder, image) = volume_file(options);
        let right = superblock(&image).journal_backup().unwrap();
        for edit in ["ssv jnl_blocks[5] 77\n", "ssv jnl_backup_type 0\n"] {
            for flags in ["-fp", "-p", "-fy"] {
                debugfs(&image, edit);
                assert_ne!(superblock(&image).journal_backup(), Some(right));
                assert_eq!(run(&["-fn"], &image).0, 0, "{options}, {edit}");
                assert_ne!(superblock(&image).journal_backup(), Some(right), "-n writes nothing");
                let (code, words) = run(&[flags], &image);
                assert!(code == 0 && words.contains("Backing up"), "{options}, {flags}: {words}");
                assert_eq!(superblock(&image).journal_backup(), Some(right), "{options}, {flags}");
                let (code, words) = e2fsck(&image, "-p");
                assert!(code == 0 && !words.contains("Backing up"), "{words}");
            }
        }
    }
}

/// A volume whose journal is on another image, both as a crash left them. `None` where the machine cannot
/// mount.
fn with_journal_elsewhere(folder: &Path, block_size: u32) -> Option<()> {
    let script = format!(
        "set -e; cd {dir}; truncate -s 8M log.live; truncate -s 24M live; \
         mke2fs -Fq -O journal_dev -b {block_size} log.live; log=$(losetup -f --show log.live); \
         trap 'losetup -d $log' EXIT; mke2fs -Fq -t ext4 -b {block_size} -J device=$log live; mkdir mnt; \
         mount -o loop,commit=1000 live mnt; \
         (cd mnt; for i in $(seq 300); do echo $i > f$i; done; sync f300; sync -f .; for i in $(seq 50); do mv f$i g$i; \
          done; sync g50; cp ../live ../volume; cp ../log.live ../log) || status=$?; umount mnt; exit $status",
        dir = folder.display()
    );
    mounting(&script)
}

#[test]
fn a_journal_on_another_device_is_replayed_when_it_is_named() {
    for block_size in [1024, 4096] {
        let folder = tempfile::tempdir().unwrap();
        if with_journal_elsewhere(folder.path(), block_size).is_none() {
            return;
        }
        let file = |name: &str| folder.path().join(name);
        let (volume, log) = (file("volume"), file("log"));
        let dirty = std::fs::read(&volume).unwrap();
        let with_log = |flags: &str| run(&[flags, "-j", log.to_str().unwrap()], &volume);

        // Without it nothing is checked and nothing is written.
        for flags in ["-fn", "-fy", "-p"] {
            let (code, words) = run(&[flags], &volume);
            assert!(code == 12 && words.contains("name it with -j"), "{code}: {words}");
        }
        let (code, words) = run(&["-fy", "-j", volume.to_str().unwrap()], &volume);
        assert!(code == 12, "{code}: {words}");
        std::fs::write(file("stranger"), std::fs::read(&log).unwrap()).unwrap();
        debugfs(&volume, "ssv journal_uuid 5eed5eed-5eed-4eed-8eed-5eed5eed5eed\n");
        let (code, words) = run(&["-fy", "-j", file("stranger").to_str().unwrap()], &volume);
        assert!(code == 12 && words.contains("another volume's journal"), "{words}");
        std::fs::write(&volume, &dirty).unwrap();

        // With it the log is replayed, as e2fsck does it.
        let (code, words) = with_log("-fn");
        let log_before = std::fs::read(&log).unwrap();
        assert!(code == 0 && words.contains("after their replay"), "{code}: {words}");
        assert_eq!(std::fs::read(&volume).unwrap(), dirty);
        assert_eq!(std::fs::read(&log).unwrap(), log_before);
        std::fs::write(file("theirs"), &dirty).unwrap();
        std::fs::write(file("theirs.log"), std::fs::read(&log).unwrap()).unwrap();
        let (code, words) = with_log("-fy");
        assert!(code <= 1 && words.contains("journal replayed"), "{code}: {words}");
        let theirs = Command::new("e2fsck")
            .args(["-fy", "-j"])
            .args([file("theirs.log"), file("theirs")])
            .output()
            .unwrap();
        assert!(theirs.status.code().is_some_and(|code| code <= 1));
        let (ours, theirs) = (std::fs::read(&volume).unwrap(), std::fs::read(file("theirs")).unwrap());
        let names = Volume::new(&ours).unwrap().files();
        assert_eq!(names, Volume::new(&theirs).unwrap().files());
        assert!(
            names.contains_key("/g50") && !names.contains_key("/f50"),
            "the renames were in the log alone"
        );
        // Both judges are content with the volume and with the log.
        let (code, words) = with_log("-fn");
        assert!(code == 0 && !words.contains("skipped"), "{words}");
        let again = Command::new("e2fsck").args(["-fn", "-j"]).args([&log, &volume]).output().unwrap();
        assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stdout));
    }
}
