//! Where a reader of a directory stands.
//!
//! A directory in hash order (indexed, or small enough to become so) is read in the order of
//! (hash, fingerprint, name), whatever block a name lies in, so that a position stays true while
//! names come and go and blocks split. A position is 63 bits, because `telldir(3)` is signed:
//!
//! ```text
//! 62            32 31                 6 5      0
//!  major hash >> 1 |  fingerprint      | rank
//! ```
//!
//! The fingerprint is taken from the minor hash and the name. Names that agree in both are told
//! apart by their rank in name order. Positions 0 and 1 are the dots. Linear directories of
//! several blocks are read by byte offset instead.
//!
//! The cookie handed out with a name is the position after it: reading goes on with the first
//! name at or after a cookie.

use ext4_format::hash::Hash;

const RANK_BITS: u32 = 6;
const RANK_MAX: u64 = (1 << RANK_BITS) - 1;
const FINGERPRINT_BITS: u32 = 26;

/// The position of `.`.
pub const DOT: u64 = 0;
/// The position of `..`.
pub const DOTDOT: u64 = 1;
/// The first position that a hashed name can have, and the end of the dots.
pub const FIRST: u64 = 2;
/// A position after every name.
pub const END: u64 = i64::MAX as u64;

/// The position of a name, with rank 0.
#[must_use]
pub fn of(hash: Hash, name: &[u8]) -> u64 {
    let major = u64::from(hash.major >> 1);
    // FNV-1a over the name, seeded with the minor hash, which the legacy hash leaves zero.
    let mut mix = 0xcbf2_9ce4_8422_2325 ^ u64::from(hash.minor);
    for byte in name {
        mix = (mix ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let mut fingerprint = mix >> (64 - FINGERPRINT_BITS);
    if major == 0 {
        // Stay clear of the dots.
        fingerprint |= 1 << (FINGERPRINT_BITS - 1);
    }
    major << 32 | fingerprint << RANK_BITS
}

/// The smallest major hash that a name at or after `cookie` can have.
#[must_use]
pub fn major(cookie: u64) -> u32 {
    ((cookie >> 32) as u32) << 1
}

/// The first position with the major hash `major`.
#[must_use]
pub fn start_of(major: u32) -> u64 {
    (u64::from(major >> 1) << 32).max(FIRST)
}

/// `position` moved to rank `rank`. Past the last rank names share a position, and reading may
/// repeat them: that takes more than 64 names with equal hash and fingerprint.
#[must_use]
pub fn ranked(position: u64, rank: u64) -> u64 {
    position | rank.min(RANK_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_meet_the_dots_nor_the_end() {
        for major in [0, 2, 0xffff_fffc] {
            for minor in [0, 1, u32::MAX] {
                let at = of(Hash { major, minor }, b"name");
                assert!(at > FIRST && ranked(at, 99) < END, "{at:#x}");
                assert_eq!(super::major(ranked(at, 5) + 1), major);
            }
        }
    }

    #[test]
    fn order_is_that_of_the_major_hash() {
        let low = of(Hash { major: 2, minor: u32::MAX }, b"a");
        let high = of(Hash { major: 4, minor: 0 }, b"b");
        assert!(low < high && high >= start_of(4) && low < start_of(4));
    }

    #[test]
    fn equal_hashes_get_different_fingerprints() {
        let hash = Hash { major: 10, minor: 0 };
        let mut seen: Vec<u64> = (0..1000).map(|i| of(hash, format!("{i}").as_bytes())).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() >= 999);
    }
}
