//! Direct, buffered and mapped IO on one file are one file.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::model::Model;
use tests::oracle::e2fsck_is_clean;
use tests::run::{run, tool};
use tests::scale::{Need, can_run, duration, scratch};
use tests::system::System;

#[test]
fn every_way_to_a_file_shows_the_same_bytes() -> Result<()> {
    if !can_run("every_way_to_a_file_shows_the_same_bytes", &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 256 << 20, &["-b", "4096"])?;
    const SEEDS: u64 = 5;
    for seed in 1..=SEEDS {
        let mounted = System::under_test().mount(&image)?;
        let path = mounted.path().join(format!("file{seed}"));
        let time = duration(Duration::from_secs(120), 240) / SEEDS as u32;
        let outcome = Model { seed, threads: 4, stripe: 1 << 20, time }.run(&path);
        let before = std::fs::read(&path)?;
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
        let done = outcome.with_context(|| format!("seed {seed}"))?;
        println!("seed {seed}: {done} operations");
        ensure!(done > 100, "hardly anything was done");
        let mounted = System::under_test().mount(&image)?;
        let after = std::fs::read(mounted.path().join(format!("file{seed}")))?;
        mounted.unmount()?;
        ensure!(before == after, "seed {seed}: other bytes after a remount");
    }
    Ok(())
}

#[test]
fn fio_reads_back_what_it_wrote() -> Result<()> {
    if !can_run("fio_reads_back_what_it_wrote", &[Need::Root, Need::Loop, Need::Fuse, Need::Tool("fio")]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 512 << 20, &["-b", "4096"])?;
    let mounted = System::under_test().mount(&image)?;
    let jobs: [&[&str]; 5] = [
        &["--ioengine=libaio", "--iodepth=32", "--direct=1", "--bs=4k", "--rw=randwrite"],
        &["--ioengine=libaio", "--iodepth=8", "--direct=1", "--bsrange=4k-3m", "--rw=randwrite"],
        &["--ioengine=io_uring", "--iodepth=16", "--direct=1", "--bs=64k", "--rw=randwrite", "--fsync=20"],
        &["--ioengine=psync", "--bsrange=1k-100k", "--rw=randwrite", "--fdatasync=10"],
        &["--ioengine=mmap", "--bs=4k", "--rw=randwrite"],
    ];
    let outcome = jobs.iter().enumerate().try_for_each(|(index, job)| {
        let common = [
            "--name=verify",
            "--size=24m",
            "--numjobs=2",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ];
        let place = [
            format!("--directory={}", mounted.path().display()),
            format!("--filename_format=job{index}.$jobnum"),
        ];
        run(tool("fio").args(common).args(["--fallocate=none", "--eta=never"]).args(place).args(*job))
            .map(drop)
    });
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    outcome
}
