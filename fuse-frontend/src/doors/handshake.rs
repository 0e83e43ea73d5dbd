//! INIT: what the kernel offers, what we take.

use std::fs::File;
use std::io::{self, IoSlice};

use zerocopy::IntoBytes;

use super::wire::abi::{InitIn, InitOut, MAJOR, MINOR, OutHeader, init};
use super::wire::{Body, Operation, Request, split_header};

/// Largest request, in bytes of data.
pub const MAX_WRITE: u32 = 1 << 20;
/// Requests that the kernel may have under way on its own account (writeback, read-ahead).
pub const MAX_BACKGROUND: u16 = 64;
/// From this minor version on the reply has its present size.
const OLDEST_MINOR: u32 = 23;
const PAGE: u32 = blockdev::PAGE as u32;

/// POSIX locks and flock stay with the kernel: this is a local filesystem. Supplementary groups
/// (FUSE_CREATE_SUPP_GROUP) are of no use: the kernel takes set-group-id off a new file itself.
const WANTED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::HAS_IOCTL_DIR
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::WRITEBACK_CACHE
    | init::PARALLEL_DIROPS
    | init::HANDLE_KILLPRIV_V2
    | init::POSIX_ACL
    | init::ABORT_ERROR
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::NO_OPENDIR_SUPPORT
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::SECURITY_CTX
    | init::DIRECT_IO_ALLOW_MMAP;

/// The capabilities that are asked for. With access control lists the kernel checks permissions, whatever the
/// mount says: not with `fake_root`.
#[must_use]
pub fn wanted(async_dio: bool, fake_root: bool) -> u64 {
    let without = if async_dio { 0 } else { init::ASYNC_DIO } | if fake_root { init::POSIX_ACL } else { 0 };
    WANTED & !without
}

/// Answers INIT on a fresh connection; gives those of the `wanted` capabilities that the kernel has.
///
/// # Errors
/// Those of the device, and `Unsupported` for a kernel that is too old.
pub fn shake_hands(device: &File, wanted: u64) -> io::Result<u64> {
    // The kernel wants room for the largest request that it could send.
    let mut buf = vec![0; MAX_WRITE as usize + blockdev::PAGE];
    loop {
        let len = match rustix::io::read(device, &mut buf[..]) {
            Ok(len) => len,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let broken = |_| io::Error::from(io::ErrorKind::InvalidData);
        let (header, body) = split_header(&buf[..len]).map_err(broken)?;
        let body = padded(body);
        let request = Request::parse(header, Body::joined(&body), 0).map_err(broken)?;
        let Operation::Init(offer) = request.operation else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel did not begin with INIT"));
        };
        let answer = answer(&offer, wanted)?;
        let header = OutHeader {
            len: (size_of::<OutHeader>() + size_of::<InitOut>()) as u32,
            error: 0,
            unique: request.header.unique,
        };
        rustix::io::writev(device, &[IoSlice::new(header.as_bytes()), IoSlice::new(answer.as_bytes())])?;
        if offer.major == MAJOR {
            return Ok(u64::from(answer.flags) | u64::from(answer.flags2) << 32);
        }
    }
}

/// Older kernels send a shorter structure; what they do not send is zero.
fn padded(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().max(size_of::<InitIn>()), 0);
    body
}

fn answer(offer: &InitIn, wanted: u64) -> io::Result<InitOut> {
    if offer.major > MAJOR {
        // The kernel begins again with our version.
        return Ok(InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() });
    }
    if offer.major < MAJOR || offer.minor < OLDEST_MINOR {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's FUSE is too old"));
    }
    let extended = u64::from(offer.flags) & init::INIT_EXT != 0;
    let offered = u64::from(offer.flags) | if extended { u64::from(offer.flags2) << 32 } else { 0 };
    let taken = offered & wanted;
    Ok(InitOut {
        major: MAJOR,
        minor: MINOR.min(offer.minor),
        max_readahead: MAX_WRITE,
        flags: taken as u32,
        flags2: (taken >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages: (MAX_WRITE / PAGE) as u16,
        ..InitOut::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_taken() {
        let old = InitIn { major: 7, minor: 31, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
        let reply = answer(&old, WANTED).unwrap();
        assert_eq!(reply.minor, 31);
        assert_eq!(u64::from(reply.flags) | u64::from(reply.flags2) << 32, WANTED);
        let plain = InitIn { flags: (init::BIG_WRITES | init::MAX_PAGES) as u32, ..old };
        let reply = answer(&plain, WANTED).unwrap();
        assert_eq!((u64::from(reply.flags), reply.flags2), (init::BIG_WRITES | init::MAX_PAGES, 0));
    }

    #[test]
    fn versions_are_settled_or_refused() {
        let offer = |major, minor| InitIn { major, minor, ..InitIn::default() };
        assert_eq!(answer(&offer(8, 0), WANTED).unwrap().major, 7);
        assert!(answer(&offer(7, 9), WANTED).is_err());
        assert!(answer(&offer(6, 40), WANTED).is_err());
    }
}
