//! The journal's blocks: superblock, descriptor with its tags, revoke block, commit block. Big-endian.
//!
//! A transaction in the log is: revoke blocks, then descriptor blocks each followed by the logged blocks its
//! tags name, then one commit block. All carry [`Header`] with the same sequence. A logged block that happens
//! to begin with the magic is *escaped*: its first four bytes are zeroed in the log and the tag says so. Tags
//! come in three shapes, chosen by feature bits. Source: kernel documentation, ext4 "Journal (jbd2)".

mod log;
mod superblock;

use crate::num::Tid;

pub use log::{DescriptorBuilder, LogFormat, RawCommit, Tag, TagFlags, TagFormat, Tags};
pub use superblock::{Compat, Incompat, KNOWN_INCOMPAT, RawSuperBlock, SuperBlock};

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
