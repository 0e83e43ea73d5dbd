//! The journal superblock: log block 0, which says how long the log is and where it begins.

use std::mem::offset_of;

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BlockType, LogFormat, MAGIC, SUPERBLOCK_LEN, TagFormat};
use crate::bits::flag_bits;
use crate::corruption::{Corruption, What};
use crate::csum::JournalCsum;
use crate::num::Tid;

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
        // No read-only feature has ever been defined; the kernel does not load a journal that has one.
        if sb.has_features() && raw.feature_ro_compat.get() != 0 {
            return Err(wrong("s_feature_ro_compat", raw.feature_ro_compat.get(), 0u32));
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
                return Err(Corruption::checksum(What::JournalSuperBlock, raw.checksum.get(), sum));
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

    /// Whether a version 1 superblock has features or users, which version 2 brought.
    #[must_use]
    pub fn has_stray_fields(&self) -> bool {
        let raw = &self.raw;
        let later = [raw.feature_compat, raw.feature_incompat, raw.feature_ro_compat, raw.nr_users];
        !self.has_features() && later.iter().any(|field| field.get() != 0)
    }

    /// Zeroes what only a version 2 superblock has.
    pub fn clear_stray_fields(&mut self) {
        let mut bytes = self.encode();
        bytes[offset_of!(RawSuperBlock, feature_compat)..].fill(0);
        self.raw = zerocopy::transmute!(bytes);
    }

    fn has_features(&self) -> bool {
        self.raw.block_type.get() == BlockType::SuperBlockV2.encode()
    }
}
