//! Going to the background: the command that the user typed starts a copy of itself as the
//! server, waits until that has mounted (or hears why not), and ends.
//!
//! The server tells over its standard output: one line, `ready` or the reason. Re-executing
//! instead of forking keeps threads out of the question.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Set in the server's environment; its value means nothing.
const MARK: &str = "REXT4_SERVER";
const READY: &str = "ready";

/// Whether this process is the server that another one waits for.
#[must_use]
pub fn is_server() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts the server with the same arguments and waits for its word.
pub fn start_server() -> Result<()> {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let exe = std::env::current_exe().context("finding this program again")?;
    let mut command = Command::new(exe);
    std::os::unix::process::CommandExt::arg0(&mut command, name);
    let mut child = command
        .args(args)
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the server")?;
    let stdout = child.stdout.take().context("the server's standard output")?;
    let mut word = String::new();
    BufReader::new(stdout).read_line(&mut word).context("waiting for the server")?;
    match word.trim_end() {
        READY => Ok(()),
        "" => {
            let status = child.wait().context("waiting for the server")?;
            bail!("the server ended before it had mounted ({status})")
        }
        reason => bail!("{reason}"),
    }
}

/// Tells the waiting command that the mount answers, and lets go of its terminal.
pub fn report_ready() -> Result<()> {
    report(READY)?;
    let _ = nix::unistd::setsid();
    let _ = nix::unistd::chdir("/");
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(null.as_fd())?;
    nix::unistd::dup2_stderr(null.as_fd())?;
    Ok(())
}

/// Tells the waiting command why there is no mount.
pub fn report_failure(error: &anyhow::Error) {
    let _ = report(&blockdev::in_one_line(error.as_ref()));
}

fn report(word: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{word}")?;
    out.flush()?;
    Ok(())
}
