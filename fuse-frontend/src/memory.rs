//! What keeps a server at work when memory is short: the kernel waits for it to write dirty pages before it
//! can give memory to anybody, so the server must neither wait for that itself nor be the first to be killed.

use std::fs;

use tracing::debug;

/// Nearly the last of all. Not -1000: a volume that makes the server grow must not make it immortal.
const OOM_SCORE: i32 = -900;

/// Asks the kernel for both, and takes buffers for writing ahead of time. Threads that exist already are not
/// covered, so it comes first. Without the rights for it (CAP_SYS_RESOURCE) the server runs as others do.
pub fn prepare_to_write() {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        debug!(%error, "memory is allocated as by any process (PR_SET_IO_FLUSHER)");
    }
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    if score.trim().parse::<i32>().is_ok_and(|score| score > OOM_SCORE)
        && let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_SCORE.to_string())
    {
        debug!(%error, "the server may be killed first when memory is short (oom_score_adj)");
    }
    blockdev::fill_pool();
}
