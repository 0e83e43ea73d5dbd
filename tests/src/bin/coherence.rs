//! Two processes on one file, with and without O_DIRECT: the command line of `tests::coherence`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Parser;
use tests::coherence;

/// Makes a file, and has two processes, one with O_DIRECT and one with the page cache, see each other's
/// writes.
#[derive(Parser)]
struct Arguments {
    /// The file.
    path: PathBuf,
    /// Decides what is done.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations of the process with O_DIRECT; the other does half as many again.
    #[arg(long, default_value_t = 400_000)]
    operations: u64,
    /// Be the second process.
    #[arg(long)]
    cached: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.cached {
        return coherence::cached_side(&arguments.path, arguments.seed);
    }
    let mut other = Command::new(std::env::current_exe()?);
    other.arg("--cached").arg("--seed").arg(arguments.seed.to_string()).arg(&arguments.path);
    let done = coherence::direct_side(&arguments.path, &mut other, arguments.seed, arguments.operations)?;
    println!("{done} operations with O_DIRECT and {} without, all coherent", done + done / 2);
    Ok(())
}
