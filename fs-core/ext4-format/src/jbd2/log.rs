//! The blocks of a transaction: descriptor with its tags, revoke block, commit block, in each of their
//! shapes.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BlockType, HEADER_LEN, Header, REVOKE_HEADER_LEN, TAIL_LEN};
use crate::bits::flag_bits;
use crate::corruption::{Corruption, What};
use crate::csum::JournalCsum;
use crate::num::{BlockNo, Tid};

/// The shape of a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagFormat {
    /// No sum; 8 bytes, or 12 with 64-bit numbers.
    V1,
    /// Room for 16 bits of sum; 10 bytes, or 14 with 64-bit numbers.
    V2,
    /// 32 bits of sum; always 16 bytes.
    V3,
}

/// The shape of a log's blocks and the formulas of its sums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFormat {
    /// The shape of a tag.
    pub tags: TagFormat,
    /// Whether block numbers have 64 bits.
    pub wide: bool,
    /// The sums, used when the tags are not v1.
    pub csum: JournalCsum,
}

flag_bits! {
    /// `t_flags`.
    TagFlags(u16) {
        /// The logged block begins with the magic, zeroed in the log.
        ESCAPED = 0x1;
        /// No UUID follows: it is the same as before.
        SAME_UUID = 0x2;
        /// The block was deleted (never written).
        DELETED = 0x4;
        /// The last tag of its block.
        LAST = 0x8;
    }
}

/// One tag of a descriptor block: where the logged block belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// The block's final (in-place) location.
    pub block: BlockNo,
    /// Whether the logged copy is escaped.
    pub escaped: bool,
    /// The sum of the logged copy: 0 in v1, 16 bits in v2.
    pub csum: u32,
}

fn bad(field: &'static str, found: u64, expected: u64) -> Corruption {
    Corruption::new(What::JournalBlock, field, found, expected)
}

impl LogFormat {
    /// Bytes of one tag, the UUID after a block's first tag not counted.
    #[must_use]
    pub fn tag_len(&self) -> usize {
        match (self.tags, self.wide) {
            (TagFormat::V3, _) => 16,
            (TagFormat::V2, true) => 14,
            (TagFormat::V2, false) => 10,
            (TagFormat::V1, true) => 12,
            (TagFormat::V1, false) => 8,
        }
    }

    /// Whether blocks carry sums.
    #[must_use]
    pub fn has_csum(&self) -> bool {
        self.tags != TagFormat::V1
    }

    fn tail_len(&self) -> usize {
        if self.has_csum() { TAIL_LEN } else { 0 }
    }

    /// Tags that fit into one descriptor block of `block_size` bytes.
    #[must_use]
    pub fn tags_per_block(&self, block_size: usize) -> usize {
        // The kernel keeps room for one more tag than it writes.
        block_size.saturating_sub(HEADER_LEN + 16 + self.tail_len()) / self.tag_len()
    }

    /// Revoked numbers that fit into one revoke block of `block_size` bytes.
    #[must_use]
    pub fn revokes_per_block(&self, block_size: usize) -> usize {
        block_size.saturating_sub(REVOKE_HEADER_LEN + self.tail_len()) / self.revoke_len()
    }

    fn revoke_len(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }

    /// The tags of a descriptor block. Ends at the last tag or at the end of the block.
    #[must_use]
    pub fn tags<'a>(&self, block: &'a [u8]) -> Tags<'a> {
        let end = block.len().saturating_sub(self.tail_len());
        Tags { format: *self, bytes: &block[..end], at: HEADER_LEN, done: false }
    }

    /// Starts a descriptor block.
    #[must_use]
    pub fn descriptor(&self, block_size: usize, sequence: Tid, uuid: &[u8; 16]) -> DescriptorBuilder {
        let mut bytes = vec![0; block_size];
        Header { kind: BlockType::Descriptor, sequence }.encode_into(&mut bytes);
        DescriptorBuilder { format: *self, bytes, uuid: *uuid, at: HEADER_LEN, last_flags: None, count: 0 }
    }

    /// Checks the sum of a descriptor or revoke block.
    pub fn verify_tail(&self, block: &[u8]) -> Result<(), Corruption> {
        let Some(at) = self.has_csum().then(|| block.len().checked_sub(TAIL_LEN)).flatten() else {
            return Ok(());
        };
        let found = u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        let expected = self.csum.block_tail(block);
        if found == expected {
            Ok(())
        } else {
            Err(Corruption::checksum(What::JournalBlock, found, expected))
        }
    }

    fn set_tail(&self, block: &mut [u8]) {
        if self.has_csum() {
            let sum = self.csum.block_tail(block);
            let at = block.len() - TAIL_LEN;
            block[at..].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// The sum a tag keeps for a logged (escaped) block.
    #[must_use]
    pub fn tag_csum(&self, sequence: Tid, logged: &[u8]) -> u32 {
        match self.tags {
            TagFormat::V1 => 0,
            TagFormat::V2 => self.csum.tag(sequence, logged) & 0xffff,
            TagFormat::V3 => self.csum.tag(sequence, logged),
        }
    }

    /// Checks a logged (escaped) block against its tag.
    pub fn verify_logged(&self, sequence: Tid, tag: &Tag, logged: &[u8]) -> Result<(), Corruption> {
        let expected = self.tag_csum(sequence, logged);
        if tag.csum == expected {
            Ok(())
        } else {
            Err(Corruption::checksum(What::JournalBlock, tag.csum, expected).at_block(tag.block))
        }
    }

    /// The revoked block numbers of a revoke block.
    pub fn revoked<'a>(&self, block: &'a [u8]) -> Result<impl Iterator<Item = BlockNo> + 'a, Corruption> {
        let word = block.get(HEADER_LEN..REVOKE_HEADER_LEN).and_then(|w| w.try_into().ok());
        let used = u32::from_be_bytes(word.unwrap_or_default()) as usize;
        let most = block.len().saturating_sub(self.tail_len());
        let entries = block.get(REVOKE_HEADER_LEN..used).filter(|_| used <= most);
        let entries = entries.ok_or_else(|| bad("r_count", used as u64, most as u64))?;
        Ok(entries
            .chunks_exact(self.revoke_len())
            .map(|entry| BlockNo(entry.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))))
    }

    /// Builds a revoke block of at most [`Self::revokes_per_block`] numbers.
    ///
    /// # Panics
    /// If there are more.
    #[must_use]
    pub fn revoke_block(&self, block_size: usize, sequence: Tid, revoked: &[BlockNo]) -> Vec<u8> {
        let mut bytes = vec![0; block_size];
        Header { kind: BlockType::Revoke, sequence }.encode_into(&mut bytes);
        let len = self.revoke_len();
        let used = REVOKE_HEADER_LEN + revoked.len() * len;
        bytes[HEADER_LEN..REVOKE_HEADER_LEN].copy_from_slice(&(used as u32).to_be_bytes());
        for (slot, block) in bytes[REVOKE_HEADER_LEN..used].chunks_exact_mut(len).zip(revoked) {
            slot.copy_from_slice(&block.0.to_be_bytes()[8 - len..]);
        }
        self.set_tail(&mut bytes);
        bytes
    }

    /// Builds a commit block. Time in seconds and nanoseconds since 1970.
    #[must_use]
    pub fn commit_block(&self, block_size: usize, sequence: Tid, sec: u64, nsec: u32) -> Vec<u8> {
        let mut bytes = vec![0; block_size];
        Header { kind: BlockType::Commit, sequence }.encode_into(&mut bytes);
        bytes[0x30..0x38].copy_from_slice(&sec.to_be_bytes());
        bytes[0x38..0x3c].copy_from_slice(&nsec.to_be_bytes());
        if self.has_csum() {
            let sum = self.csum.commit(&bytes);
            bytes[0x10..0x14].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// Checks the sum of a commit block (v2, v3).
    pub fn verify_commit(&self, block: &[u8]) -> Result<(), Corruption> {
        if !self.has_csum() {
            return Ok(());
        }
        let (commit, _) =
            RawCommit::ref_from_prefix(block).map_err(|_| bad("length", block.len() as u64, 64))?;
        let expected = self.csum.commit(block);
        let found = commit.checksum[0].get();
        if found == expected {
            Ok(())
        } else {
            Err(Corruption::checksum(What::JournalBlock, found, expected))
        }
    }
}

/// A commit block's fields.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the format's own, `h_` taken off")]
pub struct RawCommit {
    pub magic: U32,
    pub block_type: U32,
    pub sequence: U32,
    pub checksum_type: u8,
    pub checksum_size: u8,
    pub padding: [u8; 2],
    pub checksum: [U32; 8],
    pub commit_sec: U64,
    pub commit_nsec: U32,
}

const _: () = {
    assert!(std::mem::offset_of!(RawCommit, checksum) == 0x10);
    assert!(std::mem::offset_of!(RawCommit, commit_sec) == 0x30);
    assert!(size_of::<RawCommit>() == 0x3c);
};

/// The tags of one descriptor block.
#[derive(Clone, Debug)]
pub struct Tags<'a> {
    format: LogFormat,
    bytes: &'a [u8],
    at: usize,
    done: bool,
}

impl Iterator for Tags<'_> {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        let entry = self.bytes.get(self.at..self.at + self.format.tag_len()).filter(|_| !self.done)?;
        let u16_at = |at: usize| U16::from_bytes([entry[at], entry[at + 1]]).get();
        let u32_at = |at: usize| u32::from(u16_at(at)) << 16 | u32::from(u16_at(at + 2));
        // Flags and sum share the second word, differently in v3.
        let (flags, csum) = match self.format.tags {
            TagFormat::V3 => (u32_at(4) as u16, u32_at(12)),
            TagFormat::V2 => (u16_at(6), u32::from(u16_at(4))),
            TagFormat::V1 => (u16_at(6), 0),
        };
        let high = if self.format.wide { u32_at(8) } else { 0 };
        let flags = TagFlags(flags);
        self.at += self.format.tag_len();
        if !flags.has(TagFlags::SAME_UUID) {
            self.at += 16;
        }
        self.done = flags.has(TagFlags::LAST);
        Some(Tag {
            block: BlockNo(u64::from(high) << 32 | u64::from(u32_at(0))),
            escaped: flags.has(TagFlags::ESCAPED),
            csum,
        })
    }
}

/// Fills one descriptor block.
#[derive(Clone, Debug)]
pub struct DescriptorBuilder {
    format: LogFormat,
    bytes: Vec<u8>,
    uuid: [u8; 16],
    at: usize,
    last_flags: Option<usize>,
    count: usize,
}

impl DescriptorBuilder {
    /// Adds a tag; `false` when the block is full and nothing was added.
    pub fn push(&mut self, tag: Tag) -> bool {
        let first = self.count == 0;
        let len = self.format.tag_len();
        let room = self.bytes.len().saturating_sub(self.format.tail_len() + self.at);
        if room < len + if first { 16 } else { 0 } {
            return false;
        }
        let mut flags = if first { TagFlags::default() } else { TagFlags::SAME_UUID };
        if tag.escaped {
            flags = flags.with(TagFlags::ESCAPED);
        }
        let entry = &mut self.bytes[self.at..self.at + len];
        entry[..4].copy_from_slice(&(tag.block.0 as u32).to_be_bytes());
        entry[6..8].copy_from_slice(&flags.0.to_be_bytes());
        match self.format.tags {
            TagFormat::V3 => entry[12..16].copy_from_slice(&tag.csum.to_be_bytes()),
            TagFormat::V2 => entry[4..6].copy_from_slice(&(tag.csum as u16).to_be_bytes()),
            TagFormat::V1 => {}
        }
        if self.format.wide {
            entry[8..12].copy_from_slice(&((tag.block.0 >> 32) as u32).to_be_bytes());
        }
        self.last_flags = Some(self.at + 6);
        self.at += len;
        if first {
            self.bytes[self.at..self.at + 16].copy_from_slice(&self.uuid);
            self.at += 16;
        }
        self.count += 1;
        true
    }

    /// Tags so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Marks the last tag, sets the sum and gives the block's bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        if let Some(at) = self.last_flags {
            self.bytes[at + 1] |= TagFlags::LAST.0 as u8;
        }
        self.format.set_tail(&mut self.bytes);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn formats() -> impl Strategy<Value = LogFormat> {
        (0..3usize, any::<bool>(), any::<[u8; 16]>()).prop_map(|(tags, wide, uuid)| LogFormat {
            tags: [TagFormat::V1, TagFormat::V2, TagFormat::V3][tags],
            wide,
            csum: JournalCsum::new(&uuid),
        })
    }

    proptest! {
        #[test]
        fn tags_come_back_as_they_were_pushed(
            format in formats(),
            size in prop::sample::select(vec![1024usize, 2048, 4096]),
            tags in prop::collection::vec((any::<u64>(), any::<bool>(), any::<u32>()), 1..600),
        ) {
            let mut builder = format.descriptor(size, Tid(7), &[9; 16]);
            let mut pushed = Vec::new();
            for (block, escaped, csum) in tags {
                let block = BlockNo(if format.wide { block } else { block & 0xffff_ffff });
                let csum = match format.tags {
                    TagFormat::V1 => 0,
                    TagFormat::V2 => csum & 0xffff,
                    TagFormat::V3 => csum,
                };
                let tag = Tag { block, escaped, csum };
                if !builder.push(tag) {
                    prop_assert!(pushed.len() >= format.tags_per_block(size));
                    break;
                }
                pushed.push(tag);
            }
            let bytes = builder.finish();
            prop_assert_eq!(
                Header::decode(&bytes),
                Some(Header { kind: BlockType::Descriptor, sequence: Tid(7) })
            );
            prop_assert!(format.verify_tail(&bytes).is_ok());
            prop_assert_eq!(format.tags(&bytes).collect::<Vec<_>>(), pushed);
        }

        #[test]
        fn revoked_numbers_come_back(
            format in formats(),
            blocks in prop::collection::vec(any::<u64>(), 0..125),
        ) {
            let blocks: Vec<_> =
                blocks.iter().map(|b| BlockNo(if format.wide { *b } else { b & 0xffff_ffff })).collect();
            let bytes = format.revoke_block(1024, Tid(3), &blocks);
            prop_assert!(format.verify_tail(&bytes).is_ok());
            prop_assert_eq!(format.revoked(&bytes).unwrap().collect::<Vec<_>>(), blocks);
        }

        #[test]
        fn hostile_blocks_are_read_without_panic(format in formats(), bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            prop_assert!(format.tags(&bytes).count() <= bytes.len() / 8);
            let _ = format.revoked(&bytes).map(Iterator::count);
            let _ = format.verify_commit(&bytes);
            let _ = format.verify_tail(&bytes);
        }
    }

    #[test]
    fn a_changed_commit_block_is_found_out() {
        let format = LogFormat { tags: TagFormat::V3, wide: true, csum: JournalCsum::new(&[1; 16]) };
        let mut bytes = format.commit_block(4096, Tid(5), 1, 2);
        assert!(format.verify_commit(&bytes).is_ok());
        bytes[100] ^= 1;
        assert!(format.verify_commit(&bytes).is_err());
    }
}
