//! git: a round is a commit. git syncs what it writes and renames it, but never a folder, nor anything that
//! `git init` makes: what it promises by itself is that the repository stays whole; an fsync of the
//! references' folder now and then makes the last commit durable.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Program, at_least, in_dir, sync_dir};
use crate::run::tool;
use crate::tree::write_stream;

/// git.
pub struct Git;

fn git(dir: &Path, args: &[&str]) -> Result<String> {
    let mut command = tool("git");
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for (key, value) in [
        ("user.name", "crash lab"),
        ("user.email", "lab@localhost"),
        ("core.fsync", "all"),
        ("core.fsyncMethod", "fsync"),
        // The log of a reference is appended to without a sync.
        ("core.logAllRefUpdates", "false"),
        ("gc.auto", "0"),
    ] {
        command.arg("-c").arg(format!("{key}={value}"));
    }
    crate::run::run(command.args(args))
}

impl Program for Git {
    fn name(&self) -> &'static str {
        "git"
    }

    fn work(&self, root: &Path, rounds: u64, durable: &mut dyn FnMut(u64)) -> Result<()> {
        git(root, &["init", "-q", "-b", "main", "repository"])?;
        let dir = root.join("repository");
        for entry in walkdir::WalkDir::new(&dir) {
            std::fs::File::open(entry?.path())?.sync_all()?;
        }
        for round in 1..=rounds {
            for name in [format!("file{}", round % 5), format!("new{round}")] {
                write_stream(&std::fs::File::create(dir.join(name))?, round, 0, 3000 + round * 211 % 9000)?;
            }
            git(&dir, &["add", "-A"])?;
            git(&dir, &["commit", "-q", "-m", &format!("round {round}")])?;
            if round % 3 == 0 {
                sync_dir(&dir.join(".git/refs/heads"))?;
                durable(round);
            }
            if round % 7 == 6 {
                git(&dir, &["gc", "-q", "--prune=now"])?;
            }
        }
        Ok(())
    }

    fn check(&self, root: &Path, durable: u64) -> Result<()> {
        let dir = root.join("repository");
        if durable == 0 && git(&dir, &["rev-parse", "-q", "--verify", "HEAD"]).is_err() {
            return Ok(());
        }
        git(&dir, &["fsck", "--full", "--strict", "--no-dangling"]).context("git fsck")?;
        let subject = git(&dir, &["log", "-1", "--format=%s"])?;
        let newest: u64 = subject.trim().strip_prefix("round ").context("the subject")?.parse()?;
        let count: u64 = git(&dir, &["rev-list", "--count", "HEAD"])?.trim().parse()?;
        ensure!(count == newest, "{count} commits lead to round {newest}");
        // A lock of git's own outlives a cut, and is the user's to remove.
        in_dir(&dir, "find", &[".git", "-name", "*.lock", "-delete"])?;
        git(&dir, &["reset", "-q", "--hard"]).context("checking the commit out")?;
        at_least(newest, durable)
    }
}
