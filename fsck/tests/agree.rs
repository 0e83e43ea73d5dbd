//! The checker and e2fsck agree on sound volumes of every feature, on orphans and on journals left dirty by
//! the kernel; and the command line behaves as e2fsck's does.

mod support;

use std::path::Path;
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use ext4_format::features::{TABLE, Word};
use fsck::Mode;
use support::{
    Kind, Volume, check, debugfs, e2fsck, e2fsck_of, ends_clean, filled, fix_sum, interrupted, is_mended,
    run, volume_file,
};

/// Features of the table in docs/FORMAT.md, those that are not mounted included.
const FEATURES: [&str; 28] = [
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
    "-t ext4 -b 1024 -O bigalloc,^resize_inode -C 2048",
    "-t ext4 -O mmp",
    "-t ext4 -O quota",
    "-t ext4 -O quota,project",
    "-t ext4 -O ea_inode",
    "-t ext4 -O inline_data",
    "-t ext4 -O large_dir",
    "-t ext4 -O casefold",
    "-t ext4 -O encrypt,verity",
    "-r 0 -O none",
    "-t ext2 -O ^filetype",
    "-t ext4 -O fast_commit,orphan_file,metadata_csum_seed",
    "-t ext4 -O stable_inodes,uninit_bg,^metadata_csum",
    "-t ext4 -O quota,bigalloc,casefold,large_dir,ea_inode,mmp -E encoding=utf8",
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
    let mut made = [0; 3];
    for options in FEATURES {
        let image = fresh(options);
        assert_eq!(e2fsck_of(&image).0, 0, "{options}");
        let (report, after) = check(&image, Mode::CheckOnly);
        assert_eq!(report.unwrap().codes(), Vec::<&str>::new(), "{options}");
        assert_eq!(after, image, "-n wrote something");
        let sb = Volume::new(&image).unwrap().sb;
        made[0] |= sb.compat().0;
        made[1] |= sb.incompat().0;
        made[2] |= sb.ro_compat().0;
    }
    // What mke2fs does not make is set by hand: both judges find it clean, or damaged, or beyond them.
    let sound = fresh("-t ext4 -b 1024");
    let mut by_hand = Vec::new();
    for feature in TABLE {
        let word = match feature.word {
            Word::Compat => 0,
            Word::Incompat => 1,
            Word::RoCompat => 2,
        };
        if made[word] & feature.mask != 0 {
            continue;
        }
        let mut image = sound.clone();
        let bytes = &mut image[1024 + 0x5c + 4 * word..][..4];
        let old = u32::from_le_bytes(bytes.try_into().unwrap());
        bytes.copy_from_slice(&(old | feature.mask).to_le_bytes());
        fix_sum(&mut image, &sound, 1, Kind::Super);
        let (report, after) = check(&image, Mode::CheckOnly);
        let ours = report.map_or(8, |report| i32::from(report.exit_code()));
        assert_eq!(after, image, "-n wrote something");
        let theirs = e2fsck_of(&image).0;
        assert_eq!(ours, if theirs & 8 != 0 { 8 } else { theirs }, "{}", feature.name);
        by_hand.push((feature.name, ours));
    }
    let refused = by_hand.iter().filter(|(_, code)| *code == 8).count();
    assert!(refused >= 7 && by_hand.len() > refused, "{by_hand:?}");
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
        assert!(looked.codes().contains(&"journal-overlaid"), "{options}: {:?}", looked.codes());
        assert_eq!(looked.exit_code(), 0, "{options}: what a crash left is no damage: {:?}", looked.codes());
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

#[test]
fn the_command_line_is_e2fscks() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let sound = fresh("-t ext4 -b 1024");
    std::fs::write(&image, &sound).unwrap();
    let (code, words) = run(&["-p"], &image);
    assert!(code == 0 && words.contains("clean, 11/"), "{words}");
    assert_eq!(run(&["-fn"], &image).0, 0);
    assert_eq!(run(&["-n", "-y"], &image).0, 8);
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

#[test]
fn quota_files_are_counted_and_written_anew() {
    for options in ["-t ext4 -b 1024", "-t ext4 -b 4096", "-t ext4 -O bigalloc -C 16384"] {
        let features = format!("{options} -O quota,project -E quotatype=usrquota:grpquota:prjquota");
        let (folder, image) = volume_file(&features);
        let content = folder.path().join("content");
        std::fs::write(&content, vec![7; 50_000]).unwrap();
        let mut commands = String::new();
        for at in 0..40 {
            commands +=
                &format!("write {} file{at}\nsif file{at} uid {}\n", content.display(), 1000 + at * 300);
        }
        debugfs(&image, &commands);
        assert_eq!(e2fsck(&image, "-n").0, 4, "{options}: debugfs counts no quota");
        let (code, words) = run(&["-fn"], &image);
        assert!(code == 4 && words.contains("quota file"), "{options}: {words}");
        assert_eq!(run(&["-fp"], &image).0, 1, "{options}");
        ends_clean(&image);
        // Limits survive, a damaged tree does not.
        debugfs(&image, "set_inode_field <3> size 1024\n");
        let (code, words) = run(&["-fn"], &image);
        assert!(code == 4 && words.contains("is damaged (size)"), "{options}: {words}");
        assert_eq!(run(&["-fy"], &image).0, 1);
        ends_clean(&image);
    }
    // What e2fsck wrote is right for us.
    let (_folder, image) = volume_file("-t ext4 -O quota");
    debugfs(&image, "write /etc/passwd file\nsif file uid 77\n");
    assert_eq!(e2fsck(&image, "-y").0, 1);
    ends_clean(&image);
}

#[test]
fn folded_names_hash_and_collide_as_for_e2fsck() {
    let (_folder, image) = volume_file("-t ext4 -b 1024 -O casefold -E encoding=utf8");
    let mut commands = String::from("mkdir cf\nsif cf flags 0x40080000\n");
    for at in 0..150 {
        commands += &format!("write /etc/hostname cf/Gr\u{f6}\u{df}e-\u{3a3}\u{391}\u{3a3}-{at}\n");
    }
    debugfs(&image, &(commands + "write /etc/hostname cf/\u{fb01}le\n"));
    // e2fsck builds the index; our hashes must agree with it, and its with ours.
    e2fsck(&image, "-yD");
    ends_clean(&image);
    assert_eq!(run(&["-fyD"], &image).0, 0);
    ends_clean(&image);
    debugfs(&image, "ln cf/\u{fb01}le cf/FILE\nsif cf/FILE links_count 2\n");
    let (code, words) = run(&["-fn"], &image);
    assert!(code == 4 && words.contains("twice"), "{words}");
    assert_eq!(run(&["-fy"], &image).0, 1);
    ends_clean(&image);
}

#[test]
fn an_unknown_encoding_is_refused() {
    let (_folder, image) = volume_file("-t ext4 -b 1024 -O casefold -E encoding=utf8");
    debugfs(&image, "ssv encoding 0\n");
    let (code, words) = run(&["-fy"], &image);
    assert!(code == 8 && words.contains("unknown encoding 0"), "{code}: {words}");
    assert_eq!(e2fsck(&image, "-n").0 & 8, 8);
}

#[test]
fn a_wrong_first_block_is_damage() {
    is_mended("-t ext4 -b 2048 -g 2048", "ssv first_data_block 1\n", "s_first_data_block");
}

#[test]
fn a_superblock_without_copies_is_mended_by_what_follows_from_the_rest() {
    for edit in ["ssv checksum_type 0\n", "ssv first_data_block 1\n", "ssv first_ino 5\n"] {
        is_mended("-t ext4 -b 4096", edit, "superblock is damaged");
    }
}

#[test]
fn the_resize_inode_may_be_the_only_large_file() {
    is_mended("-t ext3 -b 4096", "feature -large_file\n", "large_file");
}

#[test]
fn a_fault_of_a_named_copy_is_mended_once() {
    let (_folder, image) = volume_file("-t ext2 -b 1024");
    let mut bytes = std::fs::read(&image).unwrap();
    // bigalloc, in the copy alone.
    bytes[8193 * 1024 + 0x65] |= 2;
    std::fs::write(&image, &bytes).unwrap();
    let (code, words) = run(&["-fy", "-b", "8193", "-B", "1024"], &image);
    assert!(code == 1 && words.matches("bigalloc is set").count() == 1, "{code}: {words}");
    ends_clean(&image);
}

#[test]
fn a_small_bound_of_memory_changes_nothing_but_where_things_lie() {
    let Some(image) = filled("-t ext4 -b 1024 -N 4096 -O ^dir_index,^metadata_csum", 64) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let device = |bytes: &[u8]| {
        let device =
            std::sync::Arc::new(blockdev::sim::MemDevice::new(bytes.len() as u64, blockdev::sim::Fill::Zero));
        blockdev::BlockDevice::write_at(&*device, 0, bytes).unwrap();
        device
    };
    let bounded = fsck::Options {
        mode: Mode::CheckOnly,
        force: true,
        memory: 16 << 10,
        scratch: Some(folder.path().to_owned()),
        ..fsck::Options::default()
    };
    let free = fsck::Options { memory: 0, ..bounded.clone() };
    let mut broken = image.clone();
    let volume = Volume::new(&image).unwrap();
    let root = volume.inode_offset(ext4_format::Ino::ROOT).unwrap();
    broken[root..root + 128].fill(0);
    for bytes in [&image, &broken] {
        let with = fsck::check(device(bytes), &bounded).unwrap();
        let without = fsck::check(device(bytes), &free).unwrap();
        assert_eq!(with, without);
    }
    // A name that stands twice in a directory whose names do not fit into the bound together.
    let mut twice = image.clone();
    let name = b"to-fill-blocks-soon-17";
    let at = twice.windows(name.len()).position(|window| window == name).unwrap();
    twice[at + name.len() - 1] = b'8';
    std::fs::write(&path, &twice).unwrap();
    let memory = format!("memory=4k,scratch={}", folder.path().display());
    let (code, words) = run(&["-fn", "-E", &memory], &path);
    assert!(code == 4 && words.contains("soon-18' twice"), "{words}");
    assert_eq!(run(&["-fy", "-E", &memory], &path).0, 1);
    ends_clean(&path);
    assert_eq!(run(&["-fn", "-E", "memory=4k,scratch=/nonexistent"], &path).0, 8);
}

/// What a person sees and types, on a terminal that script(1) makes.
fn typed(arguments: &str, image: &Path, keys: &str) -> (i32, String) {
    use std::io::Write;
    let command = format!("{} {arguments} {}", cargo_bin("fsck-rext4").display(), image.display());
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(keys.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_person_is_asked_on_a_terminal() {
    let sound = fresh("-t ext4 -b 1024");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let mut broken = sound.clone();
    let root = Volume::new(&sound).unwrap().inode_offset(ext4_format::Ino::ROOT).unwrap();
    broken[root..root + 256].fill(0);
    std::fs::write(&image, &broken).unwrap();
    let (code, words) = typed("-f", &image, "c\n");
    assert!(code == 32 && words.contains("Create<y>?"), "{code}: {words}");
    assert_eq!(std::fs::read(&image).unwrap(), broken, "a cancelled check changes nothing");
    let (code, words) = typed("-f", &image, "n\nn\nn\nn\nn\nn\nn\nn\nn\nn\n");
    assert!(code & 4 == 4, "{code}: {words}");
    std::fs::write(&image, &broken).unwrap();
    let (code, words) = typed("-f", &image, "what\na\n");
    assert!(code == 1 && words.matches("<y>?").count() == 2, "{code}: {words}");
    ends_clean(&image);
    // Without a terminal there is nobody to ask.
    assert_eq!(run(&["-f"], &image).0, 8);
}

#[test]
fn who_wants_no_copies_may_delete_a_file_that_shares_blocks() {
    let (folder, image) = volume_file("-t ext2 -b 1024");
    for name in ["a", "b"] {
        let content = folder.path().join(name);
        std::fs::write(&content, format!("this is {name}")).unwrap();
        debugfs(&image, &format!("write {} {name}\n", content.display()));
    }
    let sound = std::fs::read(&image).unwrap();
    let volume = Volume::new(&sound).unwrap();
    let block = |path: &str| volume.mapped(&volume.inode(volume.files()[path].0).unwrap()).0[0].1;
    assert_ne!(block("/a"), block("/b"));
    debugfs(&image, &format!("sif b block[0] {}\n", block("/a")));
    let (code, words) = typed("-f", &image, "n\ny\na\n");
    assert!(code == 1 && words.contains("Clone multiply-claimed blocks<y>?"), "{code}: {words}");
    assert!(words.contains("unless the file is deleted"), "{words}");
    let repaired = std::fs::read(&image).unwrap();
    let names = Volume::new(&repaired).unwrap().files();
    assert!(!names.contains_key("/a") && names["/b"].1 == volume.files()["/a"].1, "{words}");
    ends_clean(&image);
}

#[test]
fn options_do_what_e2fscks_do() {
    let Some(image) = filled("-t ext4 -b 1024", 32) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, &image).unwrap();
    let (code, words) = run(&["-fn", "-t", "-v", "-E", "fragcheck"], &path);
    assert!(code == 0 && words.contains("time: ") && words.contains("pieces"), "{words}");
    let (code, words) = run(&["-fn", "-C", "1"], &path);
    assert!(code == 0 && words.lines().any(|line| line.starts_with("5 ")), "{words}");
    assert_eq!(run(&["-fn", "-E", "no_such_option"], &path).0, 16);
    // Free blocks are given back; what is used is not touched.
    let before = std::fs::metadata(&path).unwrap();
    assert_eq!(run(&["-fy", "-E", "discard"], &path).0, 0);
    let after = std::fs::metadata(&path).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert!(after.blocks() < before.blocks(), "{} {}", before.blocks(), after.blocks());
    ends_clean(&path);
    assert_eq!(
        Volume::new(&std::fs::read(&path).unwrap()).unwrap().files(),
        Volume::new(&image).unwrap().files()
    );
    // A problem has its path, in words and in JSON.
    debugfs(&path, "sif deep/er/still/numbers size 5\n");
    let (code, words) = run(&["-fn"], &path);
    assert!(code == 4 && words.contains("(/deep/er/still/numbers): size is"), "{words}");
    let (code, words) = run(&["-fn", "--json"], &path);
    assert!(code == 4 && words.contains("\"path\":\"/deep/er/still/numbers\""), "{words}");
    // A copy of the superblock that says something else is brought in line, without a word from -n.
    assert_eq!(run(&["-fy"], &path).0, 1);
    let mut bytes = std::fs::read(&path).unwrap();
    let copy = 8193 * 1024;
    bytes[copy + 0x68] ^= 0xff;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(run(&["-fn"], &path).0, 0);
    assert_eq!(run(&["-fp"], &path).0, 1);
    let mended = std::fs::read(&path).unwrap();
    assert_eq!(mended[copy + 0x68], mended[1024 + 0x68]);
    ends_clean(&path);
    // So is a copy of the descriptors.
    let table = 8194 * 1024 + 8;
    let mut bytes = mended.clone();
    bytes[table] ^= 0xff;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(run(&["-fn"], &path).0, 0);
    assert_eq!(e2fsck(&path, "-n").0, 0);
    let (code, words) = run(&["-fp"], &path);
    assert!(code == 1 && words.contains("names other places"), "{words}");
    assert_eq!(std::fs::read(&path).unwrap()[table], mended[table]);
    ends_clean(&path);
}

#[test]
fn only_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    if interrupted(folder.path(), "").is_none() {
        return;
    }
    let copy = folder.path().join("copy");
    assert_eq!(run(&["-p", "-E", "journal_only"], &copy).0, 0);
    let (_, words) = run(&["-fn"], &copy);
    assert!(!words.contains("skipped"), "the log is empty now: {words}");
    assert!(run(&["-fy"], &copy).0 <= 1);
    ends_clean(&copy);
}

/// A log that ends in fast commits is never replayed in part: it is refused by name, and nothing is changed.
#[test]
fn fast_commits_are_refused_or_replayed_whole() {
    let folder = tempfile::tempdir().unwrap();
    if interrupted(folder.path(), "-O fast_commit").is_none() {
        return;
    }
    let copy = folder.path().join("copy");
    let before = std::fs::read(&copy).unwrap();
    let (code, words) = run(&["-fy"], &copy);
    if code == 8 {
        assert!(words.contains("fast commit"), "{words}");
        assert_eq!(std::fs::read(&copy).unwrap(), before);
    } else {
        assert_eq!(code, 1, "{words}");
        ends_clean(&copy);
    }
}

#[test]
fn names_that_are_no_text_matter_where_they_are_said_to() {
    let name = b"ZZZZname";
    for (options, asked, matters) in [
        ("encoding=utf8", "memory=64m", false),
        ("encoding=utf8", "check_encoding", true),
        ("encoding=utf8,encoding_flags=strict", "memory=64m", true),
    ] {
        let (_folder, image) =
            volume_file(&format!("-t ext4 -b 1024 -O casefold,^metadata_csum -E {options}"));
        debugfs(
            &image,
            "mkdir cf\nsif cf flags 0x40080000\nwrite /etc/hostname cf/ZZZZname\nwrite /etc/hostname cf/\u{e9}\n",
        );
        let mut bytes = std::fs::read(&image).unwrap();
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        bytes[at..at + 4].copy_from_slice(b"\xff\xfe\xff\xfe");
        std::fs::write(&image, &bytes).unwrap();
        let (code, words) = run(&["-fn", "-E", asked], &image);
        assert_eq!(words.contains("is no text"), matters, "{options}, {asked}: {words}");
        assert_eq!(code, if matters { 4 } else { 0 }, "{words}");
        if asked != "check_encoding" {
            assert_eq!(e2fsck(&image, "-n").0, code, "{options}");
        }
        assert_eq!(run(&["-fy", "-E", asked], &image).0, i32::from(matters));
        ends_clean(&image);
        assert_eq!(run(&["-fn", "-E", "check_encoding"], &image).0, if matters { 0 } else { 4 });
    }
}

#[test]
fn shared_blocks_are_fine_until_they_are_to_be_unshared() {
    let (folder, image) = volume_file("-t ext4 -b 1024 -O ^metadata_csum,^extent,^64bit");
    let content = folder.path().join("content");
    std::fs::write(&content, vec![7; 2000]).unwrap();
    debugfs(&image, &format!("write {0} a\nwrite {0} b\n", content.display()));
    let files = Volume::new(&std::fs::read(&image).unwrap()).unwrap().files();
    let bytes = std::fs::read(&image).unwrap();
    let volume = Volume::new(&bytes).unwrap();
    let block = volume.mapped(&volume.inode(files["/a"].0).unwrap()).0[0].1;
    let gone = volume.mapped(&volume.inode(files["/b"].0).unwrap()).0[0].1;
    debugfs(&image, &format!("sif b block[0] {block}\nfreeb {gone}\nfeature shared_blocks\n"));
    // What debugfs leaves of the counts.
    assert!(run(&["-fy"], &image).0 <= 1);
    // Shared blocks are no error on a volume that says it has them.
    ends_clean(&image);
    // Whoever does not want a copy is offered to have the file deleted.
    let asked = folder.path().join("asked");
    std::fs::copy(&image, &asked).unwrap();
    debugfs(&asked, "feature -shared_blocks\n");
    let (code, words) = typed("-f", &asked, "n\nn\ny\na\n");
    assert!(code == 1 && words.contains("unless the file is deleted"), "{code}: {words}");
    ends_clean(&asked);
    let left = std::fs::read(&asked).unwrap();
    let left = Volume::new(&left).unwrap().files();
    assert!(!left.contains_key("/a") && left.get("/b").map(|b| &b.1) == Some(&files["/b"].1));
    let (code, words) = run(&["-fn", "-E", "unshare_blocks"], &image);
    assert!(code == 4 && words.contains("(/a) shares 1 block"), "{words}");
    assert_eq!(run(&["-fy", "-E", "unshare_blocks"], &image).0, 1);
    ends_clean(&image);
    let bytes = std::fs::read(&image).unwrap();
    let after = Volume::new(&bytes).unwrap();
    assert!(!after.sb.ro_compat().has(ext4_format::features::RoCompat::SHARED_BLOCKS));
    let blocks = ["/a", "/b"].map(|path| after.mapped(&after.inode(files[path].0).unwrap()).0[0].1);
    assert_ne!(blocks[0], blocks[1]);
    assert_eq!(after.files(), files, "each has its own, and they are what they were");
}
