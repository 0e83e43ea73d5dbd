//! The requests that the library fuser does not know: that the kernel sends them to our own doors, and that
//! they do what the kernel's ext4 does. What this kernel never sends is handed to the dispatcher as it would
//! come.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockdev::sim::{Fill, MemDevice};
use fs_core::OpenOptions;
use fuse_frontend::doors::dispatch::{Answer, Dispatch, Kernel};
use fuse_frontend::doors::wire::abi::{CreateIn, ExtHeader, InHeader, SecurityContext, opcode};
use fuse_frontend::doors::wire::{Body, Request};
use fuse_frontend::service::Service;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use tests::run::{run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{Mounted, Options, System};
use zerocopy::IntoBytes as _;

const NEEDS: [Need; 3] = [Need::Root, Need::Fuse, Need::Loop];

fn own() -> Vec<&'static str> {
    if can_run("a test of the ring door", &[Need::Rings]) { vec!["dev", "ring"] } else { vec!["dev"] }
}

#[test]
fn the_newest_requests_come_and_are_answered() -> Result<()> {
    if !can_run("the_newest_requests_come_and_are_answered", &NEEDS) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Rext4Image.mkfs(&image, 64 << 20, &[])?;
    for door in own() {
        let options =
            Options { debug: true, ..Options::words(&[&format!("transport={door}"), "allow_other"]) };
        let mounted = System::Rext4Loop.mount_with(&image, &options)?;
        let root = mounted.path();
        let (from, to) = (root.join("from"), root.join("to"));
        fs::write(&from, [3; 70_000])?;
        rustix::fs::syncfs(File::open(root)?)?;
        let nameless = rustix::fs::open(root, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600))?;
        let born = rustix::fs::statx(CWD, &from, AtFlags::empty(), StatxFlags::ALL)?;
        ensure!(born.stx_mask & StatxFlags::BTIME.bits() != 0);
        let (source, target) = (File::open(&from)?, File::create(&to)?);
        let copied = rustix::fs::copy_file_range(&source, None, &target, None, 70_000)?;
        ensure!(copied == 70_000 && fs::read(&to)? == [3; 70_000]);
        rustix::fs::setxattr(&from, "user.name", b"value", rustix::fs::XattrFlags::empty())?;
        drop((nameless, source, target));
        let log = mounted.log();
        mounted.unmount()?;
        for (name, code) in [
            ("SYNCFS", opcode::SYNCFS),
            ("TMPFILE", opcode::TMPFILE),
            ("STATX", opcode::STATX),
            ("COPY_FILE_RANGE_64", opcode::COPY_FILE_RANGE_64),
            ("SETXATTR", opcode::SETXATTR),
        ] {
            ensure!(log.contains(&format!("(opcode={code}, ")), "{door}: no {name}");
        }
    }
    Ok(())
}

/// Runs the same on the kernel's ext4 and through `doors`; all must make the same of it.
fn everywhere(doors: &[&str], look: impl Fn(&Mounted) -> Result<Vec<u32>>) -> Result<()> {
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Kernel.mkfs(&image, 64 << 20, &[])?;
    let mounted = System::Kernel.mount(&image)?;
    let right = look(&mounted);
    mounted.unmount()?;
    let right = right?;
    for door in doors {
        System::Kernel.mkfs(&image, 64 << 20, &[])?;
        let options = Options::words(&[&format!("transport={door}"), "allow_other"]);
        let mounted = System::Rext4Image.mount_with(&image, &options)?;
        let found = look(&mounted).with_context(|| (*door).to_owned());
        mounted.unmount()?;
        let found = found?;
        ensure!(found == right, "{door}: {found:?}, the kernel has {right:?}");
    }
    Ok(())
}

/// As a user with these groups besides the first.
fn by_user(groups: &str, program: &str, arguments: &[&str], path: &Path) -> Result<()> {
    let mut command = tool("setpriv");
    command.args(["--reuid=1234", "--regid=1234"]).args(match groups {
        "" => vec!["--clear-groups"],
        groups => vec!["--groups", groups],
    });
    run(command.arg("--").arg(program).args(arguments).arg(path)).map(drop)
}

/// SETXATTR_EXT: an access control list set by somebody outside of the file's group takes its set-group-id
/// bit.
#[test]
fn an_acl_takes_the_set_group_id_bit_as_on_the_kernel() -> Result<()> {
    let name = "an_acl_takes_the_set_group_id_bit_as_on_the_kernel";
    if !can_run(name, &[&NEEDS[..], &[Need::Tool("setfacl")]].concat()) {
        return Ok(());
    }
    everywhere(&own(), |mounted| {
        ["", "5678"]
            .iter()
            .map(|groups| {
                let file = mounted.path().join(format!("file{groups}"));
                File::create(&file)?;
                chown(&file, Some(1234), Some(5678))?;
                fs::set_permissions(&file, fs::Permissions::from_mode(0o2755))?;
                by_user(groups, "setfacl", &["-m", "u:99:r"], &file)?;
                Ok(fs::metadata(&file)?.mode() & 0o7777)
            })
            .collect()
    })
}

/// Supplementary groups at create: in a folder with set-group-id the new file has the folder's group, and
/// keeps that bit itself if its maker is in the group. The kernel decides that before it asks; the server
/// needs no groups for it.
#[test]
fn supplementary_groups_decide_at_create_as_on_the_kernel() -> Result<()> {
    if !can_run("supplementary_groups_decide_at_create_as_on_the_kernel", &NEEDS) {
        return Ok(());
    }
    everywhere(&[own(), vec!["fuser"]].concat(), |mounted| {
        let dir = mounted.path().join("dir");
        fs::create_dir(&dir)?;
        chown(&dir, Some(0), Some(5678))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2777))?;
        let mut seen = Vec::new();
        for groups in ["", "5678"] {
            let (file, folder) = (dir.join(format!("file{groups}")), dir.join(format!("dir{groups}")));
            let create = "umask 0; sysopen F, $ARGV[0], 0102, 02775 or die $!";
            by_user(groups, "perl", &["-e", create], &file)?;
            by_user(groups, "mkdir", &["-m", "0775"], &folder)?;
            for path in [&file, &folder] {
                let meta = fs::metadata(path)?;
                seen.extend([meta.mode() & 0o7777, meta.gid()]);
            }
        }
        ensure!(seen[0] & 0o2000 == 0 && seen[4] & 0o2000 != 0, "nothing depends on the groups: {seen:?}");
        Ok(seen)
    })
}

struct NoKernel;

impl Kernel for NoKernel {
    fn forget_old_pages(&self, _: u64, _: u64, _: u64) {}
    fn forget_pages(&self, _node: u64, _offset: u64, _len: u64) {}
    fn forget_attributes(&self, _node: u64) {}

    fn word_of_caller(&self, _thread: u32, _address: u64) -> std::io::Result<u32> {
        Err(std::io::ErrorKind::PermissionDenied.into())
    }
}

/// Security contexts come only where a security module labels files. So one is made by hand.
#[test]
fn a_new_file_has_its_security_context() -> Result<()> {
    let disk = MemDevice::new(64 << 20, Fill::Zero);
    mkfs::format(&disk, &mkfs::Options::new(mkfs::Kind::Ext4, 1_700_000_000)).context("mkfs")?;
    let fs = OpenOptions::new().open_device(Arc::new(disk))?;
    let service = Service::new(fs.clone(), &fuse_frontend::options::Options::default());
    let dispatch = Dispatch::new(Arc::new(service), Box::new(|| ()));
    let create = |name: &[u8], label: &[u8]| {
        let how = CreateIn { mode: 0o100_644, ..CreateIn::default() };
        let context = SecurityContext { size: label.len() as u32, padding: 0 };
        let mut extension = [context.as_bytes(), b"security.selinux\0", label].concat();
        extension.resize(extension.len().next_multiple_of(8), 0);
        let kind = 1;
        let header = ExtHeader { size: (size_of::<ExtHeader>() + extension.len()) as u32, kind };
        let body = [how.as_bytes(), name, b"\0", header.as_bytes(), &extension].concat();
        let header = InHeader { opcode: opcode::CREATE, nodeid: 1, total_extlen: 1, ..InHeader::default() };
        let request = Request::parse(header, Body::joined(&body), 0).expect("a whole message");
        dispatch.answer(&request, &mut [0; 4096], &NoKernel)
    };
    ensure!(matches!(create(b"labelled", b"system_u:object_r:etc_t:s0\0"), Answer::Reply(Ok(_))));
    let root = fs.root()?;
    let made = root.lookup("labelled")?;
    ensure!(made.xattr("security.selinux")? == b"system_u:object_r:etc_t:s0\0");
    // Without its label a file may not stay.
    ensure!(matches!(create(b"too-much", &[b'x'; 70_000]), Answer::Reply(Err(_))));
    ensure!(root.lookup("too-much").is_err());
    fs.close()?;
    Ok(())
}
