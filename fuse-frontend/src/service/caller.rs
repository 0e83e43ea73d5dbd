//! What the kernel knows of a calling thread beyond what a request says.
//!
//! A request has the thread's number, and its user and group. The kernel's ext4 asks for capabilities, and
//! whether the mount that the call came through is writable; both can be looked up in /proc. The number is not
//! another thread's meanwhile: once we have read its request, a thread waits for the answer, whatever
//! signal it gets. Where something cannot be looked up, because the thread is in no process that we see or
//! may look at, it has no capability.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// Capabilities that the kernel's ext4 asks for (capabilities(7), by their numbers in `linux/capability.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// To act as the owner of any file.
    FileOwner = 3,
    /// To change the immutable and the append-only flag.
    LinuxImmutable = 9,
    /// To administer the filesystem.
    SysAdmin = 21,
}

/// The number of ioctl(2) for a 32-bit program, the same on every machine that runs such programs beside ours.
const COMPAT_IOCTL: libc::c_long = 54;

/// Whether the thread has the capability: in its effective set, and in the user namespace of this
/// process, to which the mount belongs. What root of another one may do ends there.
pub fn has_capability(thread: u32, capability: Capability) -> bool {
    effective_capabilities(thread).is_some_and(|set| set & 1 << capability as u32 != 0)
        && is_in_our_user_namespace(thread)
}

/// Whether the thread's ioctl(2), in which it waits for us, names a file descriptor on a read-only mount.
/// False when that cannot be told: it takes the right to trace the thread.
pub fn calls_through_read_only_mount(thread: u32) -> bool {
    numbers_are_ours() && mount_is_read_only(thread).unwrap_or(false)
}

fn effective_capabilities(thread: u32) -> Option<u64> {
    if !numbers_are_ours() {
        return None;
    }
    let status = read(thread, "status")?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

fn is_in_our_user_namespace(thread: u32) -> bool {
    let place =
        |process: &str| fs::metadata(format!("/proc/{process}/ns/user")).ok().map(|ns| (ns.dev(), ns.ino()));
    let theirs = place(&thread.to_string());
    theirs.is_some() && theirs == place("self")
}

/// Whether /proc numbers processes as the requests do, which is as our own namespace does: the number of this
/// process is then the only one that it has there.
fn numbers_are_ours() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.trim() == std::process::id().to_string())
}

fn mount_is_read_only(thread: u32) -> Option<bool> {
    // `16 0x3 0x8004587d ...`: number and arguments of the call (proc_pid_syscall(5)).
    let call = read(thread, "syscall")?;
    let mut words = call.split(' ');
    if ![libc::SYS_ioctl, COMPAT_IOCTL].contains(&words.next()?.parse().ok()?) {
        return None;
    }
    let fd = u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    let info = read(thread, &format!("fdinfo/{fd}"))?;
    let mount: u64 = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()?;
    let table = blockdev::mount_table_of(thread).ok()?;
    table.iter().find(|entry| entry.id == mount).map(blockdev::MountEntry::is_read_only)
}

fn read(thread: u32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{thread}/{file}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_has_what_it_has() {
        let me = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert!(numbers_are_ours() && is_in_our_user_namespace(me));
        assert!(effective_capabilities(me).is_some());
        assert_eq!(mount_is_read_only(me), None, "this is no ioctl");
    }

    #[test]
    fn who_is_not_seen_has_nothing() {
        assert!(!has_capability(0, Capability::SysAdmin));
        assert!(!calls_through_read_only_mount(0));
    }
}
