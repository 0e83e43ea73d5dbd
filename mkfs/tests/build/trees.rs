//! One tree, from everywhere, makes one image, and the image holds the tree.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use super::support::*;

#[test]
fn the_kernel_shows_one_of_everything() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir(&tree).unwrap();
    one_of_everything(&tree);
    for args in [
        &[][..],
        &["-b", "1024"],
        &["-b", "2048", "-I", "512"],
        &["-I", "128"],
        &["-t", "ext3"],
        &["-t", "ext2", "-b", "1024"],
        &["-O", "^metadata_csum,uninit_bg"],
        &["-O", "^dir_index,^filetype"],
        &["-O", "^flex_bg,^resize_inode,meta_bg"],
    ] {
        let mut all = vec!["-q", "-F", "-d", tree.to_str().unwrap()];
        all.extend(args);
        all.push(image.to_str().unwrap());
        build(&all);
        // A 128-byte inode holds no nanoseconds.
        if !args.contains(&"128") {
            shows_the_tree(&image, &tree);
        }
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn folder_archives_and_streams_make_the_same_bytes() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    one_of_everything(&tree);
    // Sockets are not archived.
    let _ = fs::remove_file(tree.join("socket"));
    set_time(&tree, 1_111_111_111, 0);
    let expected = image_of(dir.path(), &[&tree]);
    let archive = dir.path().join("tree.tar");
    let mut args = KEEP_ALL.to_vec();
    args.push("--sort=none");
    tar(&tree, &archive, &args);
    assert!(image_of(dir.path(), &[&archive]) == expected, "an archive's image differs from the folder's");
    for version in ["0.0", "0.1"] {
        let sparse = format!("--sparse-version={version}");
        tar(&tree, &archive, &[KEEP_ALL, &[&sparse]].concat());
        assert!(image_of(dir.path(), &[&archive]) == expected, "sparse version {version}");
    }
    let plain = fs::read(&archive).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::stream::encode_all(plain.as_slice(), 1).unwrap();
    let xz = all(liblzma::read::XzEncoder::new(plain.as_slice(), 0));
    for (name, packed) in [("gz", gzip), ("zst", zstd), ("xz", xz), ("plain", plain)] {
        let file = written(dir.path(), &format!("packed.{name}"), &packed);
        assert!(image_of(dir.path(), &[&file]) == expected, "{name}");
        let image = dir.path().join("streamed");
        let args = ["-q", "-F", "-d", "-"].map(OsStr::new);
        let (done, said) = mkfs_fed(&[&args[..], &[image.as_os_str()]].concat(), &packed);
        assert!(done, "{name}: {said}");
        assert!(fs::read(&image).unwrap() == expected, "{name} from standard input");
    }
}

#[test]
fn gnu_archives_keep_sparse_files_and_long_names() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    let deep = "d".repeat(200) + "/" + &"e".repeat(100);
    fs::create_dir_all(tree.join(&deep)).unwrap();
    fs::write(tree.join(&deep).join("f".repeat(255)), b"deep").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), tree.join("link")).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    for at in 0..60_u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &pattern(4096), at << 20).unwrap();
    }
    sparse.set_len(100 << 20).unwrap();
    for path in
        [tree.join(&deep), tree.join("d".repeat(200)), tree.join("link"), tree.join("sparse"), tree.clone()]
    {
        set_time(&path, 1_000_000_000, 0);
    }
    set_time(&tree.join(&deep).join("f".repeat(255)), 1_000_000_000, 0);
    let expected = image_of(dir.path(), &[&tree]);
    let archive = dir.path().join("tree.tar");
    tar(&tree, &archive, &["--format=gnu", "--sparse", "--numeric-owner"]);
    assert!(image_of(dir.path(), &[&archive]) == expected);
}

#[test]
fn nothing_of_the_machine_is_in_the_image() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    one_of_everything(&tree);
    let first = image_of(dir.path(), &[&tree]);
    assert!(image_of(dir.path(), &[&tree]) == first, "two runs differ");
    for threads in ["1", "2", "7"] {
        let image = dir.path().join("threads");
        build(&["-q", "-F", "--threads", threads, "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
        assert!(fs::read(&image).unwrap() == first, "{threads} threads");
    }
    // Other inode numbers, another order of names, another filesystem.
    let shared = Path::new("/dev/shm");
    let elsewhere = if shared.is_dir() { tempfile::tempdir_in(shared).unwrap() } else { scratch() };
    run(tool("cp").args(["-a", "--sparse=auto"]).arg(&tree).arg(elsewhere.path()));
    assert!(image_of(elsewhere.path(), &[elsewhere.path().join("tree")]) == first, "a copy differs");
}

#[test]
fn another_user_makes_the_same_bytes() {
    if !kernel_judges() {
        return;
    }
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    one_of_everything(&tree);
    // trusted attributes are for root's eyes only.
    let _ = rustix::fs::lremovexattr(tree.join("pipe"), "trusted.t");
    let expected = image_of(dir.path(), &[&tree]);
    let place = dir.path().join("theirs");
    fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(65534), Some(65534)).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    // The program must be where anybody can run it.
    let program = dir.path().join("mkfs");
    fs::copy(env!("CARGO_BIN_EXE_mkfs-rext4"), &program).unwrap();
    let mut command = tool("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    run(command.args(["-q", "-d"]).arg(&tree).arg(place.join("image")));
    assert!(fs::read(place.join("image")).unwrap() == expected);
}

#[test]
fn the_uuid_follows_the_content() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let uuid = |bytes: &[u8]| bytes[1024 + 0x68..][..16].to_vec();
    let mut seen = std::collections::BTreeSet::new();
    for content in ["one", "two"] {
        fs::write(tree.join("file"), content).unwrap();
        set_time(&tree.join("file"), 1_000_000_000, 0);
        set_time(&tree, 1_000_000_000, 0);
        seen.insert(uuid(&image_of(dir.path(), &[&tree])));
    }
    fs::set_permissions(tree.join("file"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    seen.insert(uuid(&image_of(dir.path(), &[&tree])));
    assert_eq!(seen.len(), 3);
    let image = dir.path().join("given");
    let given = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let seed = format!("hash_seed={given}");
    build(&["-q", "-U", given, "-E", &seed, "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
    let bytes = fs::read(&image).unwrap();
    assert_eq!(uuid(&bytes), uuid::Uuid::parse_str(given).unwrap().into_bytes());
    assert_eq!(bytes[1024 + 0xec..][..16], uuid::Uuid::parse_str(given).unwrap().into_bytes());
}

#[test]
fn times_are_pinned_and_clamped() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("new"), b"x").unwrap();
    fs::write(tree.join("old"), b"x").unwrap();
    set_time(&tree.join("old"), 1_000_000_000, 5);
    let image = dir.path().join("image");
    let make = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mkfs-rext4"));
        command.args(["-q", "-F"]).args(args).arg("-d").arg(&tree).arg(&image);
        run(command.env("SOURCE_DATE_EPOCH", "1500000000"));
        clean(&image);
        let text = run(tool("dumpe2fs").env("TZ", "UTC").arg("-h").arg(&image));
        assert!(text.contains("Filesystem created:       Fri Jul 14 02:40:00 2017"), "{text}");
        fs::read(&image).unwrap()
    };
    let free = make(&[]);
    let clamped = make(&["--clamp-mtime"]);
    assert!(free != clamped);
    let new = stat_of(&image, "/new").unwrap();
    assert!(new.contains("mtime: 0x59682f00:00000000"), "{new}");
    assert!(stat_of(&image, "/old").unwrap().contains("mtime: 0x3b9aca00:00000014"));
    // The time of a run is nowhere, so a later one makes the same.
    fs::write(tree.join("new"), b"x").unwrap();
    set_time(&tree, 1_400_000_000, 0);
    let before = make(&["--clamp-mtime"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    fs::write(tree.join("new"), b"x").unwrap();
    set_time(&tree, 1_400_000_000, 0);
    assert!(make(&["--clamp-mtime"]) == before);
}

#[test]
fn the_order_of_members_is_not_in_the_image() {
    let dir = scratch();
    let member = |name: &str, len: usize| {
        let file = Member::file(name, &pattern(len)).record("SCHILY.xattr.user.a", &pattern(2000 + len));
        file.record("SCHILY.xattr.user.b", &pattern(70 + len))
    };
    let names: Vec<(String, usize)> = (0..20).map(|n| (format!("f{n}"), n * 100)).collect();
    let made = |names: &mut dyn Iterator<Item = &(String, usize)>| {
        let members = names.map(|(name, len)| member(name, *len)).collect();
        image_of(dir.path(), &[written(dir.path(), "tree.tar", &archive(members))])
    };
    assert!(made(&mut names.iter()) == made(&mut names.iter().rev()));
}
