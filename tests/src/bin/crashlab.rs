//! `make crash` and `make crash-long`: the crash lab from the command line.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blockdev::sim::{Change, Dice, Event, Image, StateName};
use clap::Parser;
use jbd2::LogChecksum;
use parking_lot::Mutex;
use tests::crashlab::epochs::Density;
use tests::crashlab::judge::{Court, Tally};
use tests::crashlab::ops::Workload;
use tests::crashlab::programs::{self, Program};
use tests::crashlab::subject::{self, CONFIGS, Config, Recorded};
use tests::crashlab::{journal, kernel, workload};

/// Makes every disk that a power cut could have left behind, recovers it and judges it.
#[derive(Parser)]
struct Args {
    /// All sequences of two operations on every kind of volume, and then samples of three and more until the
    /// time is over.
    #[arg(long)]
    long: bool,
    /// Where a long session notes how far it is, and goes on from.
    #[arg(long, requires = "long")]
    progress: Option<PathBuf>,
    /// Minutes after which no new workload is begun.
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Workloads at a time; twice as many as there are processors unless said otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// What all dice begin with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Failures after which to stop; each is printed with the line that replays it.
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Only this kind of volume, and not the journal alone.
    #[arg(long)]
    config: Option<String>,
    /// With --workload: on a device that fails as the seed says.
    #[arg(long, requires = "workload")]
    failing: bool,
    /// Replay one run of several clients at once, as a failure printed it.
    #[arg(long, requires = "config", conflicts_with = "workload")]
    crowd: bool,
    /// Only this real program.
    #[arg(long)]
    program: Option<String>,
    /// One in how many states the kernel and e2fsck judge, too; 0 for none.
    #[arg(long, default_value_t = 50)]
    kernel_every: u64,
    /// Replay one workload, as a failure printed it.
    #[arg(long, requires = "config")]
    workload: Option<Workload>,
    /// Switch on one deliberate fault after the other and see that each is caught.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,
    /// Replay one run of the journal alone, as a failure printed it.
    #[arg(long)]
    journal: Option<journal::Run>,
    /// The state to judge; all states of the run without it.
    #[arg(long)]
    state: Option<StateName>,
    /// Write the state's disk to a file, to be looked at.
    #[arg(long, requires = "state")]
    save: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let density = Density { exhaustive: 6, sampled: 8, seed: args.seed };
    if let Some(run) = args.journal {
        return replay_journal(&run, args.state, density);
    }
    let configs: Vec<&Config> = match &args.config {
        Some(name) => vec![subject::config(name).context("no such kind of volume")?],
        None => CONFIGS.iter().collect(),
    };
    let kernel_every = if kernel::available() { args.kernel_every } else { 0 };
    if kernel_every < args.kernel_every {
        eprintln!("SKIPPED: the kernel's opinion needs root and loop devices");
    }
    let density = Density { exhaustive: 4, sampled: 4, ..density };
    let court = Court { kernel_every, recut_every: 40, density, may_be_flagged: false };
    if args.crowd || args.workload.is_some() {
        let what = match &args.workload {
            Some(workload) if args.failing => Case::Failing(workload),
            Some(workload) => Case::Sound(workload),
            None => Case::Crowd,
        };
        let run = what.run(configs[0], &what.base(configs[0])?, args.seed)?;
        if let (Some(path), Some(state)) = (&args.save, args.state) {
            kernel::save(&run.recording.build(state).image, path)?;
        }
        return replay(configs[0], what, &run, args.state, court);
    }
    #[cfg(feature = "mutants")]
    if args.mutants {
        return mutants::hunt(args.seed, court);
    }
    let lab = Lab {
        seed: args.seed,
        until: Instant::now() + Duration::from_secs_f64(args.minutes * 60.0),
        most: args.failures,
        failures: Mutex::new(vec![]),
        progress: Mutex::new(Progress::read(args.progress.clone())?),
        // Mounting for the kernel's opinion is mostly waiting.
        threads: args.threads.unwrap_or(2 * available_parallelism().map_or(1, NonZero::get)),
        sum: Mutex::default(),
        cut_short: AtomicBool::new(false),
    };
    if let Some(name) = &args.program {
        let program = programs::program(name).context("no such program")?;
        lab.programs(&[program], court, 1)?;
        return lab.end();
    }
    if args.config.is_none() {
        lab.journal(if args.long { 2000 } else { 100 }, density)?;
    }
    for config in &configs {
        lab.short(config, court, 1, 1)?;
        lab.failing(config, court, if args.long { 20_000 } else { 200 })?;
    }
    for config in &configs {
        // The first kind meets every sequence of two; the others, without --long, one in eight.
        let share = if args.long || config.name == configs[0].name { 1 } else { 8 };
        lab.short(config, court, 2, share)?;
    }
    for config in &configs {
        lab.crowds(config, court, if args.long { 2000 } else { 8 })?;
    }
    if args.config.is_none() && kernel_every != 0 {
        lab.programs(&programs::ALL, court, if args.long { 40 } else { 1 })?;
    }
    if args.long {
        lab.sampled(&configs, court)?;
    }
    lab.end()
}

fn replay_journal(run: &journal::Run, state: Option<StateName>, density: Density) -> Result<()> {
    let recorded = run.record()?;
    match state {
        Some(state) => recorded.judge_one(state)?,
        None => println!("{} states", recorded.judge_all(density)?),
    }
    println!("kept its promise");
    Ok(())
}

fn replay(
    config: &Config,
    what: Case<'_>,
    run: &Recorded,
    state: Option<StateName>,
    court: Court,
) -> Result<()> {
    if let Case::Sound(workload) | Case::Failing(workload) = what {
        for step in &workload.0 {
            println!("{step}: {:?}, then {:?}", step.op(), step.then);
        }
    }
    let court = what.court(court);
    for (i, event) in run.recording.events().iter().enumerate() {
        println!("{i:>4} {}", describe(event, u64::from(config.block)));
    }
    match state {
        Some(state) => court.judge_one(config, run, state)?,
        None => println!(
            "{:?}",
            court.judge_all(config, run, 0).map_err(|(name, why)| why.context(name.to_string()))?
        ),
    }
    println!("kept its promise");
    Ok(())
}

fn describe(event: &Event, block: u64) -> String {
    match event {
        Event::Changed { offset, change: Change::Write(data), .. } => {
            let (first, end) = (offset / block, (offset + data.len() as u64).div_ceil(block));
            format!("write blocks {first}..{end}: {:02x?} ...", &data[..data.len().min(12)])
        }
        Event::Changed { offset, change: Change::Fill(len, fill), .. } => {
            format!("fill blocks {}..{} with {fill:?}", offset / block, (offset + len).div_ceil(block))
        }
        Event::Flushed { covers } => format!("flush of all before {covers}"),
        Event::FlushFailed => "flush failed".into(),
        Event::Mark(epoch) => format!("epoch {epoch}"),
    }
}

/// Workloads between two notes of the progress.
const BATCH: u64 = 500;

/// How far each phase has come, in whole batches, noted in a file so that the next session goes on from
/// there. A line each: seed, phase, workloads, states, of them heard by the kernel, cuts in recovery; by
/// tabs.
#[derive(Default)]
struct Progress {
    path: Option<PathBuf>,
    phases: BTreeMap<(u64, String), (u64, Tally)>,
}

impl Progress {
    fn read(path: Option<PathBuf>) -> Result<Progress> {
        let mut progress = Progress { path, ..Progress::default() };
        let Some(path) = progress.path.as_deref().filter(|path| path.exists()) else { return Ok(progress) };
        for line in std::fs::read_to_string(path)?.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [seed, what, workloads, states, kernel, recut] = fields[..] else {
                bail!("the progress file is damaged: {line:?}")
            };
            let tally = Tally { states: states.parse()?, kernel: kernel.parse()?, recut: recut.parse()? };
            progress.phases.insert((seed.parse()?, what.to_owned()), (workloads.parse()?, tally));
        }
        Ok(progress)
    }

    fn get(&self, seed: u64, what: &str) -> (u64, Tally) {
        self.phases.get(&(seed, what.to_owned())).copied().unwrap_or_default()
    }

    fn note(&mut self, seed: u64, what: &str, workloads: u64, tally: Tally) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        self.phases.insert((seed, what.to_owned()), (workloads, tally));
        let lines = self.phases.iter().map(|((seed, what), (workloads, t))| {
            format!("{seed}\t{what}\t{workloads}\t{}\t{}\t{}\n", t.states, t.kernel, t.recut)
        });
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, lines.collect::<String>())?;
        Ok(std::fs::rename(fresh, path)?)
    }
}

/// What is run on a kind of volume.
#[derive(Clone, Copy)]
enum Case<'a> {
    /// On a sound device.
    Sound(&'a Workload),
    /// On one that begins to fail.
    Failing(&'a Workload),
    /// Several clients at once.
    Crowd,
}

impl Case<'_> {
    fn base(self, config: &Config) -> Result<Image> {
        let base = match self {
            Case::Crowd => config.base_for(&homes()),
            Case::Sound(_) | Case::Failing(_) => config.base(),
        };
        base.with_context(|| format!("{}: making the volume", config.name))
    }

    fn run(self, config: &Config, base: &Image, seed: u64) -> Result<Recorded> {
        match self {
            Case::Sound(workload) => config.run(base, workload, seed),
            Case::Failing(workload) => config.run_on_failing(base, workload, seed),
            Case::Crowd => config.run_crowd(base, &homes(), seed),
        }
    }

    /// The kernel is not asked about failing devices: what it does with a volume that says it holds errors is
    /// its own affair.
    fn court(self, court: Court) -> Court {
        match self {
            Case::Failing(_) => Court { kernel_every: 0, may_be_flagged: true, ..court },
            Case::Sound(_) | Case::Crowd => court,
        }
    }

    /// The arguments that run it again.
    fn spelled(self) -> String {
        match self {
            Case::Sound(workload) => format!("--workload {workload}"),
            Case::Failing(workload) => format!("--workload {workload} --failing"),
            Case::Crowd => "--crowd".into(),
        }
    }
}

/// Where the clients of a crowd work.
fn homes() -> [String; 3] {
    ["one", "two", "three"].map(String::from)
}

/// A session of the lab.
struct Lab {
    seed: u64,
    until: Instant,
    /// Failures after which to stop.
    most: usize,
    failures: Mutex<Vec<String>>,
    progress: Mutex<Progress>,
    threads: usize,
    /// Whether the time was over before a phase was.
    cut_short: AtomicBool,
    /// Workloads, and what was judged.
    sum: Mutex<(u64, Tally)>,
}

impl Lab {
    fn journal(&self, runs: u64, density: Density) -> Result<()> {
        self.in_parallel("journal alone", runs, |index| {
            let states = journal_run(self.seed, index).record()?.judge_all(density)?;
            Ok(Tally { states, ..Tally::default() })
        })
    }

    /// One in `share` of the sequences of `length` operations.
    fn short(&self, config: &Config, court: Court, length: usize, share: usize) -> Result<()> {
        let base = config.base().with_context(|| format!("{}: making the volume", config.name))?;
        let workloads: Vec<_> = workload::all(length, config.format()).into_iter().step_by(share).collect();
        let what = format!("{} sequences of {length}", config.name);
        self.in_parallel(&what, workloads.len() as u64, |index| {
            self.one(config, &base, Case::Sound(&workloads[index as usize]), self.seed, index, court)
        })
    }

    /// Sequences of three to twelve operations, drawn by the seed, until the time is over.
    fn sampled(&self, configs: &[&Config], court: Court) -> Result<()> {
        let bases: Vec<_> = configs.iter().map(|config| config.base()).collect::<Result<_>>()?;
        self.in_parallel("sampled sequences", u64::MAX, |index| {
            let which = index as usize % configs.len();
            let seed = self.seed ^ index << 8;
            let mut dice = Dice::new(seed);
            let length = if dice.one_in(4) { 4 + dice.below(9) } else { 3 };
            let workload = workload::sample(length as usize, configs[which].format(), &mut dice);
            self.one(configs[which], &bases[which], Case::Sound(&workload), seed, index, court)
        })
    }

    /// Short sequences on devices that begin to fail.
    fn failing(&self, config: &Config, court: Court, runs: u64) -> Result<()> {
        let base = config.base().with_context(|| format!("{}: making the volume", config.name))?;
        self.in_parallel(&format!("{} on failing devices", config.name), runs, |index| {
            let seed = self.seed ^ index << 8;
            let mut dice = Dice::new(!seed);
            let workload = workload::sample(1 + dice.below(3) as usize, config.format(), &mut dice);
            self.one(config, &base, Case::Failing(&workload), seed, index, court)
        })
    }

    /// Three clients at once, four to fifteen operations each.
    fn crowds(&self, config: &Config, court: Court, runs: u64) -> Result<()> {
        let base = Case::Crowd.base(config)?;
        // These runs are long: fewer states a cut.
        let court = Court { density: Density { exhaustive: 2, sampled: 1, ..court.density }, ..court };
        self.in_parallel(&format!("{} with three clients", config.name), runs, |index| {
            self.one(config, &base, Case::Crowd, self.seed ^ index << 8, index, court)
        })
    }

    /// Real programs, alone and beside others, on both sizes of blocks.
    fn programs(&self, which: &[&dyn Program], court: Court, times: u64) -> Result<()> {
        let bases = [programs::base(4096)?, programs::base(1024)?];
        let court = Court { kernel_every: 5, ..court };
        for program in which {
            self.in_parallel(program.name(), 4 * times, |index| {
                let storm = (index / 2 % 2 == 1).then_some(index);
                let recording = programs::record(*program, &bases[index as usize % 2], 40, storm)?;
                programs::judge(&court, *program, &recording, 25, self.seed ^ index << 8)
            })?;
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        let failures = self.failures.into_inner();
        let (workloads, tally) = self.sum.into_inner();
        report("altogether", workloads, workloads, tally, None, failures.len());
        ensure!(failures.is_empty(), "{} failures, above", failures.len());
        ensure!(!self.cut_short.into_inner(), "the time was over before all had been run; see above");
        Ok(())
    }

    fn one(
        &self,
        config: &Config,
        base: &Image,
        case: Case<'_>,
        seed: u64,
        salt: u64,
        court: Court,
    ) -> Result<Tally> {
        let line = || format!("replay with --config {} {} --seed {seed}", config.name, case.spelled());
        let run = case.run(config, base, seed).with_context(line)?;
        let judged = case.court(court).judge_all(config, &run, salt);
        judged.map_err(|(state, why)| why.context(format!("{} --state {state}", line())))
    }

    /// Runs `0..runs` on all processors until the time is over or too much has failed, and reports.
    fn in_parallel(&self, what: &str, runs: u64, run: impl Fn(u64) -> Result<Tally> + Sync) -> Result<()> {
        let begun = Instant::now();
        let (mut done, mut tally) = self.progress.lock().get(self.seed, what);
        let earlier = tally;
        while done < runs && !self.is_over() {
            let batch = done..runs.min(done + BATCH);
            let (ran, judged) = self.batch(batch.clone(), &run);
            done += ran;
            tally += judged;
            if ran == batch.end - batch.start {
                self.progress.lock().note(self.seed, what, done, tally)?;
            }
        }
        // Samples have no end; everything else has.
        self.cut_short.fetch_or(done < runs && runs != u64::MAX, Ordering::Relaxed);
        report(what, done, runs, tally, Some((earlier, begun.elapsed())), self.failures.lock().len());
        let mut all = self.sum.lock();
        all.0 += done;
        all.1 += tally;
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.failures.lock().len() >= self.most || Instant::now() >= self.until
    }

    /// How many of a batch were run, and what was judged.
    fn batch(&self, batch: Range<u64>, run: &(impl Fn(u64) -> Result<Tally> + Sync)) -> (u64, Tally) {
        let (next, sum) = (AtomicU64::new(batch.start), Mutex::new((0, Tally::default())));
        let work = || {
            while !self.is_over() {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= batch.end {
                    return;
                }
                let judged = run(index);
                sum.lock().0 += 1;
                match judged {
                    Ok(tally) => sum.lock().1 += tally,
                    Err(why) => {
                        let text = format!("{why:#}");
                        eprintln!("FAILED {text}");
                        self.failures.lock().push(text);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(work);
            }
        });
        sum.into_inner()
    }
}

/// The lab tested: every deliberate fault has to be caught.
#[cfg(feature = "mutants")]
mod mutants {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Instant;

    use anyhow::{Context, Result, anyhow, ensure};
    use blockdev::sim::Dice;
    use jbd2::mutants::{ALL, activate};
    use tests::crashlab::judge::Court;
    use tests::crashlab::{subject, workload};

    /// Workloads after which a fault counts as not caught.
    const PATIENCE: u64 = 20_000;

    pub fn hunt(seed: u64, court: Court) -> Result<()> {
        let court = Court { kernel_every: 0, ..court };
        let config = subject::config("4k").context("the first kind of volume")?;
        let base = config.base()?;
        let mut escaped = vec![];
        for mutant in ALL {
            activate(Some(mutant));
            let begun = Instant::now();
            let mut states = 0;
            let mut dice = Dice::new(seed);
            let caught = (0..PATIENCE).find_map(|index| {
                let attempt = || -> Result<u64> {
                    if index % 4 == 3 {
                        let run = super::journal_run(seed, index);
                        return run.record().context("journal alone")?.judge_all(court.density);
                    }
                    let workload = workload::sample(1 + dice.below(3) as usize, config.format(), &mut dice);
                    let run = config.run(&base, &workload, index).with_context(|| workload.to_string())?;
                    let judged = court.judge_all(config, &run, index);
                    let tally =
                        judged.map_err(|(state, why)| why.context(format!("{workload} at {state}")))?;
                    Ok(tally.states)
                };
                match catch_unwind(AssertUnwindSafe(attempt)) {
                    Ok(Ok(judged)) => {
                        states += judged;
                        None
                    }
                    Ok(Err(why)) => Some((index + 1, why)),
                    Err(_) => Some((index + 1, anyhow!("panicked"))),
                }
            });
            activate(None);
            let seconds = begun.elapsed().as_secs_f64();
            match caught {
                Some((workloads, why)) => {
                    println!("| {mutant:?} | {seconds:.2} s | {workloads} | {states} | {why:#} |");
                }
                None => escaped.push(mutant),
            }
        }
        ensure!(escaped.is_empty(), "not caught: {escaped:?}");
        Ok(())
    }
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

/// `now` is what earlier sessions had judged, and the time of this one.
fn report(what: &str, done: u64, of: u64, tally: Tally, now: Option<(Tally, Duration)>, failures: usize) {
    let of = if of == done || of == u64::MAX { String::new() } else { format!(" of {of}") };
    let pace = now.map_or(String::new(), |(earlier, took)| {
        let judged = tally.states + tally.recut - earlier.states - earlier.recut;
        let seconds = took.as_secs_f64();
        format!("{seconds:.0} s, {:.0} states/s, ", judged as f64 / seconds)
    });
    println!(
        "{what}: {done}{of} workloads, {} distinct states ({} heard by the kernel and e2fsck), {} cuts in recovery, \
         {pace}{failures} failures so far",
        tally.states, tally.kernel, tally.recut,
    );
}
