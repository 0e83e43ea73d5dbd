//! `-c`: the blocks that badblocks(8) cannot read, or with a second `-c` cannot write.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::cli;

/// Runs badblocks(8) over the volume that begins at `offset`; returns numbers of the volume's blocks.
///
/// # Errors
/// The program is not installed or fails, or the offset is not a number of whole blocks.
pub fn run(path: &Path, offset: u64, block_size: u32, write: bool) -> anyhow::Result<Vec<u64>> {
    ensure!(offset.is_multiple_of(block_size.into()), "-c needs an offset of whole blocks");
    let first = offset / u64::from(block_size);
    let mut command = Command::new("badblocks");
    command.arg("-b").arg(block_size.to_string());
    if write {
        command.arg("-n");
    }
    command.arg(path);
    if first > 0 {
        let size =
            std::fs::File::open(path).and_then(|mut file| io::Seek::seek(&mut file, io::SeekFrom::End(0)))?;
        command.arg((size / u64::from(block_size) - 1).to_string()).arg(first.to_string());
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("badblocks(8), which -c runs (package e2fsprogs)")?;
    ensure!(output.status.success(), "badblocks(8) failed: {}", output.status);
    let found = cli::numbers(&String::from_utf8_lossy(&output.stdout));
    Ok(found.into_iter().filter_map(|block| block.checked_sub(first)).collect())
}
