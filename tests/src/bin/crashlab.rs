//! `make crash` and `make crash-long`: the crash lab from the command line.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blockdev::sim::{Dice, StateName};
use clap::Parser;
use jbd2::LogChecksum;
use tests::crashlab::epochs::Density;
use tests::crashlab::journal;

/// Makes every disk that a power cut could have left behind, recovers it and judges it.
#[derive(Parser)]
struct Args {
    /// Sampled long workloads after the exhaustive short ones.
    #[arg(long)]
    long: bool,
    /// Minutes after which no new workload is begun.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What all dice begin with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replay one run of the journal alone, as a failure printed it.
    #[arg(long)]
    journal: Option<journal::Run>,
    /// The state to judge; all states of the run without it.
    #[arg(long)]
    state: Option<StateName>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let density = Density { exhaustive: 6, sampled: 8, seed: args.seed };
    if let Some(run) = args.journal {
        let recorded = run.record()?;
        match args.state {
            Some(state) => recorded.judge_one(state)?,
            None => println!("{} states", recorded.judge_all(density)?),
        }
        println!("kept its promise");
        return Ok(());
    }
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(args.minutes * 60.0);
    let runs = if args.long { u64::MAX } else { 300 };
    let (workloads, states) =
        in_parallel(runs, until, |index| journal_run(args.seed, index).record()?.judge_all(density))
            .context("the journal alone")?;
    report("the journal alone", workloads, states, begun.elapsed());
    Ok(())
}

/// The n-th run of the journal: every block size, checksum and log size in turn.
fn journal_run(seed: u64, index: u64) -> journal::Run {
    let mut dice = Dice::new(seed ^ index << 20);
    journal::Run {
        block_size: *dice.pick(&[1024, 4096]),
        log_blocks: *dice.pick(&[48, 64, 128]),
        checksum: *dice.pick(&[LogChecksum::None, LogChecksum::Compat, LogChecksum::V2, LogChecksum::V3]),
        steps: 30 + dice.below(60) as u32,
        seed: dice.roll() >> 32,
    }
}

/// Runs `0..runs` on all processors until the time is over or one fails. Returns how many were run, and the
/// sum of what they returned.
fn in_parallel(runs: u64, until: Instant, run: impl Fn(u64) -> Result<u64> + Sync) -> Result<(u64, u64)> {
    let (next, done, states) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= runs || Instant::now() >= until {
                return Ok(());
            }
            let judged = run(index).inspect_err(|_| next.store(runs, Ordering::Relaxed))?;
            states.fetch_add(judged, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(_) => bail!("a worker panicked"),
            }
        }
        Ok(())
    })?;
    Ok((done.into_inner(), states.into_inner()))
}

fn report(what: &str, workloads: u64, states: u64, took: Duration) {
    let rate = states as f64 / took.as_secs_f64();
    println!(
        "{what}: {workloads} workloads, {states} distinct states, {:.0} s, {rate:.0} states/s, no failure",
        took.as_secs_f64()
    );
}
