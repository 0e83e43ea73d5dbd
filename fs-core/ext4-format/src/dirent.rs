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

    /// Bytes that the entry of `name` needs: the dots have no hash.
    fn size_of(&self, name: &[u8]) -> usize {
        let hashed = self.hashed && !is_dot(name);
        DirFormat { hashed, ..*self }.entry_size(name.len())
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

/// Where a record lies in its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At {
    /// Its first byte.
    pub offset: usize,
    /// The first byte of the record in front of it; its own for the first one, or where that is not known.
    pub front: usize,
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
    /// Its place in the block.
    pub at: At,
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

/// Room for one more entry: the record that has it, and how many of its bytes that record keeps. Valid until
/// the block changes; [`DirBlockMut::insert_at`] refuses a stale one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    offset: usize,
    used: usize,
}

/// The result of looking for room for a new name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// It is there already.
    Taken,
    /// It is not there, and this is the first place where it fits.
    Free(Slot),
    /// It is not there and does not fit.
    Full,
}

/// A decoded record header. The record and its name lie inside the block.
#[derive(Clone, Copy)]
struct Head {
    ino: Option<Ino>,
    rec_len: usize,
    name_len: usize,
    type_code: u8,
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
        self.entries_from(0)
    }

    /// The records from byte `offset` on, which must be the start of one.
    #[must_use]
    pub fn entries_from(&self, offset: usize) -> Entries<'a> {
        Entries { block: *self, at: At { offset, front: offset } }
    }

    /// The record of `name`.
    ///
    /// # Errors
    /// A damaged record in front of it.
    pub fn find(&self, name: &[u8]) -> Result<Option<DirEntry<'a>>, Corruption> {
        self.walk(|at, head| self.names(at, head, name).then(|| self.entry(at, head)))
    }

    /// Whether `name` is there, and else where it would go.
    ///
    /// # Errors
    /// A damaged record, unless the name stands in front of it.
    pub fn place(&self, name: &[u8]) -> Result<Placement, Corruption> {
        let need = self.format.entry_size(name.len());
        let mut slot = None;
        let taken = self.walk(|at, head| {
            slot = slot.or_else(|| self.slot(at, head, need));
            self.names(at, head, name).then_some(Placement::Taken)
        })?;
        Ok(taken.unwrap_or_else(|| slot.map_or(Placement::Full, Placement::Free)))
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
        self.walk(|_, _| None::<()>).map(|_| ())
    }

    /// The bytes that hold records.
    #[inline]
    fn records(&self) -> &'a [u8] {
        &self.bytes[..self.format.usable(self.bytes.len())]
    }

    /// Shows `visit` one record after the other until it answers.
    #[inline]
    fn walk<T>(&self, mut visit: impl FnMut(At, &Head) -> Option<T>) -> Result<Option<T>, Corruption> {
        let mut at = At { offset: 0, front: 0 };
        while at.offset < self.records().len() {
            let head = self.head(at.offset)?;
            if let Some(answer) = visit(at, &head) {
                return Ok(Some(answer));
            }
            at = At { offset: at.offset + head.rec_len, front: at.offset };
        }
        Ok(None)
    }

    /// The header at `offset`: the one place that knows the rules of a record.
    #[inline]
    fn head(&self, offset: usize) -> Result<Head, Corruption> {
        let records = self.records();
        let left = records.len().saturating_sub(offset);
        let Some(header) = records.get(offset..).and_then(|rest| rest.first_chunk::<HEADER>()) else {
            return Err(damage(offset, "rec_len", left, HEADER));
        };
        let ino = Ino::new(u32::from_le_bytes([header[0], header[1], header[2], header[3]]));
        let rec_len = decode_rec_len(u16::from_le_bytes([header[4], header[5]]), self.bytes.len());
        // Without `filetype` the name length has 16 bits, of which the upper eight are zero.
        let (high, type_code) = if self.format.filetype { (0, header[7]) } else { (header[7], 0) };
        let name_len = usize::from(u16::from_le_bytes([header[6], high]));
        if !rec_len.is_multiple_of(4) || rec_len < HEADER + 4 || rec_len > left {
            return Err(damage(offset, "rec_len", rec_len, left));
        }
        if name_len > MAX_NAME || HEADER + name_len > rec_len {
            return Err(damage(offset, "name_len", name_len, rec_len - HEADER));
        }
        if ino.is_some() && name_len == 0 {
            return Err(damage(offset, "name_len", 0, 1));
        }
        Ok(Head { ino, rec_len, name_len, type_code })
    }

    #[inline]
    fn name(&self, at: At, head: &Head) -> &'a [u8] {
        &self.bytes[at.offset + HEADER..][..head.name_len]
    }

    /// Whether the record is an entry of `name`.
    #[inline]
    fn names(&self, at: At, head: &Head, name: &[u8]) -> bool {
        head.name_len == name.len() && head.ino.is_some() && self.name(at, head) == name
    }

    fn entry(&self, at: At, head: &Head) -> DirEntry<'a> {
        let &Head { ino, rec_len, type_code, .. } = head;
        let name = self.name(at, head);
        let record = &self.bytes[at.offset..at.offset + rec_len];
        let hash_at = (HEADER + name.len()).next_multiple_of(4);
        let word = |at: usize| record.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
        let stored_hash =
            (self.format.hashed && !is_dot(name)).then(|| word(hash_at).zip(word(hash_at + 4))).flatten();
        DirEntry { ino, type_code, name, stored_hash, at, rec_len }
    }

    /// The room that the record has for an entry of `need` bytes.
    #[inline]
    fn slot(&self, at: At, head: &Head, need: usize) -> Option<Slot> {
        let used = match head.ino {
            Some(_) => self.format.size_of(self.name(at, head)),
            None => 0,
        };
        (head.rec_len >= used + need).then_some(Slot { offset: at.offset, used })
    }

    /// The record at `at.offset`, its place as it is now and its length: the record in front is looked for
    /// again when an entry has come between the two. `None` when no record starts there.
    fn locate(&self, at: At) -> Result<Option<(At, usize)>, Corruption> {
        let follows = match at {
            At { offset: 0, front } => front == 0,
            At { offset, front } => {
                front < offset && self.head(front).is_ok_and(|head| front + head.rec_len == offset)
            }
        };
        if follows {
            return Ok(Some((at, self.head(at.offset)?.rec_len)));
        }
        let reached = self.walk(|seen, head| (seen.offset >= at.offset).then_some((seen, head.rec_len)))?;
        Ok(reached.filter(|(seen, _)| seen.offset == at.offset))
    }
}

#[cold]
fn damage(offset: usize, field: &'static str, found: usize, expected: usize) -> Corruption {
    Corruption::new(What::DirBlock, field, found as u64, expected as u64).at_offset(offset)
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
    block: DirBlock<'a>,
    at: At,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<DirEntry<'a>, Corruption>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        if at.offset >= self.block.records().len() {
            return None;
        }
        let head = self.block.head(at.offset);
        let rec_len = head.as_ref().map_or(self.block.bytes.len(), |head| head.rec_len);
        self.at = At { offset: at.offset + rec_len, front: at.offset };
        Some(head.map(|head| self.block.entry(at, &head)))
    }
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
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
        let need = self.format.entry_size(entry.name.len());
        let block = self.view();
        match block.walk(|at, head| block.slot(at, head, need))? {
            Some(slot) => self.insert_at(slot, entry),
            None => Ok(None),
        }
    }

    /// Adds an entry where [`DirBlock::place`] found room for its name; returns its offset, or `None`, with
    /// nothing changed, when that room is there no more.
    ///
    /// # Errors
    /// No record, or a damaged one, in that place.
    pub fn insert_at(&mut self, slot: Slot, entry: &NewEntry<'_>) -> Result<Option<usize>, Corruption> {
        let Slot { offset, used } = slot;
        let block = self.view();
        let head = block.head(offset)?;
        let need = self.format.entry_size(entry.name.len());
        if block.slot(At { offset, front: offset }, &head, need) != Some(slot) {
            return Ok(None);
        }
        if used > 0 {
            self.put_rec_len(offset, used);
        }
        self.put(offset + used, head.rec_len - used, entry);
        Ok(Some(offset + used))
    }

    /// Takes out the entry at `at`; its record joins the one in front. Returns false when no record starts
    /// there.
    ///
    /// # Errors
    /// A damaged record there or in front of it.
    pub fn remove(&mut self, at: At) -> Result<bool, Corruption> {
        let Some((At { offset, front }, rec_len)) = self.view().locate(at)? else { return Ok(false) };
        self.bytes[offset..offset + rec_len].fill(0);
        self.put_rec_len(front, offset - front + rec_len);
        Ok(true)
    }

    /// Points the entry at `at` to another inode. False when no record starts there.
    pub fn set_target(&mut self, at: At, ino: Ino, file_type: FileType) -> bool {
        let Ok(Some((At { offset, .. }, _))) = self.view().locate(at) else { return false };
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
            let need = self.format.size_of(entry.name);
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
            map.push((hash, format.size_of(entry.name), ino, entry));
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
            block.bytes[offset..offset + size].copy_from_slice(&copy[entry.at.offset..][..*size]);
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
mod tests;
