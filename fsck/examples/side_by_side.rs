//! fsck.rext4 and e2fsck, side by side over the same images: `side_by_side FSCK [FOLDER] [ROUNDS]`.
//!
//! Makes two images (a million files in 1020 directories on 12 GiB; a hundred files of 8000 pieces each on 8
//! GiB; root and the kernel's ext4 are needed), in FOLDER unless they are there, or in a temporary one. What
//! the files hold is preallocated and never written, so both take less than 2 GiB of disk. Then it checks
//! each with `-fn`, the two programs taking turns, and prints a row of docs/PERFORMANCE.md: the fastest wall
//! time and the largest peak of resident memory of each, and their ratio. With `--one` it is the child that
//! measures one run.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::resource::{UsageWho, getrusage};

/// Makes the files of an image in the folder where it is mounted.
type Filler = fn(&Path) -> anyhow::Result<()>;

const IMAGES: [(&str, &str, &str, &str, Filler); 2] = [
    ("million.img", "1 000 000 files of one block in 1 020 directories", "12G", "-N 1100000", million),
    ("pieces.img", "100 files of 8 000 pieces each", "8G", "-N 4096", pieces),
];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--one") {
        return one(&arguments[1..]);
    }
    let [checker, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: side_by_side FSCK [FOLDER] [ROUNDS]");
    };
    let temporary = tempfile::tempdir_in("/var/tmp")?;
    let folder = rest.first().filter(|folder| !folder.is_empty()).map_or(temporary.path(), Path::new);
    let rounds: u32 = rest.get(1).map_or(Ok(3), |rounds| rounds.parse())?;
    println!("| image | e2fsck, wall | fsck.rext4, wall | ratio | e2fsck, memory | fsck.rext4, memory |");
    println!("|---|---|---|---|---|---|");
    for (name, words, size, options, fill) in IMAGES {
        let image = folder.join(name);
        if !image.exists() {
            make(folder, name, size, options, fill)?;
        }
        let (mut theirs, mut ours) = ((f64::MAX, 0), (f64::MAX, 0));
        for _ in 0..rounds {
            for (program, best) in [("e2fsck", &mut theirs), (checker.as_str(), &mut ours)] {
                let (seconds, kib) = measured(program, &image)?;
                *best = (best.0.min(seconds), best.1.max(kib));
            }
        }
        println!(
            "| {words}, {size}iB | {:.2} s | {:.2} s | {:.2} | {:.1} MiB | {:.1} MiB |",
            theirs.0,
            ours.0,
            ours.0 / theirs.0,
            theirs.1 as f64 / 1024.0,
            ours.1 as f64 / 1024.0
        );
    }
    Ok(())
}

/// Makes an image; it has its name only when it is complete.
fn make(folder: &Path, name: &str, size: &str, options: &str, fill: Filler) -> anyhow::Result<()> {
    let run = |script: &str| -> anyhow::Result<()> {
        let status = Command::new("bash").args(["-ec", script]).current_dir(folder).status()?;
        ensure!(status.success(), "{script}: {status}");
        Ok(())
    };
    run(&format!(
        "truncate -s {size} new; mke2fs -Fq -t ext4 {options} new; mkdir -p mnt; mount -o loop,noatime new mnt"
    ))?;
    let filled = fill(&folder.join("mnt"));
    run("umount mnt; rmdir mnt")?;
    filled?;
    run(&format!("mv new {name}"))
}

fn million(mnt: &Path) -> anyhow::Result<()> {
    for dir in 0..1020 {
        let dir = mnt.join(format!("dir-{dir}"));
        std::fs::create_dir(&dir)?;
        for file in 0..981 {
            let file = File::create(dir.join(format!("file-number-{file}")))?;
            fallocate(&file, FallocateFlags::empty(), 0, 4096)?;
        }
    }
    Ok(())
}

fn pieces(mnt: &Path) -> anyhow::Result<()> {
    for file in 0..100 {
        let file = File::create(mnt.join(format!("f{file}")))?;
        fallocate(&file, FallocateFlags::empty(), 0, 64 << 20)?;
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for piece in 0..8000 {
            fallocate(&file, punch, piece * 8192, 4096)?;
        }
    }
    Ok(())
}

/// Wall seconds and peak KiB of one run, measured by a child of its own: the peak of children is that of all
/// so far.
fn measured(program: &str, image: &Path) -> anyhow::Result<(f64, i64)> {
    let output = Command::new(std::env::current_exe()?).arg("--one").arg(program).arg(image).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (seconds, kib) = text.trim().split_once(' ').with_context(|| format!("{program}: {text}"))?;
    Ok((seconds.parse()?, kib.parse()?))
}

fn one(arguments: &[String]) -> anyhow::Result<()> {
    let [program, image] = arguments else { anyhow::bail!("--one PROGRAM IMAGE") };
    let started = Instant::now();
    let status =
        Command::new(program).args(["-fn", image]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(status.success(), "{program} does not find {image} clean: {status}");
    println!("{seconds} {}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss());
    Ok(())
}
