//! What the checker's tests share: volumes filled by the kernel, a reader that lists what a volume holds, the
//! map of its metadata, and e2fsck as the other prompter.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod mutate;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use assert_cmd::cargo::cargo_bin;
use blockdev::BlockDevice;
use blockdev::sim::{Fill, MemDevice};
use ext4_format::csum::Csum;
use ext4_format::dirent::{DirBlock, DirFormat};
use ext4_format::extent::{Bounds, Step};
use ext4_format::geometry::Geometry;
use ext4_format::group_desc::GroupDesc;
use ext4_format::inode::{FileType, Inode, InodeLayout, Time, flag};
use ext4_format::superblock::SuperBlock;
use ext4_format::xattr::{self, Home, Value};
use ext4_format::{BlockNo, Corruption, Ino, extent, htree, indirect};
use fsck::{Mode, Options, Report};

const FILL: &str = r#"
set -e
mkdir d deep sub; for i in $(seq 300); do : > "d/a-file-with-a-long-enough-name-to-fill-blocks-soon-$i"; done
for i in $(seq 30); do mkdir sub/dir$i; echo hello$i > sub/dir$i/f; ln sub/dir$i/f sub/dir$i/g; done
mkdir -p deep/er/still; seq 1000 > deep/er/still/numbers
for i in $(seq 0 2 240); do echo $i | dd of=holes bs=1024 count=1 seek=$i conv=notrunc,sync status=none; done
fallocate -l 64K reserved 2>/dev/null || :
ln -s short fast; ln -s $(printf 'x%.0s' $(seq 200)) slow
mknod null c 1 3; mknod wide b 300 70000; mkfifo pipe
for i in 1 2 3; do echo x > attr$i; setfattr -n user.small -v value attr$i; setfattr -n user.big -v $(printf 'y%.0s' $(seq 400)) attr$i; done
seq 20000 > big
chown 7:8 big; chmod 640 big
"#;

/// As [`FILL`], in fewer blocks and with nothing that an old volume lacks.
const FILL_LITTLE: &str = r#"
set -e
mkdir d deep sub; for i in $(seq 30); do : > "d/a-file-with-a-long-enough-name-to-fill-blocks-soon-$i"; done
for i in $(seq 4); do mkdir sub/dir$i; echo hello$i > sub/dir$i/f; ln sub/dir$i/f sub/dir$i/g; done
mkdir -p deep/er/still; seq 1000 > deep/er/still/numbers
for i in 0 3 5 14 17 40; do echo $i | dd of=holes bs=1024 count=1 seek=$i conv=notrunc,sync status=none; done
ln -s short fast; ln -s $(printf 'x%.0s' $(seq 200)) slow
mknod null c 1 3; mkfifo pipe
for i in 1 2 3; do echo x > attr$i; setfattr -n user.big -v $(printf 'y%.0s' $(seq 400)) attr$i || :; done
seq 5000 > big
chown 7:8 big; chmod 640 big
"#;

/// Attributes that only a volume with `ea_inode` or large blocks takes; two share their value.
const HUGE_ATTRIBUTES: &str = r#"
for i in 1 2; do setfattr -n user.huge -v $(printf 'z%.0s' $(seq 3000)) attr$i 2>/dev/null || :; done
setfattr -n user.huge -v $(printf 'w%.0s' $(seq 2500)) attr3 2>/dev/null || :
"#;

/// Directories with encryption policies of both versions, and files of each kind under one of them.
const FILL_ENCRYPTED: &str = r#"
set -e
mkdir secret old
key() { printf 'k%.0s' $(seq 64); }
name=$(key | xfs_io -c add_enckey . | sed 's/.* //')
key | xfs_io -c 'add_enckey -d 0000111122223333' . > /dev/null
xfs_io -c "set_encpolicy -v 2 $name" secret
xfs_io -c 'set_encpolicy 0000111122223333' old
cd secret
seq 3000 > big; mkdir sub; for i in $(seq 60); do echo $i > sub/a-file-with-a-long-name-$i; done
ln -s short fast; ln -s $(printf 'x%.0s' $(seq 90)) slow; mknod null c 1 3; mkfifo pipe
setfattr -n user.small -v value big
cd ..; ls -i secret | sort -n > ../numbers; sync
"#;

/// UUID and hash seed of every test volume, so that names fall into the same blocks each time.
const PINNED: &str = "5eed5eed-5eed-4eed-8eed-5eed5eed5eed";

/// A volume of `megabytes`, made by mke2fs with `options` and filled by the kernel. `None` where the machine
/// cannot mount, which is said loudly and is a failure under CI.
pub fn filled(options: &str, megabytes: u32) -> Option<Vec<u8>> {
    made(options, &format!("{megabytes}M"), FILL)
}

/// As [`filled`], with fewer files on a volume of a few hundred kilobytes.
pub fn filled_little(options: &str, size: &str) -> Option<Vec<u8>> {
    made(options, size, FILL_LITTLE)
}

/// As [`filled_little`], with encrypted files beside the others.
pub fn encrypted(options: &str, size: &str) -> Option<Vec<u8>> {
    made(options, size, &format!("{FILL_ENCRYPTED}{FILL_LITTLE}"))
}

/// As [`filled_little`], filled by mke2fs: for features that the kernel here may not mount. With `folded`,
/// one of its directories is case-insensitive and indexed by e2fsck.
pub fn copied_little(options: &str, size: &str, folded: bool) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().display();
    let fold = if folded { "debugfs -w -R 'sif d flags 0x40080000' image" } else { ":" };
    let script = format!(
        "set -e; cd {dir}; mkdir from; (cd from; {FILL_LITTLE}); truncate -s {size} image; \
         mke2fs -Fq -U {PINNED} -E hash_seed={PINNED} -d from {options} image; {fold}; e2fsck -fyD image || test $? = 1"
    );
    let output = Command::new("bash").arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(folder.path().join("image")).unwrap()
}

/// Waits until nobody holds the image: a mount namespace that was made meanwhile keeps it mounted until it
/// ends.
const GONE: &str = "for i in $(seq 600); do losetup -j image | grep -q . || break; sleep 0.1; done";

fn made(options: &str, size: &str, fill: &str) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().display();
    let script = format!(
        "set -e; cd {dir}; truncate -s {size} image; mke2fs -Fq -U {PINNED} -E hash_seed={PINNED} {options} image; mkdir mnt; \
         mount -o loop image mnt; (cd mnt; {fill}{HUGE_ATTRIBUTES}) || status=$?; umount mnt; {GONE}; exit $status"
    );
    mounting(&script)?;
    Some(std::fs::read(folder.path().join("image")).unwrap())
}

/// Checks an image in memory; returns the report and the image afterwards.
pub fn check(image: &[u8], mode: Mode) -> (fsck::Result<Report>, Vec<u8>) {
    let device = Arc::new(MemDevice::new(image.len() as u64, Fill::Zero));
    device.write_at(0, image).unwrap();
    let options = Options { mode, force: true, now: 1_700_000_000, threads: 2, ..Options::default() };
    let report = fsck::check(Arc::clone(&device) as Arc<dyn BlockDevice>, &options);
    let mut bytes = vec![0; image.len()];
    device.read_at(0, &mut bytes).unwrap();
    (report, bytes)
}

/// e2fsck's exit code and words about an image, which it may change. On some damage it runs without end: it
/// is stopped with code 124, which has the bit of an operational error.
pub fn e2fsck(path: &Path, flags: &str) -> (i32, String) {
    let output = Command::new("timeout").args(["300", "e2fsck", "-f", flags]).arg(path).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// e2fsck -fn about an image in memory.
pub fn e2fsck_of(image: &[u8]) -> (i32, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    e2fsck(file.path(), "-n")
}

/// fsck.rext4's exit code and words about an image.
pub fn run(arguments: &[&str], image: &Path) -> (i32, String) {
    let output = Command::new(cargo_bin("fsck-rext4")).args(arguments).arg(image).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// A folder with a volume of 16 MiB, and where it lies.
pub fn volume_file(options: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mke2fs").arg("-Fq").args(options.split(' ')).arg(&image).output().unwrap();
    assert!(made.status.success(), "{options}: {}", String::from_utf8_lossy(&made.stderr));
    (folder, image)
}

/// Runs debugfs commands, each on its own line.
pub fn debugfs(image: &Path, commands: &str) {
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), commands).unwrap();
    let done = Command::new("debugfs").args(["-w", "-f"]).arg(list.path()).arg(image).output().unwrap();
    assert!(done.status.success());
}

/// After a repair both judges are content, and a second run finds nothing.
pub fn ends_clean(image: &Path) {
    let (code, words) = run(&["-fn"], image);
    assert_eq!(code, 0, "{words}");
    let (code, words) = e2fsck(image, "-n");
    assert_eq!(code, 0, "{words}");
}

/// A fresh volume that debugfs damages as `edit` says: the repair names `what`, and leaves it clean.
pub fn is_mended(options: &str, edit: &str, what: &str) {
    let (_folder, image) = volume_file(options);
    debugfs(&image, edit);
    let (code, words) = run(&["-fy"], &image);
    assert!(code == 1 && words.contains(what), "{options}, {edit}{code}: {words}");
    ends_clean(&image);
}

/// A copy of a volume that the kernel has mounted: its journal is dirty, and a file is unlinked but open.
pub fn interrupted(folder: &Path, options: &str) -> Option<()> {
    let script = format!(
        "set -e; cd {dir}; truncate -s 32M image; mke2fs -Fq -t ext4 {options} image; mkdir mnt; \
         mount -o loop,commit=1000 image mnt; \
         (cd mnt; mkdir dir; seq 5000 > kept; seq 9000 > gone; exec 7<gone; rm gone; sync; \
          for i in $(seq 200); do echo $i > dir/f$i; done; sync -d dir/f200; sync dir; cp ../image ../copy) || status=$?; \
         umount mnt; exit $status",
        dir = folder.display()
    );
    mounting(&script)
}

/// Runs a script that mounts something. `None` where the machine cannot, which is said loudly and is a
/// failure under CI.
pub fn mounting(script: &str) -> Option<()> {
    let output = Command::new("bash").arg("-c").arg(script).output().ok()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(std::env::var_os("CI").is_none(), "no kernel mount: {why}");
        eprintln!("SKIPPED: no kernel mount here: {why}");
        return None;
    }
    Some(())
}

/// What one file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Type and permissions.
    pub mode: u16,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Size in bytes.
    pub size: u64,
    /// A sum over the data, the target or the device number.
    pub sum: u32,
    /// Access, modification and creation.
    pub times: [Time; 3],
    /// Sums over the values of its attributes, by name index and name.
    pub attributes: BTreeMap<(u8, Vec<u8>), u32>,
}

/// A volume in memory.
pub struct Volume<'a> {
    bytes: &'a [u8],
    /// Its superblock.
    pub sb: SuperBlock,
    /// Its dimensions.
    pub geometry: Geometry,
    /// Its checksums.
    pub csum: Csum,
    layout: InodeLayout,
    descs: Vec<GroupDesc>,
}

/// What a metadata block is, and whose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Super,
    Descriptors,
    BlockBitmap(u32),
    InodeBitmap(u32),
    InodeTable(u32),
    Extent(Ino, u32),
    Indirect,
    Dir(Ino, u32),
    HtreeRoot(Ino, u32),
    HtreeNode(Ino, u32),
    Xattr,
}

impl<'a> Volume<'a> {
    /// A volume whose superblock and descriptors can be read.
    pub fn new(bytes: &'a [u8]) -> Option<Volume<'a>> {
        let sb = SuperBlock::parse(bytes.get(1024..2048)?.try_into().ok()?).ok()?;
        let (geometry, csum, layout) = (Geometry::new(&sb), Csum::new(&sb), InodeLayout::new(&sb));
        let descs = geometry
            .groups()
            .map(|group| {
                let (block, byte) = geometry.descriptor(group);
                let at = block.0 as usize * geometry.block_size as usize + byte;
                GroupDesc::decode(bytes.get(at..at + geometry.desc_size)?).ok()
            })
            .collect::<Option<_>>()?;
        Some(Volume { bytes, sb, geometry, csum, layout, descs })
    }

    pub fn block(&self, block: u64) -> Option<&'a [u8]> {
        let size = self.geometry.block_size as usize;
        self.bytes.get((block as usize).checked_mul(size)?..)?.get(..size)
    }

    /// Byte offset of an inode's record in the image.
    pub fn inode_offset(&self, ino: Ino) -> Option<usize> {
        let at = self.geometry.inode_location(ino)?;
        let table = self.descs.get(at.group.0 as usize)?.inode_table.0 + u64::from(at.table_block);
        Some(table as usize * self.geometry.block_size as usize + at.byte)
    }

    pub fn inode(&self, ino: Ino) -> Option<Inode> {
        let at = self.inode_offset(ino)?;
        Some(Inode::decode_damaged(self.bytes.get(at..at + self.geometry.inode_size)?, &self.layout))
    }

    /// File block, device block and whether it is written, in order; and the blocks of the tree.
    pub fn mapped(&self, inode: &Inode) -> (Vec<(u64, u64, bool)>, Vec<u64>) {
        let (mut data, mut tree) = (Vec::new(), Vec::new());
        let lost = || Corruption::new(ext4_format::What::ExtentNode, "read", 0, 0);
        if inode.has(flag::EXTENTS) {
            let volume = Bounds::of_volume(BlockNo(0), self.geometry.blocks_count);
            let _ = extent::walk::<_, Corruption>(
                &inode.block,
                volume,
                &mut |b| self.block(b.0).ok_or_else(lost),
                &mut |step| {
                    match step {
                        Step::Node { block, .. } => tree.push(block.0),
                        Step::Extent(e) => data.extend(
                            (0..u64::from(e.len))
                                .map(|i| (u64::from(e.first.0) + i, e.start.0 + i, !e.unwritten)),
                        ),
                    }
                    Ok(())
                },
            );
        } else {
            let _ = indirect::walk::<_, Corruption>(
                &inode.block,
                self.geometry.block_size,
                1..self.geometry.blocks_count,
                &mut |b| self.block(b.0).ok_or_else(lost),
                &mut |step| {
                    match step {
                        indirect::Step::Node { block, .. } => tree.push(block.0),
                        indirect::Step::Data { file_block, block } => data.push((file_block, block.0, true)),
                    }
                    Ok(())
                },
            );
        }
        (data, tree)
    }

    /// Every file that can be reached from the root, by path; `None` when two paths would loop.
    pub fn files(&self) -> BTreeMap<String, (Ino, Held)> {
        let mut all = BTreeMap::new();
        self.walk(Ino::ROOT, "", &mut all, 0);
        all
    }

    fn walk(&self, dir: Ino, path: &str, all: &mut BTreeMap<String, (Ino, Held)>, depth: u32) {
        let Some(inode) = self.inode(dir).filter(|inode| inode.is_dir() && depth < 20) else { return };
        let format = DirFormat { tail: false, ..DirFormat::new(&self.sb, inode.flags) };
        // An inline directory keeps its first entries behind the number of its parent.
        let areas: Vec<&[u8]> = match inode.has(flag::INLINE_DATA) {
            true => vec![&inode.block[4..]],
            false => {
                self.mapped(&inode).0.into_iter().filter_map(|(_, block, _)| self.block(block)).collect()
            }
        };
        for bytes in areas {
            for entry in DirBlock::new(bytes, format).entries().map_while(Result::ok) {
                let Some(ino) = entry.ino.filter(|_| entry.name != b"." && entry.name != b"..") else {
                    continue;
                };
                let Some(child) = self.inode(ino) else { continue };
                let name = format!("{path}/{}", String::from_utf8_lossy(entry.name));
                let held = Held {
                    mode: child.mode,
                    owner: (child.uid, child.gid),
                    size: if child.is_dir() { 0 } else { child.size },
                    sum: self.sum(&child),
                    times: [child.atime, child.mtime, child.crtime.unwrap_or_default()],
                    attributes: self.attributes(ino, &child),
                };
                if all.insert(name.clone(), (ino, held)).is_none() && child.is_dir() {
                    self.walk(ino, &name, all, depth + 1);
                }
            }
        }
    }

    /// The attributes of an inode, in its record and in its block.
    fn attributes(&self, ino: Ino, inode: &Inode) -> BTreeMap<(u8, Vec<u8>), u32> {
        let at = self.inode_offset(ino).unwrap_or(0);
        let record = self.bytes.get(at..at + self.geometry.inode_size).unwrap_or_default();
        let inside = inode.xattr_range(&self.layout).and_then(|range| record.get(range)).unwrap_or_default();
        let block = if inode.file_acl.0 == 0 { None } else { self.block(inode.file_acl.0) };
        [(inside, Home::Inode), (block.unwrap_or_default(), Home::Block)]
            .into_iter()
            .flat_map(|(region, home)| xattr::entries(region, home).map_while(Result::ok))
            .map(|entry| {
                let sum = match entry.value {
                    Value::Here(value) => ext4_format::crc::crc32c(0, value),
                    Value::InInode { ino, .. } => self.inode(ino).map_or(0, |value| self.sum(&value)),
                };
                ((entry.index, entry.name.to_vec()), sum)
            })
            .collect()
    }

    fn sum(&self, inode: &Inode) -> u32 {
        if inode.file_type() == Some(FileType::Directory) {
            return 0;
        }
        if !inode.maps_blocks(&self.layout) {
            return ext4_format::crc::crc32c(0, &inode.block);
        }
        let end = inode.size.div_ceil(u64::from(self.geometry.block_size));
        self.mapped(inode).0.iter().filter(|(at, _, written)| *written && *at < end).fold(
            0,
            |sum, (at, block, _)| {
                let sum = ext4_format::crc::crc32c(sum, &at.to_le_bytes());
                ext4_format::crc::crc32c(sum, self.block(*block).unwrap_or_default())
            },
        )
    }

    /// Every metadata block with what it is.
    pub fn metadata(&self) -> Vec<(u64, Kind)> {
        let mut all = vec![(1024 / u64::from(self.geometry.block_size), Kind::Super)];
        for at in 0..self.geometry.desc_blocks {
            all.push((self.geometry.descriptor_block(at).0, Kind::Descriptors));
        }
        for group in self.geometry.groups() {
            let desc = &self.descs[group.0 as usize];
            all.push((desc.block_bitmap.0, Kind::BlockBitmap(group.0)));
            all.push((desc.inode_bitmap.0, Kind::InodeBitmap(group.0)));
            for index in 0..self.geometry.inodes_per_group {
                let Some(ino) = self.geometry.inode_at(group, index) else { break };
                let Some(inode) = self.inode(ino).filter(|inode| inode.links > 0) else { continue };
                let place = self.geometry.inode_location(ino).unwrap();
                all.push((desc.inode_table.0 + u64::from(place.table_block), Kind::InodeTable(group.0)));
                if inode.file_acl.0 != 0 {
                    all.push((inode.file_acl.0, Kind::Xattr));
                }
                if ino == Ino::RESIZE || !inode.maps_blocks(&self.layout) {
                    continue;
                }
                let (data, tree) = self.mapped(&inode);
                let generation = inode.generation;
                let node =
                    if inode.has(flag::EXTENTS) { Kind::Extent(ino, generation) } else { Kind::Indirect };
                all.extend(tree.into_iter().map(|block| (block, node)));
                if inode.is_dir() {
                    let indexed = inode.has(flag::INDEX);
                    all.extend(data.iter().map(|&(at, block, _)| {
                        let bytes = self.block(block).unwrap();
                        let node =
                            htree::Index::parse(bytes, htree::Kind::Node, self.csum.metadata()).is_ok();
                        (
                            block,
                            match at {
                                0 if indexed => Kind::HtreeRoot(ino, generation),
                                _ if indexed && node => Kind::HtreeNode(ino, generation),
                                _ => Kind::Dir(ino, generation),
                            },
                        )
                    }));
                }
            }
        }
        all.sort_by_key(|&(block, _)| block);
        all.dedup_by_key(|&mut (block, _)| block);
        all
    }
}

/// Makes the checksum of a metadata block right again after its bytes were changed.
pub fn fix_sum(image: &mut [u8], before: &[u8], block: u64, kind: Kind) {
    let Some(volume) = Volume::new(before) else { return };
    let (csum, size) = (volume.csum, volume.geometry.block_size as usize);
    let at = block as usize * size;
    let bytes = &mut image[at..at + size];
    match kind {
        Kind::Super => {
            let offset = 1024 % size;
            let raw: &mut [u8; 1024] = (&mut bytes[offset..offset + 1024]).try_into().unwrap();
            if csum.metadata() {
                let sum = ext4_format::superblock::checksum(raw);
                raw[1020..].copy_from_slice(&sum.to_le_bytes());
            }
        }
        Kind::Descriptors => {
            let first =
                (block - volume.geometry.descriptor_block(0).0) as u32 * volume.geometry.descs_per_block();
            for (i, raw) in bytes.chunks_exact_mut(volume.geometry.desc_size).enumerate() {
                let group = first + i as u32;
                if group < volume.geometry.group_count {
                    csum.set_group_desc(raw, ext4_format::GroupNo(group));
                }
            }
        }
        Kind::InodeTable(group) => {
            let table = volume.descs[group as usize].inode_table.0;
            let per_block = (size / volume.geometry.inode_size) as u32;
            let first = (block - table) as u32 * per_block;
            for (i, record) in bytes.chunks_exact_mut(volume.geometry.inode_size).enumerate() {
                let ino = volume.geometry.inode_at(ext4_format::GroupNo(group), first + i as u32);
                if let Some(ino) = ino.filter(|_| record.iter().any(|&b| b != 0)) {
                    csum.set_inode(record, ino);
                }
            }
        }
        Kind::BlockBitmap(_) | Kind::InodeBitmap(_) | Kind::Indirect => {}
        Kind::Extent(ino, generation) => csum.set_extent_block(bytes, ino, generation),
        Kind::Dir(ino, generation) => csum.set_dir_block(bytes, ino, generation),
        Kind::HtreeRoot(ino, generation) => csum.set_htree_block(bytes, htree::ROOT_ENTRIES, ino, generation),
        Kind::HtreeNode(ino, generation) => csum.set_htree_block(bytes, htree::NODE_ENTRIES, ino, generation),
        Kind::Xattr => csum.set_xattr_block(bytes, BlockNo(block)),
    }
}

/// A small generator of numbers that gives the same ones for the same seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }

    /// One of some values.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}
