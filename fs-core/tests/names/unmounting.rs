//! The end of a mount while inodes without a name are in use.

use std::ops::ControlFlow;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use ext4_format::features::{Incompat, RoCompat};
use ext4_format::superblock::{SUPERBLOCK_LEN, State, SuperBlock};

use crate::rig::{Rig, fsck};

const KINDS: [&[&str]; 3] =
    [&["-t", "ext4", "-O", "orphan_file"], &["-t", "ext4", "-O", "^orphan_file"], &["-t", "ext2"]];

fn superblock(rig: &Rig) -> SuperBlock {
    let bytes = std::fs::read(rig.image()).unwrap();
    SuperBlock::parse(bytes[1024..1024 + SUPERBLOCK_LEN].try_into().unwrap()).unwrap()
}

/// Closes the volume while another thread reads a directory that has no name any more. It goes on when `during`
/// returns, which runs beside the close, or after it if that gives false.
fn unmount_beside_a_reader(rig: &mut Rig, during: impl FnOnce() -> bool + Send) {
    let dir = rig.mkdir(&rig.root(), "dir");
    rig.root().rmdir("dir").unwrap();
    let (reads, reading) = channel();
    let (go_on, gone_on) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            dir.list(0, |_| {
                reads.send(()).unwrap();
                gone_on.recv().unwrap();
                ControlFlow::Break(())
            })
        });
        reading.recv().unwrap();
        let early = go_on.clone();
        scope.spawn(move || during().then(|| early.send(())));
        rig.end();
        let _ = go_on.send(());
    });
}

#[test]
fn an_inode_in_use_is_waited_for() {
    for kind in KINDS {
        let Some(mut rig) = Rig::new(16, kind) else { return };
        let free = rig.fs().statfs().unwrap().files_free;
        unmount_beside_a_reader(&mut rig, || {
            thread::sleep(Duration::from_millis(100));
            true
        });
        fsck(&rig.image());
        assert_eq!(u64::from(superblock(&rig).free_inodes()), free);
        assert!(superblock(&rig).state().has(State::VALID));
    }
}

#[test]
fn an_inode_that_stays_in_use_is_left_for_recovery() {
    for kind in KINDS {
        let Some(mut rig) = Rig::new(16, kind) else { return };
        let free = rig.fs().statfs().unwrap().files_free;
        unmount_beside_a_reader(&mut rig, || false);
        let sb = superblock(&rig);
        if kind.contains(&"ext2") {
            assert!(!sb.state().has(State::VALID));
        } else {
            assert!(sb.incompat().has(Incompat::RECOVER));
        }
        if kind.contains(&"orphan_file") {
            assert!(sb.ro_compat().has(RoCompat::ORPHAN_PRESENT));
        } else {
            assert!(sb.last_orphan().is_some());
        }
        rig.mount();
        assert_eq!(rig.fs().statfs().unwrap().files_free, free);
        rig.unmount();
        assert!(!superblock(&rig).incompat().has(Incompat::RECOVER));
    }
}
