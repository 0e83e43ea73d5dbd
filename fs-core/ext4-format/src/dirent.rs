//! A linear directory block: entries one behind the other, their `rec_len` filling the block, and, with
//! `metadata_csum`, a tail that looks like an unused entry and holds the checksum.
//!
//! Every edit keeps the invariant that the record lengths add up to the block. Deleting gives the space to
//! the entry in front, so a free entry (inode 0) stands only at the start of a block. The checksum is
//! `csum`'s. Source: the kernel's `Documentation/filesystems/ext4/directory.rst`.

use crate::corruption::{Corruption, What};
use crate::features::{Incompat, RoCompat};
use crate::inode::{FileType, flag};
use crate::num::Ino;
use crate::superblock::SuperBlock;

/// Bytes in front of a name.
pub const HEADER: usize = 8;
/// Bytes of the tail that holds the checksum.
pub const TAIL_SIZE: usize = 12;
/// The longest name.
pub const MAX_NAME: usize = 255;
const TAIL_TYPE: u8 = 0xde;

/// What the volume says about its directory blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirFormat {
    /// Feature `filetype`: entries carry the type of their inode.
    pub filetype: bool,
    /// Feature `metadata_csum`: blocks end with a tail.
    pub tail: bool,
    /// An encrypted and casefolded directory: each name but `.` and `..` is followed by its eight-byte hash.
    pub hashed: bool,
}

impl DirFormat {
    /// The format of a directory with these inode flags on the volume with this superblock.
    #[must_use]
    pub fn new(sb: &SuperBlock, inode_flags: u32) -> DirFormat {
        let both = flag::ENCRYPT | flag::CASEFOLD;
        DirFormat {
            filetype: sb.incompat().has(Incompat::FILETYPE),
            tail: sb.ro_compat().has(RoCompat::METADATA_CSUM),
            hashed: inode_flags & both == both,
        }
    }

    /// Bytes that an entry with a name of `name_len` needs.
    #[must_use]
    pub fn entry_size(&self, name_len: usize) -> usize {
        let hash = if self.hashed { 8 } else { 0 };
        (HEADER + name_len + hash).next_multiple_of(4)
    }

    /// The bytes of a block that hold entries.
    #[must_use]
    pub fn usable(&self, block_size: usize) -> usize {
        block_size.saturating_sub(if self.tail { TAIL_SIZE } else { 0 })
    }
}

/// The length of a record from its 16 bits: blocks of 64 KiB and more keep bits 16 and 17 in the two lowest.
#[must_use]
pub fn decode_rec_len(raw: u16, block_size: usize) -> usize {
    let raw = usize::from(raw);
    match raw {
        _ if block_size < 65536 => raw,
        0 | 65535 => block_size,
        _ => raw & 0xfffc | (raw & 3) << 16,
    }
}

/// The 16 bits of a record length, which is a multiple of four and at most the block size.
#[must_use]
pub fn encode_rec_len(len: usize, block_size: usize) -> u16 {
    debug_assert!(len.is_multiple_of(4) && len <= block_size);
    match len {
        _ if len < 65536 => len as u16,
        _ if len == block_size => {
            if block_size == 65536 {
                65535
            } else {
                0
            }
        }
        _ => (len & 0xfffc | len >> 16 & 3) as u16,
    }
}

/// One record of a directory block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// The inode; `None` for a free record.
    pub ino: Option<Ino>,
    /// The type code as it stands; 0 where the volume records none.
    pub type_code: u8,
    /// The name; meaningless in a free record.
    pub name: &'a [u8],
    /// The hash behind the name of a hashed directory: major and minor.
    pub stored_hash: Option<(u32, u32)>,
    /// First byte of the record in the block.
    pub offset: usize,
    /// Bytes of the record.
    pub rec_len: usize,
}

impl DirEntry<'_> {
    /// The recorded type, where there is one.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        FileType::from_dirent(self.type_code)
    }
}

/// Reads the records of a block.
#[derive(Clone, Copy, Debug)]
pub struct DirBlock<'a> {
    bytes: &'a [u8],
    format: DirFormat,
}

impl<'a> DirBlock<'a> {
    /// A whole block, or the area of an inline directory (whose format has no tail).
    #[must_use]
    pub fn new(bytes: &'a [u8], format: DirFormat) -> DirBlock<'a> {
        DirBlock { bytes, format }
    }

    /// The records in order. A damaged one is the last item.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        Entries { bytes: self.bytes, end: self.format.usable(self.bytes.len()), at: 0, format: self.format }
    }

    /// The records from byte `offset` on, which must be the start of one.
    #[must_use]
    pub fn entries_from(&self, offset: usize) -> Entries<'a> {
        Entries { at: offset, ..self.entries() }
    }

    /// The record of `name`.
    ///
    /// # Errors
    /// A damaged record in front of it.
    pub fn find(&self, name: &[u8]) -> Result<Option<DirEntry<'a>>, Corruption> {
        self.entries()
            .find(|entry| !matches!(entry, Ok(entry) if entry.ino.is_none() || entry.name != name))
            .transpose()
    }

    /// Whether a name of `name_len` bytes fits.
    ///
    /// # Errors
    /// A damaged record.
    pub fn has_room(&self, name_len: usize) -> Result<bool, Corruption> {
        Ok(self.room(name_len)?.is_some())
    }

    /// Checks the tail of a block with checksums: that it is there at all.
    ///
    /// # Errors
    /// A tail that does not look like one.
    pub fn check_tail(&self) -> Result<(), Corruption> {
        if !self.format.tail || has_tail(self.bytes) {
            return Ok(());
        }
        Err(Corruption::new(What::DirBlock, "checksum tail", 0, u64::from(TAIL_TYPE)))
    }

    /// Checks every record and the tail.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Corruption> {
        self.check_tail()?;
        self.entries().try_for_each(|entry| entry.map(|_| ()))
    }

    /// The record that can take a name of `name_len` bytes, and how many of its bytes stay its own.
    fn room(&self, name_len: usize) -> Result<Option<(usize, usize)>, Corruption> {
        let need = self.format.entry_size(name_len);
        for entry in self.entries() {
            let entry = entry?;
            let used = match entry.ino {
                Some(_) => used_by(&entry, &self.format),
                None => 0,
            };
            if entry.rec_len >= used + need {
                return Ok(Some((entry.offset, used)));
            }
        }
        Ok(None)
    }
}

/// Whether the block ends with something that looks like a checksum tail, whatever the volume says.
#[must_use]
pub fn has_tail(bytes: &[u8]) -> bool {
    let Some(at) = bytes.len().checked_sub(TAIL_SIZE) else { return false };
    bytes[at..at + 8] == [0, 0, 0, 0, TAIL_SIZE as u8, 0, 0, TAIL_TYPE]
}

/// Writes the tail that will hold the checksum.
pub fn put_tail(bytes: &mut [u8]) {
    let Some(at) = bytes.len().checked_sub(TAIL_SIZE) else { return };
    bytes[at..].fill(0);
    bytes[at + 4] = TAIL_SIZE as u8;
    bytes[at + 7] = TAIL_TYPE;
}

/// Iterator over the records of a block.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    end: usize,
    at: usize,
    format: DirFormat,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<DirEntry<'a>, Corruption>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let entry = decode(self.bytes, self.at, self.end, &self.format);
        match &entry {
            Ok(entry) => self.at += entry.rec_len,
            Err(_) => self.at = self.end,
        }
        Some(entry)
    }
}

fn decode<'a>(
    bytes: &'a [u8],
    at: usize,
    end: usize,
    format: &DirFormat,
) -> Result<DirEntry<'a>, Corruption> {
    let bad = |field, found: usize, expected: usize| {
        Err(Corruption::new(What::DirBlock, field, found as u64, expected as u64).at_offset(at))
    };
    let Some(header) = bytes[..end].get(at..).and_then(|rest| rest.first_chunk::<HEADER>()) else {
        return bad("rec_len", end - at, HEADER);
    };
    let ino = Ino::new(u32::from_le_bytes([header[0], header[1], header[2], header[3]]));
    let rec_len = decode_rec_len(u16::from_le_bytes([header[4], header[5]]), bytes.len());
    // Without `filetype` the name length has 16 bits, of which the upper eight are zero.
    let name_len = usize::from(header[6]) | if format.filetype { 0 } else { usize::from(header[7]) << 8 };
    let type_code = if format.filetype { header[7] } else { 0 };
    if !rec_len.is_multiple_of(4) || rec_len < HEADER + 4 || rec_len > end - at {
        return bad("rec_len", rec_len, end - at);
    }
    if name_len > MAX_NAME || HEADER + name_len > rec_len {
        return bad("name_len", name_len, rec_len - HEADER);
    }
    let name = &bytes[at + HEADER..at + HEADER + name_len];
    if ino.is_some() && name.is_empty() {
        return bad("name_len", 0, 1);
    }
    let hash_at = (at + HEADER + name_len).next_multiple_of(4);
    let word =
        |at: usize| bytes[..end].get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b));
    let stored_hash = (format.hashed && !is_dot(name) && hash_at + 8 <= at + rec_len)
        .then(|| word(hash_at).zip(word(hash_at + 4)))
        .flatten();
    Ok(DirEntry { ino, type_code, name, stored_hash, offset: at, rec_len })
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

fn used_by(entry: &DirEntry<'_>, format: &DirFormat) -> usize {
    let format = DirFormat { hashed: format.hashed && !is_dot(entry.name), ..*format };
    format.entry_size(entry.name.len())
}

/// A new entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewEntry<'a> {
    /// The inode.
    pub ino: Ino,
    /// Its type; written only on volumes with `filetype`.
    pub file_type: FileType,
    /// The name, 1 to 255 bytes.
    pub name: &'a [u8],
}

/// Changes a block.
#[derive(Debug)]
pub struct DirBlockMut<'a> {
    bytes: &'a mut [u8],
    format: DirFormat,
}

impl<'a> DirBlockMut<'a> {
    /// A whole block, or the area of an inline directory.
    #[must_use]
    pub fn new(bytes: &'a mut [u8], format: DirFormat) -> DirBlockMut<'a> {
        DirBlockMut { bytes, format }
    }

    /// Makes the block one free record and, where the format has one, a tail.
    #[must_use]
    pub fn init(bytes: &'a mut [u8], format: DirFormat) -> DirBlockMut<'a> {
        bytes.fill(0);
        let usable = format.usable(bytes.len());
        if format.tail {
            put_tail(bytes);
        }
        let mut block = DirBlockMut { bytes, format };
        block.put_header(0, 0, usable, 0, 0);
        block
    }

    /// Makes the block the first one of a new directory: `.`, `..` and free space.
    #[must_use]
    pub fn init_first(bytes: &'a mut [u8], format: DirFormat, itself: Ino, parent: Ino) -> DirBlockMut<'a> {
        let mut block = DirBlockMut::init(bytes, format);
        let usable = format.usable(block.bytes.len());
        let dir = FileType::Directory;
        block.put(0, 12, &NewEntry { ino: itself, file_type: dir, name: b"." });
        block.put(12, usable - 12, &NewEntry { ino: parent, file_type: dir, name: b".." });
        block
    }

    /// The block as it stands.
    #[must_use]
    pub fn view(&self) -> DirBlock<'_> {
        DirBlock { bytes: self.bytes, format: self.format }
    }

    /// Adds an entry into the first record with enough slack; returns its offset, or `None` when there is
    /// none.
    ///
    /// # Errors
    /// A damaged record.
    pub fn insert(&mut self, entry: &NewEntry<'_>) -> Result<Option<usize>, Corruption> {
        let Some((offset, used)) = self.view().room(entry.name.len())? else { return Ok(None) };
        let rec_len = self.rec_len(offset);
        if used > 0 {
            self.put_rec_len(offset, used);
        }
        self.put(offset + used, rec_len - used, entry);
        Ok(Some(offset + used))
    }

    /// Takes out the entry at `offset`; its record joins the one in front. Returns false when no record
    /// starts there.
    ///
    /// # Errors
    /// A damaged record in front of it.
    pub fn remove(&mut self, offset: usize) -> Result<bool, Corruption> {
        let mut before = None;
        for entry in self.view().entries() {
            let entry = entry?;
            if entry.offset < offset {
                before = Some((entry.offset, entry.rec_len));
                continue;
            }
            if entry.offset > offset {
                break;
            }
            let rec_len = entry.rec_len;
            self.bytes[offset..offset + rec_len].fill(0);
            match before {
                Some((front, front_len)) => self.put_rec_len(front, front_len + rec_len),
                None => self.put_rec_len(offset, rec_len),
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Points the entry at `offset`, which must be the start of one, to another inode. False when none starts
    /// there.
    pub fn set_target(&mut self, offset: usize, ino: Ino, file_type: FileType) -> bool {
        if !self.view().entries().any(|entry| entry.is_ok_and(|entry| entry.offset == offset)) {
            return false;
        }
        self.bytes[offset..offset + 4].copy_from_slice(&ino.get().to_le_bytes());
        if self.format.filetype {
            self.bytes[offset + 7] = file_type.dirent_code();
        }
        true
    }

    /// Appends entries to a block just initialised, one behind the other, the last one taking the rest. For
    /// those who rebuild whole blocks. Returns how many fitted.
    pub fn fill<'e>(&mut self, entries: impl IntoIterator<Item = NewEntry<'e>>) -> usize {
        let usable = self.format.usable(self.bytes.len());
        let (mut at, mut last, mut count) = (0, 0, 0);
        for entry in entries {
            let format = DirFormat { hashed: self.format.hashed && !is_dot(entry.name), ..self.format };
            let need = format.entry_size(entry.name.len());
            if at + need > usable {
                break;
            }
            self.put(at, need, &entry);
            (last, at, count) = (at, at + need, count + 1);
        }
        if count > 0 {
            self.put_rec_len(last, usable - last);
        }
        count
    }

    fn put(&mut self, offset: usize, rec_len: usize, entry: &NewEntry<'_>) {
        let code = if self.format.filetype { entry.file_type.dirent_code() } else { 0 };
        self.bytes[offset..offset + rec_len].fill(0);
        self.put_header(offset, entry.ino.get(), rec_len, entry.name.len() as u8, code);
        let at = offset + HEADER;
        self.bytes[at..at + entry.name.len()].copy_from_slice(entry.name);
    }

    fn put_header(&mut self, offset: usize, ino: u32, rec_len: usize, name_len: u8, code: u8) {
        self.bytes[offset..offset + 4].copy_from_slice(&ino.to_le_bytes());
        self.put_rec_len(offset, rec_len);
        self.bytes[offset + 6] = name_len;
        self.bytes[offset + 7] = code;
    }

    fn put_rec_len(&mut self, offset: usize, rec_len: usize) {
        let raw = encode_rec_len(rec_len, self.bytes.len());
        self.bytes[offset + 4..offset + 6].copy_from_slice(&raw.to_le_bytes());
    }

    fn rec_len(&self, offset: usize) -> usize {
        decode_rec_len(u16::from_le_bytes([self.bytes[offset + 4], self.bytes[offset + 5]]), self.bytes.len())
    }
}

/// How a full block was split in two by hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// The smallest major hash in the new block.
    pub hash: u32,
    /// Names with this very hash also stay in the old block: the index marks it with the lowest bit.
    pub continued: bool,
}

impl Split {
    /// The hash as the new block's index entry spells it.
    #[must_use]
    pub fn index_hash(&self) -> u32 {
        self.hash | u32::from(self.continued)
    }
}

/// Splits a block of an htree directory: the upper half by hash, measured in bytes, moves into `new`. Both
/// blocks end up packed. `None`, and no change, with fewer than two entries or when `hash` knows no hash for
/// a name.
///
/// # Errors
/// A damaged record in `old`.
pub fn split_by_hash(
    old: &mut [u8],
    new: &mut [u8],
    format: DirFormat,
    hash: impl Fn(&[u8]) -> Option<u32>,
) -> Result<Option<Split>, Corruption> {
    let copy = old.to_vec();
    let mut map = Vec::new();
    for entry in DirBlock::new(&copy, format).entries() {
        let entry = entry?;
        if let Some(ino) = entry.ino {
            let Some(hash) = hash(entry.name) else { return Ok(None) };
            map.push((hash, used_by(&entry, &format), ino, entry));
        }
    }
    if map.len() < 2 {
        return Ok(None);
    }
    map.sort_by_key(|&(hash, ..)| hash);
    let total: usize = map.iter().map(|&(_, size, ..)| size).sum();
    let mut moved = 0;
    let at = (1..map.len())
        .rev()
        .take_while(|&at| {
            moved += map[at].1;
            at + 1 == map.len() || moved <= total / 2
        })
        .last()
        .unwrap_or(map.len() - 1);
    let repack = |bytes: &mut [u8], part: &[(u32, usize, Ino, DirEntry<'_>)]| {
        let mut block = DirBlockMut::init(bytes, format);
        let usable = format.usable(block.bytes.len());
        let mut offset = 0;
        for (i, (_, size, _, entry)) in part.iter().enumerate() {
            block.bytes[offset..offset + size].copy_from_slice(&copy[entry.offset..entry.offset + size]);
            let rec_len = if i + 1 == part.len() { usable - offset } else { *size };
            block.put_rec_len(offset, rec_len);
            offset += size;
        }
    };
    let split = Split { hash: map[at].0, continued: map[at].0 == map[at - 1].0 };
    repack(new, &map[at..]);
    repack(old, &map[..at]);
    Ok(Some(split))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const FORMAT: DirFormat = DirFormat { filetype: true, tail: true, hashed: false };

    fn ino(n: u32) -> Ino {
        Ino::new(n).unwrap()
    }

    fn names(bytes: &[u8]) -> BTreeMap<Vec<u8>, u32> {
        DirBlock::new(bytes, FORMAT)
            .entries()
            .map(Result::unwrap)
            .filter_map(|entry| Some((entry.name.to_vec(), entry.ino?.get())))
            .collect()
    }

    #[test]
    fn record_lengths_of_large_blocks_use_the_low_bits() {
        for (len, size) in
            [(12, 1024), (65532, 65536), (65536, 65536), (131_072, 262_144), (262_144, 262_144)]
        {
            assert_eq!(decode_rec_len(encode_rec_len(len, size), size), len);
        }
    }

    #[test]
    fn a_new_directory_has_dot_and_dotdot() {
        let mut bytes = vec![0xff; 1024];
        let _ = DirBlockMut::init_first(&mut bytes, FORMAT, ino(12), ino(2));
        DirBlock::new(&bytes, FORMAT).check().unwrap();
        assert_eq!(names(&bytes), BTreeMap::from([(b".".to_vec(), 12), (b"..".to_vec(), 2)]));
    }

    proptest! {
        #[test]
        fn edits_follow_a_map(ops in proptest::collection::vec(("[a-c]{1,40}", any::<bool>(), 1_u32..9999), 1..120), tail in any::<bool>()) {
            let format = DirFormat { tail, ..FORMAT };
            let mut bytes = vec![0; 1024];
            let mut block = DirBlockMut::init(&mut bytes, format);
            let mut model: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            for (name, add, n) in ops {
                let name = name.into_bytes();
                let there = block.view().find(&name).unwrap().map(|entry| entry.offset);
                prop_assert_eq!(there.is_some(), model.contains_key(&name));
                match (there, add) {
                    (Some(offset), true) => {
                        prop_assert!(block.set_target(offset, ino(n), FileType::Fifo));
                        model.insert(name, n);
                    }
                    (Some(offset), false) => {
                        prop_assert!(block.remove(offset).unwrap());
                        model.remove(&name);
                    }
                    (None, _) => {
                        let room = block.view().has_room(name.len()).unwrap();
                        let entry = NewEntry { ino: ino(n), file_type: FileType::Regular, name: &name };
                        prop_assert_eq!(block.insert(&entry).unwrap().is_some(), room);
                        if room { model.insert(name, n); }
                    }
                }
                block.view().check().unwrap();
            }
            let found: BTreeMap<Vec<u8>, u32> = block.view().entries().map(Result::unwrap)
                .filter_map(|entry| Some((entry.name.to_vec(), entry.ino?.get()))).collect();
            prop_assert_eq!(found, model);
        }

        #[test]
        fn a_split_keeps_every_name_on_its_side(all in proptest::collection::btree_map("[a-z]{1,30}", 1_u32..9999, 2..25), few in 1_u32..200) {
            // A poor hash makes collisions, which the continuation bit is for.
            let hash = |name: &[u8]| Some(name.iter().map(|&b| u32::from(b)).sum::<u32>() % few * 2);
            let mut bytes = vec![0; 1024];
            let mut block = DirBlockMut::init(&mut bytes, FORMAT);
            for (name, n) in &all {
                let entry = NewEntry { ino: ino(*n), file_type: FileType::Regular, name: name.as_bytes() };
                prop_assert!(block.insert(&entry).unwrap().is_some());
            }
            let mut right = vec![0xff; 1024];
            let split = split_by_hash(&mut bytes, &mut right, FORMAT, hash).unwrap().unwrap();
            DirBlock::new(&bytes, FORMAT).check().unwrap();
            DirBlock::new(&right, FORMAT).check().unwrap();
            let (low, high) = (names(&bytes), names(&right));
            prop_assert!(!low.is_empty() && !high.is_empty());
            prop_assert!(high.keys().all(|name| hash(name).unwrap() >= split.hash));
            prop_assert!(low.keys().all(|name| hash(name).unwrap() <= split.hash));
            prop_assert_eq!(split.continued, low.keys().any(|name| hash(name) == Some(split.hash)));
            prop_assert_eq!(low.len() + high.len(), all.len());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), tail in any::<bool>()) {
            let format = DirFormat { tail, ..FORMAT };
            let _ = DirBlock::new(&bytes, format).check();
            let _ = DirBlockMut::new(&mut bytes, format).remove(12);
            let entry = NewEntry { ino: ino(5), file_type: FileType::Regular, name: b"new" };
            let _ = DirBlockMut::new(&mut bytes, format).insert(&entry);
        }
    }
}
