//! Trees of unusual shapes: large directories, many extents, shared attributes, deep paths.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::support::*;

fn built(sources: &Path, args: &[&str]) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = scratch();
    let image = dir.path().join("image");
    let mut all = vec!["-q"];
    all.extend(args);
    all.extend(["-d", sources.to_str().unwrap(), image.to_str().unwrap()]);
    build(&all);
    (dir, image)
}

/// An archive of many empty files with long names.
fn many(count: u32, len: usize) -> Vec<u8> {
    let names = (0..count).map(|n| format!("{n:07}{}", "n".repeat(len - 7)));
    archive(names.map(|name| Member::file(&name, b"")).collect())
}

#[test]
fn a_directory_of_100_000_files_is_indexed() {
    let dir = scratch();
    let file = written(dir.path(), "many.tar", &many(100_000, 40));
    let (_dir, image) = built(&file, &[]);
    let root = stat_of(&image, "/").unwrap();
    assert!(root.contains("Flags: 0x81000"), "{root}");
    let tree = run(tool("debugfs").arg("-R").arg("htree /").arg(&image));
    assert!(tree.contains("Indirect levels: 1"), "{}", &tree[..400]);
    if kernel_judges() {
        let (count, found) = with_mounted(&image, |point| {
            let count = fs::read_dir(point).unwrap().count();
            let found =
                (0..100_000).step_by(997).all(|n| point.join(format!("{n:07}{}", "n".repeat(33))).exists());
            (count, found)
        });
        assert_eq!((count, found), (100_001, true));
    }
}

#[test]
fn an_index_of_three_levels_brings_its_feature() {
    let dir = scratch();
    let file = written(dir.path(), "many.tar", &many(48_000, 250));
    let (_dir, image) = built(&file, &["-b", "1024"]);
    let text = run(tool("dumpe2fs").arg("-h").arg(&image));
    assert!(text.contains("large_dir"), "{text}");
    if kernel_judges() {
        let found = with_mounted(&image, |point| {
            let found =
                (0..48_000).step_by(499).all(|n| point.join(format!("{n:07}{}", "n".repeat(243))).exists());
            (fs::read_dir(point).unwrap().count(), found)
        });
        assert_eq!(found, (48_001, true));
    }
    let (done, said) = mkfs(&["-b", "1024", "-O", "^large_dir", "-d", file.to_str().unwrap(), "/dev/null/x"]);
    assert!(!done && said.contains("large_dir"), "{said}");
}

#[test]
fn a_file_of_many_pieces_has_a_deep_tree() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let file = fs::File::create(tree.join("pieces")).unwrap();
    for piece in 0..3000_u64 {
        file.write_all_at(&pattern(100), piece * 16384 + 5000).unwrap();
    }
    file.set_len(100 << 30).unwrap();
    for args in [&["-b", "1024"][..], &["-b", "4096"]] {
        let (_dir, image) = built(&tree, args);
        shows_the_tree(&image, &tree);
        assert!(fs::metadata(&image).unwrap().len() < 20 << 20);
    }
    file.set_len(3000 * 16384).unwrap();
    let (_dir, image) = built(&tree, &["-t", "ext2", "-b", "1024"]);
    shows_the_tree(&image, &tree);
}

#[test]
fn files_around_group_boundaries_stay_whole() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    // With groups of 8 MiB, backups and tables interrupt the data all the time.
    for n in 0..120_usize {
        fs::write(tree.join(format!("f{n:03}")), pattern(1 + n * 7919 % 700_000)).unwrap();
    }
    fs::write(tree.join("large"), pattern(30 << 20)).unwrap();
    let (_dir, image) = built(&tree, &["-b", "1024", "-O", "^flex_bg"]);
    let text = run(tool("e2fsck").args(["-fn", "-E", "fragcheck"]).arg(&image));
    let fragmented = text.lines().filter(|line| line.contains("expecting")).count();
    let large = text.lines().filter(|line| line.contains("expecting") && line.contains("inode")).count();
    // Only the file that is longer than any run of free blocks is cut.
    let cut: std::collections::BTreeSet<&str> = text
        .lines()
        .filter(|line| line.contains("expecting"))
        .filter_map(|line| line.split(':').next())
        .collect();
    assert!(cut.len() <= 1, "{fragmented} {large}: {text}");
    shows_the_tree(&image, &tree);
}

#[test]
fn equal_attributes_share_blocks_and_large_ones_have_inodes() {
    let dir = scratch();
    let value = pattern(2000);
    let mut members: Vec<Member> = (0..2500)
        .map(|n| Member::file(&format!("f{n}"), b"").record("SCHILY.xattr.user.shared", &value))
        .collect();
    members.push(Member::file("large", b"").record("SCHILY.xattr.user.large", &pattern(60_000)));
    members.push(Member::file("twice", b"").record("SCHILY.xattr.user.large", &pattern(60_000)));
    members.push(
        Member::dir("all")
            .record("SCHILY.xattr.user.a", &pattern(3000))
            .record("SCHILY.xattr.user.b", &pattern(3000))
            .record("SCHILY.xattr.security.capability", &pattern(20)),
    );
    let file = written(dir.path(), "tree.tar", &archive(members));
    let (_dir, image) = built(&file, &[]);
    let text = run(tool("dumpe2fs").arg("-h").arg(&image));
    assert!(text.contains("ea_inode"), "{text}");
    if kernel_judges() {
        with_mounted(&image, |point| {
            let get = |name: &str, attribute: &str| {
                let mut value = vec![0_u8; 65536];
                let len = rustix::fs::lgetxattr(point.join(name), attribute, &mut value).unwrap();
                value.truncate(len);
                value
            };
            assert!((0..2500).step_by(99).all(|n| get(&format!("f{n}"), "user.shared") == value));
            assert!(
                get("large", "user.large") == pattern(60_000)
                    && get("twice", "user.large") == pattern(60_000)
            );
            assert!(get("all", "user.a") == pattern(3000) && get("all", "user.b") == pattern(3000));
        });
        // The kernel takes it apart again, and the counts are right.
        let point = scratch();
        run(tool("mount").args(["-o", "loop"]).arg(&image).arg(point.path()));
        run(tool("setfattr").args(["-x", "user.shared"]).arg(point.path().join("f5")));
        run(tool("rm").args(["-rf"]).arg(point.path().join("large")).arg(point.path().join("all")));
        unmount(point.path());
        clean(&image);
    }
    let (done, said) = mkfs(&["-O", "^ea_inode", "-d", file.to_str().unwrap(), "/dev/null/x"]);
    assert!(!done && said.contains("ea_inode") && said.lines().count() == 1, "{said}");
}

#[test]
fn paths_longer_than_the_kernel_takes_are_read() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let script =
        "i=0; while [ $i -lt 60 ]; do mkdir -p $1; cd -P $1; i=$((i+1)); done; echo deep >file; ln -s x link";
    run(tool("bash").arg("-ec").arg(script).arg("sh").arg("d".repeat(120)).current_dir(&tree));
    let (_dir, image) = built(&tree, &[]);
    let archive_path = dir.path().join("tree.tar");
    tar(&tree, &archive_path, KEEP_ALL);
    assert!(image_of(dir.path(), &[&archive_path]) == fs::read(&image).unwrap());
    // Deeper than any path that a test could write out.
    run(tool("rm").arg("-rf").arg(&tree));
}

#[test]
fn more_links_and_subdirectories_than_are_counted() {
    let dir = scratch();
    let folders = archive((0..65_010).map(|n| Member::dir(&format!("d{n}/"))).collect());
    let file = written(dir.path(), "folders.tar", &folders);
    let (_dir, image) = built(&file, &[]);
    assert!(stat_of(&image, "/").unwrap().contains("Links: 1 "), "{:?}", stat_of(&image, "/"));
    let mut links = vec![Member::file("f", b"x")];
    links.extend((0..65_000).map(|n| Member::link(b'1', &format!("l{n}"), "f")));
    let file = written(dir.path(), "links.tar", &archive(links));
    let (done, said) = mkfs(&["-d", file.to_str().unwrap(), "/dev/null/x"]);
    assert!(!done && said.contains("65001 hard links"), "{said}");
}

#[test]
fn lost_and_found_of_the_tree_is_used() {
    let (dir, tree) = (scratch(), scratch());
    fs::create_dir(tree.path().join("lost+found")).unwrap();
    fs::write(tree.path().join("lost+found/#12"), b"found").unwrap();
    fs::set_permissions(tree.path().join("lost+found"), std::os::unix::fs::PermissionsExt::from_mode(0o750))
        .unwrap();
    let image = dir.path().join("image");
    build(&["-q", "-d", tree.path().to_str().unwrap(), image.to_str().unwrap()]);
    let stat = stat_of(&image, "/lost+found").unwrap();
    assert!(
        stat.contains("Inode: 11 ") && stat.contains("Mode:  0750") && stat.contains("Size: 16384"),
        "{stat}"
    );
    assert_eq!(read_from(&image, "/lost+found/#12"), b"found");
}
