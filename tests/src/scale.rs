//! How much: every test has a small size for `make test` and a full size for `make test-long`; and what a
//! test needs from the machine. A need that is not met is a skip in plain sight, and with `CI=true` a
//! failure.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::run::{output, tool};

/// Whether this run uses full sizes (`REXT4_SCALE=long`).
pub fn is_long() -> bool {
    std::env::var("REXT4_SCALE").is_ok_and(|scale| scale == "long")
}

/// The small value, or the full one.
pub fn pick<T>(small: T, full: T) -> T {
    if is_long() { full } else { small }
}

/// How long a test without a natural end goes on: `small`, or in a long run `REXT4_MINUTES` (`full_minutes`
/// unless set).
pub fn duration(small: Duration, full_minutes: u64) -> Duration {
    let set = std::env::var("REXT4_MINUTES").ok().and_then(|text| text.parse().ok());
    pick(small, Duration::from_secs(60 * set.unwrap_or(full_minutes)))
}

/// Something a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Effective user 0: loop devices, kernel mounts, owners, device nodes.
    Root,
    /// A free loop device.
    Loop,
    /// `/dev/fuse` and fusermount3.
    Fuse,
    /// FUSE over io_uring (Linux 6.14). Off by default; on while the tests run.
    Rings,
    /// A program by name.
    Tool(&'static str),
}

impl Need {
    fn is_met(self) -> bool {
        match self {
            Need::Root => rustix::process::geteuid().is_root(),
            Need::Loop => output(tool("losetup").arg("--find")).is_ok_and(|answer| answer.status.success()),
            Need::Fuse => Path::new("/dev/fuse").exists() && Need::Tool("fusermount3").is_met(),
            Need::Rings => crate::rings::are_on(),
            Need::Tool(name) => output(tool("sh").arg("-c").arg(format!("command -v {name}")))
                .is_ok_and(|answer| answer.status.success()),
        }
    }
}

/// Whether the test can run here. Says so past the test runner's capture when it cannot.
///
/// # Panics
/// With `CI=true` in the environment: there, what is not tested counts as broken.
pub fn can_run(test: &str, needs: &[Need]) -> bool {
    let through_rings = std::env::var("REXT4_TRANSPORT").is_ok_and(|transport| transport == "ring");
    let rings: &[Need] = if through_rings { &[Need::Rings] } else { &[] };
    let missing: Vec<&Need> = needs.iter().chain(rings).filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var("CI").map_or(true, |ci| ci != "true"),
        "{test} cannot run here, it needs {missing:?}"
    );
    // The test is skipped either way: a closed standard error changes nothing.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: this machine lacks {missing:?}");
    false
}

/// A folder for images: `REXT4_SCRATCH`, else memory where there is plenty, else the system's temporary
/// files.
pub fn scratch() -> PathBuf {
    const PLENTY: u64 = 2 << 30;
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |space| space.f_bavail * space.f_frsize);
    match std::env::var_os("REXT4_SCRATCH") {
        Some(dir) => PathBuf::from(dir),
        None if free >= PLENTY => memory.to_owned(),
        None => std::env::temp_dir(),
    }
}
