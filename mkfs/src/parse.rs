//! Sizes as a person writes them.

/// A size that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid size: {text}")]
pub struct ParseError {
    /// What was written.
    pub text: String,
}

/// Reads a size: a number with `K`, `M`, `G`, `T` or `P` (powers of 1024 bytes) or `s` (sectors of 512
/// bytes), or a number of units of `block_size` bytes. Result in bytes.
///
/// # Errors
/// Anything else, and sizes past 64 bits.
pub fn size_in_bytes(text: &str, block_size: u32) -> Result<u64, ParseError> {
    let wrong = || ParseError { text: text.to_owned() };
    let (digits, unit) = match text.char_indices().last() {
        Some((at, suffix)) if !suffix.is_ascii_digit() => {
            let unit = match suffix.to_ascii_lowercase() {
                's' => 512,
                'k' => 1 << 10,
                'm' => 1 << 20,
                'g' => 1 << 30,
                't' => 1 << 40,
                'p' => 1 << 50,
                _ => return Err(wrong()),
            };
            (&text[..at], unit)
        }
        _ => (text, u64::from(block_size)),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_or_count_blocks() {
        assert_eq!(size_in_bytes("12", 4096), Ok(12 * 4096));
        assert_eq!(size_in_bytes("3M", 1024), Ok(3 << 20));
        assert_eq!(size_in_bytes("16T", 1024), Ok(16 << 40));
        assert_eq!(size_in_bytes("2s", 1024), Ok(1024));
        for wrong in ["", "M", "1x", "-1", "1.5G", "99999999P", "1é"] {
            assert!(size_in_bytes(wrong, 1024).is_err(), "{wrong}");
        }
    }
}
