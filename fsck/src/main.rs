//! `fsck.rext4`: the command line, made to be called as e2fsck is.

mod cli;
mod terminal;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use fsck::{Error, Mode, Report};

use cli::Cli;
use terminal::Terminal;

/// Operational error: the check could not be made.
const OPERATIONAL: u8 = 8;
/// Usage or syntax error.
const USAGE: u8 = 16;
/// Cancelled by the user.
const CANCELLED: u8 = 32;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("fsck.rext4: {error:#}");
            let cause = error.downcast_ref::<Error>();
            ExitCode::from(match cause {
                Some(Error::Unexpected) => 4,
                Some(Error::Cancelled) => CANCELLED,
                _ if error.is::<cli::Usage>() => USAGE,
                _ => OPERATIONAL,
            })
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<u8> {
    let options = cli.options()?;
    let name = cli.device.display().to_string();
    let read_only = options.mode == Mode::CheckOnly;
    let device = blockdev::open(
        &cli.device,
        &blockdev::OpenOptions {
            read_only,
            offset: 0,
            direct: blockdev::Direct::Never,
            exclusive: !read_only,
            mounted: false,
        },
    )?;
    let started = std::time::Instant::now();
    let mut terminal = Terminal::new(cli)?;
    let report = fsck::check_with(device, &options, &mut terminal).map_err(anyhow::Error::new)?;
    terminal.finish();
    let mut text = if cli.json { report.json() + "\n" } else { told(cli, &name, &report) };
    if cli.timing {
        text += &format!("time: {:.2} s\n", started.elapsed().as_secs_f64());
    }
    if let Some(undo) = &options.undo
        && report.changed
    {
        text += &format!("to undo: rext4-undo {} {name}\n", undo.display());
    }
    // A reader that has gone away changes nothing about the verdict.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(report.exit_code())
}

fn told(cli: &Cli, name: &str, report: &Report) -> String {
    let usage = &report.usage;
    if report.skipped {
        return format!(
            "{name}: clean, {}/{} files, {}/{} blocks\n",
            usage.inodes, usage.inodes_total, usage.blocks, usage.blocks_total
        );
    }
    if cli.journal_only() {
        return String::new();
    }
    let mut text = report.summary();
    if report.changed && report.count > 0 {
        text += &format!("\n{name}: ***** FILE SYSTEM WAS MODIFIED *****\n");
    }
    if report.left > 0 {
        text += &format!("\n{name}: ********** WARNING: Filesystem still has errors **********\n");
    }
    text += &format!(
        "{name}: {}/{} files ({:.1}% non-contiguous), {}/{} blocks\n",
        usage.inodes,
        usage.inodes_total,
        100.0 * usage.fragmented as f64 / (usage.inodes.max(1)) as f64,
        usage.blocks,
        usage.blocks_total
    );
    if cli.verbose {
        text += &format!("{:>12} directories\n", usage.directories);
        text += &format!("{:>12} problems found, {} left\n", report.count, report.left);
    }
    text
}
