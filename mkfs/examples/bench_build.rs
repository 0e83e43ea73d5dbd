//! Image builders side by side: `bench_build MKFS [FOLDER] [ROUNDS] [TREE...]`.
//!
//! Makes five trees (in FOLDER unless they are there, or in a temporary one) and builds an image of each with
//! mkfs.rext4, with `mke2fs -d`, with mke2fs, a loop mount and `tar x` (root is needed), and with genext2fs where
//! it is installed. Prints a row of docs/PERFORMANCE.md for each: the fastest wall time with its processor time,
//! the largest peak of resident memory, and what the image takes on the disk. With `--one` it is the child that
//! measures one run. `REXT4_BENCH_BYTES` bounds the one large file (8 GiB).

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// A tree: its name, what it is, and who makes it in a folder.
type Row = (&'static str, &'static str, fn(&Path) -> Result<()>);

const ROWS: [Row; 5] = [
    ("flat", "100 000 files of 0 to 16 KiB in one folder", |root| small_files(root, 1, 100_000)),
    ("folders", "the same in 1 000 folders", |root| small_files(root, 1000, 100)),
    ("rootfs", "a root filesystem, as an archive", root_filesystem),
    ("large", "one large file", large_file),
    ("sparse", "a sparse file of 100 GiB", sparse_file),
];

/// A builder: its name, and a shell script that builds `$image` from `$tree` (or `$tree.tar`).
const BUILDERS: [(&str, &str); 4] = [
    ("mkfs.rext4", "\"$mkfs\" -q -F -d \"$source\" \"$image\""),
    (
        "mke2fs -d",
        "if [ \"$source\" != \"$tree\" ]; then mkdir \"$image.d\"; tar -C \"$image.d\" --xattrs --xattrs-include='*' \
         -xf \"$source\"; from=\"$image.d\"; else from=\"$tree\"; fi; truncate -s \"$size\" \"$image\"; \
         mke2fs -q -F -t ext4 -b 4096 -N \"$inodes\" -d \"$from\" \"$image\"; rm -rf \"$image.d\"",
    ),
    (
        "mount, tar x",
        "truncate -s \"$size\" \"$image\"; mke2fs -q -F -t ext4 -b 4096 -N \"$inodes\" \"$image\"; mkdir \"$image.m\"; \
         mount -o loop \"$image\" \"$image.m\"; \
         if [ \"$source\" != \"$tree\" ]; then tar -C \"$image.m\" --xattrs --xattrs-include='*' -xf \"$source\"; else \
         tar -C \"$tree\" -S -cf - . | tar -C \"$image.m\" -xf -; fi; umount \"$image.m\"; rmdir \"$image.m\"",
    ),
    (
        "genext2fs",
        "if [ \"$source\" != \"$tree\" ]; then how=-a; else how=-d; fi; \
         genext2fs -B 4096 -b $((size / 4096)) -N \"$inodes\" $how \"$source\" \"$image\"",
    ),
];

/// One run takes no longer; genext2fs needs hours for some trees.
const LIMIT: &str = "900";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--one") {
        return one(&arguments[1..]);
    }
    let [mkfs, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: bench_build MKFS [FOLDER] [ROUNDS] [TREE...]");
    };
    let mkfs = fs::canonicalize(mkfs).with_context(|| format!("{mkfs} is not built"))?;
    let temporary = tempfile::tempdir_in("/var/tmp")?;
    let folder = rest.first().filter(|folder| !folder.is_empty()).map_or(temporary.path(), Path::new);
    let rounds: u32 = rest.get(1).map_or(Ok(3), |rounds| rounds.parse())?;
    println!("| tree | builder | wall | processor | memory | image on disk |");
    println!("|---|---|---|---|---|---|");
    let chosen = rest.get(2..).unwrap_or_default();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|other| other == name);
    for (name, words, fill) in ROWS.into_iter().filter(|row| is_chosen(row.0)) {
        let tree = folder.join(name);
        if !tree.exists() {
            let new = folder.join("new");
            fs::create_dir_all(&new)?;
            fill(&new)?;
            fs::rename(&new, &tree)?;
        }
        for (builder, script) in BUILDERS {
            if let Some(best) = measured(&mkfs, folder, name, script, rounds)? {
                println!("| {words} | {builder} | {best} |");
            } else {
                println!("| {words} | {builder} | - | - | - | - |");
            }
        }
    }
    Ok(())
}

fn small_files(root: &Path, folders: u32, files: u32) -> Result<()> {
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let noise: Vec<u8> = (0..1 << 20).map(|_| next() as u8).collect();
    for folder in 0..folders {
        let folder = root.join(format!("folder-{folder:04}"));
        fs::create_dir(&folder)?;
        for file in 0..files {
            let (len, at) = ((next() % 16385) as usize, (next() % 1_000_000) as usize);
            fs::write(folder.join(format!("file-{file:06}")), &noise[at..at + len])?;
        }
    }
    Ok(())
}

/// What debootstrap makes, else this machine's own programs and documents; only its archive is kept.
fn root_filesystem(root: &Path) -> Result<()> {
    let archive = root.join("tree.tar");
    let script = "PATH=$PATH:/usr/sbin:/sbin; if command -v debootstrap >/dev/null && \
        debootstrap --variant=minbase stable d >/dev/null 2>&1; then \
        tar -C d --xattrs --xattrs-include='*' --format=posix --numeric-owner -cf $0 .; else \
        tar -C / --xattrs --xattrs-include='*' --format=posix --numeric-owner -cf $0 usr/bin usr/sbin usr/share etc; fi; \
        rm -rf d";
    let status = Command::new("bash").args(["-c", script]).arg(&archive).current_dir(root).status()?;
    ensure!(status.success() && archive.exists(), "no root filesystem could be archived");
    Ok(())
}

fn large_file(root: &Path) -> Result<()> {
    let bytes = std::env::var("REXT4_BENCH_BYTES").map_or(Ok(8 << 30), |text| text.parse::<u64>())?;
    let mut file = File::create(root.join("large"))?;
    let block: Vec<u8> =
        (0..1_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
    for _ in 0..bytes >> 20 {
        file.write_all(&block)?;
    }
    Ok(())
}

fn sparse_file(root: &Path) -> Result<()> {
    let mut file = File::create(root.join("sparse"))?;
    file.set_len(100 << 30)?;
    for at in 0..100_u64 {
        file.seek(SeekFrom::Start(at << 30))?;
        file.write_all(&[7; 8192])?;
    }
    Ok(())
}

/// The best of some runs, in the words of a table; `None` when the builder cannot do it.
fn measured(mkfs: &Path, folder: &Path, name: &str, script: &str, rounds: u32) -> Result<Option<String>> {
    let tree = folder.join(name);
    let archive = tree.join("tree.tar");
    let source = if archive.exists() { &archive } else { &tree };
    let (blocks, inodes) = needs(source)?;
    let image = folder.join("image");
    let mut best: Option<(f64, f64, i64, u64)> = None;
    for _ in 0..rounds {
        let _ = fs::remove_file(&image);
        let output = Command::new(std::env::current_exe()?)
            .arg("--one")
            .arg(format!("set -e; PATH=$PATH:/usr/sbin:/sbin; {script}"))
            .env("mkfs", mkfs)
            .env("tree", &tree)
            .env("source", source)
            .env("image", &image)
            .env("size", (blocks * 4096).to_string())
            .env("inodes", inodes.to_string())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [wall, cpu, kib] = numbers.as_slice() else { break };
        let disk = image.metadata()?.blocks() * 512;
        let (old_wall, old_cpu, old_kib) = best.map_or((f64::MAX, 0.0, 0), |best| (best.0, best.1, best.2));
        let faster = *wall < old_wall;
        best =
            Some((wall.min(old_wall), if faster { *cpu } else { old_cpu }, old_kib.max(*kib as i64), disk));
    }
    let _ = fs::remove_file(&image);
    Ok(best.map(|(wall, cpu, kib, disk)| {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let memory = mib(kib as f64 * 1024.0);
        format!("{wall:.2} s | {cpu:.2} s | {memory:.0} MiB | {:.0} MiB", mib(disk as f64))
    }))
}

/// Blocks and inodes of an image that surely holds a tree or an archive.
fn needs(source: &Path) -> Result<(u64, u64)> {
    let (mut blocks, mut inodes) = (0_u64, 0_u64);
    if source.is_file() {
        blocks = source.metadata()?.len() / 2048;
        inodes = source.metadata()?.len() / 4096;
    }
    let mut waiting = if source.is_dir() { vec![source.to_owned()] } else { Vec::new() };
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            inodes += 1;
            blocks += (meta.blocks() * 512).div_ceil(4096);
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok((blocks + blocks / 4 + inodes / 8 + 65536, inodes + inodes / 8 + 1024))
}

/// Wall seconds, processor seconds and peak KiB of one run, measured by a child of its own: the peak of
/// children is that of all so far.
fn one(arguments: &[String]) -> Result<()> {
    let [script] = arguments else { anyhow::bail!("--one SCRIPT") };
    let started = Instant::now();
    let mut command = Command::new("timeout");
    command.args([LIMIT, "bash", "-c", script]).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status()?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(status.success(), "{script}: {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    println!("{seconds} {} {}", time(usage.user_time()) + time(usage.system_time()), usage.max_rss());
    Ok(())
}
