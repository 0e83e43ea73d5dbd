//! Many threads in the same directories: no deadlock, no lost name, a clean volume.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::thread;

use blockdev::sim::Dice;
use fs_core::{Dir, Error, Node, RenameFlags};

use crate::rig::Rig;

/// Anything but damage and failure is a fair answer while others change the same names.
fn fair<T>(result: fs_core::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Posix(_) | Error::NoSpace) => None,
        Err(other) => panic!("{other}"),
    }
}

fn churn(dirs: &[Dir], seed: u64) {
    let mut dice = Dice::new(seed);
    for _ in 0..3000 {
        let (a, b) = (dice.pick(dirs), dice.pick(dirs));
        let name = format!("name{}", dice.below(40));
        let other = format!("name{}", dice.below(40));
        match dice.below(11) {
            0 | 1 => drop(fair(a.create(name, 0o644))),
            2 => drop(fair(a.create_dir(name, 0o755))),
            3 => drop(fair(a.symlink(name, other))),
            4 => drop(fair(b.lookup(other)).and_then(|found| fair(a.link(name, &found)))),
            5 => drop(fair(a.unlink(name))),
            6 => drop(fair(a.rmdir(name))),
            7 => {
                let mut found: Vec<Node> = Vec::new();
                fair(a.list_nodes(0, |item, node| {
                    found.extend(node.filter(|_| item.name[0] != b'.'));
                    if found.len() < 20 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }));
            }
            roll => {
                let flags = RenameFlags { exchange: roll == 8, ..RenameFlags::default() };
                fair(a.rename(name, b, other, flags));
            }
        }
    }
}

#[test]
fn threads_in_the_same_directories_leave_a_clean_volume() {
    for kind in [&["-t", "ext4", "-b", "1024"][..], &["-t", "ext4"]] {
        let Some(mut rig) = Rig::new(64, kind) else { return };
        let mut dirs = vec![rig.root()];
        for i in 0..4 {
            // Nested, so that renames move directories up, down and across.
            let parent = dirs[i / 2].clone();
            dirs.push(rig.mkdir(&parent, &format!("dir{i}")));
        }
        thread::scope(|scope| {
            for seed in 0..8 {
                let dirs = &dirs;
                scope.spawn(move || churn(dirs, seed));
            }
        });
        rig.unmount();
    }
}

#[test]
fn parallel_creates_in_one_directory_all_arrive() {
    let Some(mut rig) = Rig::new(64, &["-t", "ext4", "-N", "20000"]) else { return };
    let dir = rig.mkdir(&rig.root(), "dir");
    thread::scope(|scope| {
        for t in 0..4 {
            let dir = &dir;
            scope.spawn(move || {
                for i in 0..1000 {
                    let name = format!("{t}-{i}");
                    dir.create(name, 0o644).unwrap();
                    if i % 100 == 99 {
                        let mut names = 0;
                        dir.list(0, |_| {
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
    assert_eq!(rig.list(&dir, 100).into_iter().collect::<BTreeSet<_>>().len(), 4000);
    rig.unmount();
}
