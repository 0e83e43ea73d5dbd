//! The benchmark: the workloads of `workloads` on several systems in one interleaved run over one backing
//! file.
//!
//! Every part of a round starts on a fresh filesystem, always made by mke2fs, so that all systems begin with
//! the same bytes; the backing file's pages were written once before the run and stay. After each part the
//! filesystem is unmounted and e2fsck -fn must find it clean, or its figures are void. Figures of different
//! runs do not compare; ratios inside one run do.

pub mod async_dio;
pub mod chart;
pub mod contender;
pub mod profile;
pub mod report;
pub mod scaling;
pub mod splice;
pub mod workloads;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::oracle::e2fsck_is_clean;
use crate::run::{run, tool};
use crate::system::{Mounted, Options, System};
use contender::Contender;
use profile::Profiler;
use workloads::{Part, Row};

/// A mounted filesystem under measurement, which can be made cold.
#[derive(Debug)]
pub struct Bed {
    system: System,
    image: PathBuf,
    mounted: Option<Mounted>,
    folder: PathBuf,
    peak_kib: u64,
    options: Vec<String>,
    profiler: Option<Profiler>,
}

/// What is known of a bed's servers when all have ended.
struct Finished {
    /// The largest resident size of any.
    peak_kib: u64,
    /// From their profiler, if there was one.
    profiles: Vec<String>,
}

impl Bed {
    fn new(
        system: System,
        image: &Path,
        folder: &Path,
        options: &[String],
        profiler: Option<Profiler>,
    ) -> Result<Bed> {
        run(tool("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard"])
            .arg(image))?;
        let options = if system.is_rext4() { options.to_vec() } else { Vec::new() };
        let mut bed = Bed {
            system,
            image: image.to_owned(),
            mounted: None,
            folder: folder.to_owned(),
            peak_kib: 0,
            options,
            profiler,
        };
        bed.mount()?;
        Ok(bed)
    }

    fn mount(&mut self) -> Result<()> {
        let options = Options {
            words: self.options.clone(),
            time_limit: Duration::from_secs(1800),
            ..Options::default()
        };
        let mounted = self.system.mount_with(&self.image, &options)?;
        if let (Some(profiler), Some(server)) = (&mut self.profiler, mounted.server_pid()) {
            profiler.start(server)?;
        }
        self.mounted = Some(mounted);
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let mounted = self.mounted.take().context("mounted")?;
        self.peak_kib = self.peak_kib.max(mounted.server_memory_kib("VmHWM"));
        mounted.unmount()?;
        self.profiler.as_mut().map_or(Ok(()), Profiler::finish)
    }

    /// The mount point.
    pub fn root(&self) -> &Path {
        self.mounted.as_ref().expect("mounted between steps").path()
    }

    /// A folder outside, for sources and scripts.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Unmounted, mounted again, clean caches dropped: nothing is known any more, to the kernel or to a
    /// server.
    pub fn make_cold(&mut self) -> Result<()> {
        self.unmount()?;
        self.mount()?;
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
        Ok(())
    }

    /// Everything written so far is on its way to the device: syncfs(2), and fsync of the root folder for
    /// systems that the former does not reach.
    pub fn sync(&self) -> Result<()> {
        let root = File::open(self.root())?;
        rustix::fs::syncfs(&root)?;
        root.sync_all()?;
        Ok(())
    }

    fn finish(mut self) -> Result<Finished> {
        self.unmount()?;
        e2fsck_is_clean(&self.image)?;
        let profiles = self.profiler.map_or_else(Vec::new, Profiler::into_profiles);
        Ok(Finished { peak_kib: self.peak_kib, profiles })
    }
}

/// Seconds that a command took.
pub fn timed(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    run(command)?;
    Ok(start.elapsed().as_secs_f64())
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Parts and rows whose names contain one of these; all when empty.
    pub only: Vec<String>,
    /// Who is measured, the reference first.
    pub contenders: Vec<Contender>,
    /// Folder of the backing file.
    pub backing: PathBuf,
    /// Rounds.
    pub rounds: usize,
    /// `-o` words for rext4.
    pub options: Vec<String>,
}

/// The figures of one row on one system, one a round.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// In the row's unit.
    pub values: Vec<f64>,
    /// Why they do not count.
    pub void: Option<String>,
}

impl Figures {
    /// The middle value; of two, their mean.
    pub fn median(&self) -> Option<f64> {
        if self.void.is_some() || self.values.is_empty() {
            return None;
        }
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        Some(if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 })
    }

    /// The smallest and the largest value.
    pub fn range(&self) -> (f64, f64) {
        let low = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        (low, self.values.iter().copied().fold(0.0, f64::max))
    }

    /// Width of the range, relative to the median.
    pub fn spread(&self) -> f64 {
        let (low, high) = self.range();
        self.median().map_or(0.0, |median| (high - low) / median)
    }
}

/// All figures of a run.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// The rows in their order.
    pub rows: Vec<Row>,
    /// By row and contender.
    pub figures: BTreeMap<(String, &'static str), Figures>,
    /// Peak resident memory of the servers in KiB, by part and contender.
    pub memory: BTreeMap<(String, &'static str), u64>,
}

impl Results {
    /// A row's figures of one contender.
    pub fn of(&self, row: &Row, contender: Contender) -> Option<&Figures> {
        self.figures.get(&(row.name.to_owned(), contender.name))
    }

    /// How much better `ours` is than `reference`: above one is better, whatever the unit.
    pub fn ratio(&self, row: &Row, ours: Contender, reference: Contender) -> Option<f64> {
        let (ours, theirs) = (self.of(row, ours)?.median()?, self.of(row, reference)?.median()?);
        Some(if row.less_is_better { theirs / ours } else { ours / theirs })
    }

    /// Whether the ranges of both overlap, so that the difference may be chance.
    pub fn is_doubtful(&self, row: &Row, ours: Contender, reference: Contender) -> bool {
        let (Some(ours), Some(theirs)) = (self.of(row, ours), self.of(row, reference)) else { return true };
        let ((low, high), (their_low, their_high)) = (ours.range(), theirs.range());
        low <= their_high && their_low <= high
    }
}

/// Runs everything, telling on standard error how it goes.
pub fn measure(setup: &Setup) -> Result<Results> {
    const BACKING_BYTES: u64 = 3 << 30;
    let folder = tempfile::Builder::new().prefix("rext4-bench-").tempdir_in(&setup.backing)?;
    let image = folder.path().join("backing");
    touch(&image, BACKING_BYTES)?;
    let parts: Vec<Part> = workloads::all().into_iter().filter(|part| part.is_wanted(&setup.only)).collect();
    let mut results = Results::default();
    results.rows.extend(parts.iter().flat_map(|part| part.rows.iter().cloned()));
    for round in 0..setup.rounds {
        for part in &parts {
            for &contender in &setup.contenders {
                // It takes minutes for what the others do in seconds, and its place is not in doubt.
                if contender.system == System::Fuse2fs && round > 0 {
                    continue;
                }
                eprintln!("round {} of {}: {} on {}", round + 1, setup.rounds, part.name, contender.name);
                let options = contender.options(&setup.options);
                let outcome =
                    Bed::new(contender.system, &image, folder.path(), &options, None).and_then(|mut bed| {
                        let values = (part.run)(&mut bed)?;
                        Ok((values, bed.finish()?.peak_kib))
                    });
                record(&mut results, part, contender, outcome);
            }
        }
    }
    Ok(results)
}

fn record(results: &mut Results, part: &Part, contender: Contender, outcome: Result<(Vec<f64>, u64)>) {
    for (index, row) in part.rows.iter().enumerate() {
        let figures = results.figures.entry((row.name.to_owned(), contender.name)).or_default();
        match &outcome {
            Ok((values, _)) => figures.values.extend(values.get(index)),
            Err(error) => figures.void = Some(format!("{error:#}")),
        }
    }
    let peak = outcome.as_ref().map_or(0, |(_, peak)| *peak);
    let entry = results.memory.entry((part.name.to_owned(), contender.name)).or_default();
    *entry = peak.max(*entry);
    if let Err(error) = outcome {
        eprintln!("{} on {} is void: {error:#}", part.name, contender.name);
    }
}

/// A file with every page in place.
fn touch(image: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
    let page = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&page)?;
    }
    file.sync_all()?;
    Ok(())
}
