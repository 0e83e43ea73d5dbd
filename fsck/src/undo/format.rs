//! The undo file that e2undo(8) reads, as files that e2fsck(8), tune2fs(8) and mke2fs(8) write show it.
//!
//! All numbers are little-endian. A unit is `block_size` bytes of the file. The header is in unit 0, a copy of
//! the volume's superblock, as it was when the file was last closed, in another unit, its magic inverted so
//! that nobody takes the file for a volume. From the first key block on follow groups of a key block, 16 bytes
//! of head and as many keys of 16 bytes as fit, and the data of these keys in their order, each padded to
//! whole units. Sums are CRC-32C, not inverted at the end, with their own field as zeros or left out.

use ext4_format::crc::crc32c;

/// Bytes of the header with its sum at the end.
pub const HEADER: usize = 512;
/// Bytes of a key, and of what stands in front of the keys in their block.
pub const KEY: usize = 16;
const MAGIC: &[u8; 8] = b"E2UNDO02";
const KEY_MAGIC: u32 = 0xcade_cade;
/// The state of a file that was closed.
const FINISHED: u32 = 1;
/// The feature of a file that says where in the device the volume begins.
const WITH_OFFSET: u32 = 1;
/// Largest unit that is believed.
const MAX_UNIT: u32 = 1 << 20;

/// The header's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Keys in the file.
    pub keys: u64,
    /// Unit of the superblock's copy.
    pub super_at: u64,
    /// Unit of the first key block.
    pub keys_at: u64,
    /// Bytes of a unit.
    pub unit: u32,
    /// Bytes of a block of the volume: what keys count in.
    pub block_size: u32,
    /// Sum of the superblock that was copied.
    pub super_sum: u32,
    /// Whether the file was closed.
    pub finished: bool,
    /// Byte of the device at which the volume begins.
    pub offset: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

impl Header {
    /// Reads a header; the error says what is wrong with it.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Header, &'static str> {
        let header = Header {
            keys: u64_at(bytes, 8),
            super_at: u64_at(bytes, 16),
            keys_at: u64_at(bytes, 24),
            unit: u32_at(bytes, 32),
            block_size: u32_at(bytes, 36),
            super_sum: u32_at(bytes, 40),
            finished: u32_at(bytes, 44) & FINISHED != 0,
            offset: if u32_at(bytes, 48) & WITH_OFFSET != 0 { u64_at(bytes, 64) } else { 0 },
        };
        let sound = |size: u32| size.is_power_of_two() && (1024..=MAX_UNIT).contains(&size);
        if bytes[..8] != *MAGIC {
            Err("magic")
        } else if u32_at(bytes, HEADER - 4) != crc32c(!0, &bytes[..HEADER - 4]) {
            Err("checksum of the header")
        } else if u32_at(bytes, 48) & !WITH_OFFSET != 0 || u32_at(bytes, 52) != 0 || u32_at(bytes, 56) != 0 {
            Err("unknown features")
        } else if !sound(header.unit) || !sound(header.block_size) {
            Err("block size")
        } else {
            Ok(header)
        }
    }

    /// Writes a header.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        for (at, value) in [(8, self.keys), (16, self.super_at), (24, self.keys_at), (64, self.offset)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let features = if self.offset > 0 { WITH_OFFSET } else { 0 };
        let state = if self.finished { FINISHED } else { 0 };
        let words =
            [(32, self.unit), (36, self.block_size), (40, self.super_sum), (44, state), (48, features)];
        for (at, value) in words {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let sum = crc32c(!0, &bytes[..HEADER - 4]);
        bytes[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Keys that fit into a key block.
    pub fn keys_per_block(&self) -> u64 {
        u64::from(self.unit) / KEY as u64 - 1
    }
}

/// What was overwritten at one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The first block of the volume.
    pub block: u64,
    /// Sum of the data.
    pub sum: u32,
    /// Bytes of the data.
    pub len: u32,
}

/// Writes a key block of `unit` bytes.
pub fn encode_keys(keys: &[Key], unit: u32) -> Vec<u8> {
    let mut bytes = vec![0; unit as usize];
    bytes[..4].copy_from_slice(&KEY_MAGIC.to_le_bytes());
    for (place, key) in bytes.chunks_exact_mut(KEY).skip(1).zip(keys) {
        place[..8].copy_from_slice(&key.block.to_le_bytes());
        place[8..12].copy_from_slice(&key.sum.to_le_bytes());
        place[12..].copy_from_slice(&key.len.to_le_bytes());
    }
    let sum = crc32c(!0, &bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Reads a key block; the flag tells whether its sum holds.
pub fn decode_keys(bytes: &mut [u8]) -> Option<(Vec<Key>, bool)> {
    if u32_at(bytes, 0) != KEY_MAGIC {
        return None;
    }
    let sum = u32_at(bytes, 4);
    bytes[4..8].fill(0);
    let keys = bytes.chunks_exact(KEY).skip(1).map(|key| Key {
        block: u64_at(key, 0),
        sum: u32_at(key, 8),
        len: u32_at(key, 12),
    });
    Some((keys.collect(), crc32c(!0, bytes) == sum))
}

/// The sum of data or of a superblock.
pub fn sum(bytes: &[u8]) -> u32 {
    crc32c(!0, bytes)
}

/// A superblock with its magic inverted, or back.
pub fn disguised(superblock: &[u8; 1024]) -> [u8; 1024] {
    let mut copy = *superblock;
    copy[56] = !copy[56];
    copy[57] = !copy[57];
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_keys_come_back() {
        let header = Header {
            keys: 7,
            super_at: 1,
            keys_at: 2,
            unit: 4096,
            block_size: 1024,
            super_sum: 5,
            finished: true,
            offset: 1 << 20,
        };
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        bytes[9] = 1;
        assert_eq!(Header::decode(&bytes), Err("checksum of the header"));
        let keys = [Key { block: 1 << 40, sum: 9, len: 4096 }, Key { block: 3, sum: 8, len: 1 }];
        let mut bytes = encode_keys(&keys, 1024);
        let (read, holds) = decode_keys(&mut bytes.clone()).unwrap();
        assert!(holds && read[..2] == keys && read.len() as u64 == 1024 / 16 - 1);
        bytes[20] ^= 1;
        assert!(!decode_keys(&mut bytes).unwrap().1);
    }
}
