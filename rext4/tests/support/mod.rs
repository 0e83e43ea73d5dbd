//! What the tests of this crate share: programs run as an ordinary user, and what e2fsck and the kernel say of an
//! image.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, chown, lchown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The ordinary user and group that root's tests run programs as.
pub const NOBODY: u32 = 65534;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A skipped test fails where everything must run.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped with CI set: {why}");
    eprintln!("SKIPPED: {why}");
}

/// A folder that an ordinary user may write to.
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    give(folder.path());
    folder
}

/// Makes the file at `path` the ordinary user's.
pub fn give(path: &Path) {
    if is_root() {
        lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A program to be run by an ordinary user, in `folder`.
pub fn as_user(program: &Path, folder: &Path) -> Command {
    // The folder that it was built in may be closed to others. Copied by another process: a file that is open for
    // writing here, or in a child that another thread has just forked, cannot be run.
    let copy = folder.join(program.file_name().unwrap());
    if !copy.exists() {
        run(Command::new("cp").arg(program).arg(&copy));
    }
    let mut command = Command::new(&copy);
    command.current_dir(folder);
    if is_root() {
        chown(&copy, Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// An example of this package, to be run by an ordinary user. `cargo test` builds it, but not when it is told to build
/// one test only.
pub fn example(name: &str, folder: &Path) -> Command {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_new = ["src", "examples"].into_iter().all(|folder| {
        let sources = tree(&package.join(folder));
        let mut own =
            sources.keys().filter(|path| folder == "src" || path.with_extension("").starts_with(name));
        own.all(|source| time(&package.join(folder).join(source)) <= time(&built))
    });
    assert!(is_new, "{} is missing or old: run `cargo build -p rext4 --examples` first", built.display());
    as_user(&built, folder)
}

/// Runs to the end, with success; gives standard output.
pub fn run(command: &mut Command) -> Vec<u8> {
    let answer = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&answer.stderr);
    assert!(answer.status.success(), "{command:?}: {}\n{error}", answer.status);
    answer.stdout
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// Asserts that e2fsck and our own check find nothing.
pub fn assert_clean(image: &Path) {
    let report = rext4::check(image).unwrap();
    assert!(report.is_clean() && report.findings.is_empty(), "{}", report.summary());
    match tool("e2fsck").arg("-fn").arg(image).output() {
        Err(_) => skip("e2fsck is not installed"),
        Ok(answer) => {
            let said = String::from_utf8_lossy(&answer.stdout);
            assert!(answer.status.success() && !said.contains("skipping journal recovery"), "{said}");
        }
    }
}

/// A file as stat(2) shows it, with its content or target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub content: Vec<u8>,
}

/// All files below a folder.
pub fn tree(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut seen, mut todo) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(folder.join(&at)).unwrap() {
            let entry = entry.unwrap();
            let (path, meta) = (at.join(entry.file_name()), entry.metadata().unwrap());
            if path == Path::new("lost+found") {
                continue;
            }
            let content = match meta.file_type() {
                kind if kind.is_file() => fs::read(entry.path()).unwrap(),
                kind if kind.is_symlink() => OsString::from(fs::read_link(entry.path()).unwrap()).into_vec(),
                _ => Vec::new(),
            };
            if meta.is_dir() {
                todo.push(path.clone());
            }
            let (owner, mtime) = ((meta.uid(), meta.gid()), (meta.mtime(), meta.mtime_nsec()));
            seen.insert(path, Seen { mode: meta.mode(), owner, mtime, content });
        }
    }
    seen
}

/// What the kernel shows of a volume; `None` where it cannot be mounted, which is said.
pub fn kernel_tree(image: &Path) -> Option<BTreeMap<PathBuf, Seen>> {
    if !is_root() {
        skip("the kernel mounts for root only");
        return None;
    }
    let point = tempfile::tempdir().unwrap();
    run(tool("mount").args(["-t", "ext4", "-o", "loop,ro"]).arg(image).arg(point.path()));
    let seen = std::panic::catch_unwind(|| tree(point.path()));
    // Other processes of the machine may look into every mount for a moment, and the loop device ends after it.
    wait_until(|| tool("umount").arg(point.path()).status().unwrap().success());
    wait_until(|| run(tool("losetup").arg("-j").arg(image)).is_empty());
    Some(seen.unwrap())
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "the image is still mounted");
        std::thread::sleep(Duration::from_millis(20));
    }
}
