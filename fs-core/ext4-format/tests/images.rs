//! The format against images of mke2fs: bytes go through decode and encode unchanged, every checksum
//! verifies, and what the arithmetic says is what dumpe2fs says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use ext4_format::csum::Csum;
use ext4_format::features::Access;
use ext4_format::geometry::{self, Geometry};
use ext4_format::group_desc::{GroupDesc, GroupFlags};
use ext4_format::superblock::{SUPERBLOCK_OFFSET, SuperBlock};
use ext4_format::{BlockNo, GroupNo, Ino, jbd2, verify};

/// Makes an image, or says loudly that it cannot; with `CI=true` that is a failure.
fn image(size: &str, options: &[&str]) -> Option<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let made = Command::new("mke2fs").args(["-q", "-F"]).args(options).arg(file.path()).arg(size).output();
    match made {
        Ok(output) if output.status.success() => Some(file),
        Ok(output) => panic!("mke2fs {options:?} {size}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "mke2fs is missing: {error}");
            eprintln!("SKIPPED: mke2fs is missing: {error}");
            None
        }
    }
}

fn read(file: &File, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn superblock(file: &File, at: u64) -> ([u8; 1024], SuperBlock) {
    let bytes: [u8; 1024] = read(file, at, 1024).try_into().unwrap();
    (bytes, SuperBlock::parse(&bytes).unwrap())
}

const GRID: &[(&str, &[&str])] = &[
    ("1M", &["-t", "ext2", "-b", "1024"]),
    ("16M", &["-t", "ext3"]),
    ("16M", &["-t", "ext4"]),
    ("99M", &["-t", "ext3", "-E", "stride=16,stripe_width=64"]),
    ("4M", &["-t", "ext4"]),
    ("64M", &["-t", "ext4", "-b", "1024"]),
    ("131M", &["-t", "ext4"]),
    ("64M", &["-t", "ext4", "-b", "2048", "-I", "128"]),
    ("300M", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"]),
    ("300M", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit"]),
    ("300M", &["-t", "ext4", "-O", "^64bit"]),
    ("300M", &["-t", "ext4", "-O", "^flex_bg,^resize_inode"]),
    ("300M", &["-t", "ext4", "-b", "1024", "-O", "^flex_bg"]),
    ("300M", &["-t", "ext4", "-O", "metadata_csum_seed,orphan_file,ea_inode,large_dir,mmp"]),
    ("2G", &["-t", "ext4", "-O", "meta_bg,^resize_inode"]),
    ("2G", &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode", "-G", "4"]),
    ("2G", &["-t", "ext4", "-b", "1024", "-O", "sparse_super2"]),
    ("2G", &["-t", "ext4", "-b", "1024", "-O", "^sparse_super,^resize_inode"]),
    ("5G", &["-t", "ext4", "-G", "8"]),
    ("5G", &["-t", "ext2"]),
    ("9G", &["-t", "ext4", "-i", "4096"]),
    ("9G", &["-t", "ext4", "-b", "1024", "-N", "3000000"]),
    ("200G", &["-t", "ext4"]),
    ("1T", &["-t", "ext4", "-G", "64", "-E", "lazy_itable_init=1,nodiscard"]),
];

#[test]
fn superblocks_and_descriptors_survive_decode_and_encode_and_verify() {
    for (size, options) in GRID {
        let Some(image) = image(size, options) else { return };
        let file = image.as_file();
        let (bytes, sb) = superblock(file, SUPERBLOCK_OFFSET);
        assert_eq!(sb.encode(), bytes, "{size} {options:?}");
        assert_eq!(sb.access(), Access::ReadWrite, "{size} {options:?}");

        let geometry = Geometry::new(&sb);
        let csum = Csum::new(&sb);
        let block = geometry.block_size as usize;
        for group in geometry.backup_groups() {
            let (bytes, copy) = superblock(file, geometry.group_first_block(group).0 * block as u64);
            assert_eq!(copy.encode(), bytes);
            assert_eq!(u32::from(copy.raw().block_group_nr.get()), group.0 & 0xffff);
        }
        for group in geometry.groups() {
            let (at, byte) = geometry.descriptor(group);
            let bytes = read(file, at.0 * block as u64 + byte as u64, geometry.desc_size);
            let desc = verify::group_desc(&bytes, &csum, &geometry, group)
                .unwrap_or_else(|c| panic!("{size} {options:?}: {c}"));
            let mut again = bytes.clone();
            desc.encode_into(&mut again, group, &csum);
            assert_eq!(again, bytes, "{size} {options:?} group {group}");
            check_bitmaps(file, &csum, &geometry, group, &desc, &format!("{size} {options:?}"));
        }
        check_inodes(file, &csum, &geometry);
        check_journal(file, &sb, &geometry);
    }
}

fn check_bitmaps(
    file: &File,
    csum: &Csum,
    geometry: &Geometry,
    group: GroupNo,
    desc: &GroupDesc,
    what: &str,
) {
    let block = geometry.block_size as usize;
    let place = |at: BlockNo| at.0 * block as u64;
    let mut blocks = read(file, place(desc.block_bitmap), block);
    if desc.flags.has(GroupFlags::BLOCK_UNINIT) {
        geometry.fill_uninit_block_bitmap(group, desc, &mut blocks);
    } else {
        verify::block_bitmap(&blocks, csum, geometry, group, desc).unwrap_or_else(|c| panic!("{what}: {c}"));
    }
    let clusters = geometry.clusters_in_group(group);
    let free = ext4_format::bitmap::Bits::new(&blocks, clusters).summary().free;
    assert_eq!(free, desc.free_blocks, "{what} group {group}");

    let mut inodes = read(file, place(desc.inode_bitmap), block);
    if desc.flags.has(GroupFlags::INODE_UNINIT) {
        geometry.fill_uninit_inode_bitmap(&mut inodes);
    } else {
        verify::inode_bitmap(&inodes, csum, geometry, group, desc).unwrap_or_else(|c| panic!("{what}: {c}"));
    }
    let free = ext4_format::bitmap::Bits::new(&inodes, geometry.inodes_per_group).summary().free;
    assert_eq!(free, desc.free_inodes, "{what} group {group}");
}

fn check_inodes(file: &File, csum: &Csum, geometry: &Geometry) {
    for n in [2, 7, 8, 11] {
        let ino = Ino::new(n).unwrap();
        let location = geometry.inode_location(ino).unwrap();
        assert_eq!(geometry.inode_at(location.group, location.index), Some(ino));
        let (at, byte) = geometry.descriptor(location.group);
        let bytes = read(file, at.0 * u64::from(geometry.block_size) + byte as u64, geometry.desc_size);
        let table = GroupDesc::decode(&bytes).unwrap().inode_table.0 + u64::from(location.table_block);
        let at = table * u64::from(geometry.block_size) + location.byte as u64;
        let mut inode = read(file, at, geometry.inode_size);
        if inode.iter().all(|b| *b == 0) {
            continue;
        }
        csum.verify_inode(&inode, ino).unwrap();
        let before = inode.clone();
        csum.set_inode(&mut inode, ino);
        assert_eq!(inode, before);
        inode[40] ^= 1;
        assert_eq!(csum.verify_inode(&inode, ino).is_err(), csum.metadata());
    }
}

fn check_journal(file: &File, sb: &SuperBlock, geometry: &Geometry) {
    let Some(words) = sb.journal_backup() else { return };
    let first_block = match words[0] & 0xffff {
        0xf30a if words[1] >> 16 == 0 => words[5],
        0xf30a => {
            let leaf = read(file, u64::from(words[4]) * u64::from(geometry.block_size), 24);
            u32::from_le_bytes(leaf[20..24].try_into().unwrap())
        }
        _ => words[0],
    };
    let at = u64::from(first_block) * u64::from(geometry.block_size);
    let bytes: [u8; 1024] = read(file, at, 1024).try_into().unwrap();
    let journal = jbd2::SuperBlock::parse(&bytes).unwrap_or_else(|c| panic!("{words:x?} {c}"));
    assert_eq!(journal.encode(), bytes);
    assert_eq!(journal.block_size(), geometry.block_size);
    assert_eq!(u64::from(journal.len_blocks()) * u64::from(geometry.block_size), u64::from(words[16]));
    assert_eq!(journal.start(), None);
}

/// What `dumpe2fs` says about one group.
#[derive(Default, Debug, PartialEq)]
struct Listed {
    blocks: (u64, u64),
    superblock: Option<u64>,
    descriptors: Option<(u64, u64)>,
    reserved: Option<(u64, u64)>,
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: (u64, u64),
}

fn numbers_after(line: &str, label: &str) -> Option<(u64, u64)> {
    let rest = &line[line.find(label)? + label.len()..];
    let mut numbers = rest
        .split(|c: char| !c.is_ascii_digit() && c != '-')
        .find(|word| !word.is_empty())?
        .split('-')
        .map(|n| n.parse::<u64>().unwrap());
    let first = numbers.next()?;
    Some((first, numbers.next().unwrap_or(first)))
}

fn listing(path: &std::path::Path) -> Vec<Listed> {
    let output = Command::new("dumpe2fs").arg(path).output().unwrap();
    let mut groups: Vec<Listed> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if line.starts_with("Group ") && line.contains("(Blocks ") {
            groups.push(Listed { blocks: numbers_after(line, "(Blocks ").unwrap(), ..Listed::default() });
        }
        let Some(group) = groups.last_mut() else { continue };
        group.superblock = numbers_after(line, "superblock at ").map(|n| n.0).or(group.superblock);
        group.descriptors = numbers_after(line, "roup descriptors at ")
            .or(numbers_after(line, "roup descriptor at "))
            .or(group.descriptors);
        group.reserved = numbers_after(line, "Reserved GDT blocks at ").or(group.reserved);
        group.block_bitmap = numbers_after(line, "Block bitmap at ").map_or(group.block_bitmap, |n| n.0);
        group.inode_bitmap = numbers_after(line, "Inode bitmap at ").map_or(group.inode_bitmap, |n| n.0);
        group.inode_table = numbers_after(line, "Inode table at ").unwrap_or(group.inode_table);
    }
    groups
}

#[test]
fn the_arithmetic_and_the_plan_agree_with_dumpe2fs() {
    for (size, options) in GRID {
        let Some(image) = image(size, options) else { return };
        let (_, sb) = superblock(image.as_file(), SUPERBLOCK_OFFSET);
        let geometry = Geometry::new(&sb);
        let listed = listing(image.path());
        assert_eq!(listed.len(), geometry.group_count as usize);
        let (plans, _) = geometry::plan(&geometry, sb.raid().0).unwrap();
        let inclusive =
            |range: &std::ops::Range<u64>| (!range.is_empty()).then(|| (range.start, range.end - 1));
        for (group, (listed, plan)) in geometry.groups().zip(listed.iter().zip(&plans)) {
            let first = geometry.group_first_block(group).0;
            let head = geometry.head(group);
            let ours = Listed {
                blocks: (first, first + u64::from(geometry.blocks_in_group(group)) - 1),
                superblock: head.superblock.map(|b| b.0),
                descriptors: inclusive(&head.descriptors),
                reserved: inclusive(&head.reserved),
                block_bitmap: plan.block_bitmap.0,
                inode_bitmap: plan.inode_bitmap.0,
                inode_table: (
                    plan.inode_table.0,
                    plan.inode_table.0 + u64::from(geometry.inode_table_blocks()) - 1,
                ),
            };
            assert_eq!(&ours, listed, "{size} {options:?} group {group}");
        }
    }
}
