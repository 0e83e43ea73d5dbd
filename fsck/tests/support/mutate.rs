//! Damage that keeps its checksums: single fields of structures set to values that mean something, such as
//! another file's block, an inode that is free, a flag of another kind of file, or a length that is off by a
//! little.

use ext4_format::dirent::{DirBlock, DirFormat};
use ext4_format::{GroupNo, Ino};

use super::{Kind, Rng, Volume, fix_sum};

/// Fields of an inode: offset and width.
const INODE: [(usize, usize); 44] = [
    (0x00, 2),
    (0x00, 2),
    (0x02, 2),
    (0x04, 4),
    (0x04, 4),
    (0x08, 4),
    (0x14, 4),
    (0x18, 2),
    (0x1a, 2),
    (0x1c, 4),
    (0x20, 4),
    (0x20, 4),
    (0x20, 4),
    (0x28, 2),
    (0x2a, 2),
    (0x2c, 2),
    (0x2e, 2),
    (0x28, 4),
    (0x2c, 4),
    (0x34, 4),
    (0x38, 2),
    (0x3a, 2),
    (0x3c, 4),
    (0x40, 4),
    (0x44, 2),
    (0x48, 4),
    (0x4c, 4),
    (0x54, 4),
    (0x58, 4),
    (0x5c, 4),
    (0x60, 4),
    (0x64, 4),
    (0x68, 4),
    (0x6c, 4),
    (0x70, 4),
    (0x74, 2),
    (0x76, 2),
    (0x78, 2),
    (0x7a, 2),
    (0x80, 2),
    (0x84, 4),
    (0xa0, 4),
    (0xa4, 4),
    (0xa8, 4),
];

/// Fields of the superblock that may be wrong one at a time.
const SUPER: [(usize, usize); 28] = [
    (0x00, 4),
    (0x04, 4),
    (0x08, 4),
    (0x0c, 4),
    (0x10, 4),
    (0x14, 4),
    (0x18, 4),
    (0x20, 4),
    (0x24, 4),
    (0x28, 4),
    (0x38, 2),
    (0x3a, 2),
    (0x4c, 4),
    (0x54, 4),
    (0x58, 2),
    (0x5a, 2),
    (0x5c, 4),
    (0x60, 4),
    (0x64, 4),
    (0xce, 2),
    (0xe0, 4),
    (0xe4, 4),
    (0xe8, 4),
    (0xfc, 1),
    (0xfe, 2),
    (0x104, 4),
    (0x10c, 4),
    (0x174, 1),
];

fn put(image: &mut [u8], at: usize, width: usize, value: u64) {
    if let Some(bytes) = image.get_mut(at..at + width) {
        bytes.copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

fn get(image: &[u8], at: usize, width: usize) -> u64 {
    let mut bytes = [0; 8];
    if let Some(from) = image.get(at..at + width) {
        bytes[..width].copy_from_slice(from);
    }
    u64::from_le_bytes(bytes)
}

/// A value for a field of `width` bytes that holds `old`.
fn value(rng: &mut Rng, volume: &Volume<'_>, places: &[(u64, Kind)], old: u64, width: usize) -> u64 {
    let blocks = volume.geometry.blocks_count as usize;
    let new = match rng.below(16) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => old.wrapping_add(1),
        4 => old.wrapping_sub(1),
        5 => old.wrapping_add(4),
        6 => old.wrapping_sub(4),
        7 | 8 => old ^ 1 << rng.below(width * 8),
        9 => places[rng.below(places.len())].0,
        10 => rng.below(blocks) as u64,
        11 => rng.below(volume.geometry.inodes_count as usize) as u64,
        12 => rng.pick(&[0x1000, 0x2000, 0x4000, 0x6000, 0x8000, 0xa000, 0xc000]) | old & 0xfff,
        13 => rng.pick(&[0x80000, 0x1000, 0x1000_0000, 0x4000_0000, 0x20_0000, 0x10, 0x800]) ^ old,
        14 => blocks as u64 + rng.below(3) as u64,
        _ => rng.next(),
    };
    if width >= 8 { new } else { new & ((1 << (width * 8)) - 1) }
}

/// An inode in use, or at times any other.
fn some_inode(rng: &mut Rng, volume: &Volume<'_>) -> Ino {
    let count = volume.geometry.inodes_count as usize;
    if rng.below(6) == 0 {
        return Ino::new(1 + rng.below(12) as u32).unwrap();
    }
    for _ in 0..200 {
        let ino = Ino::new(1 + rng.below(count) as u32).unwrap();
        if volume.inode(ino).is_some_and(|inode| inode.links > 0) {
            return ino;
        }
    }
    Ino::ROOT
}

/// Sets one field somewhere, and makes the checksum around it right.
pub fn mutate(image: &mut [u8], base: &[u8], places: &[(u64, Kind)], rng: &mut Rng) {
    let volume = Volume::new(base).unwrap();
    let size = volume.geometry.block_size as usize;
    let of_kind = |rng: &mut Rng, wanted: fn(&Kind) -> bool| {
        let all: Vec<_> = places.iter().filter(|place| wanted(&place.1)).copied().collect();
        (!all.is_empty()).then(|| rng.pick(&all))
    };
    let set = |image: &mut [u8], rng: &mut Rng, block: u64, kind: Kind, at: usize, width: usize| {
        let new = value(rng, &volume, places, get(image, at, width), width);
        put(image, at, width, new);
        if rng.below(16) > 0 {
            fix_sum(image, base, block, kind);
        }
    };
    match rng.below(20) {
        0..7 => {
            let ino = some_inode(rng, &volume);
            let Some(start) = volume.inode_offset(ino) else { return };
            let (offset, width) = rng.pick(&INODE);
            if offset + width <= volume.geometry.inode_size {
                let group = volume.geometry.inode_location(ino).unwrap().group;
                set(image, rng, (start / size) as u64, Kind::InodeTable(group.0), start + offset, width);
            }
        }
        7..13 => {
            let Some((block, kind)) =
                of_kind(rng, |kind| matches!(kind, Kind::Dir(..) | Kind::HtreeRoot(..)))
            else {
                return;
            };
            let bytes = volume.block(block).unwrap();
            let format = DirFormat { tail: false, ..DirFormat::new(&volume.sb, 0) };
            let entries: Vec<_> = DirBlock::new(bytes, format).entries().map_while(Result::ok).collect();
            if entries.is_empty() {
                return;
            }
            let entry = &entries[rng.below(entries.len())];
            let start = block as usize * size + entry.at.offset;
            let field = rng.pick(&[(0, 4), (0, 4), (4, 2), (6, 1), (7, 1), (8, 1), (9, 1)]);
            if rng.below(5) == 0 {
                // The name, or the target, of a neighbour.
                let other = &entries[rng.below(entries.len())];
                let from = block as usize * size + other.at.offset;
                if rng.below(2) == 0 {
                    image.copy_within(from..from + 4, start);
                } else if other.name.len() == entry.name.len() {
                    image.copy_within(from + 8..from + 8 + other.name.len(), start + 8);
                }
                fix_sum(image, base, block, kind);
            } else {
                set(image, rng, block, kind, start + field.0, field.1);
            }
        }
        13 => {
            let group = GroupNo(rng.below(volume.geometry.group_count as usize) as u32);
            let (block, byte) = volume.geometry.descriptor(group);
            let at = block.0 as usize * size + byte;
            let field = rng.pick(&[(0, 4), (4, 4), (8, 4), (12, 2), (14, 2), (16, 2), (18, 2), (28, 2)]);
            set(image, rng, block.0, Kind::Descriptors, at + field.0, field.1);
        }
        14 => {
            let (offset, width) = rng.pick(&SUPER);
            set(image, rng, 1024 / size as u64, Kind::Super, 1024 + offset, width);
        }
        15 | 16 => {
            let wanted = |kind: &Kind| {
                matches!(kind, Kind::Extent(..) | Kind::Indirect | Kind::Xattr | Kind::HtreeNode(..))
            };
            let Some((block, kind)) = of_kind(rng, wanted) else { return };
            let end = rng.pick(&[8, size / 4]);
            let (at, width) = (block as usize * size + 4 * rng.below(end), rng.pick(&[2, 4]));
            set(image, rng, block, kind, at, width);
        }
        17 => {
            let wanted = |kind: &Kind| matches!(kind, Kind::BlockBitmap(_) | Kind::InodeBitmap(_));
            let Some((block, kind)) = of_kind(rng, wanted) else { return };
            let at = block as usize * size + rng.below(size);
            set(image, rng, block, kind, at, 1);
        }
        18 => {
            // What special inodes hold: the journal's superblock, orphan blocks, quota trees.
            let special = [8, 8, 3, 4, 7, volume.sb.orphan_file().map_or(8, Ino::get)];
            let ino = Ino::new(rng.pick(&special)).unwrap();
            let Some(inode) = volume.inode(ino).filter(|inode| inode.links > 0) else { return };
            let (data, _) = volume.mapped(&inode);
            if let Some(&(_, block, _)) = data.get(rng.below(data.len().clamp(1, 4))) {
                let end = rng.pick(&[16, size / 4]);
                let at = block as usize * size + 4 * rng.below(end);
                let new = value(rng, &volume, places, get(image, at, 4), 4);
                put(image, at, 4, if rng.below(2) == 0 { new } else { u64::from((new as u32).swap_bytes()) });
            }
        }
        _ => {
            // A chain of orphans, which may loop.
            let (first, second) = (some_inode(rng, &volume), some_inode(rng, &volume));
            put(image, 1024 + 0xe8, 4, first.get().into());
            fix_sum(image, base, 1024 / size as u64, Kind::Super);
            for (ino, next) in [(first, second), (second, first)] {
                let start = volume.inode_offset(ino).unwrap();
                put(image, start + 0x14, 4, next.get().into());
                if rng.below(2) == 0 {
                    put(image, start + 0x1a, 2, 0);
                }
                let group = volume.geometry.inode_location(ino).unwrap().group;
                fix_sum(image, base, (start / size) as u64, Kind::InodeTable(group.0));
            }
        }
    }
}
