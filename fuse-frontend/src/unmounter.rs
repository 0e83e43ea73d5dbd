//! `umount.fuse.rext4`: what umount(8) runs for a mount of ours that has no block device of its own.
//!
//! The kernel does not wait for the server of such a mount, so this does: for the end of the process that had
//! the image locked. There is nothing to wait for when nobody has (read-only), after a lazy unmount, or while
//! the volume is still mounted elsewhere.
//!
//! libmount (2.38) looks for a helper of the full type only when it has read the table of mounts: for a
//! relative path, an ordinary user, or with `-l`. For root's `umount /path` it asks statfs(2), which says
//! `fuse`. So this is installed as `umount.fuse` as well, and passes on what is not ours.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use blockdev::{Direct, Holder, OpenError, OpenOptions};
use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::mountpoint::{self, Entry};

/// The last transaction of a slow disk takes less. A mount that another namespace keeps has no end.
const PATIENCE: Timespec = Timespec { tv_sec: 119, tv_nsec: 0 };
/// After this it is said what is waited for.
const SILENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Unmounts a volume and waits until its server has written everything and has ended.
///
/// umount(8) runs this as the helper for mounts of type fuse.rext4.
#[derive(Parser)]
#[command(name = "umount.fuse.rext4", version)]
pub struct Args {
    /// The mount point.
    dir: PathBuf,
    /// Out of the tree now, the rest when nobody uses it any more; waits for nothing.
    #[arg(short)]
    lazy: bool,
    /// Give up what is under way.
    #[arg(short)]
    force: bool,
    /// Accepted for umount(8).
    #[arg(short, short_alias = 'v', short_alias = 'r', action = clap::ArgAction::Count)]
    no_mtab: u8,
    /// The type that umount(8) has found.
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
}

/// Does it.
///
/// # Errors
/// When it is no mount of ours, when it is in use, and when the server goes on.
pub fn run(args: &Args) -> Result<()> {
    let dir = &args.dir;
    let entry = Entry::of(dir).with_context(|| format!("{} is no mount point", dir.display()))?;
    if !entry.is_ours() {
        return pass_on(args);
    }
    let server = server_of(&entry.source);
    take_away(dir, args.lazy, args.force)?;
    match server {
        Some((server, pid)) if !args.lazy && !mountpoint::is_mounted(&entry.device) => {
            wait_for(&server, pid, &entry)
        }
        _ => Ok(()),
    }
}

/// Another FUSE filesystem: what umount(8) would have done without a helper.
fn pass_on(args: &Args) -> Result<()> {
    let mut command = Command::new("umount");
    command
        .arg("-i")
        .args(args.lazy.then_some("-l"))
        .args(args.force.then_some("-f"))
        .arg("--")
        .arg(&args.dir);
    let status = command.status().context("starting umount")?;
    ensure!(status.success(), "umount could not unmount {}", args.dir.display());
    Ok(())
}

/// The process that has the image locked.
fn server_of(image: &Path) -> Option<(OwnedFd, u32)> {
    let how =
        OpenOptions { read_only: true, offset: 0, direct: Direct::Never, exclusive: true, mounted: false };
    let Err(OpenError::InUse { holder: Holder::Process { pid, .. }, .. }) = blockdev::open(image, &how)
    else {
        return None;
    };
    let server = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
    Some((server, pid))
}

fn take_away(dir: &Path, lazy: bool, force: bool) -> Result<()> {
    let mut flags = UnmountFlags::empty();
    flags.set(UnmountFlags::DETACH, lazy);
    flags.set(UnmountFlags::FORCE, force);
    match unmount(dir, flags) {
        // An ordinary user's mount is taken away by the set-user-id helper.
        Err(Errno::PERM) => {
            let mut command = Command::new("fusermount3");
            command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(dir);
            let status = command.status().context("starting fusermount3")?;
            ensure!(status.success(), "fusermount3 could not unmount {}", dir.display());
            Ok(())
        }
        done => done.with_context(|| format!("unmounting {}", dir.display())),
    }
}

fn wait_for(server: &OwnedFd, pid: u32, entry: &Entry) -> Result<()> {
    if ends_within(server, &SILENCE)? {
        return Ok(());
    }
    let elsewhere = || {
        let users = blockdev::mounted_elsewhere(&entry.source, Some(&entry.device));
        users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let users = elsewhere();
    if users.is_empty() {
        eprintln!("umount.fuse.rext4: waiting for process {pid}, which is writing the volume out");
    } else {
        eprintln!(
            "umount.fuse.rext4: unmounted here; waiting for other mount namespaces, where it is still mounted: \
             {users}"
        );
    }
    if ends_within(server, &PATIENCE)? {
        return Ok(());
    }
    match elsewhere() {
        users if users.is_empty() => bail!("unmounted, but process {pid} still writes the volume out"),
        users => bail!(
            "unmounted here, but process {pid} still serves the volume in other mount namespaces: {users}"
        ),
    }
}

fn ends_within(server: &OwnedFd, time: &Timespec) -> Result<bool> {
    loop {
        match poll(&mut [PollFd::new(server, PollFlags::IN)], Some(time)) {
            Err(Errno::INTR) => {}
            ended => return Ok(ended.context("waiting for the server")? > 0),
        }
    }
}
