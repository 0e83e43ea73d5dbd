//! Installing packages as dpkg does: each file is written beside the old one, fsynced, and renamed over it;
//! when all are there, the status is replaced in the same way and its folder fsynced.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Program, at_least, sync_dir};
use crate::tree::{fill, write_stream};

/// The packages.
pub struct Packages;

const FILES: u64 = 6;

fn stream(round: u64, file: u64) -> (u64, u64) {
    (round * 100 + file, 500 + (round * 31 + file * 1009) % 20_000)
}

fn replace(path: &Path, write: impl FnOnce(&File) -> std::io::Result<()>) -> Result<()> {
    let fresh = path.with_extension("dpkg-new");
    let file = File::create(&fresh)?;
    write(&file)?;
    file.sync_all()?;
    fs::rename(fresh, path)?;
    Ok(())
}

/// The round whose bytes the file has, of those that it may have.
fn version(path: &Path, file: u64, allowed: [u64; 2]) -> Result<u64> {
    let bytes = fs::read(path)?;
    for round in allowed {
        let (seed, length) = stream(round, file);
        let mut expected = vec![0; length as usize];
        fill(seed, 0, &mut expected);
        if bytes == expected {
            return Ok(round);
        }
    }
    bail!("{} is of none of the rounds {allowed:?}", path.display())
}

impl Program for Packages {
    fn name(&self) -> &'static str {
        "packages"
    }

    fn work(&self, root: &Path, rounds: u64, durable: &mut dyn FnMut(u64)) -> Result<()> {
        for round in 1..=rounds {
            for file in 0..FILES {
                let (seed, length) = stream(round, file);
                replace(&root.join(format!("file{file}")), |file| write_stream(file, seed, 0, length))?;
            }
            replace(&root.join("status"), |mut file| {
                std::io::Write::write_all(&mut file, round.to_string().as_bytes())
            })?;
            sync_dir(root)?;
            durable(round);
        }
        Ok(())
    }

    fn check(&self, root: &Path, durable: u64) -> Result<()> {
        let installed = match fs::read_to_string(root.join("status")) {
            Ok(text) => text.parse().context("the status")?,
            Err(_) => 0,
        };
        at_least(installed, durable)?;
        // The next round's files arrive in order, and some may be there.
        let mut before = installed + 1;
        for file in 0..FILES {
            let path = root.join(format!("file{file}"));
            if installed == 0 && !path.exists() {
                before = 0;
                continue;
            }
            let found = version(&path, file, [installed + 1, installed])?;
            ensure!(found <= before, "{} is newer than its predecessor", path.display());
            before = found;
        }
        Ok(())
    }
}
