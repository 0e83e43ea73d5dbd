//! Who decides: the same checking code runs as a dry run, which stops at the first problem and is what the
//! parallel scan uses, and with the prompter, which reports each problem and decides by the mode or asks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ext4_format::Ino;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::options::{Mode, Options};
use crate::paths;
use crate::problem::{Preen, Problem, Question};
use crate::report::{Finding, Report};

/// Decides about problems.
pub trait Ask {
    /// Reports a problem; true when it is to be fixed now.
    ///
    /// # Errors
    /// [`Error::Suspect`] from a dry run, [`Error::Unexpected`] when preening must stop, [`Error::Cancelled`].
    fn ask(&mut self, problem: Problem) -> Result<bool>;
}

/// Stops at the first problem, so that the caller knows that there is one, and nothing was changed.
pub struct DryRun;

impl Ask for DryRun {
    fn ask(&mut self, _: Problem) -> Result<bool> {
        Err(Error::Suspect)
    }
}

/// Agrees to everything and reports nothing: for what follows from a change that was no repair.
pub struct Agree;

impl Ask for Agree {
    fn ask(&mut self, _: Problem) -> Result<bool> {
        Ok(true)
    }
}

/// The answer of a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Fix this one.
    Yes,
    /// Leave this one.
    No,
    /// Fix this one and all that follow.
    All,
    /// Stop the check.
    Cancel,
}

/// What the check needs from its surroundings: somewhere to speak and someone to ask.
pub trait Ui {
    /// A line of output.
    fn say(&mut self, line: &str);
    /// A question; asked only in [`Mode::Ask`].
    fn prompt(&mut self, text: &str, question: &str) -> Answer;
    /// Work done in a pass (1 to 5) so far.
    fn progress(&mut self, pass: u8, done: u64, of: u64);
    /// The volume's label, once it is known.
    fn label(&mut self, _label: &str) {}
    /// Why a check is made that nobody asked for, as the end of a sentence about the volume.
    fn forced(&mut self, _reason: &str) {}
}

/// A [`Ui`] for programs: says nothing and never agrees to anything.
pub struct Silent;

impl Ui for Silent {
    fn say(&mut self, _: &str) {}
    fn prompt(&mut self, _: &str, _: &str) -> Answer {
        Answer::No
    }
    fn progress(&mut self, _: u8, _: u64, _: u64) {}
}

/// Reports each problem, gets a decision by the mode, and keeps both.
pub struct Prompter<'u> {
    mode: Mode,
    cancel: Option<Arc<AtomicBool>>,
    ui: &'u mut dyn Ui,
    /// What was found so far.
    pub report: Report,
    /// The journal was thrown away: a new one is made at the end.
    pub journal_lost: bool,
    /// The round ended early because what it built on was wrong; the next one knows better.
    pub restart: bool,
    /// Nothing may be written, but an overlay takes what a recovery changes.
    pub overlaid: bool,
    /// Paths of inodes, by number.
    paths: HashMap<u32, String>,
}

impl<'u> Prompter<'u> {
    /// A prompter that speaks through `ui`.
    pub fn new(options: &Options, ui: &'u mut dyn Ui) -> Prompter<'u> {
        let (mode, cancel) = (options.mode, options.cancel.clone());
        Prompter {
            mode,
            cancel,
            ui,
            report: Report::default(),
            journal_lost: false,
            restart: false,
            overlaid: false,
            paths: HashMap::new(),
        }
    }

    /// Who decides by now: "all" said once counts for the rounds that follow, too.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The volume's label, for whoever speaks of it.
    pub fn label(&mut self, label: &str) {
        self.ui.label(label);
    }

    /// Why the passes run although nobody asked for them.
    pub fn forced(&mut self, reason: String) {
        self.ui.forced(&reason);
        self.report.reason = Some(reason);
    }

    /// A line for people.
    pub fn say(&mut self, line: &str) {
        self.ui.say(line);
    }

    /// Work done in a pass.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once the caller wants the check to end.
    pub fn progress(&mut self, pass: u8, done: u64, of: u64) -> Result<()> {
        self.ui.progress(pass, done, of);
        self.go_on()
    }

    /// Looks up the paths of inodes that problems are about to be reported of, while they still have them.
    pub fn learn_paths(&mut self, ctx: &Context, inodes: impl IntoIterator<Item = Ino>) {
        let unknown: Vec<Ino> =
            inodes.into_iter().filter(|ino| !self.paths.contains_key(&ino.get())).collect();
        self.paths.extend(paths::of(ctx, unknown));
    }

    /// The path of an inode, as far as it was looked up.
    pub fn path(&self, ino: u32) -> Option<&str> {
        self.paths.get(&ino).map(String::as_str)
    }

    /// Gives a path to the findings that have none yet, where their inodes have one by now.
    pub fn name_findings(&mut self, ctx: &Context) {
        let nameless = |finding: &&Finding| finding.path.is_none();
        let inodes: Vec<Ino> =
            self.report.findings.iter().filter(nameless).filter_map(|f| f.problem.ino).collect();
        self.learn_paths(ctx, inodes);
        for finding in &mut self.report.findings {
            let known = finding.problem.ino.and_then(|ino| self.paths.get(&ino.get()));
            finding.path = finding.path.take().or_else(|| known.cloned());
        }
    }

    /// Reports what was put right without a question.
    pub fn note_fixed(&mut self, problem: Problem) {
        self.report.add(Finding { problem, fixed: true, path: None });
    }

    /// Offers what is no repair; whoever says yes to everything wants it.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn offers(&mut self, text: &str, question: &str) -> Result<bool> {
        self.go_on()?;
        let yes = match self.mode {
            Mode::Yes => true,
            Mode::CheckOnly | Mode::Preen => false,
            Mode::Ask => match self.ui.prompt(text, question) {
                Answer::No => false,
                Answer::Yes => true,
                Answer::All => {
                    self.mode = Mode::Yes;
                    true
                }
                Answer::Cancel => return Err(Error::Cancelled { changed: false }),
            },
        };
        if self.mode != Mode::Ask {
            self.ui.say(&format!("{text}.  {question}? {}", if yes { "yes" } else { "no" }));
        }
        Ok(yes)
    }

    /// Whether the check goes on.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once the caller wants it to end.
    pub fn go_on(&self) -> Result<()> {
        match self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            true => Err(Error::Cancelled { changed: false }),
            false => Ok(()),
        }
    }
}

impl Ask for Prompter<'_> {
    fn ask(&mut self, problem: Problem) -> Result<bool> {
        self.go_on()?;
        if self.overlaid && problem.code.is_recovery() {
            return Ok(true);
        }
        let row = problem.code.row();
        let path = problem.ino.and_then(|ino| self.paths.get(&ino.get())).cloned();
        let text = problem.text_with(path.as_deref());
        let (question, done) = row.question.words();
        let mut stop = None;
        let fix = match (row.question, self.mode) {
            (Question::Tell, _) => false,
            (_, Mode::CheckOnly) => false,
            (_, Mode::Yes) => true,
            (_, Mode::Preen) => {
                if row.preen == Preen::Stop {
                    stop = Some(Error::Unexpected);
                }
                row.preen != Preen::Stop
            }
            (_, Mode::Ask) => match self.ui.prompt(&text, question) {
                Answer::Yes => true,
                Answer::No => false,
                Answer::All => {
                    self.mode = Mode::Yes;
                    true
                }
                Answer::Cancel => {
                    stop = Some(Error::Cancelled { changed: false });
                    false
                }
            },
        };
        if self.mode != Mode::Ask || row.question == Question::Tell {
            let end = match (row.question, fix) {
                (Question::Tell, _) => ".".to_owned(),
                (_, true) => format!(".  {done}."),
                (_, false) => format!(".  {question}? no"),
            };
            self.ui.say(&format!("{text}{end}"));
        }
        self.report.add(Finding { problem, fixed: fix, path });
        match stop {
            Some(stop) => Err(stop),
            None => Ok(fix),
        }
    }
}
