//! Whether a volume that nobody asked to check wants a check by itself.

use ext4_format::superblock::{State, SuperBlock};

use crate::context::Context;

/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// Mounts before the next check from which on it is worth a word.
const SOON: u16 = 5;

/// Why the volume must be checked, as the end of a sentence about it.
#[must_use]
pub fn reason(ctx: &Context) -> Option<String> {
    let sb = &ctx.sb;
    let now = u64::from(ctx.options.now());
    let interval = u64::from(sb.check_interval());
    let since = now.checked_sub(sb.check_time());
    if sb.state().has(State::ERROR) {
        Some("contains a file system with errors".into())
    } else if !sb.state().has(State::VALID) {
        Some("was not cleanly unmounted".into())
    } else if sb.max_mount_count().is_some_and(|most| sb.mount_count() >= most) {
        Some(format!("has been mounted {} times without being checked", sb.mount_count()))
    } else if interval > 0 && since.is_none() {
        Some("has filesystem last checked time in the future".into())
    } else if interval > 0 && since.is_some_and(|since| since >= interval) {
        Some(format!("has gone {} days without being checked", since.unwrap_or(0) / DAY))
    } else {
        None
    }
}

/// How many more mounts there are before the next check, if that is soon.
#[must_use]
pub fn in_mounts(sb: &SuperBlock) -> Option<u16> {
    let left = sb.max_mount_count()?.saturating_sub(sb.mount_count());
    (left <= SOON).then_some(left)
}
