//! Mounting by ourselves: mount(2) as root, `fusermount3` for everybody else. Gives the descriptor
//! of the connection, and takes the mount away again when it goes.
//!
//! Type `fuseblk` names a block device that the kernel then claims for the mount: umount(2) waits
//! for the answer to DESTROY, and sync(2) reaches us.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::mountpoint;

/// How a mount is to look.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What is mounted, as the mount table shows it.
    pub source: PathBuf,
    /// `nodev`, `noatime` and their like.
    pub flags: MountFlags,
    /// Let users other than the one who mounts in.
    pub allow_other: bool,
    /// Have the kernel check permissions by mode and owner; else everybody who gets in may do everything.
    pub default_permissions: bool,
}

/// A mount. Dropped, it takes itself out of the tree, unless somebody has done that before.
pub struct Mount {
    device: File,
    dir: PathBuf,
    /// Device number of the mount, by which it is told from another one in its place.
    number: Option<(u32, u32)>,
    flags: MountFlags,
}

impl Mount {
    /// Mounts the block device `wish.source` with type `fuseblk`. Needs root.
    ///
    /// # Errors
    /// Those of mount(2): EBUSY when somebody else has claimed the device.
    pub fn block_device(dir: &Path, wish: &Wish) -> io::Result<Mount> {
        Mount::by_ourselves(dir, wish, "fuseblk.rext4", &format!(",blksize={}", blockdev::PAGE))
    }

    /// Mounts with type `fuse`.
    ///
    /// # Errors
    /// Those of /dev/fuse, of mount(2), or what `fusermount3` says.
    pub fn plain(dir: &Path, wish: &Wish) -> io::Result<Mount> {
        if rustix::process::geteuid().is_root() {
            match Mount::by_ourselves(dir, wish, "fuse.rext4", "") {
                // Root of a container may not; its fusermount3 possibly may.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                done => return done,
            }
        }
        let device = by_fusermount(dir, wish)?;
        Ok(Mount::of(device, dir, wish.flags))
    }

    fn by_ourselves(dir: &Path, wish: &Wish, fs_type: &str, more: &str) -> io::Result<Mount> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let kind = dir.metadata()?.mode() & libc::S_IFMT;
        let checks = if wish.default_permissions { ",default_permissions" } else { "" };
        let others = if wish.allow_other { ",allow_other" } else { "" };
        let fd = device.as_raw_fd();
        let data = format!("fd={fd},rootmode={kind:o},user_id={uid},group_id={gid}{checks}{others}{more}\0");
        let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).map_err(io::Error::other)?;
        mount(&wish.source, dir, fs_type, wish.flags, data)?;
        Ok(Mount::of(device, dir, wish.flags))
    }

    fn of(device: File, dir: &Path, flags: MountFlags) -> Mount {
        Mount { device, number: mountpoint::device_of(dir), dir: dir.to_owned(), flags }
    }

    /// The connection: requests are read from it, replies written to it.
    #[must_use]
    pub fn device(&self) -> &File {
        &self.device
    }

    /// The mount was taken away by somebody else: there is nothing left to do.
    pub fn is_gone(&mut self) {
        self.number = None;
    }

    /// Makes the mount read-only in the tree; the server is not asked.
    ///
    /// # Errors
    /// Those of mount(2).
    pub fn make_read_only(&self) -> io::Result<()> {
        if self.flags.contains(MountFlags::RDONLY) {
            return Ok(());
        }
        Ok(mount_remount(&self.dir, self.flags | MountFlags::RDONLY | MountFlags::BIND, c"")?)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.number.is_none() || mountpoint::device_of(&self.dir) != self.number {
            return;
        }
        if unmount(&self.dir, UnmountFlags::DETACH).is_err() {
            let _ = Command::new("fusermount3").arg("-uzq").arg("--").arg(&self.dir).status();
        }
    }
}

/// Lets the set-user-id helper mount, and receives the descriptor from it.
fn by_fusermount(dir: &Path, wish: &Wish) -> io::Result<File> {
    let (ours, theirs) = UnixStream::pair()?;
    // The child inherits this one; whatever else is started meanwhile has no use for it.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let child = Command::new("fusermount3")
        .arg("-o")
        .arg(words(wish))
        .arg("--")
        .arg(dir)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(theirs);
    let received = receive(&ours);
    let ended = child.wait_with_output()?;
    match received? {
        Some(device) if ended.status.success() => Ok(device.into()),
        _ => {
            let said = String::from_utf8_lossy(&ended.stderr);
            Err(io::Error::new(io::ErrorKind::PermissionDenied, said.trim().to_owned()))
        }
    }
}

fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    }))
}

/// The wish in fusermount3's words.
fn words(wish: &Wish) -> OsString {
    let mut words = b"fsname=".to_vec();
    for &byte in wish.source.as_os_str().as_bytes() {
        words.extend((byte == b'\\' || byte == b',').then_some(b'\\'));
        words.push(byte);
    }
    let mut add = |word: &str| {
        words.push(b',');
        words.extend(word.as_bytes());
    };
    add("subtype=rext4");
    if wish.default_permissions {
        add("default_permissions");
    }
    if wish.allow_other {
        add("allow_other");
    }
    let flags = [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NODEV, "nodev"),
        (MountFlags::NOSUID, "nosuid"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
        (MountFlags::NOATIME, "noatime"),
    ];
    flags.iter().filter(|(flag, _)| wish.flags.contains(*flag)).for_each(|(_, word)| add(word));
    OsString::from_vec(words)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_path_of_any_bytes_is_passed_on() {
        let flags = MountFlags::NODEV | MountFlags::RDONLY;
        let source = OsStr::from_bytes(b"/a,b\\\xff").into();
        let mut wish = Wish { source, flags, allow_other: true, default_permissions: true };
        let wanted = b"fsname=/a\\,b\\\\\xff,subtype=rext4,default_permissions,allow_other,ro,nodev";
        assert_eq!(words(&wish), OsStr::from_bytes(wanted));
        (wish.allow_other, wish.default_permissions) = (false, false);
        assert_eq!(words(&wish), OsStr::from_bytes(b"fsname=/a\\,b\\\\\xff,subtype=rext4,ro,nodev"));
    }
}
