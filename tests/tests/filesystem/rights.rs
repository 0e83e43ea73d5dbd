//! Who may do what, where the kernel leaves it to the server: capabilities that ioctls ask for, read-only
//! mounts of a writable volume, set-id bits that go with a change that fails, and arguments in memory that
//! never comes. Beside the kernel's ext4.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::process::Signal;
use tests::oracle::e2fsck_replays;
use tests::run::{both, output, run, spelled, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{System, through_fuser};

use crate::beside::Pair;

const NEEDS: [Need; 4] = [Need::Root, Need::Loop, Need::Fuse, Need::Tool("setpriv")];
const SIZE: u64 = 64 << 20;
const NOBODY: u32 = 65534;

/// What stands before a command so that somebody runs it: root, root with fewer capabilities, a user, a user
/// with capabilities, and root of a user namespace that root or a user has made.
const WHO: [&str; 6] = [
    "env",
    "setpriv --bounding-set=-sys_admin,-fowner,-linux_immutable",
    "setpriv --reuid=65534 --regid=65534 --clear-groups",
    "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+sys_admin,+fowner,+linux_immutable \
     --ambient-caps=+sys_admin,+fowner,+linux_immutable",
    "unshare --user --map-root-user",
    "setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user --map-root-user",
];

fn by(who: &str, script: &str, path: &Path) -> Result<String> {
    let mut words = who.split_whitespace();
    let mut command = tool(words.next().context("a program")?);
    let answer = output(command.args(words).args(["perl", "-we", script]).arg(path))?;
    ensure!(answer.status.success(), "`{}`: {}\n{}", spelled(&command), answer.status, both(&answer));
    Ok(both(&answer))
}

/// Every ioctl that asks for a right; the last word says whether the volume may be shut down.
const ASKED: &str = r#"
    my ($root, $end) = split /:/, shift; chdir $root or die;
    sub told { defined $_[0] ? "done" : "$!" }
    for my $name ("roots", "users") {
        open(my $f, "<", $name) or die; my $old = pack("Q", 0); ioctl($f, 0x80086601, $old) or die;
        my $trim = pack("Q3", 0, ~0, 0); print "$name: trim ", told(ioctl($f, 0xc0185879, $trim));
        my $label = pack("a256", "label"); print ", label ", told(ioctl($f, 0x41009432, $label));
        my $none = 0; print ", place data ", told(ioctl($f, 0x660c, $none));
        for my $flag (0x10, 0x40) {
            my ($set, $back) = (pack("Q", unpack("Q", $old) | $flag), $old);
            print ", flag $flag ", told(ioctl($f, 0x40086602, $set)), " ", told(ioctl($f, 0x40086602, $back));
        }
        print "\n";
    }
    open(my $f, "<", "roots") or die; my $flush = pack("L", 1);
    print "end ", told(ioctl($f, 0x8004587d, $flush)), "\n" if $end;
"#;

fn furnish(root: &Path) -> Result<()> {
    for (name, owner) in [("roots", 0), ("users", NOBODY)] {
        fs::write(root.join(name), "data")?;
        chown(root.join(name), Some(owner), Some(owner))?;
    }
    Ok(())
}

#[test]
fn an_ioctl_asks_for_the_kernels_rights() -> Result<()> {
    if !can_run("an_ioctl_asks_for_the_kernels_rights", &NEEDS) {
        return Ok(());
    }
    let mut pair = Pair::new(SIZE, "-t ext4", &[])?;
    pair.both()?.iter().try_for_each(|mounted| furnish(mounted.path()))?;
    for who in WHO {
        let may = who == "env" || who.contains("ambient");
        // Whoever may end the volume does so last.
        let end = if may { "" } else { "end" };
        let ask = |root: &Path| by(who, ASKED, Path::new(&format!("{}:{end}", root.display())));
        let said = pair.ask(who, ask)?;
        ensure!(said.contains("trim done") == may, "{who}: {said}");
        ensure!(may || said.contains("end Operation not permitted"), "{who}: {said}");
    }
    let end = |root: &Path| by(WHO[3], ASKED, Path::new(&format!("{}:end", root.display())));
    let said = pair.ask("a user with capabilities ends it", end)?;
    ensure!(said.contains("end done"), "{said}");
    pair.unmount()?;
    e2fsck_replays(&pair.image("ours"))
}

/// The mount that the caller came through is read-only, another one of the same volume is not.
#[test]
fn a_read_only_mount_of_a_writable_volume_changes_nothing() -> Result<()> {
    if !can_run("a_read_only_mount_of_a_writable_volume_changes_nothing", &NEEDS) {
        return Ok(());
    }
    let pair = Pair::new(SIZE, "-t ext4 -L before", &[])?;
    pair.both()?.iter().try_for_each(|mounted| furnish(mounted.path()))?;
    let said = pair.ask("read-only", |root| {
        let point = tempfile::tempdir()?;
        run(tool("mount").arg("--bind").arg(root).arg(point.path()))?;
        let locked = run(tool("mount").args(["-o", "remount,bind,ro"]).arg(point.path()));
        let said = locked.and_then(|_| by("env", ASKED, point.path()));
        run(tool("umount").arg(point.path()))?;
        said
    })?;
    let refused = "Read-only file system";
    ensure!(said.contains(&format!("label {refused}, place data {refused}")), "{said}");
    pair.finish()
}

/// The permission bits of a file, and nothing that would have the kernel ask for all attributes again.
fn known_mode(file: &Path) -> Result<u16> {
    Ok(statx(CWD, file, AtFlags::empty(), StatxFlags::MODE)?.stx_mode & 0o7777)
}

/// A change by somebody else takes set-id bits away even when it fails, and everybody must see that at once:
/// the kernel goes by the mode that it has in memory, in execve(2) too.
#[test]
fn set_id_bits_are_gone_when_the_change_fails() -> Result<()> {
    if !can_run("set_id_bits_are_gone_when_the_change_fails", &NEEDS) {
        return Ok(());
    }
    let pair = Pair::new(16 << 20, "-t ext4 -b 4096 -m 0", &[])?;
    for mounted in pair.both()? {
        let root = mounted.path();
        let fill =
            r#"for n in 1 2 3; do dd if=/dev/zero of="$0/full$n" bs=4k conv=fsync 2>/dev/null; done; sync"#;
        run(tool("sh").args(["-c", fill]).arg(root))?;
    }
    let ways = [
        r#"dd if=/dev/zero of="$0" bs=4096 count=1 conv=notrunc"#,
        r#"dd if=/dev/zero of="$0" bs=4096 count=1 conv=notrunc oflag=direct"#,
        r#"fallocate -l 65536 "$0""#,
        r#": >"$0""#,
        r#"truncate -s 1M "$0""#,
    ];
    for way in ways {
        let said = pair.ask(way, |root| {
            let file = root.join("file");
            let _ = fs::remove_file(&file);
            fs::write(&file, "")?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o6777))?;
            ensure!(known_mode(&file)? == 0o6777);
            let mut command = tool("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", way]);
            let done = output(command.arg(&file))?.status.success();
            Ok(format!("{done} {:o}", known_mode(&file)?))
        })?;
        ensure!(said.ends_with(" 777"), "{way}: {said}");
        ensure!(
            said.starts_with("false") == (way.starts_with("dd") || way.starts_with("fallocate")),
            "{way}: {said}"
        );
    }
    pair.finish()
}

/// EXT4_IOC_SHUTDOWN's argument lies in a page of a file of the same mount, which has to be read first. Each of
/// several processes has a page of its own.
const FAR_ARGUMENT: &str = r#"
    my $root = shift; chomp(my $machine = `uname -m`); my $mmap = $machine eq "aarch64" ? 222 : 9;
    open(my $file, "<", "$root/large") or die; open(my $any, "<", $root) or die;
    my @children = map {
        my $page = $_; my $child = fork; die unless defined $child;
        unless ($child) {
            my $memory = syscall($mmap, 0, 64 << 20, 1, 1, fileno $file, 0); die if $memory == -1;
            my $where = $memory + ($page << 21) + 400 * 4096;
            exit(defined ioctl($any, 0x8004587d, $where) ? 100 : $! + 0);
        }
        $child } 0 .. 7;
    print join(" ", map { waitpid $_, 0; $? & 127 ? "killed" : $? >> 8 } @children), "\n";
"#;

#[test]
fn an_argument_in_a_page_of_the_mount_hangs_nobody() -> Result<()> {
    if !can_run("an_argument_in_a_page_of_the_mount_hangs_nobody", &NEEDS) || !System::under_test().is_rext4()
    {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Kernel.mkfs(&image, 128 << 20, &[])?;
    let mut mounted =
        System::under_test().mount_with(&image, &tests::system::Options::for_all(System::Rext4Image))?;
    fs::write(mounted.path().join("large"), vec![0; 64 << 20])?;
    mounted.drop_caches()?;
    let begun = Instant::now();
    let said = by(&format!("timeout -k 5 60 {}", WHO[2]), FAR_ARGUMENT, mounted.path())?;
    ensure!(said.trim() == ["1"; 8].join(" "), "EPERM for each is wanted: {said}");
    ensure!(mounted.path().join("lost+found").exists());
    let said = by("timeout -k 5 60 env", FAR_ARGUMENT, mounted.path())?;
    ensure!(said.contains("100"), "one at least is done: {said}");
    ensure!(through_fuser() || fs::create_dir(mounted.path().join("after")).is_err());
    mounted.signal(Signal::TERM)?;
    mounted.end_of_server()?;
    ensure!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    e2fsck_replays(&image)
}
