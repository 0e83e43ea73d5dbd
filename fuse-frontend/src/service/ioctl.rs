//! The ioctls of ext4 that reach a FUSE server: those whose argument the kernel can copy by the
//! size and direction in their number. What comes out has the size that the kernel's ext4 writes, which
//! is not always the one in the number: FS_IOC_GETVERSION says a `long`, writes an `int`, and that is what
//! callers have room for. EXT4_IOC_SHUTDOWN says the wrong direction: its flags have to be read from
//! the caller's memory.
//!
//! (Of FS_IOC_GETFLAGS, SETFLAGS, FSGETXATTR and FSSETXATTR the VFS does its own part: 32-bit numbers become
//! these, and who may call is checked before we are asked.)

use std::io;

use fs_core::{Credentials, Node, Shutdown, flag};

use super::caller::{self, Capability};
use super::{Answer, Sender, Service, refuse};

const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_GETVERSION: u32 = 0x8008_7601;
const FS_IOC32_GETVERSION: u32 = 0x8004_7601;
const EXT4_IOC_GETVERSION: u32 = 0x8008_6603;
const EXT4_IOC32_GETVERSION: u32 = 0x8004_6603;
const EXT4_IOC_ALLOC_DA_BLKS: u32 = 0x660c;
const FS_IOC_GETFSLABEL: u32 = 0x8100_9431;
const FS_IOC_SETFSLABEL: u32 = 0x4100_9432;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
const FITRIM: u32 = 0xc018_5879;
/// Its argument, the flags, is in the caller's memory ([`shutdown_asked`]).
pub const EXT4_IOC_SHUTDOWN: u32 = 0x8004_587d;

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
/// Bytes that FS_IOC_GETFSLABEL writes: the superblock's 16, and a zero.
const SHOWN_LABEL_LEN: usize = 17;

/// The 64-bit number of an ioctl. Those of 32-bit programs have numbers of their own, which mean nothing to others.
#[must_use]
pub fn native(command: u32, is_compat: bool) -> u32 {
    match command {
        FS_IOC32_GETVERSION if is_compat => FS_IOC_GETVERSION,
        EXT4_IOC32_GETVERSION if is_compat => EXT4_IOC_GETVERSION,
        _ => command,
    }
}

/// Whether a successful ioctl has changed what the kernel remembers of the inode.
#[must_use]
pub fn changes_attributes(command: u32) -> bool {
    matches!(command, FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR)
}

/// Whether what the kernel has cached of the file must be written to us before this ioctl.
#[must_use]
pub fn wants_cached_data(command: u32) -> bool {
    command == EXT4_IOC_ALLOC_DA_BLKS
}

/// The shutdown that is asked for by the `word` at the argument's address, if that could be read.
///
/// # Errors
/// EINVAL for flags that do not exist, EFAULT for an address where nothing is.
pub fn shutdown_asked(word: io::Result<u32>) -> Answer<Shutdown> {
    match word {
        Ok(0) => Ok(Shutdown::Sync),
        Ok(1) => Ok(Shutdown::FlushLog),
        Ok(2) => Ok(Shutdown::Cut),
        Ok(_) => Err(libc::EINVAL),
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Err(libc::EFAULT),
        // Not for us to read: the one that loses nothing.
        Err(_) => Ok(Shutdown::Sync),
    }
}

impl Service {
    /// Whether the caller may use this ioctl on this file; of those that the VFS knows it has been asked.
    ///
    /// # Errors
    /// As the kernel's ext4 says: EPERM without CAP_SYS_ADMIN, EACCES for a file of somebody else's, EROFS
    /// through a read-only mount, as far as that is known (`caller`).
    pub fn may_ioctl(&self, sender: Sender, node: u64, command: u32) -> Answer<()> {
        match command {
            FITRIM | EXT4_IOC_SHUTDOWN | FS_IOC_SETFSLABEL => {
                self.demand(sender, Capability::SysAdmin, libc::EPERM)
            }
            EXT4_IOC_ALLOC_DA_BLKS => {
                let attr = self.nodes.get(node)?.node().attributes().map_err(refuse)?;
                if attr.uid != sender.uid {
                    self.demand(sender, Capability::FileOwner, libc::EACCES)?;
                }
                demand_writable_mount(sender)
            }
            _ => Ok(()),
        }
    }

    /// As whom flags are set. The VFS has asked for the same before (since Linux 5.13), which is what counts where
    /// the caller cannot be looked at.
    fn setter_of_flags(&self, sender: Sender, node: &Node) -> Answer<Credentials> {
        if self.fake_root || sender.uid == 0 {
            return Ok(Credentials::root());
        }
        let owner = node.attributes().map_err(refuse)?.uid;
        if owner != sender.uid {
            self.demand(sender, Capability::FileOwner, libc::EPERM)?;
        }
        let may_all = caller::has_capability(sender.thread, Capability::LinuxImmutable);
        Ok(if may_all {
            Credentials::root()
        } else {
            Credentials { uid: owner, gid: sender.gid, ..Credentials::root() }
        })
    }

    fn demand(&self, sender: Sender, capability: Capability, refusal: i32) -> Answer<()> {
        if self.fake_root || caller::has_capability(sender.thread, capability) {
            Ok(())
        } else {
            Err(refusal)
        }
    }

    /// EXT4_IOC_SHUTDOWN, once [`Service::may_ioctl`] has let the caller.
    pub fn shut_down(&self, how: Shutdown) -> Answer<()> {
        self.fs.shut_down(how).map_err(refuse)
    }

    /// IOCTL: gives the bytes to copy out.
    pub fn ioctl(&self, sender: Sender, node: u64, command: u32, input: &[u8]) -> Answer<Vec<u8>> {
        self.may_ioctl(sender, node, command)?;
        let known = self.nodes.get(node)?;
        let node = known.node();
        let word =
            |at: usize| input.get(at..at + 4).and_then(|b| Some(u32::from_ne_bytes(b.try_into().ok()?)));
        let long =
            |at: usize| input.get(at..at + 8).and_then(|b| Some(u64::from_ne_bytes(b.try_into().ok()?)));
        match command {
            FS_IOC_GETFLAGS => Ok(node.flags().map_err(refuse)?.to_ne_bytes().to_vec()),
            FS_IOC_SETFLAGS => {
                let flags = word(0).ok_or(libc::EINVAL)?;
                let caller = self.setter_of_flags(sender, node)?;
                node.set_flags_as(&caller, flags).map_err(refuse)?;
                Ok(Vec::new())
            }
            FS_IOC_GETVERSION | EXT4_IOC_GETVERSION => {
                let attr = node.attributes().map_err(refuse)?;
                Ok(attr.generation.to_ne_bytes().to_vec())
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
                let caller = self.setter_of_flags(sender, node)?;
                node.set_flags_as(&caller, (old & !mapped) | set).map_err(refuse)?;
                Ok(Vec::new())
            }
            FITRIM => {
                let arg = |at| long(at).ok_or(libc::EINVAL);
                let trimmed = self.fs.trim(arg(0)?, arg(8)?, arg(16)?).map_err(refuse)?;
                let mut out = input[..24].to_vec();
                out[8..16].copy_from_slice(&trimmed.to_ne_bytes());
                Ok(out)
            }
            // Without the argument: what loses nothing.
            EXT4_IOC_SHUTDOWN => self.shut_down(Shutdown::Sync).map(|()| Vec::new()),
            EXT4_IOC_ALLOC_DA_BLKS => {
                node.place_data().map_err(refuse)?;
                Ok(Vec::new())
            }
            FS_IOC_GETFSLABEL => {
                let mut out = self.fs.label().map_err(refuse)?;
                out.resize(SHOWN_LABEL_LEN, 0);
                Ok(out)
            }
            FS_IOC_SETFSLABEL => {
                let end =
                    input.iter().take(SHOWN_LABEL_LEN).position(|byte| *byte == 0).ok_or(libc::EINVAL)?;
                demand_writable_mount(sender)?;
                self.fs.set_label(&input[..end]).map_err(refuse)?;
                Ok(Vec::new())
            }
            _ => Err(libc::ENOTTY),
        }
    }
}

fn demand_writable_mount(sender: Sender) -> Answer<()> {
    if caller::calls_through_read_only_mount(sender.thread) { Err(libc::EROFS) } else { Ok(()) }
}
