//! `make crash` and `make crash-long`: the crash lab from the command line.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blockdev::sim::{Change, Dice, Event, Image, StateName};
use clap::Parser;
use jbd2::LogChecksum;
use parking_lot::Mutex;
use tests::crashlab::epochs::Density;
use tests::crashlab::judge::{Court, Tally};
use tests::crashlab::ops::Workload;
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
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
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
    #[arg(long, requires_all = ["workload", "state"])]
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
    if let Some(workload) = &args.workload {
        let run = run(configs[0], &configs[0].base()?, workload, args.seed, args.failing)?;
        if let (Some(path), Some(state)) = (&args.save, args.state) {
            kernel::save(&run.recording.build(state).image, path)?;
        }
        return replay(configs[0], workload, &run, args.state, of_kind(court, args.failing));
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
    };
    if args.config.is_none() {
        lab.journal(if args.long { 2000 } else { 100 }, density);
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
    if args.long {
        lab.sampled(&configs, court, args.progress.as_deref())?;
    }
    let failures = lab.failures.into_inner();
    ensure!(failures.is_empty(), "{} failures, above", failures.len());
    Ok(())
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
    workload: &Workload,
    run: &Recorded,
    state: Option<StateName>,
    court: Court,
) -> Result<()> {
    for step in &workload.0 {
        println!("{step}: {:?}, then {:?}", step.op(), step.then);
    }
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

/// Sampled workloads between two notes of the progress.
const BATCH: u64 = 2000;

/// How far the long sessions of one seed have come: two numbers in a file.
#[derive(Default)]
struct Session {
    workloads: u64,
    states: u64,
}

impl Session {
    fn read(path: Option<&Path>) -> Result<Session> {
        let Some(text) = path.filter(|path| path.exists()).map(std::fs::read_to_string).transpose()? else {
            return Ok(Session::default());
        };
        let (workloads, states) = text.trim().split_once(' ').context("the progress file is damaged")?;
        Ok(Session { workloads: workloads.parse()?, states: states.parse()? })
    }

    fn write(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        Ok(std::fs::write(path, format!("{} {}\n", self.workloads, self.states))?)
    }
}

/// A run on a sound device, or on a failing one.
fn run(config: &Config, base: &Image, workload: &Workload, seed: u64, failing: bool) -> Result<Recorded> {
    match failing {
        true => config.run_on_failing(base, workload, seed),
        false => config.run(base, workload, seed),
    }
}

/// The court for runs on sound or on failing devices. The kernel is not asked about the latter: what it does
/// with a volume that says it holds errors is its own affair.
fn of_kind(court: Court, failing: bool) -> Court {
    match failing {
        true => Court { kernel_every: 0, may_be_flagged: true, ..court },
        false => court,
    }
}

/// One workload and how it is run.
#[derive(Clone, Copy)]
struct Case<'a> {
    workload: &'a Workload,
    seed: u64,
    failing: bool,
}

/// A session of the lab.
struct Lab {
    seed: u64,
    until: Instant,
    /// Failures after which to stop.
    most: usize,
    failures: Mutex<Vec<String>>,
}

impl Lab {
    fn journal(&self, runs: u64, density: Density) {
        let _ = self.in_parallel("journal alone", runs, |index| {
            let states = journal_run(self.seed, index).record()?.judge_all(density)?;
            Ok(Tally { states, ..Tally::default() })
        });
    }

    /// One in `share` of the sequences of `length` operations.
    fn short(&self, config: &Config, court: Court, length: usize, share: usize) -> Result<()> {
        let base = config.base().with_context(|| format!("{}: making the volume", config.name))?;
        let workloads: Vec<_> = workload::all(length, config.format()).into_iter().step_by(share).collect();
        let what = format!("{} sequences of {length}", config.name);
        self.in_parallel(&what, workloads.len() as u64, |index| {
            let case = Case { workload: &workloads[index as usize], seed: self.seed, failing: false };
            self.one(config, &base, case, index, court)
        });
        Ok(())
    }

    /// Sequences of three to twelve operations, drawn by the seed, until the time is over.
    fn sampled(&self, configs: &[&Config], court: Court, progress: Option<&Path>) -> Result<()> {
        let bases: Vec<_> = configs.iter().map(|config| config.base()).collect::<Result<_>>()?;
        let mut session = Session::read(progress)?;
        while Instant::now() < self.until && self.failures.lock().len() < self.most {
            let from = session.workloads;
            let (done, tally) = self.in_parallel("sampled sequences", BATCH, |index| {
                let which = (from + index) as usize % configs.len();
                let seed = self.seed ^ (from + index) << 8;
                let mut dice = Dice::new(seed);
                let length = if dice.one_in(4) { 4 + dice.below(9) } else { 3 };
                let workload = workload::sample(length as usize, configs[which].format(), &mut dice);
                let case = Case { workload: &workload, seed, failing: false };
                self.one(configs[which], &bases[which], case, index, court)
            });
            session.workloads += done;
            session.states += tally.states;
            session.write(progress)?;
        }
        println!("all sessions: {} sampled sequences, {} distinct states", session.workloads, session.states);
        Ok(())
    }

    /// Short sequences on devices that begin to fail.
    fn failing(&self, config: &Config, court: Court, runs: u64) -> Result<()> {
        let base = config.base().with_context(|| format!("{}: making the volume", config.name))?;
        self.in_parallel(&format!("{} on failing devices", config.name), runs, |index| {
            let seed = self.seed ^ index << 8;
            let mut dice = Dice::new(!seed);
            let workload = workload::sample(1 + dice.below(3) as usize, config.format(), &mut dice);
            self.one(config, &base, Case { workload: &workload, seed, failing: true }, index, court)
        });
        Ok(())
    }

    fn one(&self, config: &Config, base: &Image, case: Case<'_>, salt: u64, court: Court) -> Result<Tally> {
        let Case { workload, seed, failing } = case;
        let mut line = format!("replay with --config {} --workload {workload} --seed {seed}", config.name);
        if failing {
            line.push_str(" --failing");
        }
        let run = run(config, base, workload, seed, failing).with_context(|| line.clone())?;
        of_kind(court, failing)
            .judge_all(config, &run, salt)
            .map_err(|(state, why)| why.context(format!("{line} --state {state}")))
    }

    /// Runs `0..runs` on all processors until the time is over or too much has failed, and reports.
    fn in_parallel(&self, what: &str, runs: u64, run: impl Fn(u64) -> Result<Tally> + Sync) -> (u64, Tally) {
        let begun = Instant::now();
        let (next, sum) = (AtomicU64::new(0), Mutex::new((0, Tally::default())));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let enough = self.failures.lock().len() >= self.most;
                if enough || index >= runs || Instant::now() >= self.until {
                    return;
                }
                match run(index) {
                    Ok(tally) => {
                        let mut sum = sum.lock();
                        sum.0 += 1;
                        sum.1 += tally;
                    }
                    Err(why) => {
                        let text = format!("{why:#}");
                        eprintln!("FAILED {text}");
                        self.failures.lock().push(text);
                    }
                }
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        std::thread::scope(|scope| {
            // Mounting for the kernel's opinion is mostly waiting.
            for _ in 0..2 * processors {
                scope.spawn(work);
            }
        });
        let (done, tally) = sum.into_inner();
        report(what, done, runs, tally, begun.elapsed(), self.failures.lock().len());
        (done, tally)
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

fn report(what: &str, done: u64, of: u64, tally: Tally, took: Duration, failures: usize) {
    let seconds = took.as_secs_f64();
    let of = if of == done { String::new() } else { format!(" of {of}") };
    println!(
        "{what}: {done}{of} workloads, {} distinct states ({} heard by the kernel and e2fsck), {} cuts in recovery, \
         {seconds:.0} s, {:.0} states/s, {failures} failures so far",
        tally.states,
        tally.kernel,
        tally.recut,
        (tally.states + tally.recut) as f64 / seconds,
    );
}
