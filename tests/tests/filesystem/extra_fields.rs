//! Inodes that change grow to the extra fields that the superblock wants, beside the kernel; their attributes
//! make room.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use tests::run::{run, tool};
use tests::scale::{Need, can_run};
use tests::system::System;

use crate::beside::Pair;

const NEEDS: [Need; 4] = [Need::Root, Need::Loop, Need::Fuse, Need::Tool("debugfs")];

/// Files by name, each with the lengths of its attributes: the room in the inode is 96 bytes at first.
const FILES: [(&str, &[usize]); 7] = [
    ("plain", &[]),
    ("small", &[4]),
    ("full", &[60]),
    ("two", &[20, 12]),
    ("and-block", &[20, 12, 1000]),
    ("block-full", &[60, 4030]),
    ("untouched", &[4]),
];

fn make(root: &Path) -> Result<()> {
    for (name, values) in FILES {
        File::create(root.join(name))?;
        for (i, len) in values.iter().enumerate() {
            let value = vec![b'a' + i as u8; *len];
            setxattr(root.join(name), format!("user.{i}"), &value, XattrFlags::empty())?;
        }
    }
    Ok(fs::create_dir(root.join("folder"))?)
}

/// Bytes of extra fields of every file, and whether it has a block for attributes.
fn fields(image: &Path) -> Result<String> {
    let mut said = String::new();
    for name in FILES.iter().map(|(name, _)| *name).chain(["folder", "new"]) {
        let stat = run(tool("debugfs").args(["-R", &format!("stat /{name}")]).arg(image))?;
        let word = |label: &str| -> Result<u64> {
            let (_, rest) = stat.split_once(label).with_context(|| format!("{name}: {stat}"))?;
            Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
        };
        let block = if word("File ACL:")? == 0 { "no block" } else { "a block" };
        said += &format!("{name}: {}, {block}\n", word("Size of extra inode fields:")?);
    }
    Ok(said)
}

#[test]
fn extra_fields_follow_the_superblock() -> Result<()> {
    if !can_run("extra_fields_follow_the_superblock", &NEEDS) {
        return Ok(());
    }
    for (want, least, now, expected) in [
        (64, 32, None, ["full: 64, a block", "two: 64, a block", "block-full: 32, a block"]),
        (64, 40, None, ["full: 64, a block", "two: 64, a block", "block-full: 40, a block"]),
        (40, 32, None, ["full: 40, no block", "two: 40, no block", "block-full: 40, a block"]),
        (28, 28, None, ["full: 32, no block", "two: 32, no block", "block-full: 32, a block"]),
        (32, 32, Some(0), ["plain: 32, no block", "folder: 32, no block", "new: 32, no block"]),
    ] {
        let mut pair = Pair::of(|image| {
            System::Kernel.mkfs(image, 32 << 20, &["-t", "ext4", "-b", "4096"])?;
            let mounted = System::Kernel.mount(image)?;
            make(mounted.path())?;
            mounted.unmount()?;
            let mut requests =
                vec![format!("ssv want_extra_isize {want}"), format!("ssv min_extra_isize {least}")];
            if let Some(now) = now {
                requests.push(format!("sif plain extra_isize {now}"));
            }
            requests.iter().try_for_each(|r| run(tool("debugfs").args(["-w", "-R", r]).arg(image)).map(drop))
        })?;
        pair.mount(&[])?;
        pair.ask("attributes", |root| {
            let mut said = String::new();
            for (name, values) in FILES.iter().filter(|(name, _)| *name != "untouched") {
                let path = root.join(name);
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
                for (i, len) in values.iter().enumerate() {
                    let mut value = vec![0; *len];
                    getxattr(&path, format!("user.{i}"), &mut value)?;
                    ensure!(value == vec![b'a' + i as u8; *len], "{name} has another value");
                }
                said += &format!("{name} is whole\n");
            }
            File::create(root.join("folder/file"))?;
            File::create(root.join("new"))?;
            Ok(said)
        })?;
        pair.unmount()?;
        let (kernel, ours) = (fields(&pair.image("kernel"))?, fields(&pair.image("ours"))?);
        ensure!(kernel == ours, "want {want}:\n--- the kernel\n{kernel}\n--- here\n{ours}");
        for line in expected {
            ensure!(ours.contains(line), "want {want}: {line} is not in\n{ours}");
        }
        pair.finish()?;
    }
    Ok(())
}
