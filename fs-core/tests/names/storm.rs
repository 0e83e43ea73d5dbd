//! Many threads in the same directories: no deadlock, no lost name, a clean volume.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;

use blockdev::sim::Dice;
use ext4_format::Ino;
use fs_core::Filesystem;
use fs_core::error::Error;
use fs_core::ops::RenameFlags;
use fs_core::types::Caller;

use crate::rig::Rig;

const ROOT: Ino = Ino::ROOT;

/// Anything but damage and failure is a fair answer while others change the same names.
fn fair<T>(result: fs_core::error::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Posix(_) | Error::NoSpace) => None,
        Err(other) => panic!("{other}"),
    }
}

fn churn(fs: &Filesystem, dirs: &[Ino], seed: u64) {
    let mut dice = Dice::new(seed);
    let root = Caller::root();
    for _ in 0..3000 {
        let (a, b) = (*dice.pick(dirs), *dice.pick(dirs));
        let name = format!("name{}", dice.below(40)).into_bytes();
        let other = format!("name{}", dice.below(40)).into_bytes();
        let made = match dice.below(11) {
            0 | 1 => fair(fs.mknod(&root, a, &name, 0o100_644, (0, 0))),
            2 => fair(fs.mkdir(&root, a, &name, 0o755)),
            3 => fair(fs.symlink(&root, a, &name, &other)),
            4 => fair(fs.lookup(b, &other)).and_then(|entry| {
                let linked = fair(fs.link(&root, entry.ino, a, &name));
                fs.forget(entry.ino, 1);
                linked
            }),
            5 => {
                fair(fs.unlink(a, &name));
                None
            }
            6 => {
                fair(fs.rmdir(a, &name));
                None
            }
            7 => {
                let mut found = Vec::new();
                fair(fs.readdir_plus(a, 0, |item, attr| {
                    found.extend(attr.filter(|_| item.name[0] != b'.').map(|attr| attr.ino));
                    if found.len() < 20 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }));
                // The one it broke at was not given.
                found.truncate(19);
                found.into_iter().for_each(|ino| fs.forget(ino, 1));
                None
            }
            roll => {
                let flags = RenameFlags { exchange: roll == 8, ..RenameFlags::default() };
                fair(fs.rename(&root, (a, &name), (b, &other), flags));
                None
            }
        };
        if let Some(entry) = made {
            fs.forget(entry.ino, 1);
        }
    }
}

#[test]
fn threads_in_the_same_directories_leave_a_clean_volume() {
    for kind in [&["-t", "ext4", "-b", "1024"][..], &["-t", "ext4"]] {
        let Some(mut rig) = Rig::new(64, kind) else { return };
        let mut dirs = vec![ROOT];
        for i in 0..4 {
            // Nested, so that renames move directories up, down and across.
            let parent = dirs[i / 2];
            dirs.push(rig.mkdir(parent, &format!("dir{i}")));
        }
        thread::scope(|scope| {
            for seed in 0..8 {
                let (fs, dirs) = (rig.fs().clone(), &dirs);
                scope.spawn(move || churn(&fs, dirs, seed));
            }
        });
        rig.unmount();
    }
}

#[test]
fn parallel_creates_in_one_directory_all_arrive() {
    let Some(mut rig) = Rig::new(64, &["-t", "ext4", "-N", "20000"]) else { return };
    let dir = rig.mkdir(ROOT, "dir");
    let fs: Arc<Filesystem> = rig.fs().clone();
    thread::scope(|scope| {
        for t in 0..4 {
            let fs = &fs;
            scope.spawn(move || {
                for i in 0..1000 {
                    let name = format!("{t}-{i}");
                    fs.mknod(&Caller::root(), dir, name.as_bytes(), 0o100_644, (0, 0)).unwrap();
                    if i % 100 == 99 {
                        let mut names = 0;
                        fs.readdir(dir, 0, |_| {
                            names += 1;
                            ControlFlow::Continue(())
                        })
                        .unwrap();
                        assert!(names > i);
                    }
                }
            });
        }
    });
    drop(fs);
    assert_eq!(rig.list(dir, 100).into_iter().collect::<BTreeSet<_>>().len(), 4000);
    rig.unmount();
}
