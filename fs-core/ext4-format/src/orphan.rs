//! The orphan file (feature `orphan_file`): inodes to be truncated or freed after a crash, without a shared
//! list head.
//!
//! Each block is an array of 32-bit inode numbers, zero where free, and an eight-byte tail with a magic and,
//! with `metadata_csum`, a checksum over the block number and the entries (see `csum`). Source: the kernel's
//! `Documentation/filesystems/ext4/orphan.rst`.

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
    if let Some(tail) = tail_mut(bytes) {
        tail[..4].copy_from_slice(&MAGIC.to_le_bytes());
    }
}

/// Checks the magic of a block.
///
/// # Errors
/// A wrong magic, or a block too small to have one.
pub fn check(bytes: &[u8]) -> Result<(), Corruption> {
    let found = bytes.len().checked_sub(TAIL_SIZE).and_then(|at| word(bytes, at)).unwrap_or(0);
    if found == MAGIC {
        Ok(())
    } else {
        Err(Corruption::new(What::OrphanFile, "ob_magic", u64::from(found), u64::from(MAGIC)))
    }
}

/// The orphans of a block with their slots.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = (usize, Ino)> + '_ {
    (0..per_block(bytes.len())).filter_map(|slot| Some((slot, Ino::new(word(bytes, slot * 4)?)?)))
}

/// Writes a slot; `None` frees it. False when the block has no such slot.
pub fn set(bytes: &mut [u8], slot: usize, ino: Option<Ino>) -> bool {
    if slot >= per_block(bytes.len()) {
        return false;
    }
    bytes[slot * 4..slot * 4 + 4].copy_from_slice(&ino.map_or(0, Ino::get).to_le_bytes());
    true
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn tail_mut(bytes: &mut [u8]) -> Option<&mut [u8]> {
    let at = bytes.len().checked_sub(TAIL_SIZE)?;
    bytes.get_mut(at..)
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
