//! fsck.rext4 and e2fsck, side by side over the same images: `side_by_side FSCK FOLDER [ROUNDS]`.
//!
//! Makes two images in FOLDER unless they are there (a million files in 1020 directories on 12 GiB; a hundred files of
//! 8000 pieces each on 8 GiB; root and the kernel's ext4 are needed for that), then checks each with `-fn`, the two
//! programs taking turns, and prints a row of docs/PERFORMANCE.md: the fastest wall time and the largest peak of
//! resident memory of each, and their ratio. With `--one` it is the child that measures one run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};

const MILLION: &str = "set -e; cd FOLDER; truncate -s 12G NAME.new; mke2fs -Fq -t ext4 -N 1100000 NAME.new; mkdir -p mnt; \
    mount -o loop,noatime NAME.new mnt; n=0; for d in $(seq 1020); do mkdir mnt/dir-$d; (cd mnt/dir-$d; \
    seq -f 'file-number-%.0f' $n $((n + 980)) | xargs -d '\\n' -n 500 sh -c 'for f; do echo x > $f; done' sh); \
    n=$((n + 981)); done; umount mnt; rmdir mnt; mv NAME.new NAME";
const PIECES: &str = "set -e; cd FOLDER; truncate -s 8G NAME.new; mke2fs -Fq -t ext4 NAME.new; mkdir -p mnt; \
    mount -o loop,noatime NAME.new mnt; for f in $(seq 100); do fallocate -l 64M mnt/f$f; \
    for at in $(seq 0 7999); do echo fallocate -p -o $((at * 8192)) -l 4096 mnt/f$f; done | sh; done; \
    umount mnt; rmdir mnt; mv NAME.new NAME";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--one") {
        return one(&arguments[1..]);
    }
    let [checker, folder, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: side_by_side FSCK FOLDER [ROUNDS]");
    };
    let rounds: u32 = rest.first().map_or(Ok(3), |rounds| rounds.parse())?;
    println!("| image | e2fsck, wall | fsck.rext4, wall | ratio | e2fsck, memory | fsck.rext4, memory |");
    println!("|---|---|---|---|---|---|");
    for (name, words, script) in [
        ("million.img", "1 000 000 files", MILLION),
        ("pieces.img", "100 files of 8 000 pieces each", PIECES),
    ] {
        let image = Path::new(folder).join(name);
        if !image.exists() {
            let script = script.replace("FOLDER", folder).replace("NAME", name);
            ensure!(Command::new("bash").args(["-c", &script]).status()?.success(), "cannot make {name}");
        }
        let (mut theirs, mut ours) = ((f64::MAX, 0), (f64::MAX, 0));
        for _ in 0..rounds {
            for (program, best) in [("e2fsck", &mut theirs), (checker.as_str(), &mut ours)] {
                let (seconds, kib) = measured(program, &image)?;
                *best = (best.0.min(seconds), best.1.max(kib));
            }
        }
        println!(
            "| {words} | {:.2} s | {:.2} s | {:.2} | {:.1} MiB | {:.1} MiB |",
            theirs.0,
            ours.0,
            ours.0 / theirs.0,
            theirs.1 as f64 / 1024.0,
            ours.1 as f64 / 1024.0
        );
    }
    Ok(())
}

/// Wall seconds and peak KiB of one run, measured by a child of its own: the peak of children is that of all so far.
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
