//! The scheduler's policy of a thread, as far as it matters for who runs where.

use std::io;

/// See sched(7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// SCHED_OTHER: what threads begin with.
    Other,
    /// SCHED_IDLE: runs when nobody else wants to, and its processor counts as idle.
    Idle,
}

impl Policy {
    /// Gives it to the thread with this id, keeping its nice value.
    ///
    /// # Errors
    /// Those of sched_setscheduler(2); `PermissionDenied` for the way back from [`Policy::Idle`] without
    /// CAP_SYS_NICE or a limit that allows the nice value.
    pub fn give(self, thread: i32) -> io::Result<()> {
        let policy = match self {
            Policy::Other => libc::SCHED_OTHER,
            Policy::Idle => libc::SCHED_IDLE,
        };
        // The kernel's `struct sched_param` is this number alone; musl's has more fields, and its functions of
        // these names only say ENOSYS.
        let priority: libc::c_int = 0;
        // SAFETY: reads the number, which outlives the call.
        match unsafe { libc::syscall(libc::SYS_sched_setscheduler, thread, policy, &raw const priority) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// That of the thread with this id, if it is one of these.
    #[must_use]
    pub fn of(thread: i32) -> Option<Policy> {
        // SAFETY: takes and returns integers.
        let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, thread) };
        match i32::try_from(policy).ok()? {
            libc::SCHED_OTHER => Some(Policy::Other),
            libc::SCHED_IDLE => Some(Policy::Idle),
            _ => None,
        }
    }
}
