//! Where the server's time goes: perf samples of rext4 over the image file, for each part of the benchmark and each
//! mount in it (a part that makes its caches cold has several). Processor time only: a busy machine does not
//! change the shares much, an idle one does not show what the server waits for.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Bed, Setup, touch, workloads};
use crate::run::{run, tool};
use crate::system::System;

/// Lines of each table.
const TOP: usize = 10;

/// Samples every server of a [`Bed`], from its mount to its end.
#[derive(Debug)]
pub(super) struct Profiler {
    folder: PathBuf,
    running: Option<Child>,
    /// A table for each mount so far.
    tables: Vec<String>,
}

impl Profiler {
    pub(super) fn new(folder: &Path) -> Profiler {
        Profiler { folder: folder.to_owned(), running: None, tables: vec![] }
    }

    fn samples(&self) -> PathBuf {
        self.folder.join("perf.data")
    }

    pub(super) fn start(&mut self, server: u32) -> Result<()> {
        let mut record = tool("perf");
        record.args(["record", "-q", "-F", "2000", "-p", &server.to_string(), "-o"]).arg(self.samples());
        self.running =
            Some(record.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("perf record")?);
        Ok(())
    }

    /// After the server's end, which ends perf as well.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(mut recording) = self.running.take() else { return Ok(()) };
        ensure!(recording.wait()?.success(), "perf record failed");
        let fields = ["--stdio", "--no-children", "-F", "overhead,sym", "--percent-limit", "0.4"];
        let said = run(tool("perf").args(["report", "-q", "-i"]).arg(self.samples()).args(fields))?;
        let mut table = String::from("| share | where |\n|---|---|\n");
        for line in said.lines().filter(|line| line.contains('%')).take(TOP) {
            let (share, place) =
                line.trim().split_once(char::is_whitespace).context("a share and a place")?;
            let place = place.trim().replace("[.] ", "").replace("[k] ", "kernel: ").replace('|', "\\|");
            writeln!(table, "| {share} | `{place}` |")?;
        }
        self.tables.push(table);
        Ok(())
    }

    pub(super) fn into_tables(self) -> Vec<String> {
        self.tables
    }
}

/// The ten places of each mount in which the server spends most of its time.
pub fn tables(setup: &Setup) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("rext4-profile-").tempdir_in(&setup.backing)?;
    let image = folder.path().join("backing");
    touch(&image, 3 << 30)?;
    let mut text = String::new();
    for part in workloads::all().into_iter().filter(|part| part.is_wanted(&setup.only)) {
        eprintln!("{}", part.name);
        let profiler = Some(Profiler::new(folder.path()));
        let mut bed = Bed::new(System::Rext4Image, &image, folder.path(), &setup.options, profiler)?;
        (part.run)(&mut bed)?;
        let tables = bed.finish()?.tables;
        let rows: Vec<_> = part.rows.iter().map(|row| row.name).collect();
        writeln!(text, "### {}: {}\n", part.name, rows.join("; "))?;
        for (index, table) in tables.iter().enumerate() {
            writeln!(text, "Mount {} of {}:\n\n{table}", index + 1, tables.len())?;
        }
    }
    Ok(text)
}
