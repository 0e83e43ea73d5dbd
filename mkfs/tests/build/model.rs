//! Random trees, made as a folder, as an archive with its members in any order, and as layers over a base that
//! is partly taken out again: one image, and the kernel shows the folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::support::*;

/// What one name is.
#[derive(Clone, Debug)]
enum Kind {
    /// Pieces of data: place and length; and the size.
    File(Vec<(u64, usize)>, u64),
    Directory,
    Symlink(usize),
    Fifo,
    /// A hard link to one of the files before.
    Link(usize),
}

#[derive(Clone, Debug)]
struct Name {
    parent: usize,
    name: String,
    kind: Kind,
    mode: u16,
    time: (i64, u32),
    attribute: Option<usize>,
}

fn kind() -> impl Strategy<Value = Kind> {
    let pieces = proptest::collection::vec((0..40_u64, 1..9000_usize), 0..5);
    prop_oneof![
        4 => (pieces, 0..200_000_u64).prop_map(|(pieces, size)| {
            let pieces: BTreeMap<u64, usize> =
                pieces.into_iter().map(|(at, len)| (at * 16384 + at % 3 * 100, len)).collect();
            let end = pieces.iter().map(|(at, len)| at + *len as u64).max().unwrap_or(0);
            Kind::File(pieces.into_iter().collect(), end.max(size))
        }),
        3 => Just(Kind::Directory),
        1 => (1..2000_usize).prop_map(Kind::Symlink),
        1 => Just(Kind::Fifo),
        1 => any::<usize>().prop_map(Kind::Link),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    let words = (any::<usize>(), "[a-zA-Z0-9 .%é-]{1,20}", kind(), 0..0o10000_u16);
    let time = (-1_000_000_000..4_000_000_000_i64, 0..1_000_000_000_u32);
    (words, time, proptest::option::of(0..3000_usize)).prop_map(
        |((parent, name, kind, mode), time, attribute)| Name {
            parent,
            name,
            kind,
            mode: mode | 0o400,
            time,
            attribute,
        },
    )
}

/// A tree with its parents and links settled: path, and what it is.
fn settled(names: Vec<Name>) -> Vec<(String, Name)> {
    let mut out: Vec<(String, Name)> = Vec::new();
    for mut name in names {
        let folders: Vec<String> = std::iter::once(String::new())
            .chain(
                out.iter()
                    .filter(|(_, n)| matches!(n.kind, Kind::Directory))
                    .map(|(path, _)| path.clone() + "/"),
            )
            .collect();
        let path = folders[name.parent % folders.len()].clone() + &name.name;
        let taken = out.iter().any(|(other, _)| *other == path);
        if taken || [".", "..", "lost+found"].contains(&name.name.as_str()) || name.name.starts_with(".wh.") {
            continue;
        }
        if let Kind::Link(to) = &mut name.kind {
            let files: Vec<usize> = out
                .iter()
                .enumerate()
                .filter(|(_, (_, n))| matches!(n.kind, Kind::File(..)))
                .map(|(at, _)| at)
                .collect();
            let Some(file) = files.get(*to % files.len().max(1)) else { continue };
            *to = *file;
        }
        out.push((path, name));
    }
    out
}

fn bytes_of(pieces: &[(u64, usize)], size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for (at, len) in pieces {
        bytes[*at as usize..*at as usize + len].copy_from_slice(&pattern(*len));
    }
    bytes
}

fn make_folder(root: &Path, tree: &[(String, Name)]) {
    fs::create_dir(root).unwrap();
    for (path, name) in tree {
        let at = root.join(path);
        match &name.kind {
            Kind::Directory => fs::create_dir(&at).unwrap(),
            Kind::Symlink(len) => std::os::unix::fs::symlink("t".repeat(*len), &at).unwrap(),
            Kind::Fifo => drop(run(tool("mkfifo").arg(&at))),
            Kind::Link(to) => fs::hard_link(root.join(&tree[*to].0), &at).unwrap(),
            Kind::File(pieces, size) => {
                let file = fs::File::create(&at).unwrap();
                pieces.iter().for_each(|(at, len)| file.write_all_at(&pattern(*len), *at).unwrap());
                file.set_len(*size).unwrap();
            }
        }
        if let Some(len) = name.attribute.filter(|_| matches!(name.kind, Kind::File(..) | Kind::Directory)) {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(&at, "user.a", &pattern(len), flags).unwrap();
        }
    }
    for (path, name) in tree.iter().rev() {
        let at = root.join(path);
        if matches!(name.kind, Kind::Link(_)) {
            continue;
        }
        if !matches!(name.kind, Kind::Symlink(_)) {
            fs::set_permissions(&at, fs::Permissions::from_mode(u32::from(name.mode))).unwrap();
        }
        set_time(&at, name.time.0, name.time.1.into());
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    set_time(root, 1_000_000_000, 0);
}

fn members(tree: &[(String, Name)]) -> Vec<Member> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    tree.iter()
        .map(|(path, name)| {
            let member = match &name.kind {
                Kind::Directory => Member::dir(path),
                Kind::Symlink(len) => Member::link(b'2', path, &"t".repeat(*len)),
                Kind::Fifo => Member::new(b'6', path, b""),
                Kind::Link(to) => Member::link(b'1', path, &tree[*to].0),
                Kind::File(pieces, size) => sparse(path, pieces, *size),
            };
            let mode = if matches!(name.kind, Kind::Symlink(_)) { 0o777 } else { name.mode };
            let member = member.with(|header| {
                header.set_mode(mode.into());
                header.set_uid(user.into());
                header.set_gid(group.into());
            });
            let (sec, nsec) = name.time;
            // A negative time is written as its distance from 0.
            let text = match (sec < 0, nsec) {
                (true, 1..) if sec == -1 => format!("-0.{:09}", 1_000_000_000 - nsec),
                (true, 1..) => format!("{}.{:09}", sec + 1, 1_000_000_000 - nsec),
                _ => format!("{sec}.{nsec:09}"),
            };
            let member = member.record("mtime", text.as_bytes());
            match name
                .attribute
                .filter(|len| *len > 0 && matches!(name.kind, Kind::File(..) | Kind::Directory))
            {
                Some(len) => member.record("SCHILY.xattr.user.a", &pattern(len)),
                None => member,
            }
        })
        .collect()
}

/// A sparse member whose map is what the folder's filesystem says: whole pages.
fn sparse(path: &str, pieces: &[(u64, usize)], size: u64) -> Member {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (at, len) in pieces {
        let (start, end) = (at / 4096 * 4096, (at + *len as u64).next_multiple_of(4096).min(size));
        match runs.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => runs.push((start, end)),
        }
    }
    let whole = bytes_of(pieces, size);
    let data: Vec<u8> =
        runs.iter().flat_map(|(start, end)| whole[*start as usize..*end as usize].to_vec()).collect();
    let mut map: Vec<String> = runs.iter().map(|(start, end)| format!("{start},{}", end - start)).collect();
    if runs.last().is_none_or(|last| last.1 < size) {
        map.push(format!("{size},0"));
    }
    Member::file(path, &data)
        .record("GNU.sparse.map", map.join(",").as_bytes())
        .record("GNU.sparse.size", size.to_string().as_bytes())
}

fn check(names: Vec<Name>, order: u64) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut tree = settled(names);
    // An empty attribute says nothing in a PAX header: it takes a record out.
    for (_, name) in &mut tree {
        name.attribute = name.attribute.filter(|len| *len > 0);
    }
    let folder = dir.path().join("tree");
    make_folder(&folder, &tree);
    let image = dir.path().join("image");
    let make = |sources: &[&Path]| {
        let mut args = vec!["-q".as_ref(), "-F".as_ref()];
        for source in sources {
            args.extend(["-d".as_ref(), source.as_os_str()]);
        }
        args.push(image.as_os_str());
        build(&args);
        fs::read(&image).unwrap()
    };
    let expected = make(&[&folder]);
    shows_the_tree(&image, &folder);

    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let root = || {
        Member::dir("./").with(|header| {
            header.set_mtime(1_000_000_000);
            header.set_uid(user.into());
            header.set_gid(group.into());
        })
    };
    // Links come after what they lead to; the rest in any order.
    let (mut first, last): (Vec<_>, Vec<_>) =
        members(&tree).into_iter().zip(&tree).partition(|(_, (_, name))| !matches!(name.kind, Kind::Link(_)));
    let len = first.len().max(1);
    first.rotate_left(order as usize % len);
    if order % 2 == 1 {
        first.reverse();
    }
    let all = first.into_iter().chain(last).map(|(member, _)| member);
    let tar = written(dir.path(), "tree.tar", &archive(std::iter::once(root()).chain(all).collect()));
    if make(&[&tar]) != expected {
        shows_the_tree(&image, &folder);
        let other = written(dir.path(), "expected", &expected);
        for (path, _) in &tree {
            let stat = |image: &Path| stat_of(image, &format!("\"/{path}\""));
            prop_assert_eq!(stat(&image), stat(&other), "{}", path);
        }
        prop_assert!(false, "the archive's image differs from the folder's");
    }

    // A base with things of its own; the upper layer takes them out, or replaces them.
    let mut base = vec![Member::dir("./"), Member::dir("base/"), Member::file("base/x", b"x")];
    let mut upper = vec![root(), Member::file(".wh.base", b"")];
    for (at, (path, name)) in tree.iter().enumerate() {
        match at % 3 {
            0 if matches!(name.kind, Kind::Directory) => base.push(Member::file(path, b"was a file")),
            1 if !matches!(name.kind, Kind::Directory) => {
                base.push(Member::file(&format!("{path}/in"), b"was a folder"))
            }
            2 if matches!(name.kind, Kind::Directory) => {
                base.push(Member::file(&format!("{path}/gone"), b"gone"));
                upper.push(Member::file(&format!("{path}/.wh..wh..opq"), b""));
            }
            _ => {}
        }
    }
    // What the base holds must be possible: no file in a file.
    let base = written(dir.path(), "base.tar", &archive(base));
    upper.extend(members(&tree));
    let upper = written(dir.path(), "upper.tar", &archive(upper));
    let possible = mkfs(&[
        "-q".as_ref(),
        "-F".as_ref(),
        "-n".as_ref(),
        "-d".as_ref(),
        base.as_os_str(),
        image.as_os_str(),
    ]);
    if possible.0 {
        prop_assert!(make(&[&base, &upper]) == expected, "the layers' image differs from the folder's");
    }
    Ok(())
}

#[test]
fn random_trees_are_the_same_from_everywhere() {
    let cases = if std::env::var("REXT4_SCALE").as_deref() == Ok("long") { 300 } else { 8 };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let trees = (proptest::collection::vec(name(), 0..60), any::<u64>());
    runner.run(&trees, |(names, order)| check(names, order)).unwrap();
}
