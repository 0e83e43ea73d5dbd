//! The orphan file (feature `orphan_file`): inodes to be truncated or freed after a crash, without a shared
//! list head.
//!
//! Each block is an array of 32-bit inode numbers, zero where free, and an eight-byte tail with a magic and,
//! with `metadata_csum`, a checksum over the block number and the entries (see `csum`). Source: the kernel's
//! `Documentation/filesystems/ext4/orphan.rst`.

#![cfg_attr(
    not(test),
    deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use crate::corruption::{Corruption, What};
use crate::num::Ino;

/// `ob_magic`.
pub const MAGIC: u32 = 0x0b10_ca04;
/// Bytes of the tail: magic and checksum.
pub const TAIL_SIZE: usize = 8;

/// Entries in one block.
#[must_use]
pub fn per_block(block_size: usize) -> usize {
    block_size.saturating_sub(TAIL_SIZE) / 4
}

/// Makes `bytes` an empty block of an orphan file; the checksum is the caller's.
pub fn init(bytes: &mut [u8]) {
    bytes.fill(0);
    if let Some(magic) = bytes.last_chunk_mut::<TAIL_SIZE>().and_then(|tail| tail.first_chunk_mut()) {
        *magic = MAGIC.to_le_bytes();
    }
}

/// Checks the magic of a block.
///
/// # Errors
/// A wrong magic, or a block too small to have one.
pub fn check(bytes: &[u8]) -> Result<(), Corruption> {
    let magic = bytes.last_chunk::<TAIL_SIZE>().and_then(|tail| tail.first_chunk());
    let found = magic.map_or(0, |magic| u32::from_le_bytes(*magic));
    if found == MAGIC {
        Ok(())
    } else {
        Err(Corruption::new(What::OrphanFile, "ob_magic", u64::from(found), u64::from(MAGIC)))
    }
}

/// The orphans of a block with their slots.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = (usize, Ino)> + '_ {
    let (words, _) = bytes.as_chunks::<4>();
    let slots = words.iter().take(per_block(bytes.len())).enumerate();
    slots.filter_map(|(slot, word)| Some((slot, Ino::new(u32::from_le_bytes(*word))?)))
}

/// Writes a slot; `None` frees it. False when the block has no such slot.
pub fn set(bytes: &mut [u8], slot: usize, ino: Option<Ino>) -> bool {
    if slot >= per_block(bytes.len()) {
        return false;
    }
    let (words, _) = bytes.as_chunks_mut::<4>();
    let Some(word) = words.get_mut(slot) else { return false };
    *word = ino.map_or(0, Ino::get).to_le_bytes();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fill_and_free() {
        let mut block = vec![0xff; 1024];
        init(&mut block);
        check(&block).unwrap();
        assert_eq!(per_block(1024), 254);
        for slot in 0..254 {
            assert!(set(&mut block, slot, Ino::new(100 + slot as u32)));
        }
        assert_eq!(
            entries(&block).map(|(slot, ino)| ino.get() - slot as u32).collect::<Vec<_>>(),
            [100; 254]
        );
        assert!(set(&mut block, 17, None));
        assert!(!set(&mut block, 254, None), "the tail is no slot");
        assert!(entries(&block).all(|(slot, _)| slot != 17));
        assert_eq!(entries(&block).count(), 253);
        check(&block).unwrap();
        assert_eq!(check(&[0; 1024]).unwrap_err().field, "ob_magic");
    }
}
