//! How large an image becomes, and what happens when that is not enough.

use std::fs;
use std::path::Path;

use super::support::*;

fn tree_of(dir: &Path, files: usize, len: usize) -> std::path::PathBuf {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    for n in 0..files {
        fs::write(tree.join(format!("sub/f{n}")), pattern(len + n)).unwrap();
    }
    tree
}

fn number(image: &Path, key: &str) -> u64 {
    let text = run(tool("dumpe2fs").arg("-h").arg(image));
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key} in {text}"));
    line.split_whitespace().last().unwrap().parse().unwrap()
}

#[test]
fn the_smallest_image_is_what_resize2fs_would_leave() {
    let dir = scratch();
    for (files, len, args) in [
        (2000, 3000, &[][..]),
        (30, 1_500_000, &[]),
        (300, 100_000, &["-O", "^has_journal"]),
        (100, 700_000, &["-b", "1024"]),
    ] {
        let tree = tree_of(dir.path(), files, len);
        let image = dir.path().join("image");
        build(&[&["-q", "-F"][..], args, &["-d", tree.to_str().unwrap(), image.to_str().unwrap()]].concat());
        let before = number(&image, "Block count:");
        assert_eq!(fs::metadata(&image).unwrap().len(), before * number(&image, "Block size:"));
        run(tool("e2fsck").arg("-fy").arg(&image));
        run(tool("resize2fs").arg("-M").arg(&image));
        let after = number(&image, "Block count:");
        assert!(before * 100 <= after * 102, "{files} files: {before} blocks, resize2fs leaves {after}");
        fs::remove_dir_all(tree).unwrap();
    }
}

#[test]
fn free_space_is_there() {
    let dir = scratch();
    let tree = tree_of(dir.path(), 50, 100_000);
    let image = dir.path().join("image");
    let make = |args: &[&str]| {
        build(&[&["-q", "-F"][..], args, &["-d", tree.to_str().unwrap(), image.to_str().unwrap()]].concat());
        let block = number(&image, "Block size:");
        let free = number(&image, "Free blocks:") - number(&image, "Reserved block count:");
        (free * block, number(&image, "Free inodes:"), fs::metadata(&image).unwrap().len())
    };
    let (free, inodes, size) = make(&["--free", "20M"]);
    assert!((20 << 20..21 << 20).contains(&free) && inodes >= (20 << 20) / 16384, "{free} {inodes}");
    let (free, _, with_reserve) = make(&["--free", "20M", "-m", "10"]);
    assert!(free >= 20 << 20 && with_reserve > size, "{free} {with_reserve}");
    let (free, _, size) = make(&["--free", "50%"]);
    assert!(free * 100 >= size * 50 && free * 100 < size * 52, "{free} of {size}");
    let (_, inodes, _) = make(&["--free-inodes", "5000"]);
    assert!((5000..5300).contains(&inodes), "{inodes}");
    if kernel_judges() {
        make(&["--free", "20M"]);
        let point = scratch();
        run(tool("mount").args(["-o", "loop"]).arg(&image).arg(point.path()));
        let write = fs::write(point.path().join("new"), pattern(20 << 20));
        unmount(point.path());
        assert!(write.is_ok(), "{write:?}");
        clean(&image);
    }
}

#[test]
fn a_size_is_kept_and_one_too_small_says_what_is_needed() {
    let dir = scratch();
    let tree = tree_of(dir.path(), 20, 1_000_000);
    let image = dir.path().join("image");
    let (tree, image_text) = (tree.to_str().unwrap(), image.to_str().unwrap());
    build(&["-q", "-d", tree, image_text, "64M"]);
    assert_eq!(fs::metadata(&image).unwrap().len(), 64 << 20);
    assert!(number(&image, "Reserved block count:") > 0);
    fs::remove_file(&image).unwrap();

    let (done, said) = mkfs(&["-d", tree, image_text, "10M"]);
    assert!(!done && said.contains("does not fit: it needs ") && said.lines().count() == 1, "{said}");
    assert!(!image.exists());
    let needed: u64 =
        said.split("it needs ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    // What it says is enough, and not far from it.
    build(&["-q", "-d", tree, image_text, &format!("{}", needed.div_ceil(1024)), "-b", "1024"]);
    assert!(needed < 30 << 20, "{needed}");
    fs::remove_file(&image).unwrap();

    build(&["-q", "--shrink", "-d", tree, image_text, "1G"]);
    let smallest = fs::metadata(&image).unwrap().len();
    assert!(smallest < 30 << 20);
    fs::remove_file(&image).unwrap();
    for args in [&["--shrink"][..], &["--max-size", "10M"]] {
        let size: &[&str] = if args.len() == 1 { &["10M"] } else { &[] };
        let (done, said) = mkfs(&[args, &["-d", tree, image_text], size].concat());
        assert!(!done && said.lines().count() == 1 && !image.exists(), "{args:?}: {said}");
    }
    // Files for which the usual number of inodes is too small.
    let many = archive((0..20_000).map(|n| Member::file(&format!("f{n}"), b"")).collect());
    let many = written(dir.path(), "many.tar", &many);
    build(&["-q", "-b", "4096", "-d", many.to_str().unwrap(), image_text, "64M"]);
    assert!(number(&image, "Inode count:") >= 20_012);
}

#[test]
fn the_journal_suits_the_size() {
    let dir = scratch();
    let image = dir.path().join("image");
    for (bytes, mib) in [(10 << 20, 4), (200 << 20, 16)] {
        let tree = dir.path().join("tree");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("file"), pattern(bytes)).unwrap();
        build(&["-q", "-F", "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
        let text = run(tool("dumpe2fs").arg("-h").arg(&image));
        let line = text.lines().find(|line| line.starts_with("Total journal size:")).unwrap();
        assert!(
            line.ends_with(&format!(
                " {}",
                if mib < 16 { format!("{}k", mib * 1024) } else { format!("{mib}M") }
            )),
            "{line}"
        );
    }
    let tree = dir.path().join("tree");
    build(&["-q", "-F", "-J", "size=64", "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
    assert!(run(tool("dumpe2fs").arg("-h").arg(&image)).contains("Total journal size:       64M"));
    build(&["-q", "-F", "-O", "^has_journal", "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
    assert!(!run(tool("dumpe2fs").arg("-h").arg(&image)).contains("ournal size"));
}
