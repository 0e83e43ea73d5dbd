//! What a damaged volume answers, what `errors=` makes of it, and what is recorded in its superblock, beside
//! the kernel.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, setxattr};
use tests::oracle::super_field;
use tests::run::{run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::System;

use crate::beside::Pair;

const NEEDS: [Need; 3] = [Need::Root, Need::Loop, Need::Fuse];
const SIZE: u64 = 64 << 20;

/// A volume with a folder of files, a file with an attribute block, and a plain one.
fn furnished(image: &Path) -> Result<()> {
    System::Kernel.mkfs(image, SIZE, &["-t", "ext4", "-b", "4096"])?;
    let mounted = System::Kernel.mount(image)?;
    let root = mounted.path();
    fs::create_dir(root.join("folder"))?;
    fs::write(root.join("folder/inner"), "inner")?;
    fs::write(root.join("attribute"), "with a block of its own")?;
    setxattr(root.join("attribute"), "user.a", &[b'x'; 700], XattrFlags::empty())?;
    fs::write(root.join("plain"), "plain")?;
    mounted.unmount()
}

fn debugfs(image: &Path, how: &[&str], request: &str) -> Result<String> {
    run(tool("debugfs").args(how).args(["-R", request]).arg(image))
}

fn spoil(image: &Path, at: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(image)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 0xa5], at)?)
}

fn number_after(said: &str, word: &str) -> Result<u64> {
    let rest = said.split(word).nth(1).with_context(|| format!("no {word:?} in {said}"))?;
    Ok(rest.trim_start().chars().take_while(char::is_ascii_digit).collect::<String>().parse()?)
}

/// A kind of damage, and the file that cannot be used for it.
const DAMAGES: [(&str, &str); 4] = [
    ("a folder's checksum", "folder/inner"),
    ("an attribute block's checksum", "attribute"),
    ("an inode's mode", "plain"),
    ("an extent tree's magic", "plain"),
];

fn damage(image: &Path, what: &str) -> Result<()> {
    match what {
        "a folder's checksum" => {
            let block = debugfs(image, &[], "blocks /folder")?.trim().parse::<u64>()?;
            spoil(image, block * 4096 + 4093)
        }
        "an attribute block's checksum" => {
            let block = number_after(&debugfs(image, &[], "stat /attribute")?, "File ACL:")?;
            spoil(image, block * 4096 + 3000)
        }
        "an inode's mode" => debugfs(image, &["-w"], "sif /plain mode 0170644").map(drop),
        _ => debugfs(image, &["-w"], "sif /plain block[0] 0x0001f30b").map(drop),
    }
}

/// What programs are told: of a new file, of the damaged one, and of another new one.
fn told(root: &Path, file: &str) -> Result<String> {
    fs::write(root.join("before"), "the volume can be written")?;
    let read = match file {
        "attribute" => rustix::fs::getxattr(root.join(file), "user.a", &mut [0; 1000]).map_err(Into::into),
        _ => fs::read(root.join(file)).map(|bytes| bytes.len()),
    };
    let made = fs::write(root.join("new"), "new");
    let code = |error: std::io::Error| error.raw_os_error();
    Ok(format!("{:?} {:?}", read.map_err(code), made.map_err(code)))
}

/// The record without what is each program's own: time, function, line; and the block, which the kernel does
/// not always know.
fn record(image: &Path) -> Result<String> {
    let mut said = String::new();
    for name in
        ["Filesystem state", "First error inode #", "First error err", "Last error inode #", "Last error err"]
    {
        said += &format!("{name}: {}\n", super_field(image, name).unwrap_or_default());
    }
    for name in ["FS Error count", "First error time", "First error function", "Last error time"] {
        super_field(image, name)?;
    }
    Ok(said)
}

#[test]
fn damage_is_answered_and_recorded_as_the_kernel_does() -> Result<()> {
    if !can_run("damage_is_answered_and_recorded_as_the_kernel_does", &NEEDS) {
        return Ok(());
    }
    for (what, file) in DAMAGES {
        for policy in ["errors=continue", "errors=remount-ro"] {
            let mut pair = Pair::of(|image| {
                furnished(image)?;
                damage(image, what)
            })?;
            // The second time with errors on record: the volume can be written again, and fsck is
            // recommended.
            for again in [false, true] {
                pair.mount(&[policy])?;
                let log = pair.both()?[1].log();
                ensure!(log.contains("fsck.rext4 is recommended") == again, "{what}, {policy}: {log}");
                let said = pair.ask(&format!("{what}, {policy}"), |root| told(root, file))?;
                let goes_on = policy == "errors=continue";
                ensure!(
                    said.starts_with("Err") && said.ends_with("Ok(())") == goes_on,
                    "{what}, {policy}: {said}"
                );
                // After a stop the server says by its exit status that not everything was written.
                let ended = pair.unmount();
                ensure!(ended.is_ok() == goes_on, "{what}, {policy}: {ended:?}");
                let (theirs, ours) = (record(&pair.image("kernel"))?, record(&pair.image("ours"))?);
                ensure!(theirs == ours, "{what}, {policy}:\n{theirs}\nhere\n{ours}");
                ensure!(ours.contains("clean with errors"), "{what}: {ours}");
            }
        }
    }
    Ok(())
}

/// What the image asks for: whoever made it may not end a server that serves others. The volume is read-only from
/// then on.
#[test]
fn an_image_that_asks_for_panic_is_served_on() -> Result<()> {
    if !can_run("an_image_that_asks_for_panic_is_served_on", &NEEDS) || !System::under_test().is_rext4() {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    furnished(&image)?;
    damage(&image, "an inode's mode")?;
    debugfs(&image, &["-w"], "ssv errors 3")?;
    let mounted = System::under_test().mount(&image)?;
    let said = told(mounted.path(), "plain");
    let inner = fs::read(mounted.path().join("folder/inner"));
    // The server says by its exit status that not everything was written.
    let ended = mounted.unmount();
    ensure!(said? == "Err(Some(117)) Err(Some(30))" && inner? == b"inner", "{ended:?}");
    ensure!(ended.is_err_and(|error| !format!("{error:#}").contains("signal")));
    ensure!(super_field(&image, "First error err")? == "EFSCORRUPTED");
    Ok(())
}

/// Where the kernel would stop the machine, the server's process ends at once; the record is there, and the
/// next mount works.
#[test]
fn errors_panic_ends_the_server() -> Result<()> {
    if !can_run("errors_panic_ends_the_server", &NEEDS) || !System::under_test().is_rext4() {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    let point = tempfile::tempdir()?;
    furnished(&image)?;
    damage(&image, "an inode's mode")?;
    let mut command: Command = System::Rext4Image.mount_command();
    let mut server = command.arg("-f").arg(&image).arg(point.path()).args(["-o", "errors=panic"]).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !point.path().join("folder").exists() {
        ensure!(Instant::now() < deadline && server.try_wait()?.is_none(), "it did not mount");
        std::thread::sleep(Duration::from_millis(10));
    }
    let answer = fs::read(point.path().join("plain"));
    run(tool("umount").arg("-l").arg(point.path()))?;
    ensure!(answer.is_err());
    let status = server.wait()?;
    ensure!(status.signal() == Some(6), "it ended with {status}");
    ensure!(super_field(&image, "First error err")? == "EFSCORRUPTED");
    let mounted = System::under_test().mount(&image)?;
    ensure!(fs::read(mounted.path().join("folder/inner"))? == b"inner");
    mounted.unmount()
}
