//! `mkfs.rext4`: the command line around [`mkfs::format`], in the manner of mke2fs.

mod build;
mod cli;
mod show;

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use blockdev::{BlockDevice, OpenOptions};
use clap::Parser;
use mkfs::{Layout, format_watched, probe};

use cli::{Args, Job};

fn main() -> ExitCode {
    blockdev::file_size_limit_is_an_error();
    let args = Args::parse();
    match cli::job(&args).and_then(|job| run(&job)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = blockdev::in_one_line(error.as_ref());
            eprintln!("mkfs.rext4: {line}");
            if args.wants_json() {
                println!("{}", serde_json::json!({ "error": line }));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(job: &Job) -> Result<()> {
    let path = job.device.as_path();
    for note in &job.notes {
        eprintln!("mkfs.rext4: {note}");
    }
    if let Some(build) = &job.build {
        return build::run(job, build);
    }
    let missing = !path.exists();
    if missing && job.options.size.is_none() {
        bail!("{} does not exist and no size was given", path.display());
    }
    if missing || is_short_file(path, job) {
        // The plan comes first: nothing is created for options that cannot be met.
        let size = job.options.size.unwrap_or(0);
        let layout = Layout::new(&job.options, size, 512)?;
        if job.dry_run {
            return show::plan(job, &layout);
        }
        if missing && !job.quiet {
            println!("Creating regular file {}", path.display());
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        file.set_len(job.offset + size).with_context(|| format!("cannot extend {}", path.display()))?;
    }
    let how = OpenOptions {
        read_only: job.dry_run,
        offset: job.offset,
        exclusive: !job.dry_run,
        ..OpenOptions::default()
    };
    let wait = |text: &str| eprintln!("mkfs.rext4: {text}");
    let device = blockdev::open_when_free(path, &how, wait)?;
    let geometry = device.geometry();
    let layout = Layout::new(&job.options, geometry.size, geometry.logical_sector)?;
    if job.dry_run {
        return show::plan(job, &layout);
    }
    if let Some(found) = probe::probe(&*device).context("cannot read the device")? {
        may_overwrite(job, &found)?;
    }
    if !job.quiet {
        show::plan(job, &layout)?;
    }
    let mut progress = show::Progress::new(job.quiet);
    let report =
        format_watched(&*device, &job.options, &mut |step, done, total| progress.at(step, done, total))
            .with_context(|| format!("{} was not formatted", path.display()))?;
    if job.verbose {
        println!("{} KiB of metadata written", report.written / 1024);
    }
    Ok(())
}

/// Whether the path is a regular file that must grow to hold the size asked for.
fn is_short_file(path: &Path, job: &Job) -> bool {
    let wanted = job.options.size.map(|size| size + job.offset);
    path.metadata().is_ok_and(|meta| meta.is_file() && wanted.is_some_and(|wanted| meta.len() < wanted))
}

/// A device that holds something is overwritten when told so, by `-F` or at the terminal.
fn may_overwrite(job: &Job, found: &str) -> Result<()> {
    let path = job.device.display();
    if job.force {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        bail!("{path} contains {found}; use -F to overwrite it");
    }
    print!("{path} contains {found}\nProceed anyway? (y,N) ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if !answer.trim_start().to_ascii_lowercase().starts_with('y') {
        bail!("{path} was left as it is");
    }
    Ok(())
}
