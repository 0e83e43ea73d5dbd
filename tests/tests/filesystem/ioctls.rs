//! The ioctls of ext4 that FUSE lets through, beside the kernel's: flags, projects, versions, labels, FITRIM,
//! FIBMAP; what survives each kind of EXT4_IOC_SHUTDOWN; and the locks that the kernel keeps for every
//! filesystem.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use tests::oracle::{e2fsck_is_clean, e2fsck_replays, super_field};
use tests::run::{both, output, run, spelled, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{System, through_fuser};

use crate::beside::Pair;

const NEEDS: [Need; 3] = [Need::Root, Need::Loop, Need::Fuse];
const SIZE: u64 = 64 << 20;

/// What a perl script says; its first argument is a path.
fn perl(script: &str, path: &Path) -> Result<String> {
    let mut command = tool("perl");
    let answer = output(command.args(["-we", script]).arg(path))?;
    ensure!(answer.status.success(), "`{}`: {}\n{}", spelled(&command), answer.status, both(&answer));
    Ok(both(&answer))
}

/// Tries every flag on a file, a folder and a pipe, by FS_IOC_SETFLAGS and by FS_IOC_FSSETXATTR, and tells
/// what is there afterwards. Left out: 14 (data through the journal) and 19 (extents), which do not change
/// here.
const EVERY_FLAG: &str = r#"
    chdir shift or die;
    open(my $new, ">", "file") or die; close $new; mkdir "folder" or die;
    sub told { defined $_[0] ? "done" : "$!" }
    for my $name ("file", "folder") {
        open(my $f, "<", $name) or die;
        my $show = sub {
            my ($flags, $x) = (pack("Q", 0), "\0" x 28);
            ioctl($f, 0x80086601, $flags) or die; ioctl($f, 0x801c581f, $x) or die;
            sprintf "%x %s", unpack("Q", $flags), unpack("H56", $x);
        };
        my $old = pack("Q", 0); ioctl($f, 0x80086601, $old) or die;
        for my $bit (grep { $_ != 14 && $_ != 19 } 0 .. 31) {
            my $set = pack("Q", unpack("Q", $old) | 1 << $bit);
            print "$name flag $bit: ", told(ioctl($f, 0x40086602, $set)), " ", $show->();
            my $back = $old;
            print ", back: ", told(ioctl($f, 0x40086602, $back)), " ", $show->(), "\n";
        }
        for my $bit (0 .. 31) {
            my ($set, $back) = (pack("L7", 1 << $bit), "\0" x 28);
            print "$name xflag $bit: ", told(ioctl($f, 0x401c5820, $set)), " ", $show->();
            print ", back: ", told(ioctl($f, 0x401c5820, $back)), " ", $show->(), "\n";
        }
        for my $project (1, 77) {
            my $set = pack("L7", 0, 0, 0, $project);
            print "$name project $project: ", told(ioctl($f, 0x401c5820, $set)), " ", $show->(), "\n";
        }
    }
    for my $ioctl (0x80087601, 0x80086603, 0x40087602, 0x40086604, 0x660c) {
        open(my $f, "<", "file") or die; my $word = "\0" x 8;
        printf "ioctl %x: %s\n", $ioctl, told(ioctl($f, $ioctl, $word));
    }
    open(my $f, "<", "file") or die;
    for my $range ([1 << 40, ~0, 0], [0, 100, 0], [0, ~0, 1 << 40]) {
        my $trim = pack("Q3", @$range);
        print "FITRIM @$range: ", told(ioctl($f, 0xc0185879, $trim)), "\n";
    }
    for my $label ("disk", "x" x 16, "x" x 17, "") {
        my ($set, $get) = (pack("a256", $label), "\0" x 256);
        print "label $label: ", told(ioctl($f, 0x41009432, $set));
        print " ", told(ioctl($f, 0x81009431, $get)), " ", unpack("Z*", $get), "\n";
    }
"#;

#[test]
fn flags_projects_versions_and_labels_as_on_the_kernel() -> Result<()> {
    if !can_run("flags_projects_versions_and_labels_as_on_the_kernel", &NEEDS) {
        return Ok(());
    }
    let pair = Pair::new(SIZE, "-t ext4 -b 4096", &[])?;
    let said = pair.ask("ioctls", |root| perl(EVERY_FLAG, root))?;
    ensure!(said.contains("file flag 4: done 80010 08"), "immutable was not set: {said}");
    pair.finish()
}

/// `chattr = file` takes the extent tree away, too, which works for small files only: the other flags change in
/// any case. And the label is on the device, and in every copy of the superblock, at once.
const NO_FLAGS: &str = r#"
    chdir shift or die; use IO::Handle;
    sub told { defined $_[0] ? "done" : "$!" }
    my %sizes = (empty => [], small => [0, 1], twelve => [0 .. 11], thirteen => [0 .. 12], late => [5, 6], hole => [0, 3]);
    for my $name (sort keys %sizes) {
        open(my $f, "+>", $name) or die;
        for my $block (@{$sizes{$name}}) {
            sysseek($f, $block * 4096, 0); syswrite($f, chr(65 + $block) x 4096) == 4096 or die;
        }
        $f->sync or die;
    }
    mkdir "folder" or die;
    for my $name (sort(keys %sizes), "folder") {
        open(my $f, "<", $name) or die;
        my ($i, $none, $now) = (pack("Q", 0x80010), pack("Q", 0), pack("Q", 0));
        print "$name +i: ", told(ioctl($f, 0x40086602, $i)), ", =: ", told(ioctl($f, 0x40086602, $none));
        ioctl($f, 0x80086601, $now) or die; printf ", flags %x", unpack("Q", $now);
        ioctl($f, 0x40086602, $none); ioctl($f, 0x80086601, $now) or die; printf ", %x\n", unpack("Q", $now);
        next if -d $name;
        open(my $more, "+<", $name) or die "$name: $!"; my $content = join "", <$more>;
        printf "%d bytes, %s\n", length $content, unpack("%32C*", $content);
        sysseek($more, 20 * 4096, 0); syswrite($more, "end") == 3 or die; $more->sync or die;
    }
    open(my $new, ">", "folder/new") or die;
"#;

#[test]
fn an_extent_tree_is_given_up_as_on_the_kernel() -> Result<()> {
    if !can_run("an_extent_tree_is_given_up_as_on_the_kernel", &NEEDS) {
        return Ok(());
    }
    let pair = Pair::new(SIZE, "-t ext4 -b 4096", &[])?;
    let said = pair.ask("chattr =", |root| perl(NO_FLAGS, root))?;
    ensure!(said.contains("twelve +i: done, =: done, flags 0, 0"), "no map of pointers: {said}");
    ensure!(said.contains("thirteen +i: done, =: Operation not supported, flags 80000"), "{said}");
    pair.finish()
}

/// While it is mounted: where blkid reads it, and in the copies.
#[test]
fn a_label_reaches_every_superblock_at_once() -> Result<()> {
    if !can_run("a_label_reaches_every_superblock_at_once", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    for (args, groups) in [
        ("-t ext4 -b 1024", &[0_u64, 1, 3, 5, 7][..]),
        ("-t ext4 -b 1024 -O sparse_super2", &[0, 1, 7]),
        ("-t ext4 -b 1024 -O meta_bg,^resize_inode", &[0, 1, 3, 5, 7]),
        ("-t ext2 -b 1024 -O ^sparse_super,^resize_inode", &[0, 1, 2, 3, 4, 5, 6, 7]),
    ] {
        System::Kernel.mkfs(&image, SIZE, &args.split(' ').collect::<Vec<_>>())?;
        let mounted = System::under_test().mount(&image)?;
        let labels = || -> Result<Vec<Vec<u8>>> {
            let device = File::open(&image)?;
            let label = |group: &u64| {
                let mut bytes = [0; 16];
                device.read_exact_at(&mut bytes, (1 + 8192 * group) * 1024 + 120)?;
                Ok(bytes.to_vec())
            };
            groups.iter().map(label).collect()
        };
        perl(
            r#"open F, "<", shift or die; $l = pack("a256", "a long new label"); ioctl(F, 0x41009432, $l) or die $!"#,
            mounted.path(),
        )?;
        ensure!(labels()? == vec![b"a long new label".to_vec(); groups.len()], "{args}: {:?}", labels()?);
        let said = output(tool("blkid").args(["-p", "-s", "LABEL", "-o", "value"]).arg(&image))?;
        ensure!(both(&said).trim() == "a long new label", "{args}: blkid says {}", both(&said));
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
        for group in groups.iter().filter(|group| **group > 0) {
            let copy = format!("superblock={}", 1 + 8192 * group);
            let said = run(tool("dumpe2fs").args(["-h", "-o", &copy, "-o", "blocksize=1024"]).arg(&image))?;
            ensure!(said.contains("a long new label"), "{args}, group {group}: {said}");
        }
    }
    Ok(())
}

/// What each of the ioctls that give something writes into a buffer that is large enough for anything, all of it:
/// a byte too many is in a caller's stack.
const WRITTEN: &str = r#"
    chdir shift or die; open(my $new, ">", "file") or die; close $new; open(my $f, "<", "file") or die;
    my @all = (0x80086601, 0x80046601, 0x80087601, 0x80047601, 0x80086603, 0x80046603, 0x80086605, 0x80046605,
        0x801c581f, 0x81009431);
    for my $ioctl (@all) {
        # Never the same byte by chance.
        my @seen = map { my $word = chr($_) x 300; [ioctl($f, $ioctl, $word), "$!", $word] } 0xa5, 0x5a;
        my $written = grep { substr($seen[0][2], $_, 1) eq substr($seen[1][2], $_, 1) } 0 .. 299;
        my $done = defined $seen[0][0] ? "done" : $seen[0][1];
        printf "%x: %s, %d bytes\n", $ioctl, $done, $written;
    }
"#;

#[test]
fn an_ioctl_writes_what_the_kernel_writes_and_no_more() -> Result<()> {
    if !can_run("an_ioctl_writes_what_the_kernel_writes_and_no_more", &NEEDS) {
        return Ok(());
    }
    let pair = Pair::new(SIZE, "-t ext4 -L label", &[])?;
    let said = pair.ask("sizes", |root| perl(WRITTEN, root))?;
    ensure!(said.contains("80087601: done, 4 bytes"), "{said}");
    pair.finish()
}

/// What a project's volume, which is only read here, says of its files.
#[test]
fn project_ids_are_shown() -> Result<()> {
    if !can_run("project_ids_are_shown", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Kernel.mkfs(&image, SIZE, &["-O", "project,quota"])?;
    for request in ["mkdir dir", "sif dir projid 77", "sif dir flags 0x20080000"] {
        run(tool("debugfs").args(["-w", "-R", request]).arg(&image))?;
    }
    let mounted = System::under_test().mount(&image)?;
    let show = r#"open F, "<", shift or die; $x = "\0" x 28; ioctl(F, 0x801c581f, $x) or die;
        print join " ", unpack("L4", $x)"#;
    let said = perl(show, &mounted.path().join("dir"))?;
    mounted.unmount()?;
    ensure!(said == "512 0 0 77", "FS_XFLAG_PROJINHERIT and 77 are wanted: {said}");
    Ok(())
}

/// FIBMAP by filefrag, which FUSE passes on for mounts of type fuseblk, against debugfs on the image
/// afterwards.
#[test]
fn fibmap_says_where_the_blocks_are() -> Result<()> {
    if !can_run("fibmap_says_where_the_blocks_are", &NEEDS) || System::under_test() == System::Kernel {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    for args in ["-t ext4 -b 4096", "-t ext2 -b 4096"] {
        let image = folder.path().join("image");
        System::Kernel.mkfs(&image, SIZE, &args.split(' ').collect::<Vec<_>>())?;
        let mounted = System::Rext4Loop.mount(&image)?;
        let path = mounted.path().join("file");
        let file = File::create(&path)?;
        // Not synced: asking gives delayed data their place.
        for block in [0, 1, 2, 50, 51, 3000] {
            file.write_all_at(&[7; 4096], block * 4096)?;
        }
        let script = r#"open F, "<", shift or die; for $b (0 .. 3001) { $n = pack("L", $b);
            ioctl(F, 1, $n) or die $!; print unpack("L", $n), " " if unpack("L", $n) } "#;
        let told = perl(script, &path)?;
        drop(file);
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
        if through_fuser() {
            ensure!(told.is_empty(), "{args}: {told}");
            continue;
        }
        // An indirect map's own blocks are among them.
        let said = run(tool("debugfs").args(["-R", "blocks /file"]).arg(&image))?;
        let all: Vec<&str> = said.split_whitespace().collect();
        let told: Vec<&str> = told.split_whitespace().collect();
        ensure!(
            told.len() == 6 && told.iter().all(|block| all.contains(block)),
            "{args}: {told:?} of {all:?}"
        );
        if args.contains("ext4") {
            ensure!(told == all, "{args}: {told:?}, debugfs {all:?}");
        }
    }
    Ok(())
}

/// The three kinds of EXT4_IOC_SHUTDOWN, as power cuts that keep all, what the journal has, or what was
/// synced.
#[test]
fn a_shutdown_keeps_what_its_flag_says() -> Result<()> {
    if !can_run("a_shutdown_keeps_what_its_flag_says", &NEEDS) {
        return Ok(());
    }
    for system in [System::under_test(), System::Kernel] {
        for (flag, keeps_data, keeps_names) in [(0, true, true), (1, false, true), (2, false, false)] {
            let what = format!("{system:?}, flag {flag}");
            // That library hides the flag: nothing may be lost then.
            let is_hidden = system != System::Kernel && through_fuser();
            let (keeps_data, keeps_names) = (keeps_data || is_hidden, keeps_names || is_hidden);
            let folder = tempfile::tempdir_in(scratch())?;
            let image = folder.path().join("image");
            System::Kernel.mkfs(&image, SIZE, &[])?;
            let mounted = system.mount(&image)?;
            let root = mounted.path();
            fs::write(root.join("synced"), [1; 50_000])?;
            File::open(root.join("synced"))?.sync_all()?;
            let late = File::create(root.join("late"))?;
            late.write_all_at(&[2; 50_000], 0)?;
            fs::create_dir(root.join("folder"))?;
            let script = format!(
                r#"open F, "<", shift or die; $f = pack "L", {flag}; ioctl F, 0x8004587d, $f or die $!"#
            );
            perl(&script, root)?;
            ensure!(fs::create_dir(root.join("after")).is_err(), "{what}: it goes on");
            ensure!(late.sync_all().is_err(), "{what}: fsync after the end");
            ensure!(File::open(root).and_then(|root| root.sync_all()).is_err(), "{what}: fsync of a folder");
            drop(late);
            mounted.unmount().with_context(|| what.clone())?;
            e2fsck_replays(&image).with_context(|| what.clone())?;
            ensure!(super_field(&image, "Filesystem state")? == "clean", "{what}: an error was recorded");
            let mounted = System::Kernel.mount(&image)?;
            let root = mounted.path();
            ensure!(fs::read(root.join("synced"))? == [1; 50_000], "{what}: synced data are lost");
            ensure!(root.join("folder").exists() == keeps_names, "{what}: the folder");
            ensure!(root.join("late").exists() == keeps_names, "{what}: the file");
            let kept = fs::read(root.join("late")).is_ok_and(|bytes| bytes == [2; 50_000]);
            ensure!(kept == keeps_data, "{what}: unsynced data kept: {kept}");
            mounted.unmount()?;
        }
    }
    Ok(())
}

/// A lock of each kind that another process may not have, and may once it is given up. POSIX locks go by
/// process, the others by open file.
#[test]
fn locks_hold_between_processes() -> Result<()> {
    if !can_run("locks_hold_between_processes", &NEEDS) {
        return Ok(());
    }
    let pair = Pair::new(SIZE, "-t ext4", &[])?;
    let [_, ours] = pair.both()?;
    let path = ours.path().join("file");
    fs::write(&path, [0; 100])?;
    let holder = File::open(&path)?;
    flock(&holder, FlockOperation::LockExclusive)?;
    let other = File::open(&path)?;
    ensure!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err(), "two exclusive flocks");
    // struct flock of 64 bits: type, whence, start, length, process. 6 is F_SETLK, 37 F_OFD_SETLK.
    let script = r#"use Fcntl; $path = shift; $lock = sub { pack("s s x4 q q i x4", $_[0], 0, $_[1], $_[2], 0) };
        sub told { defined $_[0] ? "done" : "$!" }
        open F, "+<", $path or die; open G, "+<", $path or die;
        for $set (6, 37) {
            $mine = $lock->(F_WRLCK, 10, 20);
            print "$set: ", told(fcntl F, $set, $mine);
            @ranges = ([0, 10], [15, 1], [29, 5], [30, 0]);
            for $range (@ranges) {
                unless ($child = fork) {
                    open H, "+<", $path or die;
                    $theirs = $lock->(F_WRLCK, @$range); $ok = fcntl H, $set, $theirs; exit(defined $ok ? 0 : 1);
                }
                waitpid $child, 0; print ", another @$range ", $? >> 8;
            }
            for $range (@ranges) {
                $theirs = $lock->(F_RDLCK, @$range); print ", the same ", told(fcntl G, $set, $theirs);
            }
            $none = $lock->(F_UNLCK, 0, 0); fcntl $_, $set, $none for *F, *G; print "\n";
        }"#;
    let said = pair.ask("fcntl locks", |root| {
        let path = root.join("file");
        fs::write(&path, [0; 100])?;
        perl(script, &path)
    })?;
    ensure!(said.contains("15 1 1") && said.contains("30 0 0"), "{said}");
    drop((holder, other));
    pair.finish()
}
