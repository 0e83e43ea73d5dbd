//! The command line beside e2fsck's: what each option does, and the table of docs/FSCK.md, row by row.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use assert_cmd::cargo::cargo_bin;
use support::{Volume, debugfs, e2fsck, ends_clean, mounting, run, volume_file};

/// The exit code and words of a checker, called with arguments as they stand in a shell.
fn called(program: &Path, arguments: &str, folder: &Path) -> (i32, String) {
    let output = Command::new(program)
        .args(arguments.split(' ').filter(|word| !word.is_empty()))
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

fn theirs() -> PathBuf {
    let places = ["/sbin/e2fsck", "/usr/sbin/e2fsck"];
    places.into_iter().map(PathBuf::from).find(|path| path.exists()).unwrap()
}

/// The images that the rows of the table are called with, each with a name of its own.
fn images(folder: &Path) {
    let script = "set -e; made() { truncate -s 16M $1; mke2fs -Fq -t ext4 -b 1024 $2 $1; }; \
        made sound; \
        cp sound wrong; seq 9000 > content; debugfs -wR 'write content f' wrong; e2fsck -fy wrong >/dev/null || :; \
          debugfs -wR 'sif f links_count 9' wrong; \
        cp sound unclean; debugfs -wR 'ssv state 0' unclean; \
        cp sound marked; debugfs -wR 'ssv state 2' marked; \
        cp sound both; debugfs -wR 'ssv state 3' both; \
        cp sound mounts; tune2fs -c 20 -C 30 mounts; \
        cp sound days; tune2fs -i 1d -T 20200101 days; \
        cp sound future; tune2fs -i 1d -T 20700101 future; \
        cp sound soon; tune2fs -c 20 -C 18 soon; \
        cp sound short; truncate -s 15M short; \
        cp sound headless; dd if=/dev/zero of=headless bs=1024 seek=1 count=1 conv=notrunc; \
        truncate -s 16M zeros; truncate -s 0 empty; \
        cp sound strange; debugfs -wR 'feature FEATURE_I20' strange; \
        made elsewhere -O^has_journal; debugfs -wR 'feature has_journal' elsewhere; \
          debugfs -wR 'ssv journal_uuid 5eed5eed-5eed-4eed-8eed-5eed5eed5eed' elsewhere; \
        echo 12000 > list; echo 99999999 > far; \
        truncate -s 17M window; mke2fs -Fq -t ext4 -b 1024 -E offset=1048576 window 16M";
    let output = Command::new("bash").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The rows of a table of the document: the code spans of the first cell, and the other cells.
fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let section = document.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let body = section.lines().filter(|line| line.starts_with("| `"));
    body.map(|line| cells(&line.replace("\\|", "¦"))).collect()
}

fn code(cell: &str) -> i32 {
    cell.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("no exit code: {cell}"))
}

/// Every row of the table of exit codes in docs/FSCK.md is what both programs do.
#[test]
fn the_table_of_exit_codes_is_true() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/FSCK.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let tables = rows(&document, "## Exit codes, side by side");
    assert!(tables.len() > 60, "{} rows", tables.len());
    let work = folder.path().join("work");
    let mut wrong = Vec::new();
    for row in tables {
        let [call, e2fsck, ours, why] = row.as_slice() else { panic!("{row:?}") };
        let call = call.trim_matches('`');
        for (program, stated) in [(theirs(), e2fsck), (cargo_bin("fsck-rext4"), ours)] {
            // Each gets the images as they were made.
            std::fs::create_dir(&work).unwrap();
            for entry in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_file() && call.contains(entry.file_name().to_str().unwrap())
                {
                    std::fs::copy(entry.path(), work.join(entry.file_name())).unwrap();
                }
            }
            let (found, words) = called(&program, call, &work);
            if found != code(stated) {
                wrong
                    .push(format!("{} {call}: {found}, the table says {stated}: {words}", program.display()));
            }
            std::fs::remove_dir_all(&work).unwrap();
        }
        assert_eq!(code(e2fsck) != code(ours), !why.is_empty(), "{call}: a difference has its reason");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every option that e2fsck's usage names stands in the table of options, and so does every one of ours.
#[test]
fn the_table_of_options_is_complete() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/FSCK.md")).unwrap();
    let named: Vec<String> = rows(&document, "## Options")
        .iter()
        .flat_map(|row| row[0].split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let stands = |option: &str| named.iter().any(|name| name.split(['=', ' ']).next() == Some(option));
    let folder = tempfile::tempdir().unwrap();
    let usage = called(&theirs(), "", folder.path()).1;
    let letters = usage.split("[-").nth(1).unwrap().split(']').next().unwrap();
    let mut options: Vec<String> = letters.chars().map(|letter| format!("-{letter}")).collect();
    options.extend(["-b", "-B", "-l", "-L", "-C", "-j", "-E", "-z"].map(str::to_owned));
    let extended = called(&theirs(), "-n -E no_such_option x", folder.path()).1;
    let listed = extended.split("Valid extended options are:").nth(1).unwrap();
    for line in listed.lines().map(str::trim).filter(|line| !line.is_empty()) {
        options.push(format!("-E {}", line.split('=').next().unwrap()));
    }
    let ours = called(&cargo_bin("fsck-rext4"), "--help", folder.path()).1;
    for word in ours.split_whitespace().filter(|word| word.starts_with('-') && word.len() > 1) {
        let option = word.trim_matches([',', '.', ':', ';']);
        if option.len() == 2 && option.as_bytes()[1].is_ascii_alphabetic() || option.starts_with("--") {
            options.push(option.to_owned());
        }
    }
    assert!(options.len() > 40, "{options:?}");
    for option in options {
        let known = match option.strip_prefix("-E ") {
            Some(extended) => named
                .iter()
                .any(|name| name.strip_prefix("-E ").is_some_and(|e| e.split('=').next() == Some(extended))),
            None => stands(&option),
        };
        assert!(known, "{option} is not in docs/FSCK.md");
    }
}

#[test]
fn bad_blocks_are_listed_and_taken_from_their_files() {
    let (folder, image) = volume_file("-t ext4 -b 1024");
    let content = folder.path().join("content");
    std::fs::write(&content, (0..300 * 1024).map(|at| (at / 7) as u8).collect::<Vec<_>>()).unwrap();
    debugfs(&image, &format!("write {} file\n", content.display()));
    let before = std::fs::read(&image).unwrap();
    let volume = Volume::new(&before).unwrap();
    let file = volume.files()["/file"].clone();
    let used = volume.mapped(&volume.inode(file.0).unwrap()).0[7].1;
    let listed = |image: &Path| {
        let output = Command::new("dumpe2fs").arg("-b").arg(image).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<u64>>()
    };
    let list = folder.path().join("list");
    let name = list.to_str().unwrap();
    // Free blocks, enough of them for a doubly indirect map: nothing is wrong with the volume.
    let many: Vec<u64> = (10_000..10_400).collect();
    let text = |blocks: &[u64]| blocks.iter().map(|block| format!("{block}\n")).collect::<String>();
    std::fs::write(&list, text(&many) + "no number\n99999999\n").unwrap();
    let (code, words) = run(&["-p", "-l", name], &image);
    assert!(code == 0 && words.contains("99999999 out of range"), "{code}: {words}");
    assert_eq!(listed(&image), many);
    ends_clean(&image);
    // More of them, one in use by a file, which gets another.
    std::fs::write(&list, format!("{used}\n")).unwrap();
    let (code, words) = run(&["-y", "-l", name], &image);
    assert!(code == 1 && words.contains("shares 1 block"), "{code}: {words}");
    assert_eq!(listed(&image).len(), many.len() + 1);
    ends_clean(&image);
    let after = std::fs::read(&image).unwrap();
    let moved = Volume::new(&after).unwrap();
    assert_eq!(moved.files()["/file"], file, "the file is what it was");
    let blocks = moved.mapped(&moved.inode(file.0).unwrap()).0;
    assert!(blocks.iter().all(|block| block.1 != used) && blocks.len() == 300);
    // A list that replaces the old one; what badblocks(8) finds, with and without the old ones.
    std::fs::write(&list, "12000\n").unwrap();
    assert_eq!(run(&["-y", "-L", name], &image).0, 0);
    assert_eq!(listed(&image), [12_000]);
    ends_clean(&image);
    assert_eq!(run(&["-y", "-c", "-k"], &image).0, 0);
    assert_eq!(listed(&image), [12_000]);
    assert_eq!(run(&["-p", "-cc"], &image).0, 0);
    assert_eq!(listed(&image), Vec::<u64>::new());
    ends_clean(&image);
    assert_eq!(Volume::new(&std::fs::read(&image).unwrap()).unwrap().files()["/file"], file);
}

#[test]
fn block_maps_become_extents_and_wide_trees_small_ones() {
    let (folder, image) = volume_file("-t ext3 -b 1024");
    let content = folder.path().join("content");
    std::fs::write(&content, vec![5; 700 * 1024]).unwrap();
    debugfs(&image, &format!("write {0} a\nmkdir d\nwrite {0} d/b\n", content.display()));
    assert_eq!(e2fsck(&image, "-y").0 & !1, 0);
    let files = Volume::new(&std::fs::read(&image).unwrap()).unwrap().files();
    let (code, words) = run(&["-fy", "-E", "bmap2extent"], &image);
    assert!(code == 0 && words.contains("FILE SYSTEM WAS MODIFIED"), "{code}: {words}");
    ends_clean(&image);
    let bytes = std::fs::read(&image).unwrap();
    let volume = Volume::new(&bytes).unwrap();
    assert_eq!(volume.files(), files);
    for (ino, _) in volume.files().values() {
        assert!(volume.inode(*ino).unwrap().has(ext4_format::inode::flag::EXTENTS));
    }
    // A file that was in many pieces and is short now.
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e; cd {}; truncate -s 16M image; mke2fs -Fq -t ext4 -b 1024 image; mkdir mnt; mount -o loop image mnt; \
         (for i in $(seq 0 2 600); do echo $i | dd of=mnt/f bs=1024 seek=$i count=1 conv=notrunc status=none; done; \
          sync; truncate -s 5000 mnt/f; sync) || status=$?; umount mnt; exit $status",
        folder.path().display()
    );
    if mounting(&script).is_none() {
        return;
    }
    let image = folder.path().join("image");
    let bytes = std::fs::read(&image).unwrap();
    let tree = |bytes: &[u8]| {
        let volume = Volume::new(bytes).unwrap();
        let inode = volume.inode(volume.files()["/f"].0).unwrap();
        (volume.mapped(&inode).1.len(), volume.files())
    };
    let (nodes, files) = tree(&bytes);
    assert!(nodes > 0);
    for arguments in
        [&["-fp"][..], &["-fy", "-E", "fixes_only"], &["-fy", "-E", "no_optimize_extents"], &["-fn"]]
    {
        assert_eq!(run(arguments, &image).0, 0, "{arguments:?}");
        assert_eq!(tree(&std::fs::read(&image).unwrap()).0, nodes, "{arguments:?}");
    }
    let (code, words) = run(&["-fy"], &image);
    assert!(code == 0 && words.contains("could be smaller"), "{code}: {words}");
    assert_eq!(tree(&std::fs::read(&image).unwrap()), (0, files));
    ends_clean(&image);
}

#[test]
fn directories_are_packed_without_an_exit_code() {
    for options in ["-t ext4 -b 1024", "-t ext4 -b 1024 -O bigalloc -C 4096", "-t ext4 -b 1024 -O quota"] {
        let (_folder, image) = volume_file(options);
        let mut commands = String::from("mkdir d\n");
        for at in 0..400 {
            commands += &format!("write /etc/hostname d/a-name-long-enough-to-fill-blocks-{at}\n");
        }
        (0..400).filter(|at| at % 8 > 0).for_each(|at| {
            commands += &format!("rm d/a-name-long-enough-to-fill-blocks-{at}\n");
        });
        debugfs(&image, &commands);
        // What debugfs leaves of counts; e2fsck would pack the directory by itself.
        assert!(run(&["-fy"], &image).0 <= 1);
        let size = |image: &Path| {
            let bytes = std::fs::read(image).unwrap();
            let volume = Volume::new(&bytes).unwrap();
            let files = volume.files();
            (volume.inode(files["/d"].0).unwrap().size, files)
        };
        let (before, files) = size(&image);
        // Only a check that is made packs anything, as with e2fsck.
        assert_eq!(run(&["-y", "-D"], &image).0, 0);
        assert_eq!(size(&image).0, before);
        let (code, words) = run(&["-fy", "-D"], &image);
        assert!(code == 0 && words.contains("Optimizing directories"), "{options}, {code}: {words}");
        let (after, kept) = size(&image);
        assert!(after < before && kept == files, "{options}: {before} {after}");
        ends_clean(&image);
    }
}

#[test]
fn preening_prints_only_what_it_does() {
    let (_folder, image) = volume_file("-t ext4 -b 1024 -L label");
    debugfs(&image, "write /etc/hostname file\n");
    e2fsck(&image, "-y");
    let (code, words) = run(&["-p", "-f"], &image);
    assert!(code == 0 && words.lines().count() == 1 && words.starts_with("label: 12/"), "{words}");
    debugfs(&image, "sif file links_count 7\n");
    let (code, words) = run(&["-p", "-f", "-N", "chosen"], &image);
    assert_eq!(code, 1, "{words}");
    assert!(
        words.lines().all(|line| line.starts_with("chosen: ") || line.starts_with("The check begins")),
        "{words}"
    );
    assert!(words.contains("link count is 7, should be 1.  FIXED.") && !words.contains("Pass"), "{words}");
    // The reason for a check that nobody asked for, and the headings in their order.
    debugfs(&image, "ssv state 0\n");
    let (code, words) = run(&["-y"], &image);
    assert!(code == 1 && words.contains("label was not cleanly unmounted, check forced."), "{code}: {words}");
    let headings: Vec<&str> = words.lines().filter(|line| line.starts_with("Pass ")).collect();
    assert_eq!(headings.len(), 5, "{words}");
    assert!(headings.is_sorted(), "{words}");
}

#[test]
fn volumes_are_found_by_tag_and_offset() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e; cd {}; truncate -s 17M window; mke2fs -Fq -t ext4 -b 1024 -E offset=1048576 window 16M; \
         truncate -s 16M image; mke2fs -Fq -t ext4 -b 1024 -L t$$ -U random image; losetup -f --show image > loop; \
         dumpe2fs -h image 2>/dev/null | awk '/UUID/{{print $3}} /volume name/{{print $4}}' | sort > tags",
        folder.path().display()
    );
    if mounting(&script).is_none() {
        return;
    }
    let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let device = text("loop").trim().to_owned();
    for tag in text("tags").lines() {
        let tag = if tag.contains('-') { format!("UUID={tag}") } else { format!("LABEL={tag}") };
        let (code, words) = called(&cargo_bin("fsck-rext4"), &format!("-fn {tag}"), folder.path());
        assert_eq!(code, 0, "{tag}: {words}");
    }
    Command::new("losetup").args(["-d", &device]).status().unwrap();
    for call in ["-fn window?offset=1048576", "-fy -E offset=1m window", "-fn window?offset=1024k"] {
        let (code, words) = called(&cargo_bin("fsck-rext4"), call, folder.path());
        assert_eq!(code, 0, "{call}: {words}");
    }
    assert_eq!(called(&theirs(), "-fn window?offset=1048576", folder.path()).0, 0);
}

#[test]
fn progress_waits_for_its_signal() {
    let (_folder, image) = volume_file("-t ext4 -b 1024");
    let (code, words) = run(&["-fn", "-C", "1"], &image);
    assert!(code == 0 && words.lines().any(|line| line.starts_with("5 ")), "{words}");
    let (code, words) = run(&["-fn", "-C", "-1"], &image);
    assert!(code == 0 && !words.lines().any(|line| line.starts_with("5 ")), "{words}");
    let (code, words) = run(&["-fn", "-t", "-t"], &image);
    assert!(code == 0 && words.contains("Pass 5: Memory used: ") && words.contains("I/O read: "), "{words}");
}
