//! The ioctls of ext4 that reach a FUSE server: those whose argument the kernel can copy by the
//! size and direction in their number.

use fs_core::Shutdown;

use super::{Answer, Sender, Service, inode_of, refuse};

const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC32_GETFLAGS: u32 = 0x8004_6601;
const FS_IOC32_SETFLAGS: u32 = 0x4004_6602;
const FS_IOC_GETVERSION: u32 = 0x8008_7601;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
const FITRIM: u32 = 0xc018_5879;
const EXT4_IOC_SHUTDOWN: u32 = 0x8004_587d;

/// `struct fsxattr`: xflags, extent size, extents, project, copy-on-write extent size, padding.
const FSXATTR_LEN: usize = 28;
/// Bits of `fsx_xflags` and the inode flags they stand for.
const XFLAGS: [(u32, u32); 6] =
    [(0x8, 0x10), (0x10, 0x20), (0x20, 0x8), (0x40, 0x80), (0x80, 0x40), (0x200, 0x2000_0000)];

/// Whether a successful ioctl has changed what the kernel remembers of the inode.
#[must_use]
pub fn changes_attributes(command: u32) -> bool {
    matches!(command, FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS | FS_IOC_FSSETXATTR)
}

impl Service {
    /// IOCTL: gives the bytes to copy out.
    pub fn ioctl(&self, sender: Sender, node: u64, command: u32, input: &[u8]) -> Answer<Vec<u8>> {
        let ino = inode_of(node)?;
        let caller = self.caller(sender, 0);
        let word =
            |at: usize| input.get(at..at + 4).and_then(|b| Some(u32::from_ne_bytes(b.try_into().ok()?)));
        let long =
            |at: usize| input.get(at..at + 8).and_then(|b| Some(u64::from_ne_bytes(b.try_into().ok()?)));
        match command {
            FS_IOC_GETFLAGS => {
                let flags = self.fs.flags(ino).map_err(refuse)?;
                Ok(u64::from(flags).to_ne_bytes().to_vec())
            }
            FS_IOC32_GETFLAGS => Ok(self.fs.flags(ino).map_err(refuse)?.to_ne_bytes().to_vec()),
            FS_IOC_SETFLAGS | FS_IOC32_SETFLAGS => {
                let flags = word(0).ok_or(libc::EINVAL)?;
                self.fs.set_flags(&caller, ino, flags).map_err(refuse)?;
                Ok(Vec::new())
            }
            FS_IOC_GETVERSION => {
                let attr = self.fs.getattr(ino).map_err(refuse)?;
                Ok(u64::from(attr.generation).to_ne_bytes().to_vec())
            }
            FS_IOC_FSGETXATTR => {
                let flags = self.fs.flags(ino).map_err(refuse)?;
                let shown = XFLAGS.iter().filter(|(_, f)| flags & f != 0).map(|(x, _)| x);
                let mut out = vec![0; FSXATTR_LEN];
                out[..4].copy_from_slice(&shown.fold(0, |all, x| all | x).to_ne_bytes());
                Ok(out)
            }
            FS_IOC_FSSETXATTR => {
                let (wanted, project) = (word(0).ok_or(libc::EINVAL)?, word(12).ok_or(libc::EINVAL)?);
                let known = XFLAGS.iter().fold(0, |all, (x, _)| all | x);
                if wanted & !known != 0 || project != 0 {
                    return Err(libc::EOPNOTSUPP);
                }
                let mapped = XFLAGS.iter().fold(0, |all, (_, f)| all | f);
                let set = XFLAGS.iter().filter(|(x, _)| wanted & x != 0).fold(0, |all, (_, f)| all | f);
                let old = self.fs.flags(ino).map_err(refuse)?;
                self.fs.set_flags(&caller, ino, (old & !mapped) | set).map_err(refuse)?;
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
            // The number says that the kernel gives this argument out, so FUSE does not bring the
            // flags in: without them the one that loses nothing is taken.
            EXT4_IOC_SHUTDOWN => {
                let how = match word(0) {
                    Some(2) => Shutdown::Cut,
                    Some(1) => Shutdown::FlushLog,
                    _ => Shutdown::Sync,
                };
                self.fs.shut_down(how).map_err(refuse)?;
                Ok(vec![0; 4])
            }
            _ => Err(libc::ENOTTY),
        }
    }
}
