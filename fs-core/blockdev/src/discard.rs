//! The one request to a block device that the standard wrappers lack.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl;

/// Start and length in bytes, as `BLKDISCARD` takes them.
type Range = [u64; 2];

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: ioctl::Opcode = 0x1277;

/// Tells a block device that it may forget `len` bytes from `start`; both are sector aligned.
pub(crate) fn discard(device: impl AsFd, start: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64 through its argument, which is what Range is.
    let request = unsafe { ioctl::Setter::<BLKDISCARD, Range>::new([start, len]) };
    // SAFETY: the request only touches the device behind the descriptor; on one that is not a block
    // device the kernel answers ENOTTY.
    unsafe { ioctl::ioctl(device, request) }?;
    Ok(())
}

/// Whether the device has a discard at all, from its queue limits in sysfs.
pub(crate) fn supported(device: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = device.metadata() else { return false };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    // A partition has no queue of its own; its disk's lies one level up.
    ["queue", "../queue"].iter().any(|queue| {
        let limit = format!("/sys/dev/block/{major}:{minor}/{queue}/discard_max_bytes");
        std::fs::read_to_string(limit).is_ok_and(|bytes| bytes.trim() != "0")
    })
}
