//! Quota files, format `vfsv1`: what each user, group or project uses and may use.
//!
//! A file of 1 KiB blocks whatever the volume's block size. Block 0 is a header; from block 1 hangs a tree of
//! four levels that takes an id apart byte by byte, the highest first; its leaves are blocks of entries of 72
//! bytes, and an id is found by looking through its leaf. Free blocks and leaves with room are on two chains
//! that only a writer needs. [`read`] trusts nothing; [`encode`] makes a whole new file. Source: `quota(5)`'s
//! format as `quota-tools` documents it, and files made by mke2fs.

use std::collections::BTreeMap;

use crate::corruption::{Corruption, What};

/// Bytes of a block of the file.
pub const BLOCK: usize = 1024;
/// Bytes of an entry.
const ENTRY: usize = 72;
/// Bytes in front of the entries of a leaf.
const LEAF_HEADER: usize = 16;
const ENTRIES: usize = (BLOCK - LEAF_HEADER) / ENTRY;
const LEVELS: usize = 4;
const VERSION: u32 = 1;
const ROOT: u32 = 1;

/// Whose usage a file counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Users.
    User,
    /// Groups.
    Group,
    /// Projects.
    Project,
}

impl Kind {
    /// All kinds, in the order of their inode numbers in the superblock.
    pub const ALL: [Kind; 3] = [Kind::User, Kind::Group, Kind::Project];

    fn magic(self) -> u32 {
        match self {
            Kind::User => 0xd9c0_1f11,
            Kind::Group => 0xd9c0_1927,
            Kind::Project => 0xd9c0_3f14,
        }
    }
}

/// What one id uses and may use; spaces in bytes, limits on space in KiB, times in seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Most inodes.
    pub inode_hard: u64,
    /// Inodes above which the grace time runs.
    pub inode_soft: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Most KiB.
    pub space_hard: u64,
    /// KiB above which the grace time runs.
    pub space_soft: u64,
    /// Bytes in use.
    pub space: u64,
    /// End of the grace time for space.
    pub space_time: u64,
    /// End of the grace time for inodes.
    pub inode_time: u64,
}

impl Usage {
    /// Whether there is nothing to keep about an id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Usage::default()
    }

    fn words(&self) -> [u64; 8] {
        [
            self.inode_hard,
            self.inode_soft,
            self.inodes,
            self.space_hard,
            self.space_soft,
            self.space,
            self.space_time,
            self.inode_time,
        ]
    }
}

/// A quota file as it was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QuotaFile {
    /// Seconds of grace for space.
    pub space_grace: u32,
    /// Seconds of grace for inodes.
    pub inode_grace: u32,
    /// Flags of the header.
    pub flags: u32,
    /// Entries by id.
    pub entries: BTreeMap<u32, Usage>,
}

/// A week, the grace time of a new file.
const WEEK: u32 = 7 * 24 * 3600;

impl QuotaFile {
    /// A file without entries.
    #[must_use]
    pub fn empty() -> QuotaFile {
        QuotaFile { space_grace: WEEK, inode_grace: WEEK, ..QuotaFile::default() }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(std::array::from_fn(|i| b[i])))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

fn wrong(field: &'static str, found: u32, expected: u32) -> Corruption {
    Corruption::new(What::QuotaFile, field, found.into(), expected.into())
}

/// Reads a whole file. Each block of the tree is visited once at most.
///
/// # Errors
/// Another magic or version, a header that counts more blocks than there are or leads outside them, a reference outside the file or to a block that was visited already, an entry
/// where the tree does not lead to it.
pub fn read(bytes: &[u8], kind: Kind) -> Result<QuotaFile, Corruption> {
    if word(bytes, 0) != kind.magic() {
        return Err(wrong("dqh_magic", word(bytes, 0), kind.magic()));
    }
    if word(bytes, 4) != VERSION {
        return Err(wrong("dqh_version", word(bytes, 4), VERSION));
    }
    let blocks = u32::try_from(bytes.len() / BLOCK).unwrap_or(u32::MAX);
    // The kernel and quota tools refuse a file whose header leads outside the blocks that it counts.
    let stated = word(bytes, 20);
    if stated > blocks {
        return Err(wrong("dqi_blocks", stated, blocks));
    }
    for (field, at) in [("dqi_free_blk", 24), ("dqi_free_entry", 28)] {
        let first = word(bytes, at);
        if first != 0 && (first <= ROOT || first >= stated) {
            return Err(wrong(field, first, stated));
        }
    }
    let mut file = QuotaFile {
        space_grace: word(bytes, 8),
        inode_grace: word(bytes, 12),
        flags: word(bytes, 16),
        entries: BTreeMap::new(),
    };
    let mut seen = vec![false; blocks as usize];
    let mut leaves: BTreeMap<u32, ()> = BTreeMap::new();
    let mut stack = vec![(ROOT, 0_usize)];
    while let Some((at, level)) = stack.pop() {
        let place = seen.get_mut(at as usize).filter(|_| at != 0);
        let Some(place) = place else { return Err(wrong("reference", at, blocks)) };
        if std::mem::replace(place, true) {
            return Err(wrong("reference", at, 0));
        }
        let block = &bytes[at as usize * BLOCK..][..BLOCK];
        for slot in 0..BLOCK / 4 {
            let child = word(block, slot * 4);
            if child == 0 {
                continue;
            }
            if child >= blocks {
                return Err(wrong("reference", child, blocks));
            }
            // Leaves are filled as ids come, so several references may name one.
            if level + 1 == LEVELS {
                leaves.insert(child, ());
            } else {
                stack.push((child, level + 1));
            }
        }
    }
    for at in leaves.into_keys() {
        if seen[at as usize] {
            return Err(wrong("reference", at, 0));
        }
        let block = &bytes[at as usize * BLOCK..][..BLOCK];
        for slot in 0..ENTRIES {
            let entry = &block[LEAF_HEADER + slot * ENTRY..][..ENTRY];
            if entry.iter().all(|&byte| byte == 0) {
                continue;
            }
            let id = word(entry, 0);
            let [inode_hard, inode_soft, inodes, space_hard, space_soft, space, space_time, inode_time] =
                std::array::from_fn(|i| long(entry, 8 + 8 * i));
            let usage = Usage {
                inode_hard,
                inode_soft,
                inodes,
                space_hard,
                space_soft,
                space,
                space_time,
                inode_time,
            };
            if leaf_of(bytes, id) != Some(at) {
                return Err(wrong("dqb_id", id, at));
            }
            if file.entries.insert(id, usage).is_some() {
                return Err(wrong("dqb_id", id, 0));
            }
        }
    }
    Ok(file)
}

/// The leaf that the tree names for an id.
fn leaf_of(bytes: &[u8], id: u32) -> Option<u32> {
    let mut at = ROOT;
    for byte in id.to_be_bytes() {
        let start = (at as usize).checked_mul(BLOCK)?;
        at = word(bytes.get(start..start + BLOCK)?, usize::from(byte) * 4);
        if at == 0 {
            return None;
        }
    }
    Some(at)
}

/// A new file that holds these entries: the tree in the order of ids, each leaf filled before the next is
/// begun. An id of which nothing is known but zeros keeps its place by a time of one, as the format wants it.
#[must_use]
pub fn encode(file: &QuotaFile, kind: Kind) -> Vec<u8> {
    let mut bytes = vec![0; 2 * BLOCK];
    let put =
        |bytes: &mut [u8], at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let grow = |bytes: &mut Vec<u8>| {
        bytes.resize(bytes.len() + BLOCK, 0);
        (bytes.len() / BLOCK - 1) as u32
    };
    let mut leaf: Option<(u32, usize)> = None;
    for (&id, usage) in &file.entries {
        let (at, slot) = match leaf {
            Some((at, slot)) if slot < ENTRIES => (at, slot),
            _ => (grow(&mut bytes), 0),
        };
        leaf = Some((at, slot + 1));
        let start = at as usize * BLOCK;
        bytes[start + 8..start + 10].copy_from_slice(&(slot as u16 + 1).to_le_bytes());
        let start = start + LEAF_HEADER + slot * ENTRY;
        put(&mut bytes, start, id);
        let mut words = usage.words();
        if id == 0 && usage.is_empty() {
            words[7] = 1;
        }
        for (i, value) in words.iter().enumerate() {
            bytes[start + 8 + 8 * i..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let mut node = ROOT;
        for (level, byte) in id.to_be_bytes().into_iter().enumerate() {
            let place = node as usize * BLOCK + usize::from(byte) * 4;
            if level + 1 == LEVELS {
                put(&mut bytes, place, at);
                break;
            }
            node = match word(&bytes, place) {
                0 => {
                    let new = grow(&mut bytes);
                    put(&mut bytes, place, new);
                    new
                }
                child => child,
            };
        }
    }
    let with_room = leaf.filter(|&(_, used)| used < ENTRIES).map_or(0, |(at, _)| at);
    let blocks = (bytes.len() / BLOCK) as u32;
    for (at, value) in [
        (0, kind.magic()),
        (4, VERSION),
        (8, file.space_grace),
        (12, file.inode_grace),
        (16, file.flags),
        (20, blocks),
        (24, 0),
        (28, with_room),
    ] {
        put(&mut bytes, at, value);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> QuotaFile {
        let mut file = QuotaFile::empty();
        for id in [0, 1, 2, 255, 256, 65_534, 70_000, u32::MAX - 1].into_iter().chain(1000..1100) {
            let usage = Usage { inodes: u64::from(id) + 1, space: 4096, space_hard: 7, ..Usage::default() };
            file.entries.insert(id, usage);
        }
        file
    }

    #[test]
    fn what_is_written_is_read() {
        for kind in Kind::ALL {
            let bytes = encode(&some(), kind);
            assert_eq!(read(&bytes, kind).unwrap(), some());
        }
        assert_eq!(read(&encode(&some(), Kind::User), Kind::Group).unwrap_err().field, "dqh_magic");
    }

    #[test]
    fn damage_is_reported_and_never_loops() {
        let good = encode(&some(), Kind::User);
        for at in (0..good.len()).step_by(4) {
            for value in [0_u32, 1, 3, 0xffff_ffff] {
                let mut bad = good.clone();
                bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
                let _ = read(&bad, Kind::User);
            }
        }
        let mut looped = good.clone();
        looped[BLOCK..BLOCK + 4].copy_from_slice(&1_u32.to_le_bytes());
        assert_eq!(read(&looped, Kind::User).unwrap_err().field, "reference");
        assert!(read(&good[..BLOCK], Kind::User).is_err());
    }
}
