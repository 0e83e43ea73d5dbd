//! The workloads: fio and ordinary tools where they exist. (fio's own engines for creating and asking for
//! files look at each file before they start, which is why those four rows have loops of their own.)

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::contender::Contender;
use super::{Bed, timed};
use crate::run::{run, tool};

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is measured.
    pub name: &'static str,
    /// Of the figures.
    pub unit: &'static str,
    /// For seconds.
    pub less_is_better: bool,
    /// The least ratio of rext4 on the image file to the kernel on a loop device that the project asks for.
    pub target: f64,
    /// The same with requests over io_uring, where more is asked for.
    pub target_with_rings: Option<f64>,
}

impl Row {
    fn with_rings(self, target: f64) -> Row {
        Row { target_with_rings: Some(target), ..self }
    }

    /// What is asked of this contender.
    pub fn target_of(&self, contender: Contender) -> f64 {
        let with_rings = self.target_with_rings.filter(|_| contender.transport == Some("ring"));
        with_rings.unwrap_or(self.target)
    }
}

/// Rows that come from one filesystem's life, in order.
pub struct Part {
    /// For `--only` and the memory table.
    pub name: &'static str,
    /// In the order of the values that `run` returns.
    pub rows: Vec<Row>,
    /// Measures on a fresh filesystem.
    pub run: fn(&mut Bed) -> Result<Vec<f64>>,
}

impl Part {
    /// Whether `--only` lets it through.
    pub fn is_wanted(&self, only: &[String]) -> bool {
        let matches = |name: &str| only.iter().any(|word| name.contains(word.as_str()));
        only.is_empty() || matches(self.name) || self.rows.iter().any(|row| matches(row.name))
    }
}

fn rate(name: &'static str, unit: &'static str, target: f64) -> Row {
    Row { name, unit, less_is_better: false, target, target_with_rings: None }
}

fn seconds(name: &'static str, target: f64) -> Row {
    Row { name, unit: "s", less_is_better: true, target, target_with_rings: None }
}

/// All parts, in the order of the table.
pub fn all() -> Vec<Part> {
    vec![
        Part {
            name: "buffered",
            rows: vec![
                rate("buffered sequential write 1 GiB + fsync", "MB/s", 1.0),
                rate("buffered sequential read, cold", "MB/s", 0.9),
                rate("buffered sequential read, warm", "MB/s", 0.95),
            ],
            run: buffered,
        },
        Part {
            name: "direct",
            rows: vec![
                rate("O_DIRECT 2 MiB write into a hole (dd)", "MB/s", 0.9),
                rate("O_DIRECT 2 MiB read (dd)", "MB/s", 0.7),
            ],
            run: direct,
        },
        Part {
            name: "random",
            rows: vec![
                rate("libaio 4k random write into a hole, QD32, direct", "IOPS", 0.8),
                rate("libaio 4k random overwrite, QD32, direct", "IOPS", 0.5),
                rate("libaio 4k random read, QD32, direct", "IOPS", 0.5),
                rate("4k random read, QD1, direct", "IOPS", 1.0).with_rings(2.0),
            ],
            run: random,
        },
        Part {
            name: "large-aio",
            rows: vec![
                rate("libaio 1 MiB sequential write, QD4, direct", "MB/s", 0.8),
                rate("libaio 1 MiB sequential read, QD4, direct", "MB/s", 0.7),
            ],
            run: large_aio,
        },
        Part {
            name: "fsync",
            rows: vec![
                rate("4k append + fsync, 1 writer", "IOPS", 1.2).with_rings(2.0),
                rate("4k append + fsync, 4 writers", "IOPS", 1.5),
            ],
            run: append_fsync,
        },
        Part {
            name: "metadata",
            rows: vec![
                rate("create 20 000 files in one directory", "ops/s", 0.2).with_rings(0.35),
                rate("stat them, cold", "ops/s", 0.3),
                rate("ls -l, cold", "ops/s", 0.4),
                rate("unlink them", "ops/s", 0.15).with_rings(0.35),
            ],
            run: metadata,
        },
        Part {
            name: "tree",
            rows: vec![
                seconds("untar a source tree + sync", 0.2).with_rings(0.35),
                seconds("grep -r over it, cold", 0.5),
                seconds("cp -a of it + sync", 0.2),
                seconds("rm -rf of it + sync", 0.15).with_rings(0.35),
            ],
            run: tree,
        },
        Part {
            name: "sqlite",
            rows: vec![
                rate("sqlite, one row a transaction, WAL, synchronous=full", "tx/s", 1.2).with_rings(2.0),
            ],
            run: sqlite,
        },
    ]
}

/// One fio job in the mount; returns (bytes per second, operations per second) of its reads and writes
/// together.
pub(super) fn fio(root: &Path, arguments: &[&str]) -> Result<(f64, f64)> {
    let mut command = tool("fio");
    command.args([
        "--name=bench",
        "--output-format=json",
        "--eta=never",
        "--fallocate=none",
        "--group_reporting",
    ]);
    let said = run(command.arg(format!("--directory={}", root.display())).args(arguments))?;
    // Notes of fio's come before the JSON.
    let json = &said[said.find('{').context("fio printed no JSON")?..];
    let answer: serde_json::Value = serde_json::from_str(json)?;
    let job = &answer["jobs"][0];
    ensure!(job["error"] == 0, "fio: {said}");
    let sum = |key: &str| ["read", "write"].iter().filter_map(|side| job[side][key].as_f64()).sum::<f64>();
    Ok((sum("bw_bytes"), sum("iops")))
}

/// Bytes of a megabyte.
pub(super) const MB: f64 = 1e6;

fn buffered(bed: &mut Bed) -> Result<Vec<f64>> {
    let file = ["--filename=file", "--size=1g", "--bs=1m", "--ioengine=psync"];
    let with = |more: &[&'static str]| [&file, more].concat();
    let (written, _) = fio(bed.root(), &with(&["--rw=write", "--end_fsync=1"]))?;
    bed.make_cold()?;
    // fio's own invalidation would make the second read cold again.
    let read = with(&["--rw=read", "--invalidate=0"]);
    let (cold, _) = fio(bed.root(), &read)?;
    let (warm, _) = fio(bed.root(), &read)?;
    Ok(vec![written / MB, cold / MB, warm / MB])
}

pub(super) fn direct(bed: &mut Bed) -> Result<Vec<f64>> {
    const COUNT: u64 = 512;
    let megabytes = (COUNT * (2 << 20)) as f64 / MB;
    let file = bed.root().join("file");
    let dd = |from: &Path, to: &Path, flag: &str| {
        let words =
            [format!("if={}", from.display()), format!("of={}", to.display()), format!("count={COUNT}")];
        timed(tool("dd").args(words).args(["bs=2M", "conv=notrunc", "status=none", flag]))
    };
    File::create(&file)?.set_len(COUNT * (2 << 20))?;
    let write = dd(Path::new("/dev/zero"), &file, "oflag=direct")?;
    let read = dd(&file, Path::new("/dev/null"), "iflag=direct")?;
    Ok(vec![megabytes / write, megabytes / read])
}

fn random(bed: &mut Bed) -> Result<Vec<f64>> {
    let job = |more: &[&str]| {
        let common = ["--filename=file", "--size=512m", "--bs=4k", "--direct=1", "--ioengine=libaio"];
        fio(bed.root(), &[&common, more].concat()).map(|(_, operations)| operations)
    };
    File::create(bed.root().join("file"))?.set_len(512 << 20)?;
    let hole = job(&["--rw=randwrite", "--iodepth=32", "--runtime=10"])?;
    // Whatever the time limit left out.
    fio(bed.root(), &["--filename=file", "--size=512m", "--bs=1m", "--rw=write", "--end_fsync=1"])?;
    let timed = ["--time_based", "--runtime=3"];
    let overwrite = job(&[&timed[..], &["--rw=randwrite", "--iodepth=32", "--overwrite=1"]].concat())?;
    let read = job(&[&timed[..], &["--rw=randread", "--iodepth=32"]].concat())?;
    let single = job(&[&timed[..], &["--rw=randread", "--iodepth=1"]].concat())?;
    Ok(vec![hole, overwrite, read, single])
}

fn large_aio(bed: &mut Bed) -> Result<Vec<f64>> {
    let job = |rw: &str| {
        let common =
            ["--filename=file", "--size=1g", "--bs=1m", "--direct=1", "--ioengine=libaio", "--iodepth=4"];
        fio(bed.root(), &[&common[..], &[rw]].concat()).map(|(bytes, _)| bytes / MB)
    };
    Ok(vec![job("--rw=write")?, job("--rw=read")?])
}

fn append_fsync(bed: &mut Bed) -> Result<Vec<f64>> {
    let job = |writers: &str| {
        let common = ["--rw=write", "--bs=4k", "--fsync=1", "--ioengine=psync", "--size=256m", "--runtime=3"];
        fio(bed.root(), &[&common[..], &[writers]].concat()).map(|(_, operations)| operations)
    };
    Ok(vec![job("--numjobs=1")?, job("--numjobs=4")?])
}

fn metadata(bed: &mut Bed) -> Result<Vec<f64>> {
    const FILES: usize = 20_000;
    fn each(dir: &Path, action: impl Fn(PathBuf) -> std::io::Result<()>) -> Result<f64> {
        let start = Instant::now();
        for index in 0..FILES {
            action(dir.join(format!("file-{index:05}")))?;
        }
        Ok(FILES as f64 / start.elapsed().as_secs_f64())
    }
    fs::create_dir(bed.root().join("dir"))?;
    let create = each(&bed.root().join("dir"), |path| File::create(path).map(drop))?;
    bed.make_cold()?;
    let stat = each(&bed.root().join("dir"), |path| Ok(rustix::fs::lstat(path).map(drop)?))?;
    bed.make_cold()?;
    let list = timed(tool("ls").arg("-l").arg(bed.root().join("dir")))?;
    let unlink = each(&bed.root().join("dir"), fs::remove_file)?;
    Ok(vec![create, stat, FILES as f64 / list, unlink])
}

/// An archive of a source tree of about 30 MB and 2800 entries, made once a run.
fn archive(folder: &Path) -> Result<PathBuf> {
    let archive = folder.join("tree.tar");
    if !archive.exists() {
        let source = folder.join("source");
        fs::create_dir(&source)?;
        let text = include_str!("workloads.rs");
        for index in 0..2660 {
            let dir = source.join(format!("module-{}/part-{}", index % 20, index % 140));
            fs::create_dir_all(&dir)?;
            // 1 to 40 KB of something that reads like source.
            let length = 1000 + (index * 7919) % 20_000;
            let words: String = text.chars().cycle().skip(index * 13 % text.len()).take(length).collect();
            fs::write(dir.join(format!("file-{index}.rs")), words)?;
        }
        run(tool("tar").arg("-cf").arg(&archive).arg("-C").arg(folder).arg("source"))?;
    }
    Ok(archive)
}

fn tree(bed: &mut Bed) -> Result<Vec<f64>> {
    let archive = archive(bed.folder())?;
    let synced = |bed: &Bed, mut command: std::process::Command| -> Result<f64> {
        let start = Instant::now();
        run(&mut command)?;
        bed.sync()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let mut untar = tool("tar");
    untar.arg("-xf").arg(archive).arg("-C").arg(bed.root());
    let untar = synced(bed, untar)?;
    bed.make_cold()?;
    let mut grep = tool("grep");
    grep.args(["-r", "-c", "ensure"]).arg(bed.root().join("source"));
    let grep = timed(&mut grep)?;
    let mut copy = tool("cp");
    copy.arg("-a").arg(bed.root().join("source")).arg(bed.root().join("copy"));
    let copy = synced(bed, copy)?;
    let mut remove = tool("rm");
    remove.arg("-rf").arg(bed.root().join("copy"));
    let remove = synced(bed, remove)?;
    Ok(vec![untar, grep, copy, remove])
}

fn sqlite(bed: &mut Bed) -> Result<Vec<f64>> {
    const ROWS: usize = 4000;
    let insert = "INSERT INTO log(text) VALUES('a row of about one hundred bytes, as a small application writes it');\n";
    let script = bed.folder().join("insert.sql");
    fs::write(&script, insert.repeat(ROWS))?;
    let database = bed.root().join("base.db");
    let settings = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;";
    run(tool("sqlite3")
        .arg(&database)
        .arg(format!("{settings} CREATE TABLE log(id INTEGER PRIMARY KEY, text TEXT);")))?;
    let mut command = tool("sqlite3");
    command.arg("-cmd").arg("PRAGMA synchronous=FULL").arg(&database).stdin(File::open(&script)?);
    let took = timed(&mut command)?;
    let count = run(tool("sqlite3").arg(&database).arg("SELECT count(*) FROM log"))?;
    ensure!(count.trim() == ROWS.to_string(), "{count} rows of {ROWS}");
    Ok(vec![ROWS as f64 / took])
}
