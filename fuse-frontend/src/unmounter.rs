//! `umount.fuse.rext4`: what umount(8) runs for a mount of ours that has no block device of its own.
//!
//! The kernel does not wait for the server of such a mount, so this does: for the end of the process that has
//! the mount's connection open. There is nothing to wait for after a lazy unmount, or while the volume is
//! still mounted elsewhere.
//!
//! libmount (2.38) looks for a helper of the full type only when it has read the table of mounts: for a
//! relative path, an ordinary user, or with `-l`. For root's `umount /path` it asks statfs(2), which says
//! `fuse`. So this is installed as `umount.fuse` as well, and passes on what is not ours: whatever fails
//! before it is known to be ours, umount(8) goes on as without a helper.
//!
//! It runs as root on what ordinary users have mounted, who choose type, source and mount point. No path of
//! the table is opened or looked at: its source may be a pipe, a tape, or a file of a filesystem that never
//! answers. Who serves is asked of the kernel.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use blockdev::MountEntry;
use clap::Parser;
use clap::error::ErrorKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::mountpoint;

/// umount(8)'s exit status for a failure.
const UMOUNT_FAILURE: u8 = 32;
/// Where programs are looked for first, whatever the caller's environment says.
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
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

/// Does what umount(8) asks for by `words`, its arguments for a helper.
pub fn run(words: &[OsString]) -> ExitCode {
    let args = match Args::try_parse_from(std::iter::once(&"umount.fuse.rext4".into()).chain(words)) {
        Ok(args) => args,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            error.exit()
        }
        Err(_) => return pass_on(words),
    };
    let Some(entry) = mountpoint::entry_of(&args.dir).filter(mountpoint::is_ours) else {
        return pass_on(words);
    };
    match unmount_ours(&args, &entry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("umount.fuse.rext4: {}", blockdev::in_one_line(error.as_ref()));
            ExitCode::from(UMOUNT_FAILURE)
        }
    }
}

fn unmount_ours(args: &Args, entry: &MountEntry) -> Result<()> {
    let server = server_of(entry);
    take_away(&args.dir, args.lazy, args.force)?;
    match server {
        Some((server, pid)) if !args.lazy && !mountpoint::is_mounted(entry.device) => {
            wait_for(&server, pid, entry)
        }
        _ => Ok(()),
    }
}

/// Has umount(8) do what it would have done without a helper.
fn pass_on(words: &[OsString]) -> ExitCode {
    let error = program("umount").arg("-i").args(words).exec();
    eprintln!("umount.fuse.rext4: starting umount: {error}");
    ExitCode::from(UMOUNT_FAILURE)
}

/// A program of the system's.
fn program(name: &str) -> Command {
    let mut path = OsString::from(SYSTEM_PATH);
    if let Some(inherited) = std::env::var_os("PATH") {
        path.push(":");
        path.push(inherited);
    }
    let mut command = Command::new(name);
    command.env("PATH", path);
    command
}

/// The process that serves a mount: one of the user who has mounted that has the connection open.
fn server_of(entry: &MountEntry) -> Option<(OwnedFd, u32)> {
    let user = owner_of(entry)?;
    let pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = pids
        .filter(|pid: &u32| fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == user))
        .find(|pid| serves(*pid, entry))?;
    let server = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
    // Or the number could be another process's by now.
    serves(pid, entry).then_some((server, pid))
}

/// The user who has mounted it, in the kernel's words.
fn owner_of(entry: &MountEntry) -> Option<u32> {
    let mut options = entry.fs_options.as_bytes().split(|byte| *byte == b',');
    let user = options.find_map(|option| option.strip_prefix(b"user_id="))?;
    std::str::from_utf8(user).ok()?.parse().ok()
}

/// Whether a process has the connection of a mount open. Recent kernels (6.18 does) say in fdinfo which
/// connection a descriptor of /dev/fuse is, by the filesystem's device number. With an older one it is a sign
/// that the process has open what is mounted, too.
fn serves(pid: u32, entry: &MountEntry) -> bool {
    let (major, minor) = entry.device;
    let wanted = u64::from(major) << 20 | u64::from(minor);
    let (mut is_any, mut has_source) = (false, false);
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let Ok(link) = fs::read_link(fd.path()) else { continue };
        has_source |= link == entry.source;
        if link != Path::new("/dev/fuse") {
            continue;
        }
        match connection_of(pid, &fd.file_name()) {
            Some(connection) if connection == wanted => return true,
            Some(_) => {}
            None => is_any = true,
        }
    }
    is_any && has_source
}

fn connection_of(pid: u32, fd: &OsStr) -> Option<u64> {
    let info = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("fdinfo").join(fd)).ok()?;
    info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().parse().ok()
}

fn take_away(dir: &Path, lazy: bool, force: bool) -> Result<()> {
    let mut flags = UnmountFlags::empty();
    flags.set(UnmountFlags::DETACH, lazy);
    flags.set(UnmountFlags::FORCE, force);
    match unmount(dir, flags) {
        // An ordinary user's mount is taken away by the set-user-id helper.
        Err(Errno::PERM) => {
            let mut command = program("fusermount3");
            command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(dir);
            let status = command.status().context("starting fusermount3")?;
            ensure!(status.success(), "fusermount3 could not unmount {}", dir.display());
            Ok(())
        }
        done => done.with_context(|| format!("unmounting {}", dir.display())),
    }
}

fn wait_for(server: &OwnedFd, pid: u32, entry: &MountEntry) -> Result<()> {
    if ends_within(server, &SILENCE)? {
        return Ok(());
    }
    let elsewhere = || {
        let users = blockdev::mounted_elsewhere(|other| other.device == entry.device);
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
