//! What asynchronous direct IO gains: the same requests with FUSE_ASYNC_DIO and without (`-o noasync_dio`),
//! on one system, both in every round. The first rows are those of the measurement that came with the
//! kernel's patches.

use std::fs::{self, File};
use std::path::Path;

use anyhow::Result;
use rustix::fs::FallocateFlags;

use super::workloads::{MB, direct, fio};
use super::{Bed, Figures, Setup, System, touch};

/// Bytes of the file that requests go to.
const BYTES: u64 = 512 << 20;

/// What the range holds before the requests come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Hole,
    Preallocated,
    Written,
}

/// One line of the table.
struct Row {
    name: &'static str,
    before: Before,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    writers: u64,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, rw) in [("sequential read", "read"), ("sequential write", "write")] {
        rows.push(Row { name, before: Before::Written, rw, block: "64k", depth: 64, writers: 1 });
    }
    let kinds = [
        ("random write, hole", Before::Hole, "randwrite"),
        ("random write, preallocated", Before::Preallocated, "randwrite"),
        ("random write, written", Before::Written, "randwrite"),
        ("random read, written", Before::Written, "randread"),
    ];
    for (name, before, rw) in kinds {
        for writers in [1, 4] {
            rows.extend([1, 8, 32].map(|depth| Row { name, before, rw, block: "4k", depth, writers }));
        }
    }
    rows
}

impl Row {
    /// Megabytes a second.
    fn measure(&self, root: &Path) -> Result<f64> {
        let path = root.join("file");
        if self.before != Before::Written {
            let file = File::create(&path)?;
            match self.before {
                Before::Preallocated => rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES)?,
                _ => file.set_len(BYTES)?,
            }
            file.sync_all()?;
        } else if !path.exists() {
            fio(root, &["--filename=file", &size(BYTES), "--bs=1m", "--rw=write", "--end_fsync=1"])?;
        }
        let share = BYTES / self.writers;
        let words = [
            format!("--rw={}", self.rw),
            format!("--bs={}", self.block),
            format!("--iodepth={}", self.depth),
            format!("--numjobs={}", self.writers),
            format!("--offset_increment={share}"),
            size(share),
        ];
        let fixed = ["--filename=file", "--ioengine=libaio", "--direct=1", "--runtime=1", "--invalidate=0"];
        let words: Vec<&str> = fixed.into_iter().chain(words.iter().map(String::as_str)).collect();
        let (bytes, _) = fio(root, &words)?;
        if self.before != Before::Written {
            fs::remove_file(path)?;
        }
        Ok(bytes / MB)
    }
}

fn size(bytes: u64) -> String {
    format!("--size={bytes}")
}

/// Measures, and gives the table as Markdown. Four to six minutes with three rounds.
pub fn table(setup: &Setup) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("rext4-bench-").tempdir_in(&setup.backing)?;
    let image = folder.path().join("backing");
    touch(&image, 2 << 30)?;
    let rows = rows();
    let dd = ["dd write, 2 MiB", "dd read, 2 MiB"];
    // By row: with and without.
    let mut figures = vec![[Figures::default(), Figures::default()]; dd.len() + rows.len()];
    for round in 0..setup.rounds {
        for side in [round % 2, (round + 1) % 2] {
            let word = ["async_dio", "noasync_dio"][side];
            eprintln!("round {} of {}: {word}", round + 1, setup.rounds);
            let options = [&setup.options[..], &[word.to_owned()]].concat();
            let mut bed = Bed::new(System::Rext4Image, &image, folder.path(), &options, None)?;
            let mut values = direct(&mut bed)?;
            fs::remove_file(bed.root().join("file"))?;
            // Holes and preallocated ranges first: the written file stays from its first use on.
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.sort_by_key(|&at| rows[at].before == Before::Written);
            values.resize(dd.len() + rows.len(), 0.0);
            for at in order {
                values[dd.len() + at] = rows[at].measure(bed.root())?;
            }
            bed.finish()?;
            for (figures, value) in figures.iter_mut().zip(values) {
                figures[side].values.push(value);
            }
        }
    }
    let mut table = String::from(
        "| requests | block | depth | writers | asynchronous, MB/s | not, MB/s | gain |\n|---|---|---|---|---|---|---|\n",
    );
    let shown = |figures: &Figures| {
        let (low, high) = figures.range();
        format!("{:.0} [{low:.0}, {high:.0}]", figures.median().unwrap_or(0.0))
    };
    let names = dd.iter().map(|name| format!("{name} | 2m | 1 | 1"));
    let names =
        names.chain(rows.iter().map(|r| format!("{} | {} | {} | {}", r.name, r.block, r.depth, r.writers)));
    for (name, [with, without]) in names.zip(&figures) {
        let gain = with.median().unwrap_or(0.0) / without.median().unwrap_or(1.0);
        table += &format!("| {name} | {} | {} | {gain:.2} |\n", shown(with), shown(without));
    }
    Ok(table)
}
