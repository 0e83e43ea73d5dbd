//! Where a reader of a directory stands.
//!
//! A directory in hash order (indexed, or small enough to become so) is read in the order of its names' hashes,
//! whatever block a name lies in, so that a position stays true while names come and go and blocks split. A
//! position is that of the kernel's ext4, of 63 bits, because `telldir(3)` is signed:
//!
//! ```text
//! 62            32 31          0
//!  major hash >> 1 | minor hash
//! ```
//!
//! The legacy hash has no minor one; a fingerprint of the name stands for it. Names that agree in all of it are
//! told apart by counting on in name order. `.` has position 0, `..` stands where the kernel has it, as if its
//! hash were 2. Linear directories of several blocks are read by byte offset instead.
//!
//! The cookie handed out with a name is the position after it: reading goes on with the first
//! name at or after a cookie, whether it was ever handed out or not.

use ext4_format::hash::Hash;

/// The position of `.`.
pub const DOT: u64 = 0;
/// The first position after `.`.
pub const FIRST: u64 = 1;
/// The position of `..`.
pub const DOTDOT: u64 = 1 << 32;
/// A position after every name.
pub const END: u64 = i64::MAX as u64;

/// The position of a name.
#[must_use]
pub fn of(hash: Hash, name: &[u8]) -> u64 {
    let minor = if hash.minor == 0 { fingerprint(name) } else { hash.minor };
    match u64::from(hash.major >> 1) << 32 | u64::from(minor) {
        taken @ (DOT | DOTDOT) => taken + 1,
        free => free,
    }
}

/// FNV-1a.
fn fingerprint(name: &[u8]) -> u32 {
    let mix = |mix: u64, byte: &u8| (mix ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    (name.iter().fold(0xcbf2_9ce4_8422_2325, mix) >> 32) as u32
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_meet_the_dots_nor_the_end() {
        for major in [0, 2, 0xffff_fffc] {
            for minor in [0, 1, u32::MAX] {
                let at = of(Hash { major, minor }, b"name");
                assert!(at != DOT && at != DOTDOT && at < END, "{at:#x}");
                assert_eq!(super::major(at), major);
            }
        }
    }

    #[test]
    fn order_is_that_of_the_hash() {
        let low = of(Hash { major: 2, minor: u32::MAX }, b"a");
        let high = of(Hash { major: 4, minor: 1 }, b"b");
        assert!(low < high && high == start_of(4) + 1 && low < start_of(4));
    }

    #[test]
    fn equal_legacy_hashes_get_different_positions() {
        let hash = Hash { major: 10, minor: 0 };
        let mut seen: Vec<u64> = (0..1000).map(|i| of(hash, format!("{i}").as_bytes())).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() >= 999);
    }
}
