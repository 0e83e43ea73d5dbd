//! The cyclic sums that ext4's checksums are made of. All are plain registers, without inversion before or
//! after, so a sum continues from any earlier one.

/// crc32c continued from `sum`, without inversion.
#[must_use]
pub fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!sum, bytes)
}

/// crc16 (polynomial 0x8005 reflected) continued from `sum`: group descriptors under `uninit_bg`.
#[must_use]
pub fn crc16(sum: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(sum, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |s, _| if s & 1 == 1 { s >> 1 ^ 0xa001 } else { s >> 1 })
    })
}

/// crc32 (polynomial 0x04c11db7, most significant bit first) continued from `sum`: the commit block's sum
/// over a whole transaction under jbd2's old `JBD2_FEATURE_COMPAT_CHECKSUM`.
#[must_use]
pub fn crc32_be(sum: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let mut sum = (at as u32) << 24;
            let mut bit = 0;
            while bit < 8 {
                sum = if sum >> 31 == 1 { sum << 1 ^ 0x04c1_1db7 } else { sum << 1 };
                bit += 1;
            }
            table[at] = sum;
            at += 1;
        }
        table
    };
    bytes.iter().fold(sum, |sum, byte| sum << 8 ^ TABLE[(sum >> 24) as usize ^ usize::from(*byte)])
}
