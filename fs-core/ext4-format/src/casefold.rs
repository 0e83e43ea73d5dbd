//! Names of case-insensitive directories: two are the same when their folded forms are, and the index hashes
//! the folded form.
//!
//! The only encoding is UTF-8 (`s_encoding` 1). The folded form is Unicode's: canonical decomposition, full
//! case folding, decomposition again, and code points that are ignorable by default left out. The kernel's
//! tables are those of Unicode 12.1; letters that came later fold here and not there. A name that is no UTF-8
//! has no folded form: it is compared and hashed byte by byte, and strict volumes (`s_encoding_flags` bit 0)
//! do not allow it. Source: the kernel's `Documentation/filesystems/ext4/overview.rst` (case-insensitive file
//! name lookups), and the Unicode data files `CaseFolding` and `DerivedCoreProperties`; hashes were compared
//! with those of e2fsck.

#![cfg_attr(
    not(test),
    deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;

/// `s_encoding` of UTF-8, the only one there is.
pub const ENCODING_UTF8: u16 = 1;
/// Bit of `s_encoding_flags`: names that are no UTF-8 are not allowed.
pub const STRICT: u16 = 1;

/// Code points with the property `Default_Ignorable_Code_Point`.
const IGNORABLE: [(u32, u32); 17] = [
    (0xad, 0xad),
    (0x34f, 0x34f),
    (0x61c, 0x61c),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180e),
    (0x200b, 0x200f),
    (0x202a, 0x202e),
    (0x2060, 0x206f),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfff8),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0xe0000, 0xe0fff),
];

fn is_ignorable(c: &char) -> bool {
    let c = u32::from(*c);
    IGNORABLE.iter().any(|&(first, last)| (first..=last).contains(&c))
}

/// Whether a name is text in the volume's encoding.
#[must_use]
pub fn is_valid(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok()
}

/// What a name is compared and hashed by: its folded form, or its bytes when it is no text.
#[must_use]
pub fn folded(name: &[u8]) -> Cow<'_, [u8]> {
    let Ok(text) = std::str::from_utf8(name) else { return Cow::Borrowed(name) };
    if text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(name);
    }
    let folded: String = caseless::default_case_fold_str(&text.nfd().collect::<String>())
        .nfd()
        .filter(|c| !is_ignorable(c))
        .collect();
    Cow::Owned(folded.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_case_or_composition_fold_alike() {
        let same = |a: &str, b: &str| assert_eq!(folded(a.as_bytes()), folded(b.as_bytes()), "{a} {b}");
        same("README", "readme");
        same("Stra\u{df}e", "STRASSE");
        same("caf\u{e9}", "CAFE\u{301}");
        same("\u{3a3}\u{391}\u{3a3}", "\u{3c3}\u{3b1}\u{3c2}");
        same("a\u{200d}b", "AB");
        assert_ne!(folded(b"a"), folded(b"b"));
        assert_eq!(folded(b"\xffA"), Cow::Borrowed(b"\xffA"));
    }
}
