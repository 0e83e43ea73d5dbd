//! Limits of the process that must show as errors, not as its end.

/// Makes a write beyond the limit on the size of files (RLIMIT_FSIZE, `ulimit -f`) fail with EFBIG. Left
/// alone, the kernel also sends SIGXFSZ, which ends the process.
pub fn file_size_limit_is_an_error() {
    // SAFETY: ignoring a signal installs no handler; nothing else in this program handles SIGXFSZ.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The limit on the size of files that this process writes, in bytes; `None` without one.
#[must_use]
pub fn file_size_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    let told = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    (told == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
