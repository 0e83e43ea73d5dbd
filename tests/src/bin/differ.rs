//! The differential fuzzer's command line.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use tests::differ::Run;
use tests::system::System;

/// Does the same random operations on the kernel's ext4 and on rext4 and stops at the first difference.
#[derive(Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations of one seed.
    #[arg(long, default_value_t = 50_000)]
    operations: u64,
    /// Goes on with the next seeds for so many minutes.
    #[arg(long, default_value_t = 0)]
    minutes: u64,
    /// Compares the trees after so many operations.
    #[arg(long, default_value_t = 2000)]
    compare_every: u64,
    /// Prints every operation.
    #[arg(long)]
    trace: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let deadline = Instant::now() + Duration::from_secs(60 * arguments.minutes);
    for seed in arguments.seed.. {
        let run = Run {
            trace: arguments.trace,
            compare_every: arguments.compare_every,
            ..Run::new(seed, arguments.operations)
        };
        run.compare(System::Kernel, System::under_test())?;
        println!("seed {seed}: {} operations without a difference", run.operations);
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(())
}
