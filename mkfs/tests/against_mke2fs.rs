//! mkfs.rext4 against its judges: mke2fs with the same options and the configuration file of upstream 1.47,
//! `e2fsck -fn`, and the kernel, which mounts, writes and unmounts.
//!
//! Every line of `dumpe2fs` must agree but those named in [`DIFFERENT`], which docs/FORMAT.md explains.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

/// Lines that differ on purpose, by how they begin.
const DIFFERENT: &[&str] = &[
    "Lifetime writes:",
    // The superblock's own sum, over the line above.
    "Checksum:  ",
    "    mmp_update_date:",
    "    mmp_update_time:",
    "    mmp_node_name:",
    "    mmp_device_name:",
];

/// `[defaults]` and `[fs_types]` of the mke2fs.conf that e2fsprogs 1.47 ships; distributions change theirs.
const UPSTREAM_CONF: &str = "\
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
    default_mntopts = acl,user_xattr
    enable_periodic_fsck = 0
    blocksize = 4096
    inode_size = 256
    inode_ratio = 16384
[fs_types]
    ext3 = {
        features = has_journal
    }
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,metadata_csum_seed,64bit,dir_nlink,extra_isize,orphan_file
    }
    small = {
        blocksize = 1024
        inode_ratio = 4096
    }
    floppy = {
        blocksize = 1024
        inode_ratio = 8192
    }
    big = {
        inode_ratio = 32768
    }
    huge = {
        inode_ratio = 65536
    }
    news = {
        inode_ratio = 4096
    }
    largefile = {
        inode_ratio = 1048576
        blocksize = -1
    }
    largefile4 = {
        inode_ratio = 4194304
        blocksize = -1
    }
";

/// Size, then options; `-E` at most once.
const GRID: &[&str] = &[
    "1M -t ext2",
    "1M -t ext4",
    "1500K -t ext4",
    "2M -t ext4",
    "4M -t ext4",
    "4M -t ext4 -b 4096 -I 128",
    "16M -t ext3",
    "16M -t ext4",
    "25111K -t ext2",
    "64M -t ext3 -b 4096",
    "64M -t ext4 -b 2048",
    "64M -t ext4 -O ^metadata_csum",
    "64M -t ext4 -O ^metadata_csum,uninit_bg",
    "64M -t ext4 -O ^has_journal",
    "64M -t ext4 -O ^extent,^64bit",
    "64M -t ext4 -b 4096 -i 1024",
    "64M -t ext4 -N 10",
    "64M -t ext4 -N 10 -O ^flex_bg",
    "64M -t ext4 -O fast_commit",
    "64M -t ext4 -O fast_commit -J fast_commit_size=256",
    "64M -t ext4 -E assume_storage_prezeroed=1",
    "64M -t ext4 -E desc-size=64 -r 1 -o Linux -K",
    "64M -t ext4 -O mmp -E mmp_update_interval=1",
    "64M -t ext4 -O sparse_super2",
    "64M -t ext4 -O ^filetype",
    "64M -t ext4 -J size=1",
    "64M -t ext4 -E resize=1000000",
    "64M -t ext4 -I 128",
    "64M -t ext4 -I 1024",
    "64M -t ext4 -m 1.5 -L a-label -M /somewhere",
    "131M -t ext4",
    "300M -t ext4 -O sparse_super2 -E num_backup_sb=1",
    "300M -t ext4 -O sparse_super2",
    "64M -t ext4 -e remount-ro -E test_fs",
    "64M -t ext4 -E orphan_file_size=10",
    "300M -t ext4 -e panic -E orphan_file_size=100k",
    "300M -t ext4 -G 1",
    "300M -t ext4 -G 4",
    "300M -t ext4 -O ^flex_bg",
    "300M -t ext4 -O ^flex_bg,^metadata_csum,uninit_bg",
    "300M -t ext4 -O ^resize_inode,meta_bg",
    "300M -t ext4 -O ^resize_inode,^sparse_super",
    "300M -t ext4 -E stride=16,stripe_width=64",
    "300M -t ext3 -E stride=16,stripe_width=64",
    "300M -t ext4 -E lazy_itable_init=0",
    "300M -t ext4 -E nodiscard",
    "300M -t ext4 -g 4096",
    "300M -t ext3 -T news",
    "600M -t ext4 -E root_owner=1000:1000",
    "1000M -t ext4 -O large_dir,ea_inode,stable_inodes",
    "2G -t ext2",
    "2G -t ext3",
    "2G -t ext3 -b 1024 -J size=200",
    "2G -t ext4 -b 1024",
    "2G -t ext4 -b 1024 -O meta_bg,^resize_inode",
    "3G -t ext4 -T largefile",
    "3G -t ext4 -i 4096",
    "3G -t ext4 -N 1000000 -b 1024",
    "3333M -t ext4",
    "4097M -t ext4",
    "4097M -t ext4 -b 1024",
    "9G -t ext4 -b 2048",
    "20G -t ext4 -T largefile4",
    "100G -t ext4 -G 64 -E lazy_journal_init=1",
    "200G -t ext4 -E lazy_journal_init=1",
    "1T -t ext4 -E lazy_journal_init=1",
    "5T -t ext4 -E lazy_journal_init=1",
];

fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run: {why}");
    eprintln!("SKIPPED: {why}");
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// `None`, with a word about it, where mke2fs is missing.
    fn new() -> Option<Bench> {
        let missing = match Command::new("mke2fs").arg("-V").output() {
            Ok(output) if text(&output).contains("1.47.") => None,
            Ok(_) => Some("mke2fs is not of 1.47".to_owned()),
            Err(error) => Some(format!("mke2fs: {error}")),
        };
        if let Some(why) = missing {
            skip(&why);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mke2fs.conf"), UPSTREAM_CONF).unwrap();
        Some(Bench { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn format(&self, program: &str, case: &str, image: &Path) -> Output {
        let mut words = case.split_whitespace();
        let size = words.next().unwrap();
        let mut extended = "hash_seed=6ba7b810-9dad-11d1-80b4-00c04fd430c8".to_owned();
        let mut options = Vec::new();
        while let Some(word) = words.next() {
            match word {
                "-E" => extended += &format!(",{}", words.next().unwrap()),
                other => options.push(other),
            }
        }
        run(Command::new(program)
            .args(["-q", "-F", "-U", "6ba7b811-9dad-11d1-80b4-00c04fd430c8", "-E", &extended])
            .args(options)
            .arg(image)
            .arg(size)
            .env("MKE2FS_CONFIG", self.path("mke2fs.conf"))
            .env("E2FSPROGS_FAKE_TIME", "1600000000"))
    }

    fn compare(&self, case: &str) {
        let (theirs, ours) = (self.path("theirs.img"), self.path("ours.img"));
        let their_end = self.format("mke2fs", case, &theirs);
        let our_end = self.format(env!("CARGO_BIN_EXE_mkfs-rext4"), case, &ours);
        assert!(their_end.status.success(), "{case}: mke2fs: {}", text(&their_end));
        assert!(our_end.status.success(), "{case}: {}", text(&our_end));

        let (expected, found) = (listing(&theirs), listing(&ours));
        let differing: Vec<_> = expected.iter().zip(&found).filter(|(a, b)| a != b).take(8).collect();
        assert!(differing.is_empty(), "{case}: mke2fs and we: {differing:#?}");
        assert_eq!(expected.len(), found.len(), "{case}");

        check(case, &ours);
        let (theirs_used, ours_used) = (disk_use(&theirs), disk_use(&ours));
        assert!(ours_used <= theirs_used, "{case}: {ours_used} KiB of disk, mke2fs takes {theirs_used}");
        std::fs::remove_file(theirs).unwrap();
    }

    fn mount_and_write(&self, case: &str) {
        // A journalled kernel mount, a file, and all is still well.
        let (image, dir) = (self.path("ours.img"), self.path("mounted"));
        std::fs::create_dir_all(&dir).unwrap();
        let end = run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(&dir));
        assert!(end.status.success(), "{case}: mount: {}", text(&end));
        let written =
            std::fs::create_dir(dir.join("d")).and_then(|()| std::fs::write(dir.join("d/f"), [7; 50_000]));
        let read = std::fs::read(dir.join("d/f"));
        let lost_and_found = dir.join("lost+found").is_dir();
        // A child that another test has forked holds copies of our descriptors until it execs.
        let umount = || run(Command::new("umount").arg(&dir));
        let wait = || std::thread::sleep(std::time::Duration::from_millis(10));
        let gone = (0..1000).any(|_| umount().status.success() || (wait(), false).1);
        assert!(gone, "{case}: umount: {}", text(&umount()));
        written.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(read.unwrap(), [7; 50_000], "{case}");
        assert!(lost_and_found, "{case}");
        check(case, &image);
    }
}

fn listing(image: &Path) -> Vec<String> {
    let output = run(Command::new("dumpe2fs").arg(image).env("TZ", "UTC"));
    assert!(output.status.success(), "{}", text(&output));
    let keep = |line: &&str| !DIFFERENT.iter().any(|start| line.starts_with(start));
    String::from_utf8_lossy(&output.stdout).lines().filter(keep).map(str::to_owned).collect()
}

fn check(case: &str, image: &Path) {
    let end = run(Command::new("e2fsck").arg("-fn").arg(image));
    assert!(end.status.success(), "{case}: e2fsck: {}", text(&end));
}

/// KiB of disk behind a sparse file.
fn disk_use(image: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    image.metadata().unwrap().blocks() / 2
}

/// Mounts take a loop device each; the tests of this file take turns.
static MOUNTING: Mutex<()> = Mutex::new(());

fn every_fourth(from: usize) {
    let Some(bench) = Bench::new() else { return };
    let root = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !root {
        skip("the kernel's mounts need root and loop devices");
    }
    for case in GRID.iter().skip(from).step_by(4) {
        bench.compare(case);
        if root {
            let _turn = MOUNTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            bench.mount_and_write(case);
        }
        std::fs::remove_file(bench.path("ours.img")).unwrap();
    }
}

#[test]
fn the_grid_agrees_part_1() {
    every_fourth(0);
}

#[test]
fn the_grid_agrees_part_2() {
    every_fourth(1);
}

#[test]
fn the_grid_agrees_part_3() {
    every_fourth(2);
}

#[test]
fn the_grid_agrees_part_4() {
    every_fourth(3);
}

/// Sizes and options drawn at random: a few, or many with `REXT4_SCALE=long`.
#[test]
fn random_options_agree() {
    let Some(bench) = Bench::new() else { return };
    let long = std::env::var("REXT4_SCALE").as_deref() == Ok("long");
    let mut dice = Dice(0x5eed);
    for _ in 0..if long { 1000 } else { 25 } {
        let case = dice.case();
        bench.compare(&case);
        std::fs::remove_file(bench.path("ours.img")).unwrap();
    }
}

/// splitmix64: the same cases each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len() as u64) as usize]
    }

    /// From 2 MiB to 16 GiB.
    fn case(&mut self) -> String {
        let scale = self.roll(13);
        let size = (2048 << scale) + self.roll(2048 << scale);
        let kind = self.pick(&["ext4", "ext4", "ext3", "ext2"]);
        let mut case = format!("{size}K -t {kind}");
        if self.roll(2) == 0 {
            case += &format!(" -b {}", self.pick(&["1024", "2048", "4096"]));
        }
        if self.roll(5) == 0 {
            case += &format!(" -I {}", self.pick(&["128", "256", "512"]));
        }
        match self.roll(4) {
            0 => case += &format!(" -i {}", 4096 << self.roll(6)),
            1 => case += &format!(" -N {}", 1 + self.roll(500)),
            _ => {}
        }
        if kind == "ext4" {
            let features = self.pick(&[
                "",
                "",
                "",
                "^metadata_csum",
                "^flex_bg",
                "sparse_super2",
                "^has_journal",
                "^resize_inode",
                "^metadata_csum,uninit_bg",
                "^orphan_file",
                "^resize_inode,meta_bg",
                "^extent,^64bit",
                "mmp",
            ]);
            if !features.is_empty() {
                case += &format!(" -O {features}");
            }
            if features != "^flex_bg" && self.roll(3) == 0 {
                case += &format!(" -G {}", 1 << self.roll(7));
            }
        }
        case
    }
}
