//! The differential fuzzer against the kernel; and suites that others wrote and publish as crates: pjdfstest,
//! which asks what POSIX says, on the kernel's ext4 and on the system under test alike, and fsx, which
//! exercises one file. `make tools` builds both.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::differ::Run;
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, run, tool};
use tests::scale::{Need, can_run, duration, pick, scratch};
use tests::system::{Options, System};

#[test]
fn random_operations_end_as_on_the_kernel() -> Result<()> {
    if !can_run("random_operations_end_as_on_the_kernel", &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let deadline = Instant::now() + duration(Duration::ZERO, 60);
    for seed in 1.. {
        Run::new(seed, 20_000).compare(System::Kernel, System::under_test())?;
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(())
}

/// Cases that cannot run on any FUSE filesystem: the C library knows LINK_MAX by the filesystem's type.
const NOT_THROUGH_FUSE: &[&str] = &["link::link_count_max"];

/// Every case's verdict ("ok", "FAILED", "skipped") on one system.
fn pjdfstest(system: System, folder: &Path) -> Result<(BTreeMap<String, String>, String)> {
    let settings = folder.join("pjdfstest.toml");
    fs::write(
        &settings,
        r#"[features]
        posix_fallocate = {}
        utimensat = {}
        utime_now = {}
        rename_ctime = {}
        [settings]
        naptime = 0.01
        allow_remount = false
        [dummy_auth]
        entries = [["nobody", "nogroup"], ["daemon", "daemon"]]"#,
    )?;
    let image = folder.join("image");
    system.mkfs(&image, 256 << 20, &[])?;
    let mounted = system.mount_with(&image, &Options::for_all(system))?;
    let elsewhere = tempfile::tempdir()?;
    let mut command = tool("pjdfstest");
    command.env("RUST_BACKTRACE", "0").arg("-c").arg(&settings);
    let answer = output(command.arg("-p").arg(mounted.path()).arg("-s").arg(elsewhere.path()))?;
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    let said = both(&answer);
    let verdicts = said.lines().filter_map(|line| {
        let (name, verdict) = line.split_once(' ')?;
        let verdict = verdict.trim();
        matches!(verdict, "ok" | "FAILED" | "skipped").then(|| (name.to_owned(), verdict.to_owned()))
    });
    Ok((verdicts.collect(), said))
}

#[test]
fn pjdfstest_finds_what_it_finds_on_the_kernel() -> Result<()> {
    let needs = [Need::Root, Need::Loop, Need::Fuse, Need::Tool("pjdfstest")];
    if !can_run("pjdfstest_finds_what_it_finds_on_the_kernel", &needs) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (theirs, _) = pjdfstest(System::Kernel, folder.path())?;
    let (ours, said) = pjdfstest(System::under_test(), folder.path())?;
    let passed = theirs.values().filter(|verdict| *verdict == "ok").count();
    ensure!(passed > 380, "only {passed} cases pass on the kernel: the suite did not run");
    let different: Vec<String> = theirs
        .iter()
        .filter(|(name, verdict)| {
            ours.get(*name) != Some(verdict) && !NOT_THROUGH_FUSE.contains(&name.as_str())
        })
        .map(|(name, verdict)| format!("{name}: kernel {verdict}, here {:?}", ours.get(name)))
        .collect();
    ensure!(different.is_empty(), "{}\n{}", different.join("\n"), failures(&said));
    Ok(())
}

/// The parts of the suite's output that are about failures.
fn failures(said: &str) -> String {
    said.lines().filter(|line| !line.trim_end().ends_with(" ok")).collect::<Vec<_>>().join("\n")
}

/// The suite in C and shell, from a folder that `REXT4_PJDFSTEST` names (it is in no package).
#[test]
fn pjdfstest_in_c_passes() -> Result<()> {
    let Some(suite) = std::env::var_os("REXT4_PJDFSTEST") else { return Ok(()) };
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::under_test().mkfs(&image, 512 << 20, &[])?;
    let mounted = System::under_test().mount_with(&image, &Options::for_all(System::under_test()))?;
    let mut command = tool("prove");
    let said = run(command.args(["-r", "-j4", "-Q"]).arg(suite).current_dir(mounted.path()));
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    said.map(drop)
}

/// What fsx does and how often. Never nothing: it takes posix_fallocate's EINVAL of that for a missing
/// feature.
const FSX: &str = "flen = 262144
[opsize]
min = 1
max = 65536
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 2
posix_fadvise = 2
copy_file_range = 3
";

/// `operations` on one file, by one fsx process after the other: each forgets to unmap what it wrote through
/// mappings, and the kernel has a limit for those.
fn fsx(root: &Path, artifacts: &Path, settings: &Path, seed: u64, operations: u64) -> Result<()> {
    const OF_ONE_PROCESS: u64 = 20_000;
    for done in (0..operations).step_by(OF_ONE_PROCESS as usize) {
        let (seed, count) = (seed * 1_000_000 + done, OF_ONE_PROCESS.min(operations - done));
        let mut command = tool("fsx");
        command.arg("-f").arg(settings).arg("-P").arg(artifacts);
        command.args(["-S", &seed.to_string(), "-N", &count.to_string()]);
        let name = root.join(format!("fsx{seed}"));
        run(command.arg(&name)).with_context(|| format!("seed {seed}"))?;
        fs::remove_file(name)?;
    }
    Ok(())
}

#[test]
fn fsx_alone_and_eight_at_once() -> Result<()> {
    if !can_run("fsx_alone_and_eight_at_once", &[Need::Root, Need::Loop, Need::Fuse, Need::Tool("fsx")]) {
        return Ok(());
    }
    let system = System::under_test();
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, settings) = (folder.path().join("image"), folder.path().join("fsx.toml"));
    fs::write(&settings, FSX)?;
    system.mkfs(&image, 256 << 20, &[])?;
    let seeds = pick(1, 5);
    for seed in 1..=seeds {
        let mounted = system.mount(&image)?;
        let outcome = fsx(mounted.path(), folder.path(), &settings, seed, pick(5_000, 1_000_000));
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
        outcome?;
    }
    let mounted = system.mount(&image)?;
    let outcome = std::thread::scope(|scope| {
        let (root, folder, settings) = (mounted.path(), folder.path(), &settings);
        let runs: Vec<_> = (100..108)
            .map(|seed| scope.spawn(move || fsx(root, folder, settings, seed, pick(2_000, 200_000))))
            .collect();
        runs.into_iter().try_for_each(|run| run.join().expect("no panic"))
    });
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    outcome
}
