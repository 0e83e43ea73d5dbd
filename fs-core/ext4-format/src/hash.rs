//! Name hashes of htree directories: legacy, half-MD4 and TEA, each over signed or unsigned bytes.
//!
//! A hash has a major part, whose lowest bit is always clear (an index uses it to say "continued"), and a
//! minor part that only orders names of equal major for readdir. SipHash (casefolded encrypted directories)
//! needs a key this crate does not have, so it is not here. Source: the constants and the byte order are
//! those of the kernel's `Documentation/filesystems/ext4/directory.rst` and were checked against `debugfs
//! dx_hash`; half-MD4 is MD4 (RFC 1320) with eight words a round, TEA is Wheeler and Needham's cipher.

/// The hash of a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Hash {
    /// What the index sorts by; even.
    pub major: u32,
    /// Order among names of the same major.
    pub minor: u32,
}

/// The major part that marks the end of a directory for readdir; no name has it.
pub const EOF_MAJOR: u32 = 0xffff_fffe;

/// How an index hashes its names: `dx_root_info.hash_version`, with the signedness that the superblock's
/// flags add.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashVersion {
    /// 0: the first one.
    Legacy,
    /// 1: the default.
    HalfMd4,
    /// 2: TEA.
    Tea,
    /// 3: legacy over unsigned bytes.
    LegacyUnsigned,
    /// 4: half-MD4 over unsigned bytes.
    HalfMd4Unsigned,
    /// 5: TEA over unsigned bytes.
    TeaUnsigned,
    /// 6: SipHash, of encrypted and casefolded directories; its hashes stand in the entries.
    SipHash,
}

impl HashVersion {
    const ALL: [HashVersion; 7] = [
        HashVersion::Legacy,
        HashVersion::HalfMd4,
        HashVersion::Tea,
        HashVersion::LegacyUnsigned,
        HashVersion::HalfMd4Unsigned,
        HashVersion::TeaUnsigned,
        HashVersion::SipHash,
    ];

    /// From the number on disk; `None` for one this crate does not know.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<HashVersion> {
        Self::ALL.get(usize::from(raw)).copied()
    }

    /// The number on disk.
    #[must_use]
    pub fn raw(self) -> u8 {
        self as u8
    }

    /// The unsigned variant when the superblock's flags ask for it: an index stores 0, 1 or 2 and leaves the
    /// signedness to the volume.
    #[must_use]
    pub fn with_unsigned(self, unsigned: bool) -> HashVersion {
        match self {
            HashVersion::Legacy if unsigned => HashVersion::LegacyUnsigned,
            HashVersion::HalfMd4 if unsigned => HashVersion::HalfMd4Unsigned,
            HashVersion::Tea if unsigned => HashVersion::TeaUnsigned,
            other => other,
        }
    }
}

/// The hash of `name`; `seed` is `s_hash_seed` as four little-endian words, all zero for none. `None` for
/// SipHash.
#[must_use]
pub fn name_hash(version: HashVersion, seed: [u32; 4], name: &[u8]) -> Option<Hash> {
    const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    let signed = matches!(version, HashVersion::Legacy | HashVersion::HalfMd4 | HashVersion::Tea);
    let mut state = if seed == [0; 4] { START } else { seed };
    let (major, minor) = match version {
        HashVersion::Legacy | HashVersion::LegacyUnsigned => (legacy(name, signed), 0),
        HashVersion::HalfMd4 | HashVersion::HalfMd4Unsigned => {
            for (at, _) in chunks(name, 32) {
                half_md4(&mut state, &words::<8>(&name[at..], signed));
            }
            (state[1], state[2])
        }
        HashVersion::Tea | HashVersion::TeaUnsigned => {
            for (at, _) in chunks(name, 16) {
                tea(&mut state, &words::<4>(&name[at..], signed));
            }
            (state[0], state[1])
        }
        HashVersion::SipHash => return None,
    };
    let major = major & !1;
    Some(Hash { major: if major == EOF_MAJOR { EOF_MAJOR - 2 } else { major }, minor })
}

fn chunks(name: &[u8], size: usize) -> impl Iterator<Item = (usize, &[u8])> {
    name.chunks(size).enumerate().map(move |(i, chunk)| (i * size, chunk))
}

fn widen(byte: u8, signed: bool) -> u32 {
    if signed { i32::from(byte as i8) as u32 } else { u32::from(byte) }
}

/// `N` big-endian words of the name, padded with its remaining length in every byte.
fn words<const N: usize>(name: &[u8], signed: bool) -> [u32; N] {
    // The length is that of everything left, not of this chunk.
    let len = name.len() as u32;
    let pad = (len | len << 8) & 0xffff;
    let pad = pad | pad << 16;
    let mut out = [pad; N];
    for (word, bytes) in out.iter_mut().zip(name.chunks(4)) {
        *word = bytes.iter().fold(pad, |word, &b| widen(b, signed).wrapping_add(word << 8));
    }
    out
}

fn legacy(name: &[u8], signed: bool) -> u32 {
    let (mut now, mut before) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
    for &byte in name {
        let mut next = before.wrapping_add(now ^ widen(byte, signed).wrapping_mul(7_152_373));
        if next & 0x8000_0000 != 0 {
            next = next.wrapping_sub(0x7fff_ffff);
        }
        (before, now) = (now, next);
    }
    now << 1
}

fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (|x, y, z| (x & y).wrapping_add((x ^ y) & z), 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, key, order, shifts) in ROUNDS {
        for (step, &word) in order.iter().enumerate() {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(input[word]).wrapping_add(key);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}

fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let (mut x, mut y, mut sum) = (state[0], state[1], 0_u32);
    let mix = |v: u32, sum: u32, k0: u32, k1: u32| {
        (v << 4).wrapping_add(k0) ^ v.wrapping_add(sum) ^ (v >> 5).wrapping_add(k1)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(mix(y, sum, key[0], key[1]));
        y = y.wrapping_add(mix(x, sum, key[2], key[3]));
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_directory_is_nobodys_hash_and_the_lowest_bit_is_free() {
        for n in 0..2000_u32 {
            let name = format!("name-{n}");
            for version in &HashVersion::ALL[..6] {
                let hash = name_hash(*version, [1, 2, 3, 4], name.as_bytes()).unwrap();
                assert!(hash.major & 1 == 0 && hash.major != EOF_MAJOR);
            }
        }
        assert_eq!(name_hash(HashVersion::SipHash, [0; 4], b"x"), None);
    }

    #[test]
    fn signedness_matters_only_above_ascii() {
        let hash = |v, name: &[u8]| name_hash(v, [0; 4], name).unwrap();
        assert_eq!(hash(HashVersion::Tea, b"plain"), hash(HashVersion::TeaUnsigned, b"plain"));
        assert_ne!(hash(HashVersion::Tea, b"\xff\xfe"), hash(HashVersion::TeaUnsigned, b"\xff\xfe"));
    }
}
