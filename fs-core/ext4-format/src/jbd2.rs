//! The journal's blocks: superblock, descriptor with its tags, revoke block, commit block. Big-endian.
//!
//! A transaction in the log is: revoke blocks, then descriptor blocks each followed by the logged blocks
//! its tags name, then one commit block. All carry [`Header`] with the same sequence. A logged block that
//! happens to begin with the magic is *escaped*: its first four bytes are zeroed in the log and the tag says
//! so. Tags come in three shapes, chosen by feature bits. Source: kernel documentation, ext4 "Journal (jbd2)".

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::corruption::{Corruption, What};
use crate::csum::JournalCsum;
use crate::num::{BlockNo, Tid};
use crate::superblock::flag_bits;

/// `h_magic`.
pub const MAGIC: u32 = 0xc03b_3998;
/// The same as it stands at the head of a block.
pub const MAGIC_BYTES: [u8; 4] = MAGIC.to_be_bytes();
/// Fewest blocks a journal may have.
pub const MIN_BLOCKS: u32 = 1024;
/// Length of the journal superblock in bytes.
pub const SUPERBLOCK_LEN: usize = 1024;
/// Bytes of the tail of descriptor and revoke blocks under `CSUM_V2` and `CSUM_V3`.
pub const TAIL_LEN: usize = 4;

const HEADER_LEN: usize = 12;
const REVOKE_HEADER_LEN: usize = 16;

/// `h_blocktype`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockType {
    /// Names the blocks logged after it.
    Descriptor,
    /// Ends a transaction.
    Commit,
    /// Superblock, version 1: no feature words.
    SuperBlockV1,
    /// Superblock, version 2.
    SuperBlockV2,
    /// Names blocks whose earlier logged copies must not be replayed.
    Revoke,
}

impl BlockType {
    fn decode(value: u32) -> Option<BlockType> {
        use BlockType::{Commit, Descriptor, Revoke, SuperBlockV1, SuperBlockV2};
        [Descriptor, Commit, SuperBlockV1, SuperBlockV2, Revoke].into_iter().find(|t| t.encode() == value)
    }

    fn encode(self) -> u32 {
        match self {
            BlockType::Descriptor => 1,
            BlockType::Commit => 2,
            BlockType::SuperBlockV1 => 3,
            BlockType::SuperBlockV2 => 4,
            BlockType::Revoke => 5,
        }
    }
}

/// The first twelve bytes of every journal block that is not logged data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the block is.
    pub kind: BlockType,
    /// The transaction it belongs to.
    pub sequence: Tid,
}

impl Header {
    /// Reads a header; `None` when the block has no magic or an unknown type.
    #[must_use]
    pub fn decode(block: &[u8]) -> Option<Header> {
        let word = |at: usize| Some(u32::from_be_bytes(block.get(at..at + 4)?.try_into().ok()?));
        (word(0)? == MAGIC).then_some(())?;
        Some(Header { kind: BlockType::decode(word(4)?)?, sequence: Tid(word(8)?) })
    }

    /// Writes the header into the first twelve bytes.
    pub fn encode_into(self, block: &mut [u8]) {
        block[..4].copy_from_slice(&MAGIC_BYTES);
        block[4..8].copy_from_slice(&self.kind.encode().to_be_bytes());
        block[8..12].copy_from_slice(&self.sequence.0.to_be_bytes());
    }
}

flag_bits! {
    /// `s_feature_compat` of the journal.
    Compat(u32) {
        /// The commit block sums up the transaction's blocks.
        CHECKSUM = 0x1;
    }
}

flag_bits! {
    /// `s_feature_incompat` of the journal.
    Incompat(u32) {
        /// There are revoke blocks.
        REVOKE = 0x1;
        /// Block numbers have 64 bits.
        BIT64 = 0x2;
        /// Commit blocks are written without waiting for the blocks before them.
        ASYNC_COMMIT = 0x4;
        /// crc32c in every block, 16 bits in the tag.
        CSUM_V2 = 0x8;
        /// crc32c in every block, 32 bits in the tag.
        CSUM_V3 = 0x10;
        /// The end of the log holds fast-commit blocks.
        FAST_COMMIT = 0x20;
    }
}

/// Incompat bits this crate can decode.
pub const KNOWN_INCOMPAT: Incompat = Incompat(0x3f);

/// The journal superblock as it stands on disk, in log block 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the format's own, `s_` taken off")]
pub struct RawSuperBlock {
    pub magic: U32,
    pub block_type: U32,
    pub header_sequence: U32,
    pub block_size: U32,
    pub max_len: U32,
    pub first: U32,
    pub sequence: U32,
    pub start: U32,
    pub errno: U32,
    pub feature_compat: U32,
    pub feature_incompat: U32,
    pub feature_ro_compat: U32,
    pub uuid: [u8; 16],
    pub nr_users: U32,
    pub dynsuper: U32,
    pub max_transaction: U32,
    pub max_trans_data: U32,
    pub checksum_type: u8,
    pub padding2: [u8; 3],
    pub num_fc_blocks: U32,
    pub head: U32,
    pub padding: [U32; 40],
    pub checksum: U32,
    pub users: [[u8; 16]; 48],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<RawSuperBlock>() == SUPERBLOCK_LEN);
    assert!(offset_of!(RawSuperBlock, feature_compat) == 0x24);
    assert!(offset_of!(RawSuperBlock, uuid) == 0x30);
    assert!(offset_of!(RawSuperBlock, checksum_type) == 0x50);
    assert!(offset_of!(RawSuperBlock, num_fc_blocks) == 0x54);
    assert!(offset_of!(RawSuperBlock, checksum) == 0xfc);
    assert!(offset_of!(RawSuperBlock, users) == 0x100);
};

/// A journal superblock whose numbers are sound.
#[derive(Clone, Copy, Debug)]
pub struct SuperBlock {
    raw: RawSuperBlock,
}

fn wrong(field: &'static str, found: impl Into<u64>, expected: impl Into<u64>) -> Corruption {
    Corruption::new(What::JournalSuperBlock, field, found.into(), expected.into())
}

impl SuperBlock {
    /// Reads a journal superblock: magic, checksum if it has one, the log's bounds, known features.
    pub fn parse(bytes: &[u8; SUPERBLOCK_LEN]) -> Result<SuperBlock, Corruption> {
        let raw = RawSuperBlock::read_from_bytes(bytes.as_slice())
            .map_err(|_| wrong("length", SUPERBLOCK_LEN as u64, SUPERBLOCK_LEN as u64))?;
        let sb = SuperBlock { raw };
        if raw.magic.get() != MAGIC {
            return Err(wrong("h_magic", raw.magic.get(), MAGIC));
        }
        if !matches!(
            BlockType::decode(raw.block_type.get()),
            Some(BlockType::SuperBlockV1 | BlockType::SuperBlockV2)
        ) {
            return Err(wrong("h_blocktype", raw.block_type.get(), BlockType::SuperBlockV2.encode()));
        }
        let unknown = sb.incompat().without(KNOWN_INCOMPAT);
        if unknown.0 != 0 {
            return Err(wrong("s_feature_incompat", sb.incompat().0, KNOWN_INCOMPAT.0));
        }
        if sb.has_csum() {
            if sb.incompat().has(Incompat::CSUM_V2) && sb.incompat().has(Incompat::CSUM_V3) {
                return Err(wrong("s_feature_incompat", sb.incompat().0, Incompat::CSUM_V3.0));
            }
            if raw.checksum_type != 4 {
                return Err(wrong("s_checksum_type", raw.checksum_type, 4u8));
            }
            let sum = JournalCsum::superblock(bytes);
            if raw.checksum.get() != sum {
                return Err(wrong("checksum", raw.checksum.get(), sum));
            }
        }
        let block_size = raw.block_size.get();
        if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
            return Err(wrong("s_blocksize", block_size, 4096u32));
        }
        let (first, len) = (raw.first.get(), raw.max_len.get());
        let end = len.checked_sub(sb.fast_commit_blocks());
        if first == 0 || end.is_none_or(|end| first >= end) {
            return Err(wrong("s_first", first, len));
        }
        let start = raw.start.get();
        if start != 0 && (start < first || end.is_none_or(|end| start >= end)) {
            return Err(wrong("s_start", start, len));
        }
        Ok(sb)
    }

    /// A superblock of an empty log of `len` blocks (fast-commit blocks included), as mke2fs makes it.
    #[must_use]
    pub fn new(block_size: u32, len: u32, fast_commit_blocks: u32, uuid: [u8; 16]) -> SuperBlock {
        let mut raw = RawSuperBlock::new_zeroed();
        raw.magic = U32::new(MAGIC);
        raw.block_type = U32::new(BlockType::SuperBlockV2.encode());
        raw.block_size = U32::new(block_size);
        raw.max_len = U32::new(len);
        raw.first = U32::new(1);
        raw.sequence = U32::new(1);
        raw.nr_users = U32::new(1);
        raw.uuid = uuid;
        raw.num_fc_blocks = U32::new(fast_commit_blocks);
        SuperBlock { raw }
    }

    /// The 1024 bytes to write, with their checksum when the log has them.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_LEN] {
        let mut bytes = [0; SUPERBLOCK_LEN];
        bytes.copy_from_slice(self.raw.as_bytes());
        if self.has_csum() {
            let sum = JournalCsum::superblock(&bytes);
            bytes[0xfc..0x100].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// The bytes with names.
    #[must_use]
    pub fn raw(&self) -> &RawSuperBlock {
        &self.raw
    }

    /// Block size of the log in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.raw.block_size.get()
    }

    /// All blocks of the journal, superblock and fast-commit blocks included.
    #[must_use]
    pub fn len_blocks(&self) -> u32 {
        self.raw.max_len.get()
    }

    /// First log block a transaction may use.
    #[must_use]
    pub fn first(&self) -> u32 {
        self.raw.first.get()
    }

    /// One past the last log block a transaction may use: fast-commit blocks lie behind it.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.raw.max_len.get() - self.fast_commit_blocks()
    }

    /// Blocks at the end of the journal that belong to fast commits. 0 in `s_num_fc_blks` means 256.
    #[must_use]
    pub fn fast_commit_blocks(&self) -> u32 {
        if !self.incompat().has(Incompat::FAST_COMMIT) {
            return 0;
        }
        if self.raw.num_fc_blocks.get() == 0 { 256 } else { self.raw.num_fc_blocks.get() }
    }

    /// Log block of the oldest transaction that is needed, `None` when the log is empty.
    #[must_use]
    pub fn start(&self) -> Option<u32> {
        (self.raw.start.get() != 0).then(|| self.raw.start.get())
    }

    /// Sequence of the transaction expected at [`Self::start`].
    #[must_use]
    pub fn sequence(&self) -> Tid {
        Tid(self.raw.sequence.get())
    }

    /// Moves the tail: where the log begins (`None` for empty) and with which sequence.
    pub fn set_tail(&mut self, start: Option<u32>, sequence: Tid) {
        self.raw.start = U32::new(start.unwrap_or(0));
        self.raw.sequence = U32::new(sequence.0);
    }

    /// Where the next transaction of an empty log would go (`s_head`); 0 when never written.
    #[must_use]
    pub fn head(&self) -> u32 {
        self.raw.head.get()
    }

    /// Sets where the next transaction of an empty log would go.
    pub fn set_head(&mut self, head: u32) {
        self.raw.head = U32::new(head);
    }

    /// The errno an abort left behind, as a positive number; 0 for none.
    #[must_use]
    pub fn errno(&self) -> u32 {
        (self.raw.errno.get() as i32).unsigned_abs()
    }

    /// Leaves an errno (positive; stored negative as the kernel does), or 0 to clear it.
    pub fn set_errno(&mut self, errno: u32) {
        self.raw.errno = U32::new((errno as i32).wrapping_neg() as u32);
    }

    /// The UUID the journal's checksums and its tags use.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.raw.uuid
    }

    /// Compat features; a version 1 superblock has none.
    #[must_use]
    pub fn compat(&self) -> Compat {
        Compat(if self.has_features() { self.raw.feature_compat.get() } else { 0 })
    }

    /// Incompat features; a version 1 superblock has none.
    #[must_use]
    pub fn incompat(&self) -> Incompat {
        Incompat(if self.has_features() { self.raw.feature_incompat.get() } else { 0 })
    }

    /// Sets the compat features and makes the superblock version 2.
    pub fn set_compat(&mut self, features: Compat) {
        self.raw.block_type = U32::new(BlockType::SuperBlockV2.encode());
        self.raw.feature_compat = U32::new(features.0);
    }

    /// Sets the incompat features, the checksum type that goes with them, and makes the superblock version 2.
    pub fn set_incompat(&mut self, features: Incompat) {
        self.raw.block_type = U32::new(BlockType::SuperBlockV2.encode());
        self.raw.feature_incompat = U32::new(features.0);
        self.raw.checksum_type = if self.has_csum() { 4 } else { 0 };
        if !self.has_csum() {
            self.raw.checksum = U32::ZERO;
        }
    }

    /// Whether the log's blocks carry crc32c sums (v2 or v3).
    #[must_use]
    pub fn has_csum(&self) -> bool {
        self.incompat().0 & (Incompat::CSUM_V2.0 | Incompat::CSUM_V3.0) != 0
    }

    /// The shape of this log's blocks.
    #[must_use]
    pub fn format(&self) -> LogFormat {
        let incompat = self.incompat();
        let tags = if incompat.has(Incompat::CSUM_V3) {
            TagFormat::V3
        } else if incompat.has(Incompat::CSUM_V2) {
            TagFormat::V2
        } else {
            TagFormat::V1
        };
        LogFormat { tags, wide: incompat.has(Incompat::BIT64), csum: JournalCsum::new(&self.uuid()) }
    }

    fn has_features(&self) -> bool {
        self.raw.block_type.get() == BlockType::SuperBlockV2.encode()
    }
}

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
    /// The block's home.
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
        if found == expected { Ok(()) } else { Err(bad("checksum", found.into(), expected.into())) }
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
            Err(bad("t_checksum", tag.csum.into(), expected.into()).at_block(tag.block))
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
        if found == expected { Ok(()) } else { Err(bad("h_chksum", found.into(), expected.into())) }
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
            homes in prop::collection::vec((any::<u64>(), any::<bool>(), any::<u32>()), 1..600),
        ) {
            let mut builder = format.descriptor(size, Tid(7), &[9; 16]);
            let mut pushed = Vec::new();
            for (block, escaped, csum) in homes {
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
