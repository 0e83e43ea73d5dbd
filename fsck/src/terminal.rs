//! The terminal, or a log in its place: lines, questions and progress.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use fsck::{Answer, Ui};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Cli;
use crate::interrupt::Interrupt;
use crate::timing::Meter;

const PASSES: [&str; 5] = [
    "Pass 1: Checking inodes, blocks, and sizes",
    "Pass 2: Checking directory structure",
    "Pass 3: Checking directory connectivity",
    "Pass 4: Checking reference counts",
    "Pass 5: Checking group summary information",
];

/// Speaks to a person or a log, and asks the person.
pub struct Terminal {
    quiet: bool,
    /// Nobody watches: only what is done is told, each line with the volume's name.
    preens: bool,
    /// The pass under way, and what it has cost so far when each is to be measured.
    pass: u8,
    meter: Option<Meter>,
    measures: bool,
    name: String,
    /// Whether the name was chosen on the command line.
    named: bool,
    descriptor: Option<File>,
    /// Pass and percentage that were last written to the descriptor.
    last_written: (u8, u64),
    bar: Option<ProgressBar>,
    wants_bar: bool,
    started: Instant,
    interrupt: Interrupt,
}

impl Terminal {
    /// As the options say: `-C FD` writes numbers for programs, a terminal gets a bar when it takes longer
    /// than a second.
    ///
    /// # Errors
    /// The descriptor is not open.
    pub fn new(cli: &Cli, path: &Path, interrupt: Interrupt) -> io::Result<Terminal> {
        let descriptor = match cli.progress {
            Some(fd) if fd != 0 => {
                let open = File::options().write(true).open(format!("/proc/self/fd/{}", fd.unsigned_abs()));
                let invalid = |error| io::Error::other(format!("-C {fd}: invalid file descriptor: {error}"));
                Some(open.map_err(invalid)?)
            }
            _ => None,
        };
        let asked = cli.progress == Some(0);
        let wants_bar = !cli.json && descriptor.is_none() && (asked || io::stderr().is_terminal());
        Ok(Terminal {
            quiet: cli.json,
            preens: cli.preens(),
            pass: 0,
            meter: None,
            measures: cli.timing > 1,
            name: cli.name.clone().unwrap_or_else(|| path.display().to_string()),
            named: cli.name.is_some(),
            descriptor,
            last_written: (0, 0),
            bar: None,
            wants_bar,
            started: Instant::now(),
            interrupt,
        })
    }

    /// The name of the volume in messages: the one that was chosen, else its label, else its device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the bar away, and tells what the last pass has cost.
    pub fn finish(&mut self) {
        self.end_pass();
        self.take_bar();
    }

    fn take_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn end_pass(&mut self) {
        if let Some(meter) = self.meter.take() {
            meter.summary().lines().for_each(|line| self.print(&format!("Pass {}: {line}", self.pass)));
        }
    }

    fn print(&self, line: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| put(line)),
            None => put(line),
        }
    }
}

impl Ui for Terminal {
    fn say(&mut self, line: &str) {
        match self.preens {
            true => self.print(&format!("{}: {line}", self.name)),
            false => self.print(line),
        }
    }

    fn prompt(&mut self, text: &str, question: &str) -> Answer {
        self.take_bar();
        loop {
            print!("{text}\n{question}<y>? ");
            let _ = io::stdout().flush();
            let Some(line) = self.interrupt.line() else { return Answer::Cancel };
            match line.trim().to_lowercase().as_str() {
                "" | "y" | "yes" => return Answer::Yes,
                "n" | "no" => return Answer::No,
                "a" | "all" => return Answer::All,
                "c" | "cancel" | "q" => return Answer::Cancel,
                _ => println!("yes, no, all or cancel?"),
            }
        }
    }

    fn progress(&mut self, pass: u8, done: u64, of: u64) {
        if pass != self.pass {
            self.finish();
            self.pass = pass;
            self.meter = self.measures.then(Meter::start);
            if let Some(title) = PASSES.get(usize::from(pass).wrapping_sub(1)).filter(|_| !self.preens) {
                self.print(title);
            }
        }
        let percent = done * 100 / of.max(1);
        let shown = self.interrupt.shows_progress();
        if let Some(file) = self.descriptor.as_mut().filter(|_| shown)
            && self.last_written != (pass, percent)
        {
            self.last_written = (pass, percent);
            let _ = writeln!(file, "{pass} {done} {of} {}", self.name);
        }
        if self.wants_bar && shown && self.started.elapsed().as_secs() >= 1 {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("{bar:40} {percent:>3}% {eta}");
                ProgressBar::new(of).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            });
            bar.set_position(done);
        } else if !shown {
            self.take_bar();
        }
    }

    fn label(&mut self, label: &str) {
        if !self.named && !label.is_empty() {
            self.name = label.to_owned();
        }
    }

    fn forced(&mut self, reason: &str) {
        self.print(&format!("{} {reason}, check forced.", self.name));
    }
}

/// A line on the standard output; a reader that has gone away is no reason to stop.
fn put(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
