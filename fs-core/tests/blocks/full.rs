//! A volume that fills up under scattered writes: what was accepted is there afterwards.

use std::collections::BTreeMap;

use fs_core::{Credentials, Error, Filesystem, OpenOptions, WriteKind};

use crate::rig::{Dice, format, judges_present};

fn fill(options: &str, size: &str) {
    let image = format(options, size);
    let fs = Filesystem::open(&image.path).unwrap();
    let somebody = Credentials { uid: 1000, gid: 1000, ..Credentials::root() };
    let size = fs.block_size() as usize;
    let mut files = Vec::new();
    for name in ["a", "b", "c"] {
        let file = fs.root().unwrap().create_as(&somebody, name, 0o644).unwrap();
        files.push((file, BTreeMap::<u64, u8>::new()));
    }
    let mut dice = Dice(99);
    let mut refused = 0;
    while refused < 100 {
        let (file, model) = &mut files[dice.roll(3) as usize];
        let (block, value) = (dice.roll(60_000), dice.roll(255) as u8);
        match file.write_as(&somebody, &vec![value; size], block * size as u64, WriteKind::Cached) {
            Ok(written) => {
                assert_eq!(written, size);
                model.insert(block, value);
            }
            Err(Error::NoSpace) => refused += 1,
            Err(e) => panic!("{options}: {e}"),
        }
    }
    assert_eq!(fs.statfs().unwrap().blocks_available, 0, "{options}");
    for (file, _) in &files {
        file.sync_all().unwrap();
    }
    let mut found = vec![0; size];
    for (file, model) in files {
        for (block, value) in model {
            assert_eq!(file.read_at(&mut found, block * size as u64).unwrap(), size);
            assert!(found.iter().all(|byte| *byte == value), "{options}: block {block} of {file:?}");
        }
    }
    fs.close().unwrap();
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
        let ours = OpenOptions::new().read_only(true).open(&image.path).unwrap().statfs().unwrap();
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
