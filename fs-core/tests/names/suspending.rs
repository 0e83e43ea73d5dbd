//! A volume that is suspended again and again while others change it: clean on its device whenever it says so,
//! and marked as in use before anything of a transaction is there.

use std::sync::atomic::{AtomicBool, Ordering};

use ext4_format::superblock::{SUPERBLOCK_LEN, SUPERBLOCK_OFFSET, SuperBlock};

use crate::rig::{Rig, fsck};

fn needs_recovery(rig: &Rig) -> bool {
    let mut bytes = [0; SUPERBLOCK_LEN];
    let file = std::fs::File::open(rig.image()).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, SUPERBLOCK_OFFSET).unwrap();
    SuperBlock::parse(&bytes).unwrap().incompat().has(ext4_format::features::Incompat::RECOVER)
}

#[test]
fn a_suspended_volume_is_clean_until_it_changes() {
    for args in [["-t", "ext4", "-O", "orphan_file"], ["-t", "ext4", "-O", "^has_journal"]] {
        let Some(mut rig) = Rig::new(32, &args) else { return };
        let journaled = args[3] == "orphan_file";
        let root = rig.root();
        rig.touch(&root, "before");
        assert_eq!(needs_recovery(&rig), journaled);
        assert!(rig.fs().suspend().unwrap());
        assert!(rig.fs().is_suspended() && !rig.fs().is_writable());
        assert!(!needs_recovery(&rig));
        fsck(&rig.image());
        let refused = root.create_dir("refused", 0o755);
        assert_eq!(refused.map(|_| ()).map_err(|error| error.errno()), Err(30));
        assert!(rig.fs().suspend().unwrap(), "again");
        // The word is taken back by the first change, not before.
        rig.fs().resume();
        assert!(!needs_recovery(&rig));
        rig.touch(&root, "after");
        assert_eq!(needs_recovery(&rig), journaled);
        assert!(rig.fs().suspend().unwrap());
        let before = std::fs::read(rig.image()).unwrap();
        rig.unmount();
        assert!(before == std::fs::read(rig.image()).unwrap(), "the end of a suspended volume wrote");
    }
}

#[test]
fn changes_and_suspensions_meet() {
    let Some(mut rig) = Rig::new(64, &["-t", "ext4"]) else { return };
    rig.fs().set_may_resume(Box::new(|| true));
    let over = AtomicBool::new(false);
    let mut rests = 0;
    std::thread::scope(|scope| {
        let (fs, over) = (rig.fs(), &over);
        for thread in 0..2 {
            scope.spawn(move || {
                let (root, mut n) = (fs.root().unwrap(), 0);
                while !over.load(Ordering::Relaxed) {
                    let name = format!("{thread} {n}");
                    root.create_dir(&name, 0o755).unwrap();
                    if n % 3 == 0 {
                        root.rmdir(&name).unwrap();
                    }
                    n += 1;
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
            });
        }
        for _ in 0..400 {
            rests += u32::from(fs.suspend().unwrap());
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(rests > 0, "it was never suspended: the test shows nothing");
    rig.unmount();
}
