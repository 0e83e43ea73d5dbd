//! `rext4-undo LOG DEVICE`: puts back what a repair with `fsck.rext4 -z LOG` overwrote.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

/// Puts back what a repair overwrote.
#[derive(Parser, Debug)]
#[command(name = "rext4-undo", version)]
struct Cli {
    /// The log that `fsck.rext4 -z` wrote.
    log: PathBuf,
    /// The device or image that was repaired.
    device: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let device = blockdev::open(
        &cli.device,
        &blockdev::OpenOptions { direct: blockdev::Direct::Never, ..Default::default() },
    )?;
    let bytes =
        fsck::undo(&cli.log, &*device).with_context(|| format!("undoing {}", cli.device.display()))?;
    println!("{}: {bytes} bytes put back", cli.device.display());
    Ok(())
}
