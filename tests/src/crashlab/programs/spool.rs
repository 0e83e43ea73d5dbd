//! A mail spool as maildir makes it: a mail is written in `tmp`, fsynced, renamed into `new`, and `new` is
//! fsynced. Old mails are deleted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Program, sync_dir};
use crate::tree::{fill, write_stream};

/// The spool.
pub struct Spool;

fn mail(root: &Path, round: u64) -> PathBuf {
    root.join("new").join(round.to_string())
}

fn length(round: u64) -> u64 {
    1 + round * 7919 % 30_000
}

/// The mail that is deleted in this round.
fn victim(round: u64) -> Option<u64> {
    (round.is_multiple_of(3) && round > 4).then(|| round - 4)
}

impl Program for Spool {
    fn name(&self) -> &'static str {
        "spool"
    }

    fn work(&self, root: &Path, rounds: u64, durable: &mut dyn FnMut(u64)) -> Result<()> {
        for dir in ["tmp", "new"] {
            fs::create_dir(root.join(dir))?;
        }
        for round in 1..=rounds {
            let draft = root.join("tmp").join(round.to_string());
            let file = File::create(&draft)?;
            write_stream(&file, round, 0, length(round))?;
            file.sync_all()?;
            fs::rename(&draft, mail(root, round))?;
            if let Some(victim) = victim(round) {
                fs::remove_file(mail(root, victim))?;
            }
            sync_dir(&root.join("new"))?;
            durable(round);
        }
        Ok(())
    }

    fn check(&self, root: &Path, durable: u64) -> Result<()> {
        let deleted = |by: u64, round: u64| (1..=by).any(|at| victim(at) == Some(round));
        for round in 1..=durable + 1 {
            let whole = is_whole(&mail(root, round), round).with_context(|| format!("mail {round}"))?;
            let must_be = round <= durable && !deleted(durable + 1, round);
            ensure!(whole || !must_be, "mail {round} is gone");
            ensure!(!whole || !deleted(durable, round), "mail {round} is back");
        }
        Ok(())
    }
}

/// Whether the mail is there; an error if it is there in part.
fn is_whole(path: &Path, round: u64) -> Result<bool> {
    let Ok(bytes) = fs::read(path) else { return Ok(false) };
    let mut expected = vec![0; length(round) as usize];
    fill(round, 0, &mut expected);
    ensure!(bytes == expected, "delivered, but not whole ({} bytes)", bytes.len());
    Ok(true)
}
