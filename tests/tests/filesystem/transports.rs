//! Which door serves: the one that was asked for, the best that there is, or, where the machine or the limits
//! of the process forbid io_uring, another one, and never a mount that hangs.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blockdev::sim::{Fill, MemDevice};
use fs_core::OpenOptions;
use fuse_frontend::doors::dispatch::Dispatch;
use fuse_frontend::doors::handshake::{shake_hands, wanted};
use fuse_frontend::doors::mount::{Mount, Wish};
use fuse_frontend::doors::notify::Notifier;
use fuse_frontend::doors::old_pages::OldPages;
use fuse_frontend::doors::reserve::Reserve;
use fuse_frontend::doors::ring::{Layout, Rings, possible_processors};
use fuse_frontend::doors::wire::abi::init;
use fuse_frontend::doors::{Part, serve};
use fuse_frontend::options::{Options, Transport};
use fuse_frontend::service::Service;
use rustix::mount::MountFlags;
use tests::run::{output, tool, umount};
use tests::scale::{Need, can_run, scratch};
use tests::system::{System, as_user, is_mounted, with_own_mounts};

const NEEDS: [Need; 3] = [Need::Root, Need::Fuse, Need::Loop];
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Mounts in the background with the log on, looks, unmounts, and gives what the server has said. A hang is
/// an error. `wrap` puts the mounting program into other circumstances.
fn served(words: &str, wrap: impl Fn(Command) -> Command) -> Result<String> {
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, point) = (folder.path().join("image"), folder.path().join("point"));
    System::Rext4Image.mkfs(&image, 64 << 20, &["-E", &format!("root_owner={}:{}", USER.0, USER.1)])?;
    fs::create_dir(&point)?;
    for path in [folder.path(), &image, &point] {
        std::os::unix::fs::chown(path, Some(USER.0), Some(USER.1))?;
    }
    // One process for all of it, so that it may have a mount namespace of its own.
    let script = r#"
        "$@" || exit 3
        stat -t "$0" >/dev/null && touch "$0/here"; seen=$?
        umount -l "$0" || fusermount3 -uz "$0"; exit $seen"#;
    let mut mount = tool("sh");
    mount.args(["-c", script]).arg(&point);
    let command = System::Rext4Image.mount_command();
    mount.arg(command.get_program()).args(["-v", "-o", words]).arg(&image).arg(&point);
    let wrapped = wrap(mount);
    let mut limited = tool("timeout");
    limited.args(["-k", "5", "60"]).arg(wrapped.get_program()).args(wrapped.get_args());
    let answer = output(&mut limited)?;
    let said = tests::run::both(&answer);
    let left = is_mounted(&point)?;
    // A shell that may start no program cannot unmount either.
    output(tool("umount").arg("-ql").arg(&point))?;
    ensure!(answer.status.code() != Some(3) || !left, "a mount that failed was left behind: {said}");
    ensure!(answer.status.success(), "{}: {said}", answer.status);
    Ok(said)
}

/// Whom the tests of an ordinary user's limits run as: `bin`, who has no processes.
const USER: (u32, u32) = (2, 2);

fn as_it_is(command: Command) -> Command {
    command
}

/// The words of the log.
fn through(said: &str) -> &'static str {
    match said {
        said if said.contains("serving through io_uring") => "ring",
        said if said.contains("serving through our own loop") => "dev",
        said if said.contains("serving through fuser") => "fuser",
        _ => "none",
    }
}

/// Behind a filter that forbids one system call, as those of containers do.
fn without_call(number: u32) -> impl Fn(Command) -> Command {
    move |command| {
        // BPF: load the number; if it is this one, EPERM, else allowed.
        let script = r#"
            my $number = shift;
            my $filter = pack "(SCCL)4", 0x20,0,0,0, 0x15,0,1,$number, 6,0,0,0x50001, 6,0,0,0x7fff0000;
            my $program = pack "S x6 P", 4, $filter;
            syscall(157, 22, 2, $program, 0, 0) == 0 or die "seccomp: $!";
            exec @ARGV or die"#;
        let mut perl = tool("perl");
        perl.args(["-e", script, &number.to_string()]).arg(command.get_program()).args(command.get_args());
        perl
    }
}

#[test]
fn auto_takes_the_best_there_is() -> Result<()> {
    if !can_run("auto_takes_the_best_there_is", &[&NEEDS[..], &[Need::Rings]].concat()) {
        return Ok(());
    }
    ensure!(through(&served("transport=auto", as_it_is)?) == "ring");
    let folder = tempfile::tempdir()?;
    let off = folder.path().join("off");
    fs::write(&off, "N\n")?;
    // In a mount namespace of its own the switch is off, and nobody else's.
    let switched_off = |command: Command| {
        let mut wrapped = with_own_mounts();
        let script = format!(r#"mount --bind {} {SWITCH} && exec "$0" "$@""#, off.display());
        wrapped.args(["sh", "-c", &script]).arg(command.get_program()).args(command.get_args());
        wrapped
    };
    ensure!(through(&served("transport=auto", switched_off)?) == "dev");
    let said = served("transport=ring", switched_off)?;
    ensure!(through(&said) == "dev" && said.contains("not to be had"), "no word of the reason: {said}");
    Ok(())
}

#[test]
fn where_io_uring_is_forbidden_it_is_not_used() -> Result<()> {
    if !can_run("where_io_uring_is_forbidden_it_is_not_used", &[&NEEDS[..], &[Need::Rings]].concat()) {
        return Ok(());
    }
    // io_uring_setup, io_uring_enter, io_uring_register.
    for call in [425, 426, 427] {
        for transport in ["auto", "ring"] {
            let said = served(&format!("transport={transport}"), without_call(call))?;
            ensure!(through(&said) == "dev", "{transport} without system call {call}: {said}");
        }
    }
    ensure!(
        through(&served("transport=ring", without_call(9999))?) == "ring",
        "the filter itself is in the way"
    );
    Ok(())
}

#[test]
fn too_few_descriptors_for_rings_are_enough_for_dev() -> Result<()> {
    if !can_run("too_few_descriptors_for_rings_are_enough_for_dev", &[&NEEDS[..], &[Need::Rings]].concat()) {
        return Ok(());
    }
    let few = |command: Command| {
        let mut wrapped = tool("prlimit");
        wrapped.arg("--nofile=24:24").arg(command.get_program()).args(command.get_args());
        wrapped
    };
    let said = served("transport=auto,ring_threads=16,threads=2", few)?;
    ensure!(through(&said) == "dev", "{said}");
    Ok(())
}

/// Limits of an ordinary user: on locked memory, which some kernels count rings as, and on threads.
#[test]
fn an_ordinary_users_limits_end_in_a_mount_or_in_an_error() -> Result<()> {
    let name = "an_ordinary_users_limits_end_in_a_mount_or_in_an_error";
    if !can_run(name, &[&NEEDS[..], &[Need::Rings]].concat()) {
        return Ok(());
    }
    let limited = |limit: &'static str| {
        move |command: Command| {
            let user = as_user(command, USER);
            let mut wrapped = tool("prlimit");
            wrapped.arg(limit).arg(user.get_program()).args(user.get_args());
            wrapped
        }
    };
    let said = served("transport=ring", limited("--memlock=0:0"))?;
    ensure!(["ring", "dev"].contains(&through(&said)), "{said}");
    // The threads that there may be: none for the rings, none at all, and everything in between.
    let mut ends = Vec::new();
    for threads in ["--nproc=3", "--nproc=8", "--nproc=14", "--nproc=20", "--nproc=200"] {
        match served("transport=ring,threads=2,ring_threads=4", limited(threads)) {
            Ok(said) => ends.push(through(&said)),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(
                    !said.contains("status: 124") && !said.contains("status: 137"),
                    "{threads} hangs: {said}"
                );
                ends.push("refused");
            }
        }
    }
    ensure!(ends.last() == Some(&"ring") && ends.contains(&"refused"), "{ends:?}");
    Ok(())
}

/// The kernel refuses a queue after it was told in the handshake that there would be rings.
#[test]
fn a_refused_registration_falls_back() -> Result<()> {
    if !can_run("a_refused_registration_falls_back", &[Need::Root, Need::Fuse, Need::Rings]) {
        return Ok(());
    }
    for too_many in [false, true] {
        let disk = MemDevice::new(64 << 20, Fill::Zero);
        mkfs::format(&disk, &mkfs::Options::new(mkfs::Kind::Ext4, 1_700_000_000)).context("mkfs")?;
        let fs = OpenOptions::new().open_device(Arc::new(disk))?;
        let point = tempfile::tempdir()?;
        let wish = Wish {
            source: "rext4-tests".into(),
            flags: MountFlags::empty(),
            allow_other: true,
            default_permissions: true,
        };
        let mount = Mount::plain(point.path(), &wish)?;
        // One queue more than there are processors is one that the kernel does not have.
        let queues = possible_processors()? + usize::from(too_many);
        let rings = Rings::prepare(Layout { queues, threads: 2, pinned: true })?;
        let capabilities = shake_hands(mount.device(), wanted(true, false) | init::OVER_IO_URING)?;
        let service = Arc::new(Service::new(fs.clone(), &Options::default()));
        let (tell, ended) = channel();
        let device = Arc::new(mount.device().try_clone()?);
        let (reserve, notifier) = (Arc::new(Reserve::new(0)?), Notifier::new(device.clone()));
        let part = Part {
            device,
            old_pages: OldPages::new(&reserve, move |range| notifier.drop_pages(range))?,
            reserve,
            dispatch: Arc::new(Dispatch::new(service, Box::new(|| ()))),
            capabilities,
            caller_memory: Arc::default(),
            splice_from: Options::default().splice_from,
            on_end: Arc::new(move |how| {
                let _ = tell.send(how);
            }),
        };
        let door = serve(part, Some(rings), 2)?;
        ensure!(door == if too_many { Transport::Dev } else { Transport::Ring });
        let (name, (tell, done)) = (point.path().join("file"), channel());
        std::thread::spawn(move || tell.send(fs::write(&name, "through").and_then(|()| fs::read(&name))));
        // An error here drops the mount, and whoever waits hears of it.
        let read = done.recv_timeout(Duration::from_secs(60)).context("the mount hangs")??;
        ensure!(read == b"through");
        umount(point.path())?;
        ended.recv_timeout(Duration::from_secs(60)).context("the end is not told")?;
        drop(mount);
        fs.close()?;
    }
    Ok(())
}

/// The log says which door it is: without this, a test of one could run through another.
#[test]
fn the_door_that_was_asked_for_serves() -> Result<()> {
    if !can_run("the_door_that_was_asked_for_serves", &NEEDS) {
        return Ok(());
    }
    let rings = can_run("the_door_that_was_asked_for_serves, ring", &[Need::Rings]);
    for door in ["dev", "fuser", "ring"] {
        if rings || door != "ring" {
            let said = served(&format!("transport={door}"), as_it_is)?;
            ensure!(through(&said) == door, "{door}: {said}");
        }
    }
    Ok(())
}
