//! Real programs under power cuts: each works in numbered rounds on a served volume, says after which round
//! its work is durable by its own rules, and looks at what a cut has left with its own check of integrity.
//!
//! Threads and timing are the machine's, so a run cannot be had again by its seed: the disk of a failure is
//! kept instead.

mod git;
mod mapped;
mod packages;
mod spool;
mod sqlite;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blockdev::sim::{Dice, Fill, Image, Keep, MemDevice, Recorder, Recording, StateName};
use mkfs::{Kind, Options};

use super::epochs::epoch_at;
use super::judge::{Court, Tally};
use super::kernel;
use super::subject::SUPERBLOCK;
use crate::load::Storm;
use crate::run::{run, tool};
use crate::served::Served;

/// A program and the check of what it had made durable.
pub trait Program: Sync {
    /// How the command line and the report call it.
    fn name(&self) -> &'static str;

    /// Works for so many rounds below `root`. `durable` is told the number of a round (they start with 1)
    /// when everything up to it must survive a cut.
    ///
    /// # Errors
    /// When the program itself fails.
    fn work(&self, root: &Path, rounds: u64, durable: &mut dyn FnMut(u64)) -> Result<()>;

    /// Whether what is below `root` after a cut is whole and not older than round `durable` (0: none).
    ///
    /// # Errors
    /// What is missing or broken.
    fn check(&self, root: &Path, durable: u64) -> Result<()>;
}

/// How long others make trouble beside a program.
const STORMY: Duration = Duration::from_secs(2);

/// Every program of the lab.
pub const ALL: [&dyn Program; 6] = [
    &sqlite::Sqlite::Rollback,
    &sqlite::Sqlite::WriteAhead,
    &git::Git,
    &spool::Spool,
    &packages::Packages,
    &mapped::Mapped,
];

/// The program of a name.
#[must_use]
pub fn program(name: &str) -> Option<&'static dyn Program> {
    ALL.into_iter().find(|program| program.name() == name)
}

/// An empty volume on a disk full of stale bytes.
///
/// # Errors
/// When it cannot be made.
pub fn base(block: u32) -> Result<Image> {
    let disk = MemDevice::new(48 << 20, Fill::Stale(0x57a1));
    let mut options = Options::new(Kind::Ext4, 1_700_000_000);
    options.block_size = Some(block);
    options.discard = false;
    mkfs::format(&disk, &options).context("mkfs")?;
    Ok(disk.snapshot())
}

/// Runs a program on a copy of `base`, with other threads creating, writing, renaming and deleting next to it
/// if `storm` gives them a seed. The recording's epochs are the program's durable rounds.
///
/// # Errors
/// When the program, the storm or the server fails.
pub fn record(program: &dyn Program, base: &Image, rounds: u64, storm: Option<u64>) -> Result<Recording> {
    let recorder = Recorder::with_whole(base.clone(), SUPERBLOCK);
    let served = Served::start(Arc::new(recorder.clone()), "")?;
    let (own, other) = (served.path().join("own"), served.path().join("other"));
    std::fs::create_dir(&own)?;
    std::fs::create_dir(&other)?;
    sync_dir(&own)?;
    recorder.mark(0);
    std::thread::scope(|scope| -> Result<()> {
        let storm = storm.map(|seed| {
            let storm = Storm { seed, threads: 2, time: STORMY, may_fill_up: true };
            scope.spawn(move || storm.run(&other, false))
        });
        program.work(&own, rounds, &mut |round| recorder.mark(round))?;
        if let Some(storm) = storm {
            storm.join().expect("a storm does not panic").context("the storm")?;
        }
        Ok(())
    })
    .with_context(|| program.name())?;
    let recording = recorder.recording();
    served.end()?;
    Ok(recording)
}

/// Judges `states` crash states of a recording, drawn by the seed; one in `kernel_every` meets the kernel's
/// and e2fsck's own replay, too. The disk of a failure stays in the temporary folder.
///
/// # Errors
/// The first failure.
pub fn judge(
    court: &Court,
    program: &dyn Program,
    recording: &Recording,
    states: u64,
    seed: u64,
) -> Result<Tally> {
    let mut dice = Dice::new(seed);
    let first = recording.events().len() as u64 / 50;
    let mut tally = Tally::default();
    for n in 0..states {
        let cut = first + dice.below(recording.events().len() as u64 + 1 - first);
        let keep = match dice.below(5) {
            0 => Keep::All,
            1 => Keep::Nothing,
            _ => Keep::Seeded(dice.roll()),
        };
        let name = StateName { cut: cut as usize, keep };
        let hear_kernel = court.kernel_every != 0 && n % court.kernel_every == 0;
        let image = recording.build(name).image;
        let durable = epoch_at(recording, name.cut);
        if let Err(why) = one(court, program, &image, durable, hear_kernel) {
            let kept = std::env::temp_dir().join(format!("crashlab-{}-{name}", program.name()));
            kernel::save(&image, &kept)?;
            return Err(why.context(format!(
                "{} at {name}, durable up to round {durable}; the disk is kept in {}",
                program.name(),
                kept.display()
            )));
        }
        tally.states += 1;
        tally.kernel += u64::from(hear_kernel);
    }
    Ok(tally)
}

fn one(court: &Court, program: &dyn Program, image: &Image, durable: u64, hear_kernel: bool) -> Result<()> {
    let dir = kernel::scratch()?;
    let disk = dir.path().join("disk");
    let check = |who: &str| {
        kernel::mounted(&disk, dir.path(), |root| program.check(&root.join("own"), durable))
            .with_context(|| format!("after {who}"))?;
        kernel::is_clean(&disk).with_context(|| format!("e2fsck after {who}"))
    };
    kernel::save(&court.recovered(image)?, &disk)?;
    kernel::is_clean(&disk).context("e2fsck after our recovery")?;
    check("our recovery")?;
    if hear_kernel {
        kernel::save(image, &disk)?;
        check("the kernel's replay")?;
        kernel::save(image, &disk)?;
        if kernel::replayed_by_e2fsck(&disk)? {
            check("e2fsck's replay")?;
        }
    }
    Ok(())
}

/// A shell-less command's output, run in `dir`.
fn in_dir(dir: &Path, name: &str, args: &[&str]) -> Result<String> {
    run(tool(name).current_dir(dir).args(args))
}

fn at_least(found: u64, durable: u64) -> Result<()> {
    ensure!(found >= durable, "round {durable} was durable, the last one found is {found}");
    Ok(())
}

/// fsync of a folder.
fn sync_dir(dir: &Path) -> Result<()> {
    Ok(std::fs::File::open(dir)?.sync_all()?)
}
