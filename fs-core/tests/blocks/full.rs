//! A volume that fills up under scattered writes: what was accepted is there afterwards.

use std::collections::BTreeMap;

use blockdev::{Env, OpenOptions};
use fs_core::Filesystem;
use fs_core::error::Error;
use fs_core::ops::{OpenFlags, WriteMode};
use fs_core::types::{Caller, MountOptions};

use crate::rig::{Dice, format, judges_present};

fn fill(options: &str, size: &str) {
    let image = format(options, size);
    let open = OpenOptions { exclusive: false, ..OpenOptions::default() };
    let dev = blockdev::open(&image.path, &open).unwrap();
    let fs = Filesystem::mount(dev, MountOptions::default(), Env::system()).unwrap();
    let somebody = Caller { uid: 1000, gid: 1000, ..Caller::root() };
    let size = fs.block_size() as usize;
    let mut files = Vec::new();
    for name in [b"a", b"b", b"c"] {
        let ino = fs.mknod(&somebody, fs.root(), name, 0o100_644, (0, 0)).unwrap().ino;
        fs.open(ino, OpenFlags { write: true, ..OpenFlags::default() }).unwrap();
        files.push((ino, BTreeMap::<u64, u8>::new()));
    }
    let mut dice = Dice(99);
    let mut refused = 0;
    while refused < 100 {
        let (ino, model) = &mut files[dice.roll(3) as usize];
        let (block, value) = (dice.roll(60_000), dice.roll(255) as u8);
        match fs.write(&somebody, *ino, block * size as u64, &vec![value; size], WriteMode::Cached) {
            Ok(written) => {
                assert_eq!(written, size);
                model.insert(block, value);
            }
            Err(Error::NoSpace) => refused += 1,
            Err(e) => panic!("{options}: {e}"),
        }
    }
    assert_eq!(fs.statfs().unwrap().blocks_available, 0, "{options}");
    for (ino, _) in &files {
        fs.fsync(*ino, false).unwrap();
    }
    let mut found = vec![0; size];
    for (ino, model) in &files {
        for (block, value) in model {
            assert_eq!(fs.read(*ino, block * size as u64, &mut found).unwrap(), size);
            assert!(found.iter().all(|byte| byte == value), "{options}: block {block} of {ino}");
        }
        fs.release(*ino);
    }
    fs.unmount().unwrap();
    drop(fs);
    image.assert_clean();
}

#[test]
fn the_kernel_counts_the_same_space() {
    if !judges_present() {
        return;
    }
    for options in [
        "-t ext4 -b 4096",
        "-t ext4 -b 1024",
        "-t ext4 -b 1024 -O meta_bg,^resize_inode -m 1",
        "-t ext4 -b 4096 -O sparse_super2,mmp",
        "-t ext3 -b 1024",
        "-t ext2 -b 4096",
    ] {
        let image = format(options, "300M");
        let Some(kernel) = image.kernel_statfs() else { return };
        let open = OpenOptions { exclusive: false, read_only: true, ..OpenOptions::default() };
        let dev = blockdev::open(&image.path, &open).unwrap();
        let how = MountOptions { read_only: true, ..MountOptions::default() };
        let ours = Filesystem::mount(dev, how, Env::system()).unwrap().statfs().unwrap();
        let ours = [
            ours.block_size.into(),
            ours.blocks,
            ours.blocks_free,
            ours.blocks_available,
            ours.files,
            ours.files_free,
        ];
        assert_eq!(kernel, ours, "{options}");
    }
}

#[test]
fn accepted_data_survive_a_full_volume() {
    if !judges_present() {
        return;
    }
    fill("-t ext4 -b 4096 -m 0 -O ^has_journal -N 64", "12M");
    fill("-t ext4 -b 1024 -m 10 -N 64", "8M");
    fill("-t ext3 -b 1024 -m 0 -N 64", "8M");
    fill("-t ext2 -b 1024 -m 5 -N 64", "8M");
    fill("-t ext2 -b 4096 -m 0 -N 64", "12M");
}
