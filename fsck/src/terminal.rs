//! Speaking to a person or a program: lines, questions, progress.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use fsck::{Answer, Ui};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Cli;
use crate::interrupt::Interrupt;

const PASSES: [&str; 5] = [
    "Pass 1: Checking inodes, blocks, and sizes",
    "Pass 2: Checking directory structure",
    "Pass 3: Checking directory connectivity",
    "Pass 4: Checking reference counts",
    "Pass 5: Checking group summary information",
];

/// The terminal, or what stands in for it.
pub struct Terminal {
    quiet: bool,
    pass: u8,
    device: String,
    descriptor: Option<File>,
    /// Pass and percentage that were last written to the descriptor.
    told: (u8, u64),
    bar: Option<ProgressBar>,
    wants_bar: bool,
    started: Instant,
    interrupt: Interrupt,
}

impl Terminal {
    /// As the options say: `-C FD` writes numbers for programs, a terminal gets a bar when it takes longer
    /// than a second.
    pub fn new(cli: &Cli, interrupt: Interrupt) -> io::Result<Terminal> {
        let descriptor = match cli.progress {
            Some(fd) if fd > 0 => Some(File::options().write(true).open(format!("/proc/self/fd/{fd}"))?),
            _ => None,
        };
        let asked = cli.progress == Some(0);
        let wants_bar = !cli.json && descriptor.is_none() && (asked || io::stderr().is_terminal());
        Ok(Terminal {
            quiet: cli.json,
            pass: 0,
            device: cli.device.display().to_string(),
            descriptor,
            told: (0, 0),
            bar: None,
            wants_bar,
            started: Instant::now(),
            interrupt,
        })
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Ui for Terminal {
    fn say(&mut self, line: &str) {
        if self.quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| put(line)),
            None => put(line),
        }
    }

    fn prompt(&mut self, text: &str, question: &str) -> Answer {
        self.finish();
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
            self.pass = pass;
            self.finish();
            if let Some(title) = PASSES.get(usize::from(pass).wrapping_sub(1)) {
                self.say(title);
            }
        }
        let percent = done * 100 / of.max(1);
        if let Some(file) = &mut self.descriptor
            && self.told != (pass, percent)
        {
            self.told = (pass, percent);
            let _ = writeln!(file, "{pass} {done} {of} {}", self.device);
        }
        if self.wants_bar && self.started.elapsed().as_secs() >= 1 {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("{bar:40} {percent:>3}% {eta}");
                ProgressBar::new(of).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            });
            bar.set_position(done);
        }
    }
}

/// A line on the standard output; a reader that has gone away is no reason to stop.
fn put(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
