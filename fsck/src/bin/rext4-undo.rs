//! `rext4-undo LOG DEVICE`: puts back what a repair with `fsck.rext4 -z LOG` overwrote.

use std::path::PathBuf;
use std::process::ExitCode;

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

fn main() -> ExitCode {
    blockdev::file_size_limit_is_an_error();
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rext4-undo: {}", blockdev::in_one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let device = blockdev::open(
        &cli.device,
        &blockdev::OpenOptions { direct: blockdev::Direct::Never, ..Default::default() },
    )?;
    let bytes =
        fsck::undo(&cli.log, &*device).with_context(|| format!("undoing {}", cli.device.display()))?;
    println!("{}: {bytes} bytes put back", cli.device.display());
    Ok(())
}
