//! The ioctls of ext4 that reach a FUSE server: those whose argument the kernel can copy by the
//! size and direction in their number. EXT4_IOC_SHUTDOWN says the wrong direction: its flags are
//! read from the caller's memory, where the server may do that.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use fs_core::{Shutdown, flag};

use super::{Answer, Sender, Service, refuse};

const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC32_GETFLAGS: u32 = 0x8004_6601;
const FS_IOC32_SETFLAGS: u32 = 0x4004_6602;
const FS_IOC_GETVERSION: u32 = 0x8008_7601;
const EXT4_IOC_GETVERSION: u32 = 0x8008_6603;
const EXT4_IOC_ALLOC_DA_BLKS: u32 = 0x660c;
const FS_IOC_GETFSLABEL: u32 = 0x8100_9431;
const FS_IOC_SETFSLABEL: u32 = 0x4100_9432;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
const FITRIM: u32 = 0xc018_5879;
const EXT4_IOC_SHUTDOWN: u32 = 0x8004_587d;

/// `struct fsxattr`: xflags, extent size, extents, project, copy-on-write extent size, padding.
const FSXATTR_LEN: usize = 28;
/// Bits of `fsx_xflags` and the inode flags they stand for.
const XFLAGS: [(u32, u32); 7] = [
    (0x8, flag::IMMUTABLE),
    (0x10, flag::APPEND),
    (0x20, flag::SYNC),
    (0x40, flag::NOATIME),
    (0x80, flag::NODUMP),
    (0x200, flag::PROJINHERIT),
    (0x8000, flag::DAX),
];
/// Bytes of the argument of FS_IOC_GETFSLABEL and FS_IOC_SETFSLABEL, a zero at the end among them.
const LABEL_LEN: usize = 256;

/// Whether a successful ioctl has changed what the kernel remembers of the inode.
#[must_use]
pub fn changes_attributes(command: u32) -> bool {
    matches!(command, FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS | FS_IOC_FSSETXATTR)
}

/// Whether what the kernel has cached of the file must be written to us before this ioctl.
#[must_use]
pub fn wants_cached_data(command: u32) -> bool {
    command == EXT4_IOC_ALLOC_DA_BLKS
}

/// Whether an ioctl syncs the volume: then all that the kernel has cached must be written to us first.
#[must_use]
pub fn syncs_volume(command: u32, how: Option<u32>) -> bool {
    command == EXT4_IOC_SHUTDOWN && matches!(shutdown(how), Shutdown::Sync)
}

/// The shutdown that is asked for. Where the flags cannot be read, the one that loses nothing.
fn shutdown(how: Option<u32>) -> Shutdown {
    match how {
        Some(2) => Shutdown::Cut,
        Some(1) => Shutdown::FlushLog,
        _ => Shutdown::Sync,
    }
}

/// The argument of an ioctl whose number does not say that it brings one: the word at `address` in
/// the memory of the thread `pid`.
#[must_use]
pub fn argument_in_memory(command: u32, pid: u32, address: u64) -> Option<u32> {
    if command != EXT4_IOC_SHUTDOWN {
        return None;
    }
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut word = [0; 4];
    memory.read_exact_at(&mut word, address).ok()?;
    Some(u32::from_ne_bytes(word))
}

impl Service {
    /// IOCTL: gives the bytes to copy out. `hidden` is what [`argument_in_memory`] has found.
    pub fn ioctl(
        &self,
        sender: Sender,
        node: u64,
        command: u32,
        input: &[u8],
        hidden: Option<u32>,
    ) -> Answer<Vec<u8>> {
        let known = self.nodes.get(node)?;
        let node = known.node();
        let caller = self.caller(sender, 0);
        let word =
            |at: usize| input.get(at..at + 4).and_then(|b| Some(u32::from_ne_bytes(b.try_into().ok()?)));
        let long =
            |at: usize| input.get(at..at + 8).and_then(|b| Some(u64::from_ne_bytes(b.try_into().ok()?)));
        match command {
            FS_IOC_GETFLAGS => {
                let flags = node.flags().map_err(refuse)?;
                Ok(u64::from(flags).to_ne_bytes().to_vec())
            }
            FS_IOC32_GETFLAGS => Ok(node.flags().map_err(refuse)?.to_ne_bytes().to_vec()),
            FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS => {
                let flags = word(0).ok_or(libc::EINVAL)?;
                node.set_flags_as(&caller, flags).map_err(refuse)?;
                Ok(Vec::new())
            }
            FS_IOC_GETVERSION | EXT4_IOC_GETVERSION => {
                let attr = node.attributes().map_err(refuse)?;
                Ok(u64::from(attr.generation).to_ne_bytes().to_vec())
            }
            FS_IOC_FSGETXATTR => {
                let flags = node.flags().map_err(refuse)?;
                let shown = XFLAGS.iter().filter(|(_, f)| flags & f != 0).map(|(x, _)| x);
                let mut out = vec![0; FSXATTR_LEN];
                out[..4].copy_from_slice(&shown.fold(0, |all, x| all | x).to_ne_bytes());
                let project = node.project().map_err(refuse)?;
                out[12..16].copy_from_slice(&project.to_ne_bytes());
                Ok(out)
            }
            FS_IOC_FSSETXATTR => {
                let (wanted, project) = (word(0).ok_or(libc::EINVAL)?, word(12).ok_or(libc::EINVAL)?);
                // Volumes that count by project are not written to.
                if project != 0 {
                    return Err(libc::EOPNOTSUPP);
                }
                let mapped = XFLAGS.iter().fold(0, |all, (_, f)| all | f);
                let set = XFLAGS.iter().filter(|(x, _)| wanted & x != 0).fold(0, |all, (_, f)| all | f);
                let old = node.flags().map_err(refuse)?;
                node.set_flags_as(&caller, (old & !mapped) | set).map_err(refuse)?;
                Ok(Vec::new())
            }
            FITRIM if caller.uid != 0 => Err(libc::EPERM),
            FITRIM => {
                let arg = |at| long(at).ok_or(libc::EINVAL);
                let trimmed = self.fs.trim(arg(0)?, arg(8)?, arg(16)?).map_err(refuse)?;
                let mut out = input[..24].to_vec();
                out[8..16].copy_from_slice(&trimmed.to_ne_bytes());
                Ok(out)
            }
            EXT4_IOC_SHUTDOWN if caller.uid != 0 => Err(libc::EPERM),
            EXT4_IOC_SHUTDOWN => match hidden {
                Some(3..) => Err(libc::EINVAL),
                how => {
                    self.fs.shut_down(shutdown(how)).map_err(refuse)?;
                    Ok(Vec::new())
                }
            },
            EXT4_IOC_ALLOC_DA_BLKS => {
                node.place_data().map_err(refuse)?;
                Ok(Vec::new())
            }
            FS_IOC_GETFSLABEL => {
                let mut out = self.fs.label().map_err(refuse)?;
                out.resize(LABEL_LEN, 0);
                Ok(out)
            }
            FS_IOC_SETFSLABEL if caller.uid != 0 => Err(libc::EPERM),
            FS_IOC_SETFSLABEL => {
                let end = input.iter().position(|byte| *byte == 0).ok_or(libc::EINVAL)?;
                self.fs.set_label(&input[..end]).map_err(refuse)?;
                Ok(Vec::new())
            }
            _ => Err(libc::ENOTTY),
        }
    }
}
