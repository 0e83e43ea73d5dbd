//! Archives that lie, end too early or try to get out, and hosts that fail: one clear line, and nothing is
//! left behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::support::*;

/// What an archive is refused with. Nothing but the archive is in the folder before and after.
fn refused(bytes: &[u8], args: &[&str]) -> String {
    let dir = scratch();
    let file = written(dir.path(), "archive", bytes);
    let image = dir.path().join("image");
    let mut all = args.to_vec();
    all.extend(["-d", file.to_str().unwrap(), image.to_str().unwrap()]);
    let (done, said) = mkfs(&all);
    assert!(!done, "an archive was taken: {said}");
    let lines: Vec<&str> = said.lines().filter(|line| !line.contains("too small for a journal")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    let streamed: Vec<&OsStr> = args.iter().copied().chain(["-d", "-"]).map(OsStr::new).collect();
    let (done, streamed) = mkfs_fed(&[&streamed[..], &[image.as_os_str()]].concat(), bytes);
    assert!(!done && streamed.lines().count() == 1, "from standard input: {streamed}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["archive"], "something was left behind");
    said
}

fn taken(members: Vec<Member>) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = scratch();
    let file = written(dir.path(), "archive", &archive(members));
    let image = dir.path().join("image");
    build(&["-q", "-d", file.to_str().unwrap(), image.to_str().unwrap()]);
    (dir, image)
}

#[test]
fn what_is_wrong_is_named() {
    let file = |path: &str| Member::file(path, b"x");
    let long = "n".repeat(256);
    let cases: Vec<(Vec<Member>, &str)> = vec![
        (vec![file("../x")], "with .. may lead out of the image"),
        (vec![file("a/../../x")], "with .. may lead out of the image"),
        (vec![Member::link(b'1', "a", "../etc/passwd")], ".."),
        (vec![Member::link(b'1', "a", "nothing")], "a hard link to nothing"),
        (vec![Member::dir("d/"), Member::link(b'1', "a", "d")], "which is not a file"),
        (vec![Member::link(b'2', "a", "")], "without a target"),
        (vec![Member::link(b'2', "a", &"t".repeat(4096))], "longer than 4095"),
        (
            vec![Member::link(b'2', "a", "b"), Member::link(b'2', "b", "a"), file("a/x")],
            "too many symbolic links",
        ),
        (vec![file("a"), file("a/x")], "a is not a directory"),
        (vec![file(&long)], "more than 255 bytes"),
        (vec![file("lost+found")], "lost+found: is not a directory"),
        (vec![Member::link(b'2', "./", "x")], "the root of the tree"),
        (vec![Member::new(b'M', "x", b"")], "another volume"),
        (vec![Member::new(b'Q', "x", b"")], "unknown type"),
        (vec![file("x").record("size", b"999999999999")], "ends in the middle of x"),
        (vec![file("x").record("size", b"99999999999999999999")], "size"),
        (vec![file("x").record("uid", b"4294967295")], "uid"),
        (vec![file("x").record("mtime", b"yesterday")], "no time"),
        (
            vec![file("x").record("GNU.sparse.map", b"5,10,0,1").record("GNU.sparse.size", b"20")],
            "out of order",
        ),
        (vec![file("x").record("GNU.sparse.map", b"0,1").record("GNU.sparse.size", b"0")], "contradicts"),
        (vec![file("x").record("GNU.sparse.map", b"0,9").record("GNU.sparse.size", b"99")], "contradicts"),
        (vec![file("x").record("GNU.sparse.map", b"0").record("GNU.sparse.size", b"9")], "no numbers"),
        (vec![file("x").record("GNU.sparse.major", b"1").record("GNU.sparse.realsize", b"9")], "sparse"),
        (
            vec![
                Member::file("x", b"")
                    .record("GNU.sparse.map", b"")
                    .record("GNU.sparse.map", b"9223372036854775807,0")
                    .record("GNU.sparse.size", b"9223372036854775807"),
            ],
            "ext4 holds",
        ),
        (
            vec![file("x").record("SCHILY.acl.access", b"user::rwx,user:nobody-here:r--")],
            "nobody who is known",
        ),
        (vec![file("x").record("SCHILY.xattr.system.posix_acl_access", b"junk")], "damaged"),
        (vec![file("x").record("LIBARCHIVE.xattr.user.a", b"!")], "base64"),
        (
            vec![
                file("x")
                    .record(&format!("SCHILY.xattr.user.{long}"), b"")
                    .record(&format!("SCHILY.xattr.user.{long}"), b"1"),
            ],
            "too long",
        ),
    ];
    for (members, says) in cases {
        let said = refused(&archive(members), &[]);
        assert!(said.contains(says), "expected '{says}': {said}");
    }
}

#[test]
fn paths_stay_inside_the_image() {
    let (_dir, image) = taken(vec![
        Member::file("/absolute", b"a"),
        Member::file("//twice//over", b"b"),
        Member::link(b'2', "out", "../../../../.."),
        Member::file("out/inside", b"c"),
        Member::link(b'2', "etc", "/elsewhere"),
        Member::file("etc/passwd", b"d"),
        Member::link(b'1', "linked", "/absolute"),
    ]);
    for (path, bytes) in [
        ("/absolute", b"a"),
        ("/twice/over", b"b"),
        ("/inside", b"c"),
        ("/elsewhere/passwd", b"d"),
        ("/linked", b"a"),
    ] {
        assert_eq!(read_from(&image, path), bytes, "{path}");
    }
}

#[test]
fn the_last_of_several_entries_counts() {
    let (_dir, image) = taken(vec![
        Member::file("f", b"first"),
        Member::file("f", b"second"),
        Member::dir("f/"),
        Member::file("f/x", b"x"),
        Member::file("f", b"third"),
        Member::dir("d/"),
        Member::file("d/keep", b"k"),
        Member::dir("d/"),
        Member::link(b'1', "self", "f"),
        Member::link(b'1', "self", "self"),
        Member::file("f", b"last"),
    ]);
    assert_eq!(read_from(&image, "/f"), b"last");
    assert_eq!(read_from(&image, "/self"), b"third");
    assert_eq!(read_from(&image, "/d/keep"), b"k");
    assert!(stat_of(&image, "/f").unwrap().contains("Links: 1"));
}

#[test]
fn parents_that_no_entry_describes_are_made() {
    let (_dir, image) = taken(vec![Member::file("a/b/c/d", b"d")]);
    assert_eq!(read_from(&image, "/a/b/c/d"), b"d");
    let stat = stat_of(&image, "/a/b").unwrap();
    assert!(stat.contains("Mode:  0755") && stat.contains("User:     0"), "{stat}");
    // Their time is that of the newest file: nothing of the run is in the image.
    assert!(stat.contains("mtime: 0x5f5e1000"), "{stat}");
}

#[test]
fn an_archive_cut_short_anywhere_is_refused() {
    let whole = archive(vec![
        Member::dir("./"),
        Member::file("a", &pattern(700)),
        Member::file("b", &pattern(10)).record("SCHILY.xattr.user.x", b"y"),
        Member::link(b'2', "l", "a"),
        Member::file("S", &pattern(100))
            .record("GNU.sparse.map", b"0,50,4096,50")
            .record("GNU.sparse.size", b"5000"),
    ]);
    let end = whole.len() - 1024;
    for len in (0..=end).step_by(128).chain([1, 511, 513, end - 1]) {
        let said = refused(&whole[..len], &[]);
        let known = ["truncated", "ends in the middle", "not a tar archive"];
        assert!(known.iter().any(|text| said.contains(text)), "{len} bytes: {said}");
    }
    let packed = zstd::stream::encode_all(whole.as_slice(), 1).unwrap();
    for len in [7, packed.len() / 2, packed.len() - 1] {
        refused(&packed[..len], &[]);
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &whole).unwrap();
    let mut gzip = gzip.finish().unwrap();
    refused(&gzip[..gzip.len() - 4], &[]);
    let check = gzip.len() - 6;
    gzip[check] ^= 1;
    refused(&gzip, &[]);
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    for (bytes, says) in [
        (&b"BZh91AY&SY"[..], "bzip2 is not supported"),
        (&[0x04, 0x22, 0x4d, 0x18, 0, 0, 0, 0][..], "lz4"),
        (&b""[..], "empty"),
        (&[b'x'; 4096][..], "not a tar archive"),
    ] {
        let said = refused(bytes, &[]);
        assert!(said.contains(says), "{said}");
    }
}

/// Mutated archives: refused with one line or built clean; never a panic, a hang or something left behind.
#[test]
fn damaged_archives_never_do_harm() {
    let whole = archive(vec![
        Member::dir("./"),
        Member::file("dir/a", &pattern(600)),
        Member::file("b", b"b").record("SCHILY.xattr.user.x", b"y").record("mtime", b"1.5"),
        Member::link(b'2', "l", "dir"),
        Member::link(b'1', "h", "b"),
        Member::file("s", &pattern(60))
            .record("GNU.sparse.map", b"0,50,4096,10")
            .record("GNU.sparse.size", b"5000"),
        Member::new(b'L', "long", &[b'n'; 200]),
        Member::file("short", b"x"),
        Member::new(b'3', "dev", b""),
    ]);
    let rounds: u64 = if std::env::var("REXT4_SCALE").as_deref() == Ok("long") { 20_000 } else { 150 };
    let dir = scratch();
    let (file, image) = (dir.path().join("archive"), dir.path().join("image"));
    let mut built = 0;
    for round in 0..rounds {
        let noise = pattern(64 + round as usize);
        let mut bytes = whole.clone();
        for change in 0..1 + round as usize % 4 {
            let word = u64::from_le_bytes(noise[8 * change..][..8].try_into().unwrap()) >> 1;
            let at = word as usize % bytes.len();
            bytes[at] = match round % 3 {
                0 => noise[40 + change],
                1 => bytes[at] ^ (1 << (word >> 40 & 7)),
                _ => b"0179 \0"[(word >> 33) as usize % 6],
            };
            // Most damage is behind a check sum: it is made to fit, so that what lies behind is reached.
            let header = at / 512 * 512;
            if round % 2 == 0 && bytes[header + 257..header + 262] == *b"ustar" {
                let sum: u32 = bytes[header..header + 512]
                    .iter()
                    .enumerate()
                    .map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) })
                    .sum();
                bytes[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        fs::write(&file, &bytes).unwrap();
        let args = ["-q", "-F", "--max-size", "64M", "-d", file.to_str().unwrap(), image.to_str().unwrap()];
        let (done, said) = mkfs(&args);
        assert!(!said.contains("panicked"), "round {round}: {said}");
        if done {
            built += 1;
            let checked = tool("e2fsck").arg("-fn").arg(&image).output().unwrap();
            assert!(checked.status.success(), "round {round}: {}", String::from_utf8_lossy(&checked.stdout));
        } else {
            assert!(
                said.starts_with("mkfs.rext4: ") && !said.trim_end().contains('\n'),
                "round {round}: {said}"
            );
        }
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert!(left <= 2, "round {round} left something");
    }
    assert!(built > 0 && built < rounds, "{built} of {rounds} were built: the damage says nothing");
}

#[test]
fn bombs_are_stopped() {
    let bomb = archive(vec![Member::file("zeros", &vec![0; 40 << 20])]);
    let packed = zstd::stream::encode_all(bomb.as_slice(), 1).unwrap();
    assert!(packed.len() < 1 << 16);
    let said = refused(&packed, &["--max-size", "16M"]);
    assert!(said.contains("limit of 16777216 bytes"), "{said}");
    // Many small members are as bad as one large one.
    let many = archive((0..4000).map(|n| Member::file(&format!("f{n}"), b"")).collect());
    let said = refused(&many, &["--max-size", "1M"]);
    assert!(said.contains("--max-size"), "{said}");
    // A sparse file costs nothing, however large it says it is.
    let sparse = Member::file("s", b"x")
        .record("GNU.sparse.map", b"1099511627776,1")
        .record("GNU.sparse.size", b"1099511627777");
    let (_dir, image) = taken(vec![sparse]);
    assert!(fs::metadata(image).unwrap().len() < 1 << 20);
}

#[test]
fn a_header_cannot_ask_for_memory() {
    let huge = Member::new(b'x', "x", b"").with(|header| header.set_size(1 << 33));
    let said = refused(&archive(vec![huge]), &[]);
    assert!(said.contains("PAX header of 8589934592 bytes"), "{said}");
    let name = Member::new(b'L', "x", b"").with(|header| header.set_size(1 << 33));
    assert!(refused(&archive(vec![name]), &[]).contains("a long name of"));
}

#[test]
fn what_the_host_cannot_give_is_said() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), b"x").unwrap();
    let image = dir.path().join("image");
    let fails = |args: &[&str], says: &str| {
        let (done, said) = mkfs(args);
        assert!(!done && said.contains(says) && said.lines().count() == 1, "{args:?}: {said}");
    };
    let (tree_text, image_text) = (tree.to_str().unwrap(), image.to_str().unwrap());
    fails(&["-d", "/no/such/tree", image_text], "/no/such/tree");
    fails(&["-d", tree_text, "/no/such/folder/image"], "/no/such/folder");
    fails(&["-d", tree_text, tree_text], "is a directory");
    fails(&["-d", tree_text, "--owner", "root", image_text], "an owner is UID:GID");
    fails(&["-d", tree_text, "--map-users", "1:2", image_text], "HOST:IMAGE:COUNT");
    fails(&["-d", tree_text, "--clamp-mtime", image_text], "SOURCE_DATE_EPOCH");
    fails(&["-d", tree_text, "-N", "5", image_text], "-N gives 5");
    fails(&["--owner", "1:1", image_text, "10M"], "there is no tree");
    assert!(!image.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_unreadable_file_is_named() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("secret"), b"x").unwrap();
    fs::set_permissions(tree.join("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = dir.path().join("mkfs");
    fs::copy(env!("CARGO_BIN_EXE_mkfs-rext4"), &program).unwrap();
    let mut command = std::process::Command::new(&program);
    if rustix::process::geteuid().is_root() {
        command = tool("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    }
    let output = command.arg("-d").arg(&tree).arg(dir.path().join("image")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("secret") && said.contains("Permission denied"), "{said}");
    assert!(!dir.path().join("image").exists());
}

#[test]
fn a_full_disk_leaves_nothing() {
    if !kernel_judges() {
        return;
    }
    let dir = scratch();
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    run(tool("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small));
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), pattern(4 << 20)).unwrap();
    let image = small.join("image");
    let (folder_done, folder_said) = mkfs(&["-d".as_ref(), tree.as_os_str(), image.as_os_str()]);
    let packed = archive(vec![Member::file("file", &pattern(4 << 20))]);
    let (stream_done, stream_said) = mkfs_fed(&["-d".as_ref(), "-".as_ref(), image.as_os_str()], &packed);
    let left = fs::read_dir(&small).unwrap().count();
    unmount(&small);
    for (done, said) in [(folder_done, folder_said), (stream_done, stream_said)] {
        assert!(!done && said.contains("No space left on device"), "{said}");
    }
    assert_eq!(left, 0);
}

/// Whoever feeds a pipe may never close it: an archive that is wrong is refused all the same.
#[test]
fn an_error_does_not_wait_for_the_end_of_a_pipe() {
    use std::io::Write;
    let dir = scratch();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mkfs-rext4"));
    command.arg("-d").arg("-").arg(dir.path().join("image")).stderr(std::process::Stdio::piped());
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // More than is read ahead at a time, so that it is looked at; it may be refused before all is written.
    let _ = pipe.write_all(&vec![b'x'; 1 << 20]);
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < limit, "it waits for more");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(pipe);
}

/// A file that grows or shrinks between the listing and the reading.
#[test]
fn a_file_that_changes_is_named() {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    // A source that cannot be read before the tree was listed: a pipe comes second.
    fs::write(tree.join("file"), b"before").unwrap();
    let pipe = dir.path().join("pipe");
    run(tool("mkfifo").arg(&pipe));
    let image = dir.path().join("image");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mkfs-rext4"));
    command.arg("-q").arg("-d").arg(&tree).arg("-d").arg(&pipe).arg(&image);
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    // The folder has been listed when somebody opens the pipe for reading.
    let mut writer = fs::File::options().write(true).custom_flags(0).open(&pipe).unwrap();
    fs::write(tree.join("file"), b"after, and longer").unwrap();
    std::io::Write::write_all(&mut writer, &archive(vec![Member::file("other", b"o")])).unwrap();
    drop(writer);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("file changed while it was read"), "{said}");
    assert!(!Path::new(&image).exists());
}
