//! Every inode, extent node, directory block, index block and attribute of images that mke2fs made and the
//! kernel filled: each must verify, and its codec must give back the same bytes.

use std::path::Path;
use std::process::Command;

use ext4_format::csum::Csum;
use ext4_format::dirent::{DirBlock, DirBlockMut, DirFormat, NewEntry};
use ext4_format::extent::{self, Bounds};
use ext4_format::geometry::Geometry;
use ext4_format::group_desc::GroupDesc;
use ext4_format::hash::{HashVersion, name_hash};
use ext4_format::htree::{Index, Kind};
use ext4_format::inode::{FileType, Inode, InodeLayout, flag};
use ext4_format::superblock::SuperBlock;
use ext4_format::xattr::{self, Attributes, Home};
use ext4_format::{BlockNo, Corruption, FileBlock, Ino, indirect, verify};

const FILL: &str = r#"
set -e
mkdir d deep; cd d
for i in $(seq 1500); do : > "a-file-with-a-long-enough-name-$i"; done
cd ..
mkdir -p deep/er/still
for i in $(seq 0 2 1200); do dd if=/dev/zero of=holes bs=$BS count=1 seek=$i conv=notrunc status=none; done
fallocate -l 1M reserved 2>/dev/null || :
ln -s short fast; ln -s $(printf 'x%.0s' $(seq 200)) slow
mknod null c 1 3; mknod wide b 300 70000; mkfifo pipe
echo x > attr; setfattr -n user.small -v value attr; setfattr -n user.big -v $(printf 'y%.0s' $(seq 400)) attr
setfattr -n trusted.z -v 1 attr
touch -d "2100-01-01 00:00:00.123456789Z" later; touch -d '1950-06-01' earlier
chown 100000:200000 later
"#;

/// Runs a shell script; `None` when the machine cannot (no root, no loop devices).
fn image(folder: &Path, options: &str, block_size: u32) -> Option<Vec<u8>> {
    let script = format!(
        "set -e; cd {dir}; truncate -s 32M image; mke2fs -Fq -t ext4 -b {block_size} {options} image; \
         mkdir mnt; mount -o loop image mnt; (cd mnt; export BS={block_size}; {FILL}) || status=$?; umount mnt; exit $status",
        dir = folder.display()
    );
    let output = Command::new("bash").arg("-c").arg(script).output().ok()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        let root =
            std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        assert!(!root && std::env::var_os("CI").is_none(), "{why}");
        eprintln!("SKIPPED: no kernel mount here: {why}");
        return None;
    }
    Some(std::fs::read(folder.join("image")).unwrap())
}

struct Volume {
    bytes: Vec<u8>,
    sb: SuperBlock,
    geometry: Geometry,
    csum: Csum,
}

#[derive(Default, Debug)]
struct Seen {
    inodes: usize,
    deep: usize,
    indirect: usize,
    entries: usize,
    indexed: usize,
    attributes: usize,
}

impl Volume {
    fn block(&self, block: u64) -> &[u8] {
        let size = self.geometry.block_size as usize;
        &self.bytes[block as usize * size..][..size]
    }

    fn data_blocks(&self, ino: Ino, inode: &Inode, seen: &mut Seen) -> Vec<(u64, u64)> {
        let mut blocks = Vec::new();
        let bounds = Bounds::of_volume(BlockNo(0), self.geometry.blocks_count);
        if inode.has(flag::EXTENTS) {
            extent::walk::<_, Corruption>(
                &inode.block,
                bounds,
                &mut |b| {
                    let bytes = self.block(b.0);
                    verify::extent_block(bytes, &self.csum, &bounds, ino, inode.generation)?;
                    let mut copy = bytes.to_vec();
                    self.csum.set_extent_block(&mut copy, ino, inode.generation);
                    assert_eq!(copy, bytes);
                    Ok(bytes)
                },
                &mut |step| {
                    match step {
                        extent::Step::Node { .. } => seen.deep += 1,
                        extent::Step::Extent(e) => blocks
                            .extend((0..u64::from(e.len)).map(|i| (u64::from(e.first.0) + i, e.start.0 + i))),
                    }
                    Ok(())
                },
            )
            .unwrap();
        } else {
            let device = 1..self.geometry.blocks_count;
            let size = self.geometry.block_size;
            indirect::walk::<_, Corruption>(
                &inode.block,
                size,
                device,
                &mut |b| Ok(self.block(b.0)),
                &mut |step| {
                    match step {
                        indirect::Step::Node { .. } => seen.indirect += 1,
                        indirect::Step::Data { file_block, block } => {
                            let path = indirect::path(FileBlock(file_block as u32), size).unwrap();
                            let mut at = indirect::pointer(&inode.block, path.slots[0]).unwrap();
                            for slot in &path.slots[1..=path.levels] {
                                at = indirect::pointer(self.block(at.0), *slot).unwrap();
                            }
                            assert_eq!(at, block);
                            blocks.push((file_block, block.0));
                        }
                    }
                    Ok(())
                },
            )
            .unwrap();
        }
        blocks
    }

    fn directory(&self, ino: Ino, inode: &Inode, blocks: &[(u64, u64)], seen: &mut Seen) {
        let format = DirFormat::new(&self.sb, inode.flags);
        let at = |n: u32| self.block(blocks.iter().find(|b| b.0 == u64::from(n)).unwrap().1);
        let mut leaves: Vec<(u32, u32, u32)> = Vec::new();
        if inode.has(flag::INDEX) {
            seen.indexed += 1;
            let root = at(0);
            verify::htree_block(root, Kind::Root, &self.csum, ino, inode.generation).unwrap();
            let index = Index::parse(root, Kind::Root, format.tail).unwrap();
            let info = index.info().unwrap();
            let mut level: Vec<(u32, u32)> = index.entries().map(|e| (e.hash, e.block.0)).collect();
            for _ in 0..info.indirect_levels {
                level = level
                    .iter()
                    .flat_map(|&(low, n)| {
                        verify::htree_block(at(n), Kind::Node, &self.csum, ino, inode.generation).unwrap();
                        let node = Index::parse(at(n), Kind::Node, format.tail).unwrap();
                        node.entries().map(|e| (e.hash.max(low), e.block.0)).collect::<Vec<_>>()
                    })
                    .collect();
            }
            for (i, &(low, n)) in level.iter().enumerate() {
                leaves.push((n, low, level.get(i + 1).map_or(u32::MAX, |next| next.0 | 1)));
            }
            let version = HashVersion::from_raw(info.hash_version).unwrap();
            let version = version.with_unsigned(self.sb.hash_unsigned());
            for &(n, low, high) in &leaves {
                for entry in DirBlock::new(at(n), format).entries() {
                    let hash = name_hash(version, self.sb.hash_seed(), entry.unwrap().name).unwrap();
                    assert!((low & !1..=high).contains(&hash.major), "{low:x} {:x} {high:x}", hash.major);
                    let probe = index.entry(index.search(hash.major)).unwrap();
                    assert!(info.indirect_levels > 0 || probe.block.0 == n || low & 1 == 1);
                }
            }
        } else {
            leaves.extend(blocks.iter().map(|b| (b.0 as u32, 0, 0)));
        }
        for (n, ..) in leaves {
            verify::dir_block(at(n), &self.csum, format, ino, inode.generation).unwrap();
            // Taking an entry out and putting it back keeps the set of names.
            let mut copy = at(n).to_vec();
            let names = |bytes: &[u8]| {
                let mut all: Vec<(Vec<u8>, u32, u8)> = DirBlock::new(bytes, format)
                    .entries()
                    .map(Result::unwrap)
                    .filter_map(|e| Some((e.name.to_vec(), e.ino?.get(), e.type_code)))
                    .collect();
                all.sort();
                all
            };
            let before = names(&copy);
            seen.entries += before.len();
            for (name, target, code) in &before {
                let found = DirBlock::new(&copy, format).find(name).unwrap().unwrap().at;
                assert!(DirBlockMut::new(&mut copy, format).remove(found).unwrap());
                let file_type = FileType::from_dirent(*code).unwrap_or(FileType::Regular);
                let entry = NewEntry { ino: Ino::new(*target).unwrap(), file_type, name };
                assert!(DirBlockMut::new(&mut copy, format).insert(&entry).unwrap().is_some());
            }
            assert_eq!(names(&copy), before);
            self.csum.set_dir_block(&mut copy, ino, inode.generation);
            verify::dir_block(&copy, &self.csum, format, ino, inode.generation).unwrap();
        }
    }

    fn attributes(&self, region: &[u8], home: Home, seen: &mut Seen) {
        xattr::check(region, home).unwrap();
        let all: Vec<_> = xattr::entries(region, home).map(Result::unwrap).collect();
        seen.attributes += all.len();
        for entry in &all {
            let xattr::Value::Here(value) = entry.value else { panic!("no ea_inode here") };
            let expected = xattr::entry_hash(entry.name, value, false);
            assert!(entry.hash == expected || (home == Home::Inode && entry.hash == 0));
        }
        let read = Attributes::read(region, home, |_| 0).unwrap();
        let mut again = vec![0; region.len()];
        assert!(read.write(&mut again, home));
        assert_eq!(Attributes::read(&again, home, |_| 0).unwrap(), read);
        if home == Home::Block {
            assert_eq!(xattr::block_header(&again).unwrap(), xattr::block_header(region).unwrap());
        }
    }
}

fn walk(bytes: Vec<u8>) -> Seen {
    let sb = SuperBlock::parse(bytes[1024..2048].try_into().unwrap()).unwrap();
    let (geometry, csum, layout) = (Geometry::new(&sb), Csum::new(&sb), InodeLayout::new(&sb));
    let volume = Volume { bytes, sb, geometry, csum };
    let mut seen = Seen::default();
    for group in geometry.groups() {
        let (block, byte) = geometry.descriptor(group);
        let raw = &volume.block(block.0)[byte..byte + geometry.desc_size];
        let desc = GroupDesc::decode(raw).unwrap();
        for index in 0..geometry.inodes_per_group - if csum.group_descs() { desc.itable_unused } else { 0 } {
            let ino = geometry.inode_at(group, index).unwrap();
            let location = geometry.inode_location(ino).unwrap();
            let record = &volume.block(desc.inode_table.0 + u64::from(location.table_block))[location.byte..]
                [..geometry.inode_size];
            if record.iter().all(|&b| b == 0) {
                continue;
            }
            let inode = verify::inode(record, &csum, &layout, ino).unwrap();
            let mut copy = record.to_vec();
            inode.encode_into(&mut copy, &layout);
            csum.set_inode(&mut copy, ino);
            assert_eq!(copy, record, "inode {ino}");
            if inode.links == 0 || ino == Ino::RESIZE {
                continue;
            }
            seen.inodes += 1;
            if inode.maps_blocks(&layout) {
                let blocks = volume.data_blocks(ino, &inode, &mut seen);
                if inode.is_dir() {
                    volume.directory(ino, &inode, &blocks, &mut seen);
                }
            }
            match inode.file_type() {
                Some(FileType::Symlink) if inode.is_fast_symlink(&layout) => {
                    assert_eq!(inode.fast_target(), b"short");
                }
                Some(FileType::CharDevice) => assert_eq!(inode.device(), (1, 3)),
                Some(FileType::BlockDevice) => assert_eq!(inode.device(), (300, 70000)),
                _ => {}
            }
            if inode.uid == 100_000 {
                assert_eq!((inode.gid, inode.mtime.sec), (200_000, 4_102_444_800));
            }
            if let Some(range) = inode.xattr_range(&layout) {
                volume.attributes(&record[range], Home::Inode, &mut seen);
            }
            if inode.file_acl.0 != 0 {
                let block = volume.block(inode.file_acl.0);
                verify::xattr_block(block, &csum, inode.file_acl).unwrap();
                volume.attributes(block, Home::Block, &mut seen);
            }
        }
    }
    seen
}

#[test]
fn images_of_the_kernel_verify_and_round_trip() {
    for (options, block_size) in [
        ("", 4096),
        ("", 1024),
        ("-O ^extents,^64bit,^metadata_csum", 1024),
        ("-O ^metadata_csum,uninit_bg", 2048),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let Some(bytes) = image(folder.path(), options, block_size) else { return };
        let seen = walk(bytes);
        eprintln!("{options} {block_size}: {seen:?}");
        assert!(seen.inodes > 1510 && seen.entries > 1510 && seen.attributes == 3 && seen.indexed == 1);
        assert!(if options.contains("^extents") { seen.indirect > 1 } else { seen.deep > 0 });
    }
}
