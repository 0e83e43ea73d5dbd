//! The benchmark's command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tests::bench::contender::{Contender, KNOWN};
use tests::bench::{Setup, async_dio, chart, measure, profile, report, scaling, splice};
use tests::scale::{Need, can_run, scratch};
use tests::system::System;

/// Measures ext4 servers beside the kernel's, in one interleaved run.
#[derive(Parser)]
struct Arguments {
    /// Only the parts and rows whose names contain one of these words.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Who is measured, the reference first: kernel, fuse2fs, rext4, rext4-loop; the last two also with
    /// :fuser, :dev or :ring for the way that requests come.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kernel,fuse2fs,rext4-loop,rext4:fuser,rext4:dev,rext4:ring"
    )]
    against: Vec<String>,
    /// Folder of the backing file (3 GiB); memory where there is plenty, unless named.
    #[arg(long)]
    backing: Option<PathBuf>,
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Words for rext4's -o.
    #[arg(long, value_delimiter = ',')]
    options: Vec<String>,
    /// Instead of the workloads: how costs grow, up to this many files in a folder.
    #[arg(long, value_name = "FILES")]
    scaling: Option<u64>,
    /// Instead of the workloads: rext4 with asynchronous direct IO and without.
    #[arg(long)]
    async_dio: bool,
    /// Instead of the workloads: reads that are answered by splice and by copying.
    #[arg(long)]
    splice: bool,
    /// Instead of the workloads' figures: where the server's time goes in each (needs perf).
    #[arg(long)]
    profile: bool,
    /// Writes all figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the table to this file as well.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Writes a chart of the ratios to this file.
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn contender(name: &str) -> Result<Contender> {
    Contender::named(name).with_context(|| {
        let known: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
        format!("nobody is called {name:?}; there are {}", known.join(", "))
    })
}

/// Whether this machine has it.
fn is_here(contender: &Contender) -> bool {
    match (contender.system, contender.transport) {
        (System::Fuse2fs, _) => can_run("fuse2fs", &[Need::Tool("fuse2fs")]),
        (_, Some("ring")) => can_run(contender.name, &[Need::Rings]),
        _ => true,
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !can_run(
        "the benchmark",
        &[Need::Root, Need::Loop, Need::Fuse, Need::Tool("fio"), Need::Tool("sqlite3")],
    ) {
        bail!("nothing was measured");
    }
    let mut contenders = arguments.against.iter().map(|name| contender(name)).collect::<Result<Vec<_>>>()?;
    contenders.retain(is_here);
    let setup = Setup {
        only: arguments.only,
        contenders,
        backing: arguments.backing.unwrap_or_else(scratch),
        rounds: arguments.rounds,
        options: arguments.options,
    };
    let table = match arguments.scaling {
        _ if arguments.async_dio => async_dio::table(&setup)?,
        _ if arguments.splice => splice::table(&setup)?,
        _ if arguments.profile => profile::table(&setup)?,
        Some(files) => setup
            .contenders
            .iter()
            .map(|contender| scaling::tables(&setup, contender.system, files))
            .collect::<Result<_>>()?,
        None => {
            let results = measure(&setup)?;
            if let Some(file) = arguments.json {
                std::fs::write(file, serde_json::to_string_pretty(&report::json(&results, &setup))?)?;
            }
            if let Some(file) = arguments.svg {
                std::fs::write(file, chart::svg(&results, &setup))?;
            }
            report::markdown(&results, &setup)
        }
    };
    println!("{table}");
    if let Some(file) = arguments.markdown {
        std::fs::write(file, table)?;
    }
    Ok(())
}
