//! Commands: started with a known environment, and errors that say what was run and what it answered.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Where cargo put the running program, and its neighbours with it.
pub fn build_folder() -> PathBuf {
    let own = std::env::current_exe().expect("a program knows its own file");
    let folder = own.parent().expect("a file lies in a folder");
    if folder.ends_with("deps") { folder.parent().unwrap_or(folder).to_owned() } else { folder.to_owned() }
}

/// A command that finds the tools of `sbin` and those of `make tools`, and answers in plain English.
///
/// The program is looked up here: where `PATH` is changed the standard library would fork to do it, which
/// copies the page tables of a crash lab, and gives the child copies of all descriptors for a while.
pub fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{path}:/usr/sbin:/sbin:{}", build_folder().join("../tools/bin").display());
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| name.into()));
    command.env("PATH", path).env("LC_ALL", "C");
    command
}

/// The command as one would type it.
pub fn spelled(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs to the end; an error only when it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot run `{}`", spelled(command)))
}

/// Runs to the end and returns standard output; any exit status but zero is an error with both outputs in it.
pub fn run(command: &mut Command) -> Result<String> {
    let answer = output(command)?;
    if !answer.status.success() {
        bail!("`{}`: {}\n{}", spelled(command), answer.status, both(&answer));
    }
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}

/// umount(8). A mount may be busy for a moment: a child that another thread of ours has forked holds copies of
/// our descriptors until it execs, and other processes of the machine look into every mount.
pub fn umount(point: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match run(tool("umount").arg(point)) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            answer => return answer.map(drop),
        }
    }
}

/// Standard output and standard error, one after the other.
pub fn both(answer: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr))
}
