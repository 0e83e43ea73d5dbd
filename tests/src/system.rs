//! A system under test: something that formats and serves an ext4 image; and a mount, which cleans up after
//! itself.
//!
//! A [`Mounted`] is served by the kernel or by a server process in the foreground, our child. It ends in one
//! of three ways: [`Mounted::unmount`] (and the server has exited with status zero), [`Mounted::crash`] (kill
//! -9, or the kernel's shutdown ioctl), or by being dropped, which leaves neither mount, nor loop device, nor
//! process behind. A server that outlives its time limit is killed, so that a deadlock fails a test instead
//! of stopping it.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::run::{build_folder, output, run, spelled, tool};

/// Who formats and serves the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// mke2fs and the kernel's ext4 over a loop device.
    Kernel,
    /// mke2fs and fuse2fs over the image file.
    Fuse2fs,
    /// rext4 over the image file.
    Rext4Image,
    /// rext4 over a loop device.
    Rext4Loop,
}

impl System {
    /// The system that the tests judge: rext4, unless `REXT4_SUT` names another (to judge the tests).
    pub fn under_test() -> System {
        match std::env::var("REXT4_SUT").as_deref() {
            Ok("kernel") => System::Kernel,
            Ok("fuse2fs") => System::Fuse2fs,
            Ok("loop") => System::Rext4Loop,
            _ => System::Rext4Image,
        }
    }

    /// The name used in tables and options.
    pub fn name(self) -> &'static str {
        match self {
            System::Kernel => "kernel",
            System::Fuse2fs => "fuse2fs",
            System::Rext4Image => "rext4",
            System::Rext4Loop => "rext4-loop",
        }
    }

    /// Whether it is ours.
    pub fn is_rext4(self) -> bool {
        matches!(self, System::Rext4Image | System::Rext4Loop)
    }

    /// Makes `image` a file of `bytes` (sparse) and formats it; `args` as mke2fs spells them.
    pub fn mkfs(self, image: &Path, bytes: u64, args: &[&str]) -> Result<()> {
        let file = File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
        file.set_len(bytes)?;
        let mut command = if self.is_rext4() { binary("mkfs-rext4") } else { tool("mke2fs") };
        if !self.is_rext4() && !args.contains(&"-t") {
            command.args(["-t", "ext4"]);
        }
        run(command.args(["-q", "-F"]).args(args).arg(image))?;
        Ok(())
    }

    /// The program that mounts, without its arguments. rext4 takes the transport that `REXT4_TRANSPORT`
    /// names.
    pub fn mount_command(self) -> Command {
        match self {
            System::Kernel => {
                let mut command = tool("mount");
                command.args(["-t", "ext4"]);
                command
            }
            System::Fuse2fs => tool("fuse2fs"),
            System::Rext4Image | System::Rext4Loop => {
                let mut command = binary("mount-rext4");
                if let Ok(transport) = std::env::var("REXT4_TRANSPORT") {
                    command.args(["-o", &format!("transport={transport}")]);
                }
                command
            }
        }
    }

    /// Mounts `image` on a new folder of its own.
    pub fn mount(self, image: &Path) -> Result<Mounted> {
        self.mount_with(image, &Options::default())
    }

    /// Mounts `image` on a new folder, with options.
    pub fn mount_with(self, image: &Path, options: &Options) -> Result<Mounted> {
        Mounted::new(self, image, options)
    }
}

/// Whether rext4 serves through the library's door (`REXT4_TRANSPORT=fuser`), which can do less than our own.
#[must_use]
pub fn through_fuser() -> bool {
    std::env::var("REXT4_TRANSPORT").is_ok_and(|transport| transport == "fuser")
}

/// A program of this workspace: from `REXT4_BIN`, or from where the running program was built.
pub fn binary(name: &str) -> Command {
    let folder = std::env::var_os("REXT4_BIN").map_or_else(build_folder, PathBuf::from);
    tool(&folder.join(name).to_string_lossy())
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// Words for `-o`, joined by commas.
    pub words: Vec<String>,
    /// Serve as this user and group instead of root's (FUSE systems only).
    pub user: Option<(u32, u32)>,
    /// The server is killed after this time.
    pub time_limit: Duration,
    /// File that receives the server's standard error.
    pub log: Option<PathBuf>,
    /// Have rext4 say what it does (`-v`).
    pub verbose: bool,
    /// Have rext4 name each request (`-d`).
    pub debug: bool,
}

impl Default for Options {
    fn default() -> Options {
        let time_limit = crate::scale::pick(Duration::from_secs(300), Duration::from_secs(4 * 3600));
        Options { words: Vec::new(), user: None, time_limit, log: None, verbose: false, debug: false }
    }
}

impl Options {
    /// For use by other users than the one who mounts.
    pub fn for_all(system: System) -> Options {
        if system == System::Kernel { Options::default() } else { Options::words(&["allow_other"]) }
    }

    /// With these words for `-o`.
    pub fn words(words: &[&str]) -> Options {
        Options { words: words.iter().map(|word| (*word).to_owned()).collect(), ..Options::default() }
    }
}

/// A command that runs as another user.
pub fn as_user(command: Command, (uid, gid): (u32, u32)) -> Command {
    let mut wrapped = tool("setpriv");
    wrapped.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).args(["--clear-groups", "--"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped
}

/// A loop device over an image, detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `image` to a free loop device.
    pub fn attach(image: &Path) -> Result<LoopDevice> {
        let path = run(tool("losetup").args(["--find", "--show"]).arg(image))?;
        Ok(LoopDevice { path: PathBuf::from(path.trim()) })
    }

    /// The same with sectors of `bytes`; past the page cache on its own way to the image, if that works.
    pub fn attach_with_sectors(image: &Path, bytes: u32) -> Result<LoopDevice> {
        let mut command = tool("losetup");
        command.args(["--find", "--show", "--direct-io=on", "--sector-size", &bytes.to_string()]);
        let path = run(command.arg(image))?;
        Ok(LoopDevice { path: PathBuf::from(path.trim()) })
    }

    /// The same, for reading only: writes to it fail, whatever the file's mode.
    pub fn attach_read_only(image: &Path) -> Result<LoopDevice> {
        let path = run(tool("losetup").args(["--find", "--show", "--read-only"]).arg(image))?;
        Ok(LoopDevice { path: PathBuf::from(path.trim()) })
    }

    /// The device's node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The kernel detaches it once the last user has closed it; there is nobody to tell about a failure.
        let _ = output(tool("losetup").arg("-d").arg(&self.path));
    }
}

/// A server process in the foreground, with the time limit's thread beside it.
#[derive(Debug)]
struct Server {
    child: Child,
    point: PathBuf,
    log: PathBuf,
    _log_folder: Option<tempfile::TempDir>,
    alive: mpsc::Sender<()>,
}

impl Server {
    fn start(mut command: Command, point: &Path, options: &Options) -> Result<Server> {
        let folder = options.log.is_none().then(tempfile::tempdir).transpose()?;
        let log = match (&options.log, &folder) {
            (Some(log), _) => log.clone(),
            (None, folder) => folder.as_ref().context("a folder for the log")?.path().join("log"),
        };
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdin(std::process::Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", spelled(&command)))?;
        let (alive, ended) = mpsc::channel();
        let (pid, limit, point) = (Pid::from_child(&child), options.time_limit, point.to_owned());
        let mounted_on = point.clone();
        std::thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("server {pid:?} exceeded {limit:?} and is killed");
                let _ = kill_process(pid, Signal::KILL);
                give_up(&mounted_on);
            }
        });
        Ok(Server { child, point, log, _log_folder: folder, alive })
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_until_mounted(&mut self) -> Result<()> {
        let point = &self.point;
        let deadline = Instant::now() + Duration::from_secs(60);
        // A server may mount before it has looked at the volume: statfs waits until it answers.
        while !(is_mounted(point)? && rustix::fs::statfs(point).is_ok() && is_mounted(point)?) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended before it mounted ({status}): {}", self.said());
            }
            ensure!(Instant::now() < deadline, "no mount after a minute: {}", self.said());
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the server ended with {status}: {}", self.said());
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let status = self.end_by_force()?;
        ensure!(status.signal() == Some(9), "the server had ended before, with {status}: {}", self.said());
        Ok(())
    }
}

impl Server {
    /// A thread that waits inside the kernel for pages dies when the connection does (docs/COMPATIBILITY.md).
    fn end_by_force(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        give_up(&self.point);
        Ok(self.child.wait()?)
    }
}

/// Has the kernel end every request of the mount on `point`, also where that stays in the tree.
fn give_up(point: &Path) {
    let _ = unmount(point, UnmountFlags::FORCE);
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end_by_force();
        let _ = self.alive.send(());
    }
}

/// Locked, shared, by every process that lives in a copy of the tree of mounts.
const COPIES: &str = "/run/rext4-tests-mounts";

/// The beginning of a command that runs with a tree of mounts of its own, a copy of what there is.
pub fn with_own_mounts() -> Command {
    let mut command = tool("flock");
    command.args(["-s", COPIES, "unshare", "--mount"]);
    command
}

/// Waits until there is no copy of the tree of mounts, which would keep a mount alive after its umount, and
/// keeps others from making one while the file is open.
pub fn the_only_mounts() -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(COPIES)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Whether something is mounted on `point`, read without asking the filesystem itself.
pub fn is_mounted(point: &Path) -> Result<bool> {
    Ok(blockdev::mount_table()?.iter().any(|entry| entry.point == point))
}

/// Unmounts, by the setuid helper where we may not do it ourselves.
fn take_away(point: &Path, flags: UnmountFlags) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        // A child of another test, forked a moment ago, may have what this one has open until it runs its program.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match unmount(point, flags) {
                Err(Errno::BUSY) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => return done.with_context(|| format!("umount {}", point.display())),
            }
        }
    }
    let lazily: &[&str] = if flags.contains(UnmountFlags::DETACH) { &["-z"] } else { &[] };
    run(tool("fusermount3").arg("-u").args(lazily).arg(point)).map(drop)
}

/// A mounted image.
#[derive(Debug)]
pub struct Mounted {
    system: System,
    // Dropped in this order: server, loop device, folder.
    server: Option<Server>,
    device: Option<LoopDevice>,
    point: tempfile::TempDir,
    is_live: bool,
}

impl Mounted {
    fn new(system: System, image: &Path, options: &Options) -> Result<Mounted> {
        let point = tempfile::Builder::new().prefix("rext4-mnt-").tempdir()?;
        if let Some((uid, gid)) = options.user {
            std::os::unix::fs::chown(point.path(), Some(uid), Some(gid))?;
        }
        let device = match system {
            System::Kernel if !options.words.iter().any(|word| word.starts_with("offset=")) => {
                Some(LoopDevice::attach(image)?)
            }
            System::Rext4Loop => Some(LoopDevice::attach(image)?),
            _ => None,
        };
        let source = device.as_ref().map_or(image, LoopDevice::path).to_owned();
        let mut mounted = Mounted { system, server: None, device, point, is_live: true };
        let words = options.words.join(",");
        let with_words = |command: &mut Command| {
            if !words.is_empty() {
                command.args(["-o", &words]);
            }
        };
        if system == System::Kernel {
            let mut command = system.mount_command();
            with_words(&mut command);
            run(command.arg(source).arg(mounted.path()))?;
            return Ok(mounted);
        }
        let mut command = system.mount_command();
        command.arg("-f").arg(source).arg(mounted.path());
        command.args(options.verbose.then_some("-v")).args(options.debug.then_some("-d"));
        with_words(&mut command);
        let command = match options.user {
            Some(user) => as_user(command, user),
            None => command,
        };
        let mut server = Server::start(command, mounted.path(), options)?;
        server.wait_until_mounted()?;
        mounted.server = Some(server);
        Ok(mounted)
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// A counter of rext4's, which was mounted with `-o stats`.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let mut bytes = [0; 4096];
        let length = rustix::fs::getxattr(self.path(), "rext4.stats", &mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(value.with_context(|| format!("no {name} in {text}"))?.parse()?)
    }

    /// The loop device under it, if there is one.
    pub fn device(&self) -> Option<&Path> {
        self.device.as_ref().map(LoopDevice::path)
    }

    /// The server's process id; none for the kernel.
    pub fn server_pid(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.child.id())
    }

    /// A line of proc_pid_status(5) about the server's memory, in KiB; 0 if there is none.
    pub fn server_memory_kib(&self, field: &str) -> u64 {
        let Some(pid) = self.server_pid() else { return 0 };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// What the server has written to its standard output and error.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Server::said).unwrap_or_default()
    }

    /// Drops the clean pages, entries and inodes of the whole machine, and those of this mount with them.
    pub fn drop_caches(&self) -> Result<()> {
        rustix::fs::syncfs(File::open(self.path())?)?;
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
        Ok(())
    }

    /// Unmounts, waits for the server's end, and frees the loop device.
    pub fn unmount(mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match take_away(self.path(), UnmountFlags::empty()) {
                // Another process of the machine may look into every mount for a moment.
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                answer => break answer.with_context(|| format!("the server said: {}", self.log()))?,
            }
        }
        self.is_live = false;
        self.end_of_server()
    }

    /// Waits for a server that was told to end (by a signal or by someone else's umount).
    pub fn end_of_server(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.wait()?;
        }
        self.is_live = is_mounted(self.path())?;
        Ok(())
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let server = self.server.as_ref().context("the kernel takes no signals")?;
        Ok(kill_process(Pid::from_child(&server.child), signal)?)
    }

    /// Takes the system away in the middle of its work: kill -9 of the server. The kernel cannot be killed
    /// and stands in with an orderly end at a moment of ours: what was there is on the device, nothing later
    /// is.
    pub fn crash(mut self) -> Result<()> {
        match self.server.take() {
            Some(mut server) => server.kill()?,
            None => shut_down(self.path())?,
        }
        Ok(())
    }
}

/// EXT4_IOC_SHUTDOWN after a freeze. (Without it, on Linux 6.18, an fsync that races with the ioctl may
/// report success for data that are lost.)
fn shut_down(point: &Path) -> Result<()> {
    let name = point.join(".shutdown");
    File::create(&name)?;
    let script = r#"open F, "<", $ARGV[0] or die; my $f = pack "L", 0; ioctl F, 0x8004587d, $f or die $!"#;
    run(tool("perl").args(["-e", script]).arg(name))?;
    Ok(())
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_live {
            let _ = take_away(self.path(), UnmountFlags::DETACH);
        }
        drop(self.server.take());
        if self.system == System::Kernel && self.device.is_some() {
            wait_for_detach(self.device.take());
        }
    }
}

/// A lazy unmount ends in the background; the image may not be touched before.
fn wait_for_detach(device: Option<LoopDevice>) {
    let Some(path) = device.as_ref().map(|device| device.path().to_owned()) else { return };
    drop(device);
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline
        && output(tool("losetup").arg(&path)).is_ok_and(|answer| answer.status.success())
    {
        std::thread::sleep(Duration::from_millis(10));
    }
}
