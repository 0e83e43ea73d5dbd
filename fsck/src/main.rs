//! `fsck.rext4`: the command line, made to be called as e2fsck is.

mod cli;
mod interrupt;
mod terminal;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use fsck::{Error, Mode, Options, Report};

use cli::Cli;
use interrupt::Interrupt;
use terminal::Terminal;

/// Operational error: the check could not be made.
const OPERATIONAL: u8 = 8;
/// Usage or syntax error.
const USAGE: u8 = 16;
/// Cancelled by the user.
const CANCELLED: u8 = 32;

fn main() -> ExitCode {
    blockdev::file_size_limit_is_an_error();
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
            eprintln!("fsck.rext4: {}", blockdev::in_one_line(error.as_ref()));
            let cause = error.downcast_ref::<Error>();
            ExitCode::from(match cause {
                Some(Error::Unexpected) => 4,
                Some(Error::Cancelled { changed }) => CANCELLED | u8::from(*changed),
                _ if matches!(error.downcast_ref(), Some(cli::Refused::Usage(_))) => USAGE,
                _ => OPERATIONAL,
            })
        }
    }
}

/// What was changed under a mounted root is in the kernel's memory as it was before.
const REBOOT: u8 = 2;

fn run(cli: &Cli) -> anyhow::Result<u8> {
    let interrupt = Interrupt::listen()?;
    let mut options = Options { cancel: Some(Arc::clone(&interrupt.0)), ..cli.options()? };
    let name = cli.device.display().to_string();
    let read_only = options.mode == Mode::CheckOnly;
    let mount = blockdev::mounted(&cli.device);
    // A root that is mounted read-only may be repaired, and with -f whatever is; the claim refuses the rest.
    let underneath =
        mount.as_ref().is_some_and(|mount| mount.read_only && !mount.fuse && (mount.root || cli.force));
    if mount.as_ref().is_some_and(|mount| read_only || underneath && !mount.root) && !cli.json {
        println!("Warning!  {name} is mounted.");
    }
    let how = blockdev::OpenOptions {
        read_only,
        offset: 0,
        direct: blockdev::Direct::Never,
        exclusive: !underneath,
        mounted: underneath,
    };
    let wait = |text: &str| eprintln!("fsck.rext4: {text}");
    let device = match blockdev::open_when_free(&cli.device, &how, wait) {
        // Who only looks may look at what others use, and keeps nobody out.
        Ok(_) | Err(blockdev::OpenError::InUse { .. }) if read_only => {
            blockdev::open(&cli.device, &blockdev::OpenOptions { exclusive: false, ..how })
        }
        done => done,
    }?;
    let started = std::time::Instant::now();
    let mut terminal = Terminal::new(cli, interrupt)?;
    let (device, protection) = fsck::protect(device, &mut options, &mut terminal)?;
    let checked = fsck::check_with(device, &options, &mut terminal);
    protection.release(&options)?;
    let report = checked?;
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
    let reboot = report.changed && mount.is_some_and(|mount| mount.root);
    if reboot && !cli.json {
        text += &format!("\n{name}: ***** REBOOT SYSTEM *****\n");
    }
    // A reader that has gone away changes nothing about the verdict.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(report.exit_code() | if reboot { REBOOT } else { 0 })
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
