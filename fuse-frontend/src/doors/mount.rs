//! Mounting by ourselves: mount(2) as root, `fusermount3` for everybody else. Gives the descriptor
//! of the connection, and takes the mount away again when it goes.
//!
//! Type `fuseblk` names a block device that the kernel then claims for the mount: umount(2) waits
//! for the answer to DESTROY, and sync(2) reaches us.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
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
}

/// A mount. Dropped, it takes itself out of the tree, unless somebody has done that before.
pub struct Mount {
    device: File,
    dir: PathBuf,
    /// `major:minor` of the mount, by which it is told from another one in its place.
    number: Option<String>,
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
        let others = if wish.allow_other { ",allow_other" } else { "" };
        let fd = device.as_raw_fd();
        let data = format!(
            "fd={fd},rootmode={kind:o},user_id={uid},group_id={gid},default_permissions{others}{more}\0"
        );
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
fn words(wish: &Wish) -> String {
    let source = wish.source.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,");
    let mut words = vec![format!("fsname={source}"), "subtype=rext4".into(), "default_permissions".into()];
    if wish.allow_other {
        words.push("allow_other".into());
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
    words.extend(flags.iter().filter(|(flag, _)| wish.flags.contains(*flag)).map(|(_, word)| (*word).into()));
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_no_separator() {
        let flags = MountFlags::NODEV | MountFlags::RDONLY;
        let wish = Wish { source: "/a,b".into(), flags, allow_other: true };
        assert_eq!(words(&wish), "fsname=/a\\,b,subtype=rext4,default_permissions,allow_other,ro,nodev");
    }
}
