//! `fsck.rext4`: the command line, made to be called as e2fsck is.

mod cli;
mod interrupt;
mod scan;
mod source;
mod terminal;
mod timing;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use blockdev::FileDevice;
use clap::Parser;
use fsck::{BadBlocks, Error, Mode, Options, Report};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use cli::{Cli, Refused};
use interrupt::Interrupt;
use terminal::Terminal;
use timing::Meter;

/// Errors are left.
const UNCORRECTED: u8 = 4;
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
            ExitCode::from(code_of(&error))
        }
    }
}

/// e2fsck's exit code for a check that did not come to its end.
fn code_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Unexpected) => UNCORRECTED,
        Some(Error::JournalDevice(_)) => UNCORRECTED | OPERATIONAL,
        Some(Error::Cancelled { changed }) => CANCELLED | u8::from(*changed),
        _ if matches!(error.downcast_ref(), Some(Refused::Usage(_))) => USAGE,
        _ => OPERATIONAL,
    }
}

/// What was changed under a mounted root is in the kernel's memory as it was before.
const REBOOT: u8 = 2;

fn run(cli: &Cli) -> anyhow::Result<u8> {
    let interrupt = Interrupt::listen(cli.progress.is_none_or(|fd| fd >= 0))?;
    let mut options = Options { cancel: Some(Arc::clone(&interrupt.cancelled)), ..cli.options()? };
    let (named, offset) = cli.place()?;
    let path = source::resolve(named)?;
    if let Some(journal) = &mut options.journal {
        *journal = source::resolve(&journal.to_string_lossy())?;
    }
    let read_only = options.mode == Mode::CheckOnly;
    let mount = blockdev::mounted(&path);
    options.in_use = mount.is_some();
    options.offset = offset;
    // A root that is mounted read-only may be repaired, and with -f whatever is; the claim refuses the rest.
    let underneath =
        mount.as_ref().is_some_and(|mount| mount.read_only && !mount.fuse && (mount.root || cli.force));
    let mut terminal = Terminal::new(cli, &path, interrupt)?;
    if mount.as_ref().is_some_and(|mount| read_only || underneath && !mount.root) && !cli.json {
        println!("Warning!  {} is mounted.", path.display());
    }
    let how = blockdev::OpenOptions {
        read_only,
        offset,
        direct: blockdev::Direct::Never,
        exclusive: !underneath,
        mounted: underneath,
    };
    let wait = |text: &str| eprintln!("fsck.rext4: {text}");
    let open = || match blockdev::open_when_free(&path, &how, wait) {
        // Who only looks may look at what others use, and keeps nobody out.
        Ok(_) | Err(blockdev::OpenError::InUse { .. }) if read_only => {
            blockdev::open(&path, &blockdev::OpenOptions { exclusive: false, ..how })
        }
        done => done,
    };
    let mut device = open()?;
    if cli.flush {
        drop_caches(&path, &device)?;
    }
    options.bad_blocks = cli.listed().context("the list of bad blocks")?;
    if cli.scan > 0 {
        // badblocks(8) claims the device for itself.
        let block_size = fsck::block_size(&device)?;
        drop(device);
        let blocks = scan::run(&path, offset, block_size, cli.scan > 1)?;
        options.bad_blocks = Some(BadBlocks { blocks, keep: cli.keep });
        device = open()?;
    }
    let meter = Meter::start();
    let (device, protection) = fsck::protect(device, &mut options, &mut terminal)?;
    let checked = fsck::check_with(device, &options, &mut terminal).map_err(anyhow::Error::new);
    protection.release(&options)?;
    terminal.finish();
    let name = terminal.name().to_owned();
    let report = match checked {
        Ok(report) => report,
        Err(error) if cli.preens() => return Err(error.context(name)),
        Err(error) => return Err(error),
    };
    let mut text = if cli.json { report.json() + "\n" } else { closing_lines(cli, &name, &report) };
    if cli.timing > 0 {
        text += &meter.summary();
    }
    if let Some(undo) = &options.undo
        && report.changed
        && !cli.json
    {
        text += &format!("to undo: rext4-undo {} {}\n", undo.display(), path.display());
    }
    let reboot = report.changed && mount.is_some_and(|mount| mount.root);
    if reboot && !cli.json {
        text += &format!("\n{name}: ***** REBOOT SYSTEM *****\n");
    }
    // A reader that has gone away changes nothing about the verdict.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(report.exit_code() | if reboot { REBOOT } else { 0 })
}

/// Writes out what the kernel holds of a block device and has it forget the rest.
fn drop_caches(path: &Path, device: &FileDevice) -> anyhow::Result<()> {
    anyhow::ensure!(device.is_block_device(), "-F: {} is not a block device", path.display());
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

fn closing_lines(cli: &Cli, name: &str, report: &Report) -> String {
    let usage = &report.usage;
    if report.skipped {
        let next = match report.next_check {
            None => String::new(),
            Some(0 | 1) => " (check after next mount)".to_owned(),
            Some(mounts) => format!(" (check in {mounts} mounts)"),
        };
        return format!(
            "{name}: clean, {}/{} files, {}/{} blocks{next}\n",
            usage.inodes, usage.inodes_total, usage.blocks, usage.blocks_total
        );
    }
    if cli.journal_only() {
        return String::new();
    }
    let mut text = String::new();
    if !cli.preens() {
        text += &report.summary();
        if report.changed && (report.count > report.left || report.optimized) {
            text += &format!("\n{name}: ***** FILE SYSTEM WAS MODIFIED *****\n");
        }
    }
    if report.left > 0 {
        text += &format!("\n{name}: ********** WARNING: Filesystem still has errors **********\n\n");
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
