//! What the user sees: the plan, the progress, the end.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use mkfs::{Layout, Step};
use uuid::Uuid;

use crate::cli::Job;

/// A step shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows what would be made.
pub fn plan(job: &Job, layout: &Layout) -> Result<()> {
    let sb = &layout.superblock;
    let mut out = std::io::stdout().lock();
    for note in &layout.notes {
        writeln!(out, "{note}")?;
    }
    if job.verbose {
        let geometry = layout.geometry();
        let (stride, stripe) = sb.raid();
        writeln!(out, "Filesystem label={}", String::from_utf8_lossy(sb.volume_name()))?;
        writeln!(out, "OS type: Linux")?;
        writeln!(out, "Block size={} (log={})", sb.block_size(), sb.raw().log_block_size)?;
        writeln!(out, "Stride={stride} blocks, Stripe width={stripe} blocks")?;
        writeln!(out, "{} inodes, {} blocks", sb.inodes_count(), sb.blocks_count())?;
        let percent = sb.reserved_blocks() as f64 * 100.0 / sb.blocks_count().0 as f64;
        writeln!(out, "{} blocks ({percent:.2}%) reserved for the super user", sb.reserved_blocks())?;
        writeln!(out, "First data block={}", geometry.first_data_block)?;
        writeln!(out, "{} block group(s)", geometry.group_count)?;
        writeln!(out, "{} blocks per group", geometry.blocks_per_group)?;
        writeln!(out, "{} inodes per group", geometry.inodes_per_group)?;
        let names: Vec<_> =
            sb.compat().names().chain(sb.incompat().names()).chain(sb.ro_compat().names()).collect();
        writeln!(out, "Features: {}", names.join(" "))?;
    } else {
        writeln!(
            out,
            "Creating filesystem with {} {}k blocks and {} inodes",
            sb.blocks_count(),
            sb.block_size() / 1024,
            sb.inodes_count()
        )?;
    }
    if sb.uuid() != [0; 16] {
        writeln!(out, "Filesystem UUID: {}", Uuid::from_bytes(sb.uuid()))?;
    }
    let backups = layout.backups();
    if !backups.is_empty() {
        write!(out, "Superblock backups stored on blocks: ")?;
        write_wrapped(&mut out, &backups)?;
        writeln!(out)?;
    }
    writeln!(out)?;
    Ok(())
}

/// Numbers in lines that fit a terminal.
fn write_wrapped(out: &mut impl Write, numbers: &[u64]) -> Result<()> {
    let mut column = usize::MAX;
    for (index, number) in numbers.iter().enumerate() {
        let text = format!("{number}{}", if index + 1 < numbers.len() { ", " } else { "" });
        if column.saturating_add(text.len()) > 64 {
            write!(out, "\n\t")?;
            column = 0;
        }
        write!(out, "{text}")?;
        column += text.len();
    }
    Ok(())
}

/// One line a step, and a bar on a terminal when it takes its time.
pub struct Progress {
    quiet: bool,
    current: Option<(Step, Instant)>,
    bar: Option<ProgressBar>,
    reading: Option<ProgressBar>,
}

impl Progress {
    /// Shows nothing when `quiet`.
    pub fn new(quiet: bool) -> Progress {
        Progress { quiet, current: None, bar: None, reading: None }
    }

    /// So many names were read.
    pub fn names(&mut self, names: u64) {
        if self.quiet {
            return;
        }
        let bar = self.reading.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} {pos} names ({per_sec})");
            let bar = ProgressBar::no_length().with_message("Reading the tree:");
            match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        bar.set_position(names);
    }

    /// `done` of `total` in a step.
    pub fn at(&mut self, step: Step, done: u64, total: u64) {
        if self.quiet {
            return;
        }
        if let Some(bar) = self.reading.take() {
            bar.finish_and_clear();
        }
        let since = match self.current {
            Some((current, since)) if current == step => since,
            _ => {
                let now = Instant::now();
                self.current = Some((step, now));
                now
            }
        };
        if done >= total {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            println!("{}: done", label(step));
            self.current = None;
        } else if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if since.elapsed() > PATIENCE {
            // indicatif draws nothing where there is no terminal.
            let style = ProgressStyle::with_template(match step {
                Step::Files => "{msg} {wide_bar} {bytes}/{total_bytes} ({bytes_per_sec})",
                _ => "{msg} {wide_bar} {percent}%",
            });
            let bar = ProgressBar::new(total).with_message(label(step));
            self.bar = Some(match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            });
        }
    }
}

fn label(step: Step) -> String {
    match step {
        Step::Discard => "Discarding device blocks".to_owned(),
        Step::Files => "Copying files".to_owned(),
        Step::InodeTables => "Writing inode tables".to_owned(),
        Step::Journal(blocks) => format!("Creating journal ({blocks} blocks)"),
        Step::Accounting => "Writing superblocks and filesystem accounting information".to_owned(),
    }
}
