//! In fuse2fs's place: our program under that name takes fuse2fs's arguments in fuse2fs's order.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, run, tool, umount};
use tests::scale::{Need, can_run, scratch};
use tests::system::{System, binary, is_mounted};

/// What is typed behind the name: `IMAGE` and `POINT` are put in. Whether it can be written to.
const SPELLINGS: [(&str, bool); 14] = [
    ("IMAGE POINT", true),
    ("IMAGE POINT -o ro", false),
    ("-o ro IMAGE POINT", false),
    ("-oro,allow_other IMAGE POINT", false),
    ("IMAGE POINT -s -o fakeroot,minixdf,no_default_opts", true),
    ("-o fakeroot -s IMAGE POINT -o errors=continue", true),
    ("IMAGE POINT -o offset=0,errors=remount-ro,bsddf", true),
    ("IMAGE POINT -o kernel,allow_other,default_permissions,acl,user_xattr", true),
    ("IMAGE POINT -o norecovery", false),
    ("IMAGE POINT -o fuse2fs_debug,big_writes,auto_unmount,cache_size=32m,lockfile=/dev/null", true),
    ("IMAGE POINT -o rw,nodev,nosuid,noexec,noatime,fsname=disk,subtype=ext4", true),
    ("-f IMAGE POINT -o ro", false),
    ("IMAGE -f POINT", true),
    ("IMAGE POINT -d -o rw", true),
];

fn fuse2fs(folder: &Path) -> Command {
    tool(&folder.join("fuse2fs").to_string_lossy())
}

#[test]
fn under_the_name_of_fuse2fs() -> Result<()> {
    if !can_run("under_the_name_of_fuse2fs", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, point) = (folder.path().join("image"), folder.path().join("point"));
    symlink(fs::canonicalize(binary("mount-rext4").get_program())?, folder.path().join("fuse2fs"))?;
    fs::create_dir(&point)?;
    System::Kernel.mkfs(&image, 16 << 20, &[])?;
    for (spelling, is_writable) in SPELLINGS {
        let words = spelling.split(' ').map(|word| match word {
            "IMAGE" => image.as_os_str(),
            "POINT" => point.as_os_str(),
            word => word.as_ref(),
        });
        let mut command = fuse2fs(folder.path());
        command.args(words).stderr(std::process::Stdio::null());
        let stays = [" -f", "-f ", " -d"].iter().any(|flag| spelling.contains(flag));
        let mut server = command.spawn()?;
        if !stays {
            ensure!(server.wait()?.success() && is_mounted(&point)?, "{spelling}: not mounted");
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while !point.join("lost+found").exists() {
            ensure!(Instant::now() < deadline, "{spelling}: no mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        let written = fs::write(point.join("file"), spelling);
        umount(&point)?;
        if stays {
            ensure!(server.wait()?.success(), "{spelling}: the server");
        }
        ensure!(written.is_ok() == is_writable, "{spelling}: {written:?}");
        // The lock says when the server has gone.
        run(tool("flock").arg("-w30").arg(&image).arg("true")).context(spelling)?;
        e2fsck_is_clean(&image).context(spelling)?;
    }
    for (flag, word) in
        [("-h", "Usage"), ("--help", "Usage"), ("--helpfull", "Usage"), ("-V", "0."), ("--version", "0.")]
    {
        let answer = output(fuse2fs(folder.path()).arg(flag))?;
        ensure!(answer.status.success() && both(&answer).contains(word), "{flag}: {}", both(&answer));
    }
    ensure!(!output(fuse2fs(folder.path()).arg(&image))?.status.success(), "mounted on nothing");
    Ok(())
}
