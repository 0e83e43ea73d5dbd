//! Limits of the process and shortage of memory: errors, never an end of the server.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Result, ensure};
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, run, spelled, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{System, binary};

const SIZE: u64 = 64 << 20;
/// In bytes, as prlimit(1) counts.
const LIMIT: u64 = 16 << 20;

/// The command under a limit on the size of files.
fn limited(command: &std::process::Command) -> std::process::Command {
    let mut limited = tool("prlimit");
    limited.arg(format!("--fsize={LIMIT}")).arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_no_signal() -> Result<()> {
    let needs = [Need::Root, Need::Fuse, Need::Tool("prlimit")];
    if !can_run("a_limit_on_the_size_of_files_is_an_error_and_no_signal", &needs) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, small) = (folder.path().join("image"), folder.path().join("small"));
    File::create(&image)?.set_len(SIZE)?;
    // Growing a file, and writing beyond the limit in one that is large already.
    let mut grow = binary("mkfs-rext4");
    grow.args(["-q", "-F"]).arg(&small).arg("64M");
    let mut format = binary("mkfs-rext4");
    format.args(["-q", "-F", "-b", "1024"]).arg(&image);
    for command in [&grow, &format] {
        let answer = output(&mut limited(command))?;
        let said = both(&answer);
        ensure!(answer.status.code() == Some(1), "{}: {}: {said}", spelled(command), answer.status);
        ensure!(said.contains("File too large"), "{}: {said}", spelled(command));
    }
    let _ = fs::remove_file(&small);
    System::Rext4Image.mkfs(&image, SIZE, &["-b", "1024"])?;
    // A damaged bitmap near the end: the repair may not be written.
    let mut check = binary("fsck-rext4");
    check.arg("-fy").arg(&image);
    let last = run(tool("dumpe2fs").arg(&image))?;
    let group = last.rsplit("Group 7:").next().unwrap_or_default();
    let block = group.split("Block bitmap at ").nth(1).unwrap_or_default();
    let block: u64 = block.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    if block * 1024 > LIMIT {
        File::options().write(true).open(&image)?.write_all_at(&[0x5a; 64], block * 1024 + 500)?;
        let answer = output(&mut limited(&check))?;
        ensure!(answer.status.code() == Some(8), "{}: {}", answer.status, both(&answer));
        run(&mut check).or_else(|_| run(&mut check))?;
    }
    let point = tempfile::tempdir()?;
    let mut mount = System::Rext4Image.mount_command();
    mount.arg(&image).arg(point.path());
    let answer = output(&mut limited(&mount))?;
    ensure!(answer.status.success() && both(&answer).contains("ulimit -f"), "{}", both(&answer));
    let written = fs::write(point.path().join("large"), vec![b'x'; 40 << 20])
        .and_then(|()| File::open(point.path().join("large"))?.sync_all());
    let lives = fs::read_dir(point.path()).map(Iterator::count);
    let unmounted = run(tool("umount").arg(point.path()));
    ensure!(written.is_err(), "40 MiB were written below a limit of 16");
    ensure!(lives.is_ok(), "the server has ended: {lives:?}");
    unmounted?;
    // The journal may have been stopped in the middle: nothing is lost that was promised.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while output(tool("flock").args(["-n", "-x"]).arg(&image).arg("true"))?.status.code() != Some(0) {
        ensure!(std::time::Instant::now() < deadline, "the server stays");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = output(tool("e2fsck").arg("-fy").arg(&image))?;
    e2fsck_is_clean(&image)
}

#[test]
fn the_server_is_not_the_first_to_go_when_memory_is_short() -> Result<()> {
    if !can_run("the_server_is_not_the_first_to_go_when_memory_is_short", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Rext4Image.mkfs(&image, SIZE, &[])?;
    let mounted = System::Rext4Image.mount(&image)?;
    let pid = mounted.server_pid().unwrap_or_default();
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    let mut flags = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("stat"))?;
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        flags.push(fields.split_whitespace().nth(6).unwrap_or_default().parse::<u64>()?);
    }
    mounted.unmount()?;
    e2fsck_is_clean(&image)?;
    if !may_use_resources()? {
        ensure!(score == fs::read_to_string("/proc/self/oom_score_adj")?, "{score}");
        return Ok(());
    }
    ensure!(score.trim() == "-900", "{score}");
    // PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, as PR_SET_IO_FLUSHER sets them, in every thread.
    const IO_FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;
    ensure!(flags.iter().all(|flags| flags & IO_FLUSHER == IO_FLUSHER), "{flags:x?}");
    Ok(())
}

/// Whether we have CAP_SYS_RESOURCE, which containers take away from root.
fn may_use_resources() -> Result<bool> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    Ok(u64::from_str_radix(line.trim(), 16)? & CAP_SYS_RESOURCE != 0)
}
