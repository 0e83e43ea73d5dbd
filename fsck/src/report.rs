//! What a check found and did, for people (a summary on one screen) and for programs (JSON, exit code).

use std::collections::BTreeMap;
use std::fmt::Write;

use ext4_format::Ino;

use crate::problem::{Code, Preen, Problem, Question};

/// More findings than this are only counted.
const KEPT: usize = 100_000;

/// One problem and what became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What was wrong.
    pub problem: Problem,
    /// Whether it was repaired.
    pub fixed: bool,
    /// A path to the inode, where one is known.
    pub path: Option<String>,
}

/// What the volume holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes of the volume.
    pub inodes_total: u64,
    /// Blocks in use.
    pub blocks: u64,
    /// Blocks of the volume.
    pub blocks_total: u64,
    /// Directories.
    pub directories: u64,
    /// Files and directories in more than one piece.
    pub fragmented: u64,
}

/// The outcome of a check.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The findings, the first hundred thousand of them.
    pub findings: Vec<Finding>,
    /// How many there were.
    pub count: u64,
    /// How many of them are left.
    pub left: u64,
    /// Whether the check was skipped because the volume says it is clean.
    pub skipped: bool,
    /// Why a check was made that nobody asked for.
    pub reason: Option<String>,
    /// Mounts until the next check, when a skipped check is due soon.
    pub next_check: Option<u16>,
    /// Whether the journal was replayed.
    pub replayed: bool,
    /// Whether anything was written.
    pub changed: bool,
    /// Whether something was changed for the better that was not wrong.
    pub optimized: bool,
    /// What the volume holds.
    pub usage: Usage,
}

impl Report {
    /// Whether nothing is wrong with the volume (any more).
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.left == 0
    }

    /// e2fsck's exit code: 0 clean, 1 fixed, 4 errors left.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (self.left, self.count > self.left) {
            (0, false) => 0,
            (0, true) => 1,
            (_, true) => 4 | 1,
            (_, false) => 4,
        }
    }

    /// The names of the kinds of problems found, each once, sorted.
    #[must_use]
    pub fn codes(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.findings.iter().map(|f| f.problem.code.row().name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        let row = finding.problem.code.row();
        let told = row.question == Question::Tell && row.preen == Preen::Fix;
        let mild = row.preen == Preen::Mild && !finding.fixed;
        let recovered = finding.fixed && !finding.problem.code.is_damage();
        if !told && !mild && !recovered {
            self.count += 1;
            self.left += u64::from(!finding.fixed);
        }
        if self.findings.len() < KEPT {
            self.findings.push(finding);
        }
    }

    /// Whether another round must look at what was repaired in this one.
    pub(crate) fn needs_another_round(&self) -> bool {
        let fixed = || self.findings.iter().filter(|finding| finding.fixed);
        let kept = fixed().filter(|finding| finding.problem.code.is_damage()).count() as u64;
        self.changed && (self.count - self.left > kept || fixed().any(|f| !f.problem.code.is_final()))
    }

    /// Drops findings of some kinds: they are about to be looked for again.
    pub(crate) fn forget(&mut self, which: impl Fn(Code) -> bool) {
        self.findings.retain(|finding| !which(finding.problem.code));
        (self.count, self.left) = (0, 0);
    }

    /// A problem of an inode that was left has been dealt with in another way.
    pub(crate) fn resolve(&mut self, code: Code, ino: Ino) {
        let wanted = |f: &&mut Finding| f.problem.code == code && f.problem.ino == Some(ino) && !f.fixed;
        if let Some(finding) = self.findings.iter_mut().rev().find(wanted) {
            finding.fixed = true;
            self.left -= 1;
        }
    }

    /// Joins a later round over the same volume: what it found is added, what is left is what it left.
    pub(crate) fn then(mut self, later: Report) -> Report {
        let fixed = self.count - self.left;
        self.count = fixed + later.count;
        self.left = later.left;
        self.findings.retain(|finding| finding.fixed);
        self.findings.extend(later.findings);
        self.findings.truncate(KEPT);
        self.changed |= later.changed;
        self.optimized |= later.optimized;
        self.replayed |= later.replayed;
        self.usage = later.usage;
        self
    }

    /// The summary: kinds of problems with their number, what was done, what is left, and the files
    /// concerned.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for finding in &self.findings {
            let entry = kinds.entry(finding.problem.code.row().name).or_default();
            entry.0 += 1;
            entry.1 += u64::from(finding.fixed);
        }
        let mut text = String::new();
        if !kinds.is_empty() {
            let _ = writeln!(text, "{:<28}{:>9}{:>9}{:>9}", "problem", "found", "fixed", "left");
            for (name, (found, fixed)) in kinds.iter().take(30) {
                let _ = writeln!(text, "{name:<28}{found:>9}{fixed:>9}{:>9}", found - fixed);
            }
            if kinds.len() > 30 {
                let _ = writeln!(text, "... and {} more kinds", kinds.len() - 30);
            }
        }
        let mut paths: Vec<&str> = self.findings.iter().filter_map(|f| f.path.as_deref()).collect();
        paths.sort_unstable();
        paths.dedup();
        for path in paths.iter().take(20) {
            let _ = writeln!(text, "concerned: {path}");
        }
        if paths.len() > 20 {
            let _ = writeln!(text, "... and {} more files", paths.len() - 20);
        }
        text
    }

    /// The report as one JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        let mut text = String::from("{\"problems\":[");
        for (at, finding) in self.findings.iter().enumerate() {
            let problem = &finding.problem;
            let row = problem.code.row();
            let _ = write!(
                text,
                "{}\n{{\"code\":{},\"text\":{},\"fixed\":{}",
                if at > 0 { "," } else { "" },
                quoted(row.name),
                quoted(&problem.text()),
                finding.fixed
            );
            let numbers = [
                ("inode", problem.ino.map(|ino| u64::from(ino.get()))),
                ("block", problem.block.map(|block| block.0)),
                ("group", problem.group.map(|group| u64::from(group.0))),
            ];
            for (key, value) in numbers {
                if let Some(value) = value {
                    let _ = write!(text, ",\"{key}\":{value}");
                }
            }
            if let Some(path) = &finding.path {
                let _ = write!(text, ",\"path\":{}", quoted(path));
            }
            text.push('}');
        }
        let usage = &self.usage;
        let _ = write!(
            text,
            "],\n\"found\":{},\"left\":{},\"changed\":{},\"replayed\":{},\"skipped\":{},\"exit\":{},\n\
             \"usage\":{{\"inodes\":{},\"inodes_total\":{},\"blocks\":{},\"blocks_total\":{},\"directories\":{},\
             \"fragmented\":{}}}}}",
            self.count,
            self.left,
            self.changed,
            self.replayed,
            self.skipped,
            self.exit_code(),
            usage.inodes,
            usage.inodes_total,
            usage.blocks,
            usage.blocks_total,
            usage.directories,
            usage.fragmented
        );
        text
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
