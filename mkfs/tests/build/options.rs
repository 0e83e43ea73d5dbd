//! Owners, specification files, and how the program is called.

use std::fs;

use super::support::*;

#[test]
fn owners_are_set_and_mapped() {
    let dir = scratch();
    let member = |path: &str, id: u64| {
        Member::file(path, b"x").with(|header| {
            header.set_uid(id);
            header.set_gid(id);
        })
    };
    let list = b"user::rwx,user:1005:r-x,group::r-x,group:1006:r--,mask::r-x,other::---";
    let tree = written(
        dir.path(),
        "tree.tar",
        &archive(vec![
            member("root", 0),
            member("user", 1005),
            member("big", 70_000).record("uid", b"70000").record("gid", b"70000"),
            member("listed", 0).record("SCHILY.acl.access", list),
        ]),
    );
    let image = dir.path().join("image");
    let (tree, image_text) = (tree.to_str().unwrap(), image.to_str().unwrap());
    let owner = |path: &str| {
        let text = stat_of(&image, path).unwrap();
        let number = |key: &str| {
            let rest = text.split(key).nth(1).unwrap().trim_start();
            rest.split_whitespace().next().unwrap().parse::<u32>().unwrap()
        };
        (number("User:"), number("Group:"))
    };
    build(&["-q", "-F", "-d", tree, image_text]);
    assert_eq!([owner("/root"), owner("/user"), owner("/big")], [(0, 0), (1005, 1005), (70_000, 70_000)]);
    build(&["-q", "-F", "--owner", "7:8", "-d", tree, image_text]);
    assert_eq!([owner("/root"), owner("/user"), owner("/big")], [(7, 8); 3]);
    let maps = ["--map-users", "0:100:1", "--map-users", "1000:2000:10", "--map-users", "70000:0:1"];
    let groups = ["--map-groups", "0:5:1", "--map-groups", "1000:3000:99", "--map-groups", "70000:6:1"];
    build(&[&["-q", "-F"][..], &maps, &groups, &["-d", tree, image_text]].concat());
    assert_eq!([owner("/root"), owner("/user"), owner("/big")], [(100, 5), (2005, 3005), (0, 6)]);
    if kernel_judges() {
        let text = with_mounted(&image, |point| run(tool("getfacl").arg("-n").arg(point.join("listed"))));
        assert!(text.contains("user:2005:r-x") && text.contains("group:3006:r--"), "{text}");
    }
    let (done, said) = mkfs(&["-F", "--map-users", "0:0:1", "-d", tree, image_text]);
    assert!(!done && said.contains("user 1005 is in no range"), "{said}");
    build(&["-q", "-F", "-E", "root_owner=9:10", "-d", tree, image_text]);
    assert_eq!(owner("/"), (9, 10));
}

#[test]
fn specifications_describe_what_a_folder_cannot() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::write(tree.join("bin/ping"), b"ping").unwrap();
    fs::write(tree.join("a b"), b"space").unwrap();
    fs::write(dir.path().join("host file"), b"from the host").unwrap();
    let mtree = written(
        dir.path(),
        "spec.mtree",
        b"#mtree\n\
          /set type=file uid=0 gid=0 mode=0644\n\
          . type=dir mode=0755 time=1000000000.0\n\
          bin type=dir mode=0755\n\
          \x20   ping mode=4711 time=1234567890.000000005 \\\n\
          \x20        xattr.security.capability=AQAAAgAgAAAAAAAAAAAAAAAAAAA=\n\
          ..\n\
          ./a\\040b uid=5 gid=6 mode=0600\n\
          ./dev/console type=char mode=0600 device=linux,5,1\n\
          ./dev/sda type=block device=0x800 mode=0660 gid=6\n\
          ./run/fifo type=fifo\n\
          ./etc/alias type=link link=../bin/ping mode=0777\n\
          ./etc/added contents=host\\040file mode=0640\n\
          ./never/there optional\n",
    );
    let list = written(
        dir.path(),
        "list",
        b"# of gen_init_cpio\n\
          dir /proc 0555 0 0\n\
          nod /dev/null 0666 0 0 c 1 3\n\
          slink /init /bin/ping 0777 0 0\n\
          pipe /run/second 0600 1 2\n\
          sock /run/socket 0700 3 4\n\
          file /sbin/host host\\040 0755 0 0\n",
    );
    fs::write(&list, fs::read_to_string(&list).unwrap().replace("host\\040", "plain")).unwrap();
    fs::write(dir.path().join("plain"), b"plain").unwrap();
    fs::write(
        &list,
        fs::read_to_string(&list)
            .unwrap()
            .replace("/sbin/host plain 0755 0 0", "/sbin/host plain 0755 0 0 /sbin/same"),
    )
    .unwrap();
    let table = written(
        dir.path(),
        "table",
        b"# name type mode uid gid major minor start inc count\n\
          /dev/tty c 666 0 5 4 0 0 1 4\n\
          /dev/zero c 666 0 0 1 5 0 0 -\n\
          /var d 755 0 0 - - - - -\n\
          /bin r -1 42 43 - - - - -\n",
    );
    let image = dir.path().join("image");
    let specs = [&mtree, &list, &table].map(|path| path.to_str().unwrap());
    build(&[
        "-q",
        "-d",
        tree.to_str().unwrap(),
        "--spec",
        specs[0],
        "--spec",
        specs[1],
        "--spec",
        specs[2],
        image.to_str().unwrap(),
    ]);
    for (path, words) in [
        (
            "/bin/ping",
            &[
                "Mode:  04711",
                "User:    42",
                "Group:    43",
                "mtime: 0x499602d2:00000014",
                "security.capability",
            ][..],
        ),
        ("\"/a b\"", &["Mode:  0600", "User:     5", "Group:     6"]),
        ("/dev/console", &["Type: character special", "Mode:  0600", "05:01"]),
        ("/dev/sda", &["Type: block special", "Mode:  0660", "08:00"]),
        ("/run/fifo", &["Type: FIFO"]),
        ("/etc/alias", &["Type: symlink", "../bin/ping"]),
        ("/etc/added", &["Mode:  0640"]),
        ("/proc", &["Type: directory", "Mode:  0555"]),
        ("/dev/null", &["Mode:  0666", "01:03"]),
        ("/init", &["/bin/ping"]),
        ("/run/second", &["Type: FIFO", "User:     1", "Group:     2"]),
        ("/run/socket", &["Type: socket", "Mode:  0700"]),
        ("/sbin/host", &["Links: 2", "Mode:  0755"]),
        ("/dev/tty3", &["04:03", "Group:     5"]),
        ("/dev/zero", &["01:05"]),
        ("/var", &["Type: directory"]),
        ("/", &["mtime: 0x3b9aca00"]),
    ] {
        let text = stat_of(&image, path).unwrap_or_else(|| panic!("{path} is not there"));
        for word in words {
            assert!(text.contains(word), "{path}: no {word} in {text}");
        }
    }
    assert_eq!(read_from(&image, "/etc/added"), b"from the host");
    assert_eq!(read_from(&image, "/sbin/same"), b"plain");
    assert!(stat_of(&image, "/never/there").is_none() && stat_of(&image, "/dev/tty4").is_none());
    for (line, says) in [
        ("./none uid=1", "1: ./none is not in the tree"),
        ("./x type=char", "needs device="),
        ("./x type=file uname=root contents=plain", "give uid="),
        ("./x type=door", "type=door"),
        ("./x typo=1", "typo"),
        ("nod /x 0666 0 0 c 99999 0", "out of range"),
        ("/dev/t c 666 0 0 4 0 0 1 99999999", "nodes in one line"),
        ("./../x type=dir", ".."),
    ] {
        let spec = written(dir.path(), "wrong", line.as_bytes());
        let (done, said) = mkfs(&[
            "-F",
            "-d",
            tree.to_str().unwrap(),
            "--spec",
            spec.to_str().unwrap(),
            image.to_str().unwrap(),
        ]);
        assert!(!done && said.contains(says) && said.lines().count() == 1, "{line}: {said}");
    }
}

#[test]
fn under_fakeroot_it_sees_what_fakeroot_shows() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    let image = dir.path().join("image");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(dir.path(), open).unwrap();
    let program = dir.path().join("mkfs");
    fs::copy(env!("CARGO_BIN_EXE_mkfs-rext4"), &program).unwrap();
    let script = format!(
        "mkdir {t}; mknod {t}/null c 1 3; echo x >{t}/f; chown 12:34 {t}/f; chmod 4755 {t}/f; \
         ln {t}/f {t}/g; {p} -q -d {t} {i}",
        t = tree.display(),
        i = image.display(),
        p = program.display(),
    );
    let mut command = tool("fakeroot");
    if rustix::process::geteuid().is_root() {
        command = tool("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "fakeroot"]);
    }
    run(command.args(["sh", "-ec", &script]));
    clean(&image);
    let file = stat_of(&image, "/f").unwrap();
    for word in ["User:    12", "Group:    34", "Mode:  04755", "Links: 2"] {
        assert!(file.contains(word), "no {word} in {file}");
    }
    let null = stat_of(&image, "/null").unwrap();
    assert!(
        null.contains("character special") && null.contains("01:03") && null.contains("User:     0"),
        "{null}"
    );
}

#[test]
fn a_program_gets_json() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), b"12345").unwrap();
    fs::hard_link(tree.join("file"), tree.join("same")).unwrap();
    let image = dir.path().join("image");
    let (done, said) =
        mkfs(&["--json", "-O", "^has_journal", "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
    let value: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(done);
    assert_eq!(value["size"], fs::metadata(&image).unwrap().len());
    assert_eq!((&value["files"], &value["hard_links"], &value["content"]), (&1.into(), &1.into(), &5.into()));
    assert_eq!(value["directories"], 2);
    let (done, said) = mkfs(&["--json", "-F", "-d", "/no/such", image.to_str().unwrap()]);
    let line = said.lines().find(|line| line.starts_with('{')).unwrap();
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    assert!(!done && value["error"].as_str().unwrap().contains("/no/such"), "{said}");
}

#[test]
fn what_is_there_is_overwritten_on_purpose_only() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let image = dir.path().join("image");
    let (tree, image_text) = (tree.to_str().unwrap(), image.to_str().unwrap());
    build(&["-q", "-d", tree, image_text]);
    let first = fs::read(&image).unwrap();
    let (done, said) = mkfs(&["-q", "-d", tree, image_text]);
    assert!(!done && said.contains("use -F to overwrite"), "{said}");
    // An image that is replaced does not say how large the next one is.
    build(&["-q", "-F", "-d", tree, image_text]);
    assert!(fs::read(&image).unwrap() == first);
    // A prepared file does.
    fs::write(&image, b"").unwrap();
    fs::File::options().write(true).open(&image).unwrap().set_len(300 << 20).unwrap();
    build(&["-q", "-d", tree, image_text]);
    assert_eq!(fs::metadata(&image).unwrap().len(), 300 << 20);
    // Mode and place are kept; a link is followed.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("image", &link).unwrap();
    fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    build(&["-q", "-F", "-d", tree, link.to_str().unwrap()]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read(&image).unwrap() == first);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&image).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn an_image_in_its_own_tree_is_left_out() {
    let dir = scratch();
    let image = dir.path().join("image");
    fs::write(dir.path().join("file"), b"x").unwrap();
    build(&["-q", "-d", dir.path().to_str().unwrap(), image.to_str().unwrap()]);
    build(&["-q", "-F", "-d", dir.path().to_str().unwrap(), image.to_str().unwrap()]);
    assert!(stat_of(&image, "/image").is_none() && stat_of(&image, "/file").is_some());
}

#[test]
fn a_partition_is_filled_in_place() {
    let dir = scratch();
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![7; 40 << 20]).unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    one_of_everything(&tree);
    let args = ["-q", "-E", "offset=1048576", "-d", tree.to_str().unwrap(), disk.to_str().unwrap(), "20M"];
    let (done, said) = mkfs(&args);
    assert!(done, "{said}");
    let bytes = fs::read(&disk).unwrap();
    assert!(
        bytes[..1 << 20].iter().all(|byte| *byte == 7) && bytes[21 << 20..].iter().all(|byte| *byte == 7)
    );
    let image = written(dir.path(), "image", &bytes[1 << 20..21 << 20]);
    clean(&image);
    shows_the_tree(&image, &tree);
}

#[test]
fn a_dry_run_plans_and_writes_nothing() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), pattern(10 << 20)).unwrap();
    let image = dir.path().join("image");
    let (done, said) = mkfs(&["-n", "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
    assert!(done && said.contains("Creating filesystem with"), "{said}");
    assert!(!image.exists());
}

#[test]
fn attributes_are_left_out_when_told_so() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    one_of_everything(&tree);
    let image = dir.path().join("image");
    build(&["-q", "-E", "no_copy_xattrs", "-d", tree.to_str().unwrap(), image.to_str().unwrap()]);
    assert!(!stat_of(&image, "/usr/hello").unwrap().contains("user.small"));
}
