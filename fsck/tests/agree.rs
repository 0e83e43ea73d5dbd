//! The checker and e2fsck agree on sound volumes of every feature, on orphans and on journals left dirty by the kernel;
//! and the command line behaves as e2fsck's does.

mod support;

use std::path::Path;
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use fsck::Mode;
use support::{Volume, check, e2fsck, e2fsck_of, filled};

/// Features of the table in docs/FORMAT.md, those that are not mounted included.
const FEATURES: [&str; 22] = [
    "-t ext2",
    "-t ext3",
    "-t ext4",
    "-t ext4 -b 2048",
    "-t ext4 -b 4096",
    "-t ext4 -I 128",
    "-t ext4 -I 512",
    "-t ext4 -O ^metadata_csum",
    "-t ext4 -O ^metadata_csum,^uninit_bg,^64bit",
    "-t ext4 -O ^has_journal,^resize_inode",
    "-t ext4 -O meta_bg,^resize_inode",
    "-t ext4 -O sparse_super2",
    "-t ext4 -O ^flex_bg",
    "-t ext4 -O bigalloc",
    "-t ext4 -O mmp",
    "-t ext4 -O quota",
    "-t ext4 -O quota,project",
    "-t ext4 -O ea_inode",
    "-t ext4 -O inline_data",
    "-t ext4 -O large_dir",
    "-t ext4 -O casefold",
    "-t ext4 -O encrypt,verity",
];

fn fresh(options: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    let made = Command::new("mke2fs").arg("-Fq").args(options.split(' ')).arg(file.path()).output().unwrap();
    assert!(made.status.success(), "{options}: {}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(file.path()).unwrap()
}

#[test]
fn fresh_volumes_of_every_feature_are_clean() {
    for options in FEATURES {
        let image = fresh(options);
        assert_eq!(e2fsck_of(&image).0, 0, "{options}");
        let (report, after) = check(&image, Mode::CheckOnly);
        assert_eq!(report.unwrap().codes(), Vec::<&str>::new(), "{options}");
        assert_eq!(after, image, "-n wrote something");
    }
}

#[test]
fn volumes_filled_by_the_kernel_are_clean() {
    for options in [
        "-t ext4",
        "-t ext3",
        "-t ext2",
        "-t ext4 -b 4096",
        "-t ext4 -O inline_data",
        "-t ext4 -O ea_inode",
        "-t ext4 -O bigalloc",
        "-t ext4 -O meta_bg,^resize_inode",
        "-t ext4 -O ^metadata_csum",
    ] {
        let Some(image) = filled(options, 64) else { return };
        assert_eq!(e2fsck_of(&image).0, 0, "{options}");
        assert_eq!(check(&image, Mode::CheckOnly).0.unwrap().codes(), Vec::<&str>::new(), "{options}");
        // Directories made anew hold the same names.
        let device =
            std::sync::Arc::new(blockdev::sim::MemDevice::new(image.len() as u64, blockdev::sim::Fill::Zero));
        blockdev::BlockDevice::write_at(&*device, 0, &image).unwrap();
        let wishes =
            fsck::Options { mode: Mode::Yes, force: true, optimize_dirs: true, ..fsck::Options::default() };
        fsck::check(std::sync::Arc::clone(&device) as _, &wishes).unwrap();
        let mut packed = vec![0; image.len()];
        blockdev::BlockDevice::read_at(&*device, 0, &mut packed).unwrap();
        let (code, words) = e2fsck_of(&packed);
        assert_eq!(code, 0, "{options}: {words}");
        assert_eq!(Volume::new(&packed).unwrap().files(), Volume::new(&image).unwrap().files(), "{options}");
    }
}

/// A copy of a volume that the kernel has mounted: its journal is dirty, and a file is unlinked but open.
fn interrupted(folder: &Path, options: &str) -> Option<()> {
    let script = format!(
        "set -e; cd {dir}; truncate -s 32M image; mke2fs -Fq -t ext4 {options} image; mkdir mnt; \
         mount -o loop,commit=1000 image mnt; \
         (cd mnt; mkdir dir; seq 5000 > kept; seq 9000 > gone; exec 7<gone; rm gone; sync; \
          for i in $(seq 200); do echo $i > dir/f$i; done; sync -d dir/f200; sync dir; cp ../image ../copy) || status=$?; \
         umount mnt; exit $status",
        dir = folder.display()
    );
    let output = Command::new("bash").arg("-c").arg(script).output().ok()?;
    if !output.status.success() {
        assert!(std::env::var_os("CI").is_none(), "{}", String::from_utf8_lossy(&output.stderr));
        eprintln!("SKIPPED: no kernel mount here");
        return None;
    }
    Some(())
}

#[test]
fn dirty_journals_and_orphans_end_clean() {
    for options in ["", "-O ^orphan_file", "-b 4096", "-O ^metadata_csum"] {
        let folder = tempfile::tempdir().unwrap();
        if interrupted(folder.path(), options).is_none() {
            return;
        }
        let copy = folder.path().join("copy");
        let dirty = std::fs::read(&copy).unwrap();
        let looked = check(&dirty, Mode::CheckOnly).0.unwrap();
        assert!(looked.codes().contains(&"journal-skipped"), "{options}: {:?}", looked.codes());
        let (report, ours) = check(&dirty, Mode::Preen);
        let report = report.unwrap();
        assert!(report.replayed && report.left == 0, "{options}: {:?}", report.codes());
        let (code, words) = e2fsck_of(&ours);
        assert_eq!(code, 0, "{options}: {words}");
        assert_eq!(check(&ours, Mode::CheckOnly).0.unwrap().codes(), Vec::<&str>::new(), "{options}");
        e2fsck(&copy, "-y");
        let theirs = std::fs::read(&copy).unwrap();
        assert_eq!(Volume::new(&ours).unwrap().files(), Volume::new(&theirs).unwrap().files(), "{options}");
    }
}

fn run(arguments: &[&str], image: &Path) -> (i32, String) {
    let output = Command::new(cargo_bin("fsck-rext4")).args(arguments).arg(image).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_command_line_is_e2fscks() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let sound = fresh("-t ext4 -b 1024");
    std::fs::write(&image, &sound).unwrap();
    let (code, words) = run(&["-p"], &image);
    assert!(code == 0 && words.contains("clean, 11/"), "{words}");
    assert_eq!(run(&["-fn"], &image).0, 0);
    assert_eq!(run(&["-n", "-y"], &image).0, 16);
    assert_eq!(run(&["-Q"], &image).0, 16);
    assert_eq!(run(&["-n"], &folder.path().join("missing")).0, 8);
    assert_eq!(run(&["-n"], folder.path()).0, 8);
    std::fs::write(folder.path().join("noise"), vec![0x5a; 1 << 20]).unwrap();
    let (code, words) = run(&["-fy"], &folder.path().join("noise"));
    assert!(code == 8 && words.contains("superblock"), "{words}");
    assert_eq!(std::fs::read(folder.path().join("noise")).unwrap(), vec![0x5a; 1 << 20]);

    // A root directory that is gone is no matter for preening, and a repair can be taken back.
    let mut broken = sound.clone();
    let root = Volume::new(&sound).unwrap().inode_offset(ext4_format::Ino::ROOT).unwrap();
    broken[root..root + 256].fill(0);
    std::fs::write(&image, &broken).unwrap();
    assert_eq!(run(&["-fn"], &image).0, 4);
    assert_eq!(run(&["-p", "-f"], &image).0, 4);
    assert_eq!(std::fs::read(&image).unwrap(), broken, "preening stops before it changes anything");
    let (code, words) = run(&["-fn", "--json"], &image);
    assert!(
        code == 4 && words.contains("\"code\":\"root-missing\"") && words.contains("\"exit\":4"),
        "{words}"
    );
    let log = folder.path().join("log");
    let (code, words) = run(&["-fy", "-z", log.to_str().unwrap()], &image);
    assert!(code == 1 && words.contains("MODIFIED"), "{words}");
    assert_eq!(run(&["-fn"], &image).0, 0);
    assert_eq!(e2fsck(&image, "-n").0, 0);
    let undone = Command::new(cargo_bin("rext4-undo")).arg(&log).arg(&image).output().unwrap();
    assert!(undone.status.success(), "{}", String::from_utf8_lossy(&undone.stderr));
    assert_eq!(std::fs::read(&image).unwrap(), broken, "undone to the byte");

    // The copy of the superblock is found without being told, and with it.
    let mut headless = sound.clone();
    headless[1024..2048].fill(0);
    std::fs::write(&image, &headless).unwrap();
    assert_eq!(run(&["-fn", "-b", "8193", "-B", "1024"], &image).0, 0);
    assert_eq!(run(&["-fy"], &image).0, 1);
    assert_eq!(e2fsck(&image, "-n").0, 0);
}
