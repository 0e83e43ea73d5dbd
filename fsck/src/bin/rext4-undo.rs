//! `rext4-undo LOG DEVICE`: puts back what a repair with `fsck.rext4 -z LOG`, or a program of e2fsprogs with
//! `-z LOG`, overwrote. The options are e2undo's.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use fsck::UndoOptions;

/// Puts back what a repair overwrote.
#[derive(Parser, Debug)]
#[command(name = "rext4-undo", version)]
struct Cli {
    /// Put it back although the volume has changed since.
    #[arg(short = 'f')]
    force: bool,
    /// Only look whether it can be done.
    #[arg(short = 'n')]
    dry_run: bool,
    /// Byte of the device at which the volume begins.
    #[arg(short = 'o', value_name = "BYTES")]
    offset: Option<u64>,
    /// Tell of each block.
    #[arg(short = 'v')]
    verbose: bool,
    /// Keep what is overwritten in this file.
    #[arg(short = 'z', value_name = "FILE")]
    undo: Option<PathBuf>,
    /// The log.
    log: PathBuf,
    /// The device or image that was changed.
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
    let how = blockdev::OpenOptions {
        read_only: cli.dry_run,
        direct: blockdev::Direct::Never,
        ..Default::default()
    };
    let device = blockdev::open(&cli.device, &how)?;
    let options =
        UndoOptions { force: cli.force, dry_run: cli.dry_run, offset: cli.offset, undo: cli.undo.clone() };
    let mut progress = |block, len| {
        if cli.verbose {
            println!("block {block}: {len} bytes");
        }
    };
    let undone = fsck::undo(&cli.log, &*device, &options, &mut progress)
        .with_context(|| format!("undoing {}", cli.device.display()))?;
    let verb = if cli.dry_run { "would be put back" } else { "put back" };
    println!("{}: {} bytes {verb}", cli.device.display(), undone.bytes);
    if !undone.complete {
        println!("The log was not closed: check the volume (fsck.rext4 -f {}).", cli.device.display());
    }
    Ok(())
}
