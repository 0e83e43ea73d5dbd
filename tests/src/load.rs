//! Parallel load, in two kinds.
//!
//! [`Storm`]: threads that create, write, rename, link and unlink in each other's folders, as fast as they
//! can, and expect only the errors that such neighbours cause.
//!
//! [`Promises`]: threads that make files durable and keep an account, outside the filesystem, of what has
//! been promised to them. After a crash [`Promises::check`] demands it back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use rustix::io::Errno;

use crate::tree::{fill, write_stream};

/// Whether an error says that the server is gone, and not that it did something wrong.
fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::NOTCONN, Errno::CONNABORTED, Errno::CANCELED, Errno::IO, Errno::ROFS, Errno::NODEV];
    error.raw_os_error().is_some_and(|code| gone.iter().any(|errno| errno.raw_os_error() == code))
}

/// Threads in each other's way.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Decides what each thread does.
    pub seed: u64,
    /// Number of threads.
    pub threads: usize,
    /// How long they go on.
    pub time: Duration,
    /// No space left is an answer like any other.
    pub may_fill_up: bool,
}

impl Storm {
    /// Runs it below `root`; returns the number of operations that succeeded. Ends quietly when the server is
    /// gone and `may_vanish`.
    pub fn run(&self, root: &Path, may_vanish: bool) -> Result<u64> {
        let dirs: Vec<PathBuf> = (0..4).map(|index| root.join(format!("storm{index}"))).collect();
        match dirs.iter().try_for_each(fs::create_dir_all) {
            Err(error) if may_vanish && (is_gone(&error) || !root.exists()) => return Ok(0),
            made => made?,
        }
        let done = AtomicU64::new(0);
        let deadline = Instant::now() + self.time;
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads)
                .map(|index| {
                    let mut rng = Rng::with_seed(self.seed.wrapping_add(index as u64));
                    let (dirs, done) = (&dirs, &done);
                    scope.spawn(move || -> Result<()> {
                        while Instant::now() < deadline {
                            match storm_step(&mut rng, dirs) {
                                Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                                Err((_, error)) if may_vanish && (is_gone(&error) || !root.exists()) => {
                                    return Ok(());
                                }
                                Err((_, error)) if self.is_expected(&error) => continue,
                                Err((what, error)) => bail!("{what}: {error}"),
                            };
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
        Ok(done.into_inner())
    }

    /// What neighbours do to each other: a name is gone, or taken, or a folder is not empty.
    fn is_expected(&self, error: &io::Error) -> bool {
        let code = error.raw_os_error().and_then(|code| (code != 0).then(|| Errno::from_raw_os_error(code)));
        let Some(code) = code else { return false };
        matches!(
            code,
            Errno::NOENT | Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR | Errno::INVAL
        ) || (self.may_fill_up && code == Errno::NOSPC)
    }
}

/// One operation; the error comes with its name.
fn storm_step(rng: &mut Rng, dirs: &[PathBuf]) -> Result<(), (&'static str, io::Error)> {
    // Few names, so that threads meet.
    let mut name = |stem: &str| dirs[rng.usize(0..dirs.len())].join(format!("{stem}{}", rng.u8(0..40)));
    let (file, other, dir, other_dir) = (name("f"), name("f"), name("d"), name("d"));
    let inside = dir.join("inside");
    match rng.u8(0..20) {
        0..=4 => {
            let file = File::options().create(true).write(true).truncate(rng.bool()).open(file);
            let file = file.map_err(|error| ("create", error))?;
            let offset = if rng.u8(0..4) == 0 { rng.u64(0..1 << 20) } else { 0 };
            write_stream(&file, rng.u64(..), offset, rng.u64(0..100_000))
                .map_err(|error| ("write", error))?;
            if rng.u8(0..8) == 0 {
                file.sync_all().map_err(|error| ("fsync", error))?;
            }
            Ok(())
        }
        5..=6 => fs::read(file).map(drop).map_err(|error| ("read", error)),
        7..=8 => fs::rename(file, other).map_err(|error| ("rename", error)),
        9 => fs::rename(dir, other_dir).map_err(|error| ("rename of a folder", error)),
        10..=12 => fs::remove_file(file).map_err(|error| ("unlink", error)),
        13 => fs::hard_link(file, other).map_err(|error| ("link", error)),
        14 => std::os::unix::fs::symlink("somewhere", other).map_err(|error| ("symlink", error)),
        15 => fs::create_dir(dir).map_err(|error| ("mkdir", error)),
        16 => fs::remove_dir(dir).map_err(|error| ("rmdir", error)),
        17 => fs::rename(file, inside).map_err(|error| ("rename into a folder", error)),
        18 => fs::read_dir(&dirs[0])
            .and_then(|mut list| list.try_for_each(|entry| entry.map(drop)))
            .map_err(|error| ("readdir", error)),
        _ => File::options()
            .write(true)
            .open(file)
            .and_then(|file| file.set_len(rng.u64(0..200_000)))
            .map_err(|error| ("truncate", error)),
    }
}

/// What one path was promised to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// At least `length` bytes of stream `seed`.
    Stream { seed: u64, length: u64 },
    /// No such name.
    Absent,
}

/// What one path may be: its last promise, or anything that was on its way when the lights went out.
#[derive(Clone, Debug, Default)]
struct Account {
    promised: Option<Promise>,
    under_way: Vec<Promise>,
}

/// The account of one run.
#[derive(Debug, Default)]
pub struct Promises {
    accounts: BTreeMap<PathBuf, Account>,
}

impl Promises {
    /// Runs `threads` below `root` until `stop` is set or the server is gone.
    pub fn gather(root: &Path, seed: u64, threads: usize, stop: &AtomicBool) -> Result<Promises> {
        let parts = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|index| {
                    let seed = seed.wrapping_mul(31).wrapping_add(index as u64);
                    let dir = PathBuf::from(format!("kept{index}"));
                    scope.spawn(move || Keeper::new(root, dir, seed).run(stop))
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("a worker does not panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        let mut all = Promises::default();
        parts.into_iter().for_each(|part| all.accounts.extend(part.accounts));
        Ok(all)
    }

    /// Number of promises in the account.
    pub fn count(&self) -> usize {
        self.accounts.values().filter(|account| account.promised.is_some()).count()
    }

    /// Every promise is kept below `root`, and where none was made there is nothing that nobody wrote.
    pub fn check(&self, root: &Path) -> Result<()> {
        for (path, account) in &self.accounts {
            let possible = account.promised.iter().chain(&account.under_way);
            let answers: Vec<String> = possible
                .map(|promise| {
                    judge(&root.join(path), *promise)
                        .err()
                        .map_or(String::new(), |error| format!("{error:#}"))
                })
                .collect();
            let kept = answers.iter().any(String::is_empty)
                || (account.promised.is_none() && !root.join(path).exists());
            ensure!(kept, "{}: {account:?} is not what there is: {answers:?}", path.display());
        }
        Ok(())
    }
}

/// Whether the file is what was promised; behind the promised length there may be more of the stream, or
/// zeros.
fn judge(path: &Path, promise: Promise) -> Result<()> {
    let (seed, length) = match promise {
        Promise::Absent => {
            ensure!(fs::symlink_metadata(path).is_err(), "it is there");
            return Ok(());
        }
        Promise::Stream { seed, length } => (seed, length),
    };
    let bytes = fs::read(path).context("reading")?;
    ensure!(bytes.len() as u64 >= length, "has {} bytes, {length} promised", bytes.len());
    let mut expected = vec![0; bytes.len()];
    fill(seed, 0, &mut expected);
    let wrong = bytes
        .iter()
        .zip(&expected)
        .enumerate()
        .find(|(index, (found, right))| found != right && !(*index as u64 >= length && **found == 0));
    if let Some((index, (found, right))) = wrong {
        bail!("byte {index} of {} ({length} promised) is {found:#x}, not {right:#x}", bytes.len());
    }
    Ok(())
}

/// One thread with a folder of its own.
struct Keeper<'a> {
    root: &'a Path,
    dir: PathBuf,
    rng: Rng,
    promises: Promises,
}

impl<'a> Keeper<'a> {
    fn new(root: &'a Path, dir: PathBuf, seed: u64) -> Keeper<'a> {
        Keeper { root, dir, rng: Rng::with_seed(seed), promises: Promises::default() }
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Promises> {
        match self.steps(stop) {
            // Once the dead mount is taken away, its mount point shows: there is nothing below it.
            Err(error) if !is_gone(&error) && self.root.exists() => {
                bail!("in {}: {error}", self.dir.display())
            }
            _ => Ok(self.promises),
        }
    }

    fn steps(&mut self, stop: &AtomicBool) -> io::Result<()> {
        fs::create_dir_all(self.root.join(&self.dir))?;
        while !stop.load(Ordering::Relaxed) {
            let path = self.dir.join(format!("file{}", self.rng.u8(0..30)));
            match (self.current(&path), self.rng.u8(0..10)) {
                (Some((seed, length)), 0..=3) => self.append(&path, seed, length)?,
                (Some(_), 4..=5) => self.remove(&path)?,
                (_, 6..=7) => self.replace(&path)?,
                (None, _) => self.create(&path)?,
                (Some((seed, length)), _) => self.overwrite(&path, seed, length)?,
            }
        }
        Ok(())
    }

    fn current(&self, path: &Path) -> Option<(u64, u64)> {
        match self.promises.accounts.get(path)?.promised? {
            Promise::Stream { seed, length } => Some((seed, length)),
            Promise::Absent => None,
        }
    }

    fn begin(&mut self, path: &Path, promise: Promise) {
        self.promises.accounts.entry(path.to_owned()).or_default().under_way.push(promise);
    }

    fn keep(&mut self, path: &Path, promise: Promise) {
        self.promises
            .accounts
            .insert(path.to_owned(), Account { promised: Some(promise), under_way: Vec::new() });
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(self.root.join(&self.dir))?.sync_all()
    }

    /// fsync or fdatasync: what is read back depends on neither's metadata.
    fn sync(&mut self, file: &File) -> io::Result<()> {
        if self.rng.bool() { file.sync_all() } else { file.sync_data() }
    }

    /// A new file: its fsync promises its name as well, as ext4 does.
    fn create(&mut self, path: &Path) -> io::Result<()> {
        let (seed, length) = (self.rng.u64(..), self.rng.u64(1..60_000));
        self.begin(path, Promise::Stream { seed, length: 0 });
        let file = File::create(self.root.join(path))?;
        write_stream(&file, seed, 0, length)?;
        file.sync_all()?;
        self.keep(path, Promise::Stream { seed, length });
        Ok(())
    }

    fn append(&mut self, path: &Path, seed: u64, length: u64) -> io::Result<()> {
        let more = self.rng.u64(1..20_000);
        let file = File::options().write(true).open(self.root.join(path))?;
        write_stream(&file, seed, length, more)?;
        self.sync(&file)?;
        self.keep(path, Promise::Stream { seed, length: length + more });
        Ok(())
    }

    /// The same bytes once more, in the middle: nothing may change, whenever the cut comes.
    fn overwrite(&mut self, path: &Path, seed: u64, length: u64) -> io::Result<()> {
        let file = File::options().write(true).open(self.root.join(path))?;
        let offset = self.rng.u64(0..length);
        let mut bytes = vec![0; self.rng.u64(1..=(length - offset).min(8192)) as usize];
        fill(seed, offset, &mut bytes);
        file.write_all_at(&bytes, offset)?;
        self.sync(&file)
    }

    /// Write a new file, fsync, rename it over the old one, fsync the folder.
    fn replace(&mut self, path: &Path) -> io::Result<()> {
        let (seed, length) = (self.rng.u64(..), self.rng.u64(1..60_000));
        let promise = Promise::Stream { seed, length };
        let fresh = path.with_extension("new");
        self.begin(&fresh, Promise::Stream { seed, length: 0 });
        self.promises.accounts.entry(fresh.clone()).or_default().promised = None;
        let file = File::create(self.root.join(&fresh))?;
        write_stream(&file, seed, 0, length)?;
        file.sync_all()?;
        self.begin(path, promise);
        fs::rename(self.root.join(&fresh), self.root.join(path))?;
        self.sync_dir()?;
        self.keep(path, promise);
        self.keep(&fresh, Promise::Absent);
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.begin(path, Promise::Absent);
        fs::remove_file(self.root.join(path))?;
        self.sync_dir()?;
        self.keep(path, Promise::Absent);
        Ok(())
    }
}
