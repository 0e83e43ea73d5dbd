//! Numbers that the format splits into a low and a high field.

#![cfg_attr(
    not(test),
    deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

/// The low and the high half.
pub(crate) fn split16(value: u32) -> (u16, u16) {
    let [a, b, c, d] = value.to_le_bytes();
    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
}

/// The low and the high half.
pub(crate) fn split32(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// The number with these halves.
pub(crate) fn join16(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// The number with these halves.
pub(crate) fn join32(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
