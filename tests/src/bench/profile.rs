//! Where the server's time goes: perf samples of rext4 over the image file, for each part of the benchmark
//! and each mount in it (a part that makes its caches cold has several). Processor time only: a busy machine
//! does not change the shares much, an idle one does not show what the server waits for.

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
    /// The places of each mount so far.
    profiles: Vec<String>,
}

impl Profiler {
    pub(super) fn new(folder: &Path) -> Profiler {
        Profiler { folder: folder.to_owned(), running: None, profiles: vec![] }
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
        let places = said.lines().filter(|line| line.contains('%')).take(TOP).map(|line| {
            let (share, place) =
                line.trim().split_once(char::is_whitespace).context("a share and a place")?;
            let kernel = if place.contains("[k]") { "kernel " } else { "" };
            let place =
                place.trim().trim_start_matches("[.] ").trim_start_matches("[k] ").replace('|', "\\|");
            Ok(format!("{share} {kernel}`{place}`"))
        });
        self.profiles.push(places.collect::<Result<Vec<_>>>()?.join(", "));
        Ok(())
    }

    pub(super) fn into_profiles(self) -> Vec<String> {
        self.profiles
    }
}

/// The ten places of each mount in which the server spends most of its time, as a table.
pub fn table(setup: &Setup) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("rext4-profile-").tempdir_in(&setup.backing)?;
    let image = folder.path().join("backing");
    touch(&image, 3 << 30)?;
    let mut text = String::from("| part | where the server's processor time goes |\n|---|---|\n");
    for part in workloads::all().into_iter().filter(|part| part.is_wanted(&setup.only)) {
        eprintln!("{}", part.name);
        let profiler = Some(Profiler::new(folder.path()));
        let mut bed = Bed::new(System::Rext4Image, &image, folder.path(), &setup.options, profiler)?;
        (part.run)(&mut bed)?;
        let profiles = bed.finish()?.profiles;
        for (index, places) in profiles.iter().enumerate() {
            writeln!(text, "| {}, mount {} of {} | {places} |", part.name, index + 1, profiles.len())?;
        }
    }
    Ok(text)
}
