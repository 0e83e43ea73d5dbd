//! Extended attributes: a region of entries growing up and values growing down, inside the inode or in a
//! block.
//!
//! In a block (32-byte header with a reference count and a hash) entries are sorted by prefix, length and
//! name and carry hashes, so that equal blocks can be shared. In the inode (four bytes of magic) they keep
//! the order in which they were set. A value too large for either lies in an inode of its own (feature `ea_inode`) and
//! the entry names that. Changing goes through [`Attributes`]: read a region, edit the list, write it back
//! packed, or learn that it does not fit. Checksums and the hash of an `ea_inode` value are `csum`'s. Source:
//! the kernel's `Documentation/filesystems/ext4/attributes.rst`.

use crate::corruption::{Corruption, What};
use crate::num::Ino;

/// The magic of either region.
pub const MAGIC: u32 = 0xea02_0000;
/// Bytes of the header of a block.
pub const BLOCK_HEADER: usize = 32;
/// Bytes of the header of the region in the inode.
pub const INODE_HEADER: usize = 4;
/// Bytes of an entry in front of its name.
pub const ENTRY_HEADER: usize = 16;
/// How many inodes may share a block.
pub const MAX_REFCOUNT: u32 = 1024;
/// The longest name behind the prefix.
pub const MAX_NAME: usize = 255;
/// The largest value that `ea_inode` allows.
pub const MAX_VALUE: usize = 65536;

/// What a name index stands for: the prefix that user space puts in front of the name.
pub const PREFIXES: &[(u8, &str)] = &[
    (1, "user."),
    (2, "system.posix_acl_access"),
    (3, "system.posix_acl_default"),
    (4, "trusted."),
    (6, "security."),
    (7, "system."),
    (8, "system.richacl"),
    (9, "encryption."),
    (10, "gnu."),
];
/// Name index of `system.` attributes, among them `data`, the rest of an inline file.
pub const INDEX_SYSTEM: u8 = 7;

/// Name index of the encryption context, whose name is `c`.
pub const INDEX_ENCRYPTION: u8 = 9;

/// The prefix of a name index.
#[must_use]
pub fn prefix(index: u8) -> Option<&'static str> {
    PREFIXES.iter().find(|row| row.0 == index).map(|row| row.1)
}

/// Splits a full name into index and rest. A prefix that does not end with a dot is a whole name. Unknown
/// prefixes give `None`: ext4 cannot store them.
#[must_use]
pub fn split_name(full: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES
        .iter()
        .filter_map(|&(index, prefix)| {
            let rest = full.strip_prefix(prefix.as_bytes())?;
            (rest.is_empty() != prefix.ends_with('.')).then_some((prefix.len(), index, rest))
        })
        .max_by_key(|&(len, ..)| len)
        .map(|(_, index, rest)| (index, rest))
}

/// Where a region of attributes lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// Behind the extra fields of the inode; the region is [`crate::inode::Inode::xattr_range`].
    Inode,
    /// A block of its own.
    Block,
}

impl Home {
    fn header(self) -> usize {
        match self {
            Home::Inode => INODE_HEADER,
            Home::Block => BLOCK_HEADER,
        }
    }

    /// Where value offsets count from.
    fn base(self) -> usize {
        match self {
            Home::Inode => INODE_HEADER,
            Home::Block => 0,
        }
    }
}

/// Where a value lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    /// In the region.
    Here(&'a [u8]),
    /// In an inode of its own.
    InInode {
        /// That inode.
        ino: Ino,
        /// Bytes of the value.
        size: u32,
    },
}

/// One attribute as it lies in a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Name index, see [`PREFIXES`].
    pub index: u8,
    /// The name behind the prefix.
    pub name: &'a [u8],
    /// Its value.
    pub value: Value<'a>,
    /// `e_hash` as it stands.
    pub hash: u32,
    /// First byte of the entry in the region.
    pub offset: usize,
}

/// The header of an attribute block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    /// Inodes that use the block.
    pub refcount: u32,
    /// Blocks in use: 1.
    pub blocks: u32,
    /// Hash over all entries, 0 when the block may not be shared.
    pub hash: u32,
}

/// Reads the header of an attribute block.
///
/// # Errors
/// A short block, a wrong magic, or a block count other than 1.
pub fn block_header(bytes: &[u8]) -> Result<BlockHeader, Corruption> {
    check_magic(bytes)?;
    let at = |at| word(bytes, at).ok_or_else(|| bad("block size", bytes.len(), BLOCK_HEADER));
    let header = BlockHeader { refcount: at(4)?, blocks: at(8)?, hash: at(12)? };
    at(28)?;
    if header.blocks != 1 {
        return Err(bad("h_blocks", header.blocks as usize, 1));
    }
    Ok(header)
}

/// Writes the reference count of an attribute block. False when the block is too short to have one.
pub fn set_refcount(bytes: &mut [u8], refcount: u32) -> bool {
    bytes.get_mut(4..8).map(|field| field.copy_from_slice(&refcount.to_le_bytes())).is_some()
}

/// Whether a region in an inode holds attributes at all: without its magic it is free.
#[must_use]
pub fn in_use(region: &[u8]) -> bool {
    word(region, 0) == Some(MAGIC)
}

/// The entries of a region, in their order; a damaged one is the last item. A region in an inode without its
/// magic has none.
#[must_use]
pub fn entries(region: &[u8], home: Home) -> Entries<'_> {
    let next = (home == Home::Block || in_use(region)).then(|| home.header());
    Entries { region, home, next }
}

/// The entry of a name.
///
/// # Errors
/// A damaged entry in front of it.
pub fn find<'a>(
    region: &'a [u8],
    home: Home,
    index: u8,
    name: &[u8],
) -> Result<Option<Entry<'a>>, Corruption> {
    entries(region, home)
        .find(|entry| !matches!(entry, Ok(entry) if entry.index != index || entry.name != name))
        .transpose()
}

/// Checks a region: the header, every entry, values inside the region and behind the entries, none
/// overlapping, and no name twice.
///
/// # Errors
/// The first rule that is broken.
pub fn check(region: &[u8], home: Home) -> Result<(), Corruption> {
    if home == Home::Block {
        block_header(region)?;
    } else if !in_use(region) {
        return Ok(());
    }
    let all: Vec<Entry<'_>> = entries(region, home).collect::<Result<_, _>>()?;
    let names_end = 4 + all.last().map_or(home.header(), |last| last.offset + entry_size(last.name.len()));
    let start = |value: &[u8]| value.as_ptr().addr() - region.as_ptr().addr();
    let mut values: Vec<(usize, usize)> = all
        .iter()
        .filter_map(|entry| match entry.value {
            Value::Here(value) if !value.is_empty() => Some((start(value), value.len())),
            _ => None,
        })
        .collect();
    values.sort_unstable();
    let mut free = names_end;
    for (at, len) in values {
        if at < free {
            return Err(bad("e_value_offs", at, free));
        }
        free = at + len;
    }
    let mut names: Vec<(u8, &[u8])> = all.iter().map(|entry| (entry.index, entry.name)).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(bad("duplicate name", usize::from(pair[0].0), 0)),
        None => Ok(()),
    }
}

/// Moves the entries of a region in an inode `by` bytes on; their values stay. What is in front of them then is
/// no attribute any more. False, and no change, when there is no such gap, or a damaged entry.
#[must_use]
pub fn shift(region: &mut [u8], by: usize) -> bool {
    let (mut names, mut values) = (INODE_HEADER, region.len());
    let mut moved = Vec::new();
    for entry in entries(region, Home::Inode) {
        let Ok(entry) = entry else { return false };
        names = entry.offset + entry_size(entry.name.len());
        if let Value::Here(value) = entry.value
            && !value.is_empty()
        {
            values = values.min(value.as_ptr().addr() - region.as_ptr().addr());
            moved.push(entry.offset + 2);
        }
    }
    // Four zero bytes end the list.
    let names = names + 4;
    if names.saturating_add(by) > values {
        return false;
    }
    for at in moved {
        let offset = u16::from_le_bytes([region[at], region[at + 1]]);
        region[at..at + 2].copy_from_slice(&offset.wrapping_sub(by as u16).to_le_bytes());
    }
    region.copy_within(..names, by);
    true
}

/// Iterator over the entries of a region.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    region: &'a [u8],
    home: Home,
    next: Option<usize>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Corruption>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.next.take()?;
        match word(self.region, at) {
            // Four zero bytes end the list.
            Some(0) => None,
            Some(_) => {
                let entry = self.decode(at);
                self.next = entry.as_ref().ok().map(|entry| at + entry_size(entry.name.len()));
                Some(entry)
            }
            None => Some(Err(bad("end of entries", at, self.region.len()))),
        }
    }
}

impl<'a> Entries<'a> {
    fn decode(&self, at: usize) -> Result<Entry<'a>, Corruption> {
        let header: &[u8; ENTRY_HEADER] = self
            .region
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .ok_or_else(|| bad("entry", at, self.region.len()).at_offset(at))?;
        let name_len = usize::from(header[0]);
        let value_offset = usize::from(u16::from_le_bytes([header[2], header[3]]));
        let field = |from: usize| u32::from_le_bytes(std::array::from_fn(|i| header[from + i]));
        let (inum, size, hash) = (field(4), field(8), field(12));
        let name = self
            .region
            .get(at + ENTRY_HEADER..at + ENTRY_HEADER + name_len)
            .ok_or_else(|| bad("e_name_len", name_len, self.region.len() - at).at_offset(at))?;
        let value = match Ino::new(inum) {
            Some(ino) => Value::InInode { ino, size },
            None if size == 0 => Value::Here(&[]),
            None => {
                let from = self.home.base() + value_offset;
                let end = (size as usize).checked_next_multiple_of(4).and_then(|len| from.checked_add(len));
                let inside = end.is_some_and(|end| end <= self.region.len());
                let value = self.region.get(from..from.saturating_add(size as usize));
                value
                    .filter(|_| inside)
                    .map(Value::Here)
                    .ok_or_else(|| bad("e_value_size", size as usize, self.region.len()).at_offset(at))?
            }
        };
        Ok(Entry { index: header[1], name, value, hash, offset: at })
    }
}

/// Bytes of an entry with a name of this length.
#[must_use]
pub fn entry_size(name_len: usize) -> usize {
    (ENTRY_HEADER + name_len).next_multiple_of(4)
}

/// `e_hash` of a value in the region. `signed` is how kernels before 6.2 took name bytes on most machines;
/// both are valid on disk.
#[must_use]
pub fn entry_hash(name: &[u8], value: &[u8], signed: bool) -> u32 {
    value.chunks(4).fold(name_part(name, signed), |hash, chunk| {
        let mut padded = [0; 4];
        padded[..chunk.len()].copy_from_slice(chunk);
        value_step(hash, u32::from_le_bytes(padded))
    })
}

/// `e_hash` of a value in an inode of its own, from that inode's hash (`Csum::ea_inode_value`).
#[must_use]
pub fn entry_hash_of_inode(name: &[u8], value_hash: u32, signed: bool) -> u32 {
    value_step(name_part(name, signed), value_hash)
}

/// `h_hash` of a block from the hashes of its entries in order: 0 as soon as one has none.
#[must_use]
pub fn block_hash(hashes: impl IntoIterator<Item = u32>) -> u32 {
    let mut all = 0_u32;
    for hash in hashes {
        if hash == 0 {
            return 0;
        }
        all = value_step(all, hash);
    }
    all
}

fn name_part(name: &[u8], signed: bool) -> u32 {
    name.iter().fold(0_u32, |hash, &byte| {
        let byte = if signed { i32::from(byte as i8) as u32 } else { u32::from(byte) };
        hash.rotate_left(5) ^ byte
    })
}

fn value_step(hash: u32, word: u32) -> u32 {
    hash.rotate_left(16) ^ word
}

/// A value that is held in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OwnedValue {
    /// To be kept in the region.
    Bytes(Vec<u8>),
    /// In an inode of its own.
    InInode {
        /// That inode.
        ino: Ino,
        /// Bytes of the value.
        size: u32,
        /// `Csum::ea_inode_value` of the value, for the entry's hash.
        value_hash: u32,
    },
}

/// One attribute held in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attribute {
    /// Name index.
    pub index: u8,
    /// The name behind the prefix.
    pub name: Vec<u8>,
    /// The value.
    pub value: OwnedValue,
}

impl Attribute {
    /// Bytes it takes in a region.
    #[must_use]
    pub fn size(&self) -> usize {
        entry_size(self.name.len()) + self.value_size()
    }

    fn value_size(&self) -> usize {
        match &self.value {
            OwnedValue::Bytes(bytes) => bytes.len().next_multiple_of(4),
            OwnedValue::InInode { .. } => 0,
        }
    }
}

/// The attributes of a region, held in memory to be edited and written back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    list: Vec<Attribute>,
}

impl Attributes {
    /// Reads a region. `value_hash` gives the hash of a value in an inode of its own (the seconds of its
    /// access time); it is asked only for such values.
    ///
    /// # Errors
    /// A damaged region.
    pub fn read(
        region: &[u8],
        home: Home,
        mut value_hash: impl FnMut(Ino) -> u32,
    ) -> Result<Attributes, Corruption> {
        let list = entries(region, home)
            .map(|entry| {
                let entry = entry?;
                let value = match entry.value {
                    Value::Here(bytes) => OwnedValue::Bytes(bytes.to_vec()),
                    Value::InInode { ino, size } => {
                        OwnedValue::InInode { ino, size, value_hash: value_hash(ino) }
                    }
                };
                Ok(Attribute { index: entry.index, name: entry.name.to_vec(), value })
            })
            .collect::<Result<_, Corruption>>()?;
        Ok(Attributes { list })
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> &[Attribute] {
        &self.list
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, index: u8, name: &[u8]) -> Option<&OwnedValue> {
        self.list.iter().find(|a| a.index == index && a.name == name).map(|a| &a.value)
    }

    /// Sets or replaces a value; returns the old one.
    pub fn set(&mut self, index: u8, name: &[u8], value: OwnedValue) -> Option<OwnedValue> {
        match self.list.iter_mut().find(|a| a.index == index && a.name == name) {
            Some(attribute) => Some(std::mem::replace(&mut attribute.value, value)),
            None => {
                self.list.push(Attribute { index, name: name.to_vec(), value });
                None
            }
        }
    }

    /// Removes a name; returns its value.
    pub fn remove(&mut self, index: u8, name: &[u8]) -> Option<OwnedValue> {
        let at = self.list.iter().position(|a| a.index == index && a.name == name)?;
        Some(self.list.remove(at).value)
    }

    /// Bytes a region needs for all of them, header and terminator included.
    #[must_use]
    pub fn size(&self, home: Home) -> usize {
        home.header() + 4 + self.list.iter().map(Attribute::size).sum::<usize>()
    }

    /// Bytes that the values take, those in inodes of their own left out.
    #[must_use]
    pub fn values_size(&self) -> usize {
        self.list.iter().map(Attribute::value_size).sum()
    }

    /// Writes the attributes into a region, packed: entries upwards, values from the end downwards. A block
    /// gets a header with `refcount` 1, sorted entries and its hashes. An inode's region without attributes
    /// is zeroed. False, and no change, when they do not fit.
    #[must_use]
    pub fn write(&self, region: &mut [u8], home: Home) -> bool {
        if self.size(home) > region.len() || region.len() > MAX_VALUE {
            return false;
        }
        region.fill(0);
        if home == Home::Inode && self.list.is_empty() {
            return true;
        }
        region[..4].copy_from_slice(&MAGIC.to_le_bytes());
        let mut order: Vec<&Attribute> = self.list.iter().collect();
        if home == Home::Block {
            order.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
        }
        let (mut at, mut values) = (home.header(), region.len());
        let mut hashes = Vec::with_capacity(order.len());
        for attribute in order {
            let (inum, size, offset, hash) = match &attribute.value {
                OwnedValue::Bytes(bytes) => {
                    values -= bytes.len().next_multiple_of(4);
                    region[values..values + bytes.len()].copy_from_slice(bytes);
                    let offset = if bytes.is_empty() { 0 } else { values - home.base() };
                    // Only blocks are shared, so only they need hashes of values kept in place.
                    let hash = match home {
                        Home::Block => entry_hash(&attribute.name, bytes, false),
                        Home::Inode => 0,
                    };
                    (0, bytes.len() as u32, offset, hash)
                }
                OwnedValue::InInode { ino, size, value_hash } => {
                    let hash = entry_hash_of_inode(&attribute.name, *value_hash, false);
                    (ino.get(), *size, 0, hash)
                }
            };
            let entry = &mut region[at..at + entry_size(attribute.name.len())];
            entry[0] = attribute.name.len() as u8;
            entry[1] = attribute.index;
            entry[2..4].copy_from_slice(&(offset as u16).to_le_bytes());
            entry[4..8].copy_from_slice(&inum.to_le_bytes());
            entry[8..12].copy_from_slice(&size.to_le_bytes());
            entry[12..16].copy_from_slice(&hash.to_le_bytes());
            entry[ENTRY_HEADER..ENTRY_HEADER + attribute.name.len()].copy_from_slice(&attribute.name);
            at += entry.len();
            hashes.push(hash);
        }
        if home == Home::Block {
            region[4..8].copy_from_slice(&1_u32.to_le_bytes());
            region[8..12].copy_from_slice(&1_u32.to_le_bytes());
            region[12..16].copy_from_slice(&block_hash(hashes).to_le_bytes());
        }
        true
    }
}

fn check_magic(bytes: &[u8]) -> Result<(), Corruption> {
    let found = word(bytes, 0).unwrap_or(0);
    if found == MAGIC {
        Ok(())
    } else {
        Err(Corruption::new(What::Xattr, "magic", u64::from(found), u64::from(MAGIC)))
    }
}

fn bad(field: &'static str, found: usize, expected: usize) -> Corruption {
    Corruption::new(What::Xattr, field, found as u64, expected as u64)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_split_and_join() {
        assert_eq!(split_name(b"user.mime"), Some((1, &b"mime"[..])));
        assert_eq!(split_name(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(split_name(b"system.data"), Some((7, &b"data"[..])));
        assert_eq!(split_name(b"security.selinux"), Some((6, &b"selinux"[..])));
        assert_eq!(split_name(b"user."), None);
        assert_eq!(split_name(b"other.x"), None);
        assert_eq!(prefix(4), Some("trusted."));
    }

    #[test]
    fn a_region_without_a_terminator_is_damaged() {
        let mut region = vec![0xff; 24];
        region[..4].copy_from_slice(&MAGIC.to_le_bytes());
        region[4..24]
            .copy_from_slice(&[4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'n', b'a', b'm', b'e']);
        assert!(check(&region, Home::Inode).is_err());
    }

    proptest! {
        #[test]
        fn edits_follow_a_map(
            ops in proptest::collection::vec(("[a-d]{1,3}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..60))), 1..40),
            block in any::<bool>(),
        ) {
            let (home, mut region) = if block { (Home::Block, vec![0; 1024]) } else { (Home::Inode, vec![0; 96]) };
            if block {
                prop_assert!(Attributes::default().write(&mut region, home));
            }
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            for (name, value) in ops {
                let mut attributes = Attributes::read(&region, home, |_| 0).unwrap();
                match &value {
                    Some(value) => { attributes.set(1, name.as_bytes(), OwnedValue::Bytes(value.clone())); }
                    None => { attributes.remove(1, name.as_bytes()); }
                }
                let fits = attributes.write(&mut region, home);
                prop_assert_eq!(fits, attributes.size(home) <= region.len());
                if fits {
                    match value {
                        Some(value) => { model.insert(name.into_bytes(), value); }
                        None => { model.remove(name.as_bytes()); }
                    }
                }
                check(&region, home).unwrap();
                for (name, value) in &model {
                    let found = find(&region, home, 1, name).unwrap().unwrap();
                    prop_assert_eq!(found.value, Value::Here(value));
                }
                prop_assert_eq!(entries(&region, home).count(), model.len());
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), block in any::<bool>()) {
            if let Some(magic) = bytes.get_mut(..4) { magic.copy_from_slice(&MAGIC.to_le_bytes()); }
            let home = if block { Home::Block } else { Home::Inode };
            prop_assert!(entries(&bytes, home).count() <= 20);
            let _ = check(&bytes, home);
            let _ = Attributes::read(&bytes, home, |_| 0);
        }
    }
}
