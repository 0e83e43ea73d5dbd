//! The kernel reads what we wrote, and we read and change what the kernel wrote.

use std::collections::BTreeSet;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fs_core::{Credentials, SetXattr};
use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::rig::{Rig, fsck, patiently, run};

/// A kernel mount of an image, until dropped.
struct KernelMount {
    at: PathBuf,
}

impl KernelMount {
    /// `None` (and a failure where CI is set) for a user who may not mount.
    fn new(rig: &Rig) -> Option<KernelMount> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "mounting needs root");
            eprintln!("SKIPPED: mounting needs root");
            return None;
        }
        let at = rig.image().with_extension("mnt");
        let _ = std::fs::create_dir(&at);
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(rig.image()).arg(&at));
        Some(KernelMount { at })
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        let done = patiently(|| match Command::new("umount").arg(&self.at).status() {
            Ok(status) if status.success() => Ok(()),
            other => Err(other),
        });
        assert!(done.is_ok() || std::thread::panicking(), "umount: {done:?}");
    }
}

fn names_in(dir: &Path) -> BTreeSet<Vec<u8>> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_vec()).collect()
}

/// Names of every length, with bytes on both sides of the sign.
fn name(i: usize) -> Vec<u8> {
    let mut name = format!("{i}-").into_bytes();
    let pattern = [b'a', 0xe4, b'z', 0x80, 0xff, b' '];
    name.extend((0..i * 31 % 200).map(|j| pattern[(i + j) % pattern.len()]));
    name
}

fn value_of(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 4096];
    let len = getxattr(path, name, &mut value[..]).unwrap();
    value.truncate(len);
    value
}

const KINDS: [(&[&str], &str); 5] = [
    (&["-t", "ext4"], "half_md4"),
    (&["-t", "ext4", "-b", "1024"], "tea"),
    (&["-t", "ext4", "-O", "large_dir,^metadata_csum", "-b", "1024"], "legacy"),
    (&["-t", "ext2", "-b", "1024"], "half_md4"),
    (&["-t", "ext4", "-O", "^dir_index"], "half_md4"),
];

fn rig(kind: &[&str], hash: &str) -> Option<Rig> {
    let mut rig = Rig::new(96, &[kind, &["-N", "30000"]].concat())?;
    rig.offline(|image| run(Command::new("tune2fs").args(["-E", &format!("hash_alg={hash}")]).arg(image)));
    Some(rig)
}

#[test]
fn the_kernel_reads_what_we_wrote() {
    for (kind, hash) in KINDS {
        let Some(mut rig) = rig(kind, hash) else { return };
        let count = if kind.contains(&"^dir_index") { 1500 } else { 5_000 };
        let dir = rig.mkdir(&rig.root(), "dir");
        for i in 0..count {
            dir.mknod_as(&Credentials::root(), name(i), 0o100_600, (0, 0)).unwrap();
        }
        for i in (0..count).step_by(3) {
            dir.unlink(name(i)).unwrap();
        }
        let target = vec![b't'; 800];
        rig.root().symlink(b"long", &target).unwrap();
        rig.root().symlink(b"short", b"dir").unwrap();
        let device =
            rig.root().mknod_as(&Credentials::root(), b"device", 0o020_640, (300, 70_000)).unwrap().ino();
        for i in 0..8_u8 {
            let value = vec![i; 60];
            let name = format!("user.number{i}");
            let how = SetXattr::Any;
            dir.set_xattr(name, &value, how).unwrap();
        }
        rig.unmount();
        {
            let Some(mount) = KernelMount::new(&rig) else { return };
            let want: BTreeSet<_> = (0..count).filter(|i| i % 3 != 0).map(name).collect();
            let path = mount.at.join("dir");
            assert_eq!(names_in(&path), want, "{kind:?}");
            for i in 0..count {
                let found = path.join(std::ffi::OsStr::from_bytes(&name(i))).symlink_metadata().is_ok();
                assert_eq!(found, i % 3 != 0);
            }
            assert_eq!(std::fs::read_link(mount.at.join("long")).unwrap().as_os_str().as_bytes(), target);
            assert_eq!(std::fs::read_link(mount.at.join("short")).unwrap().as_os_str(), "dir");
            let meta = mount.at.join("device").symlink_metadata().unwrap();
            assert_eq!((meta.mode(), meta.ino()), (0o020_640, device.get().into()));
            assert_eq!(meta.rdev(), rustix::fs::makedev(300, 70_000));
            for i in 0..8 {
                assert_eq!(value_of(&path, &format!("user.number{i}")), vec![i; 60]);
            }
            for i in 0..count {
                let path = path.join(std::ffi::OsStr::from_bytes(&name(i)));
                if i % 3 == 0 {
                    std::fs::write(path, b"").unwrap()
                } else {
                    std::fs::remove_file(path).unwrap()
                }
            }
        }
        fsck(&rig.image());
    }
}

#[test]
fn we_read_and_change_what_the_kernel_wrote() {
    for (kind, hash) in KINDS {
        let Some(mut rig) = rig(kind, hash) else { return };
        let count = if kind.contains(&"^dir_index") { 1500 } else { 5_000 };
        rig.unmount();
        {
            let Some(mount) = KernelMount::new(&rig) else { return };
            let path = mount.at.join("dir");
            std::fs::create_dir(&path).unwrap();
            for i in 0..count {
                std::fs::write(path.join(std::ffi::OsStr::from_bytes(&name(i))), b"").unwrap();
            }
            for i in 0..8_u8 {
                setxattr(&path, format!("user.number{i}"), &[i; 60], XattrFlags::empty()).unwrap();
            }
        }
        rig.mount();
        let dir = rig.dir("dir");
        let listed = rig.list(&dir, 64);
        assert_eq!(listed.len(), count);
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), (0..count).map(name).collect(), "{kind:?}");
        for i in 0..8_u8 {
            let name = format!("user.number{i}");
            assert_eq!(dir.xattr(name.as_bytes()).unwrap(), [i; 60]);
        }
        dir.remove_xattr("user.number3").unwrap();
        for i in 0..count {
            assert!(rig.exists(&dir, &name(i)), "{i}");
            if i % 2 == 0 {
                dir.unlink(name(i)).unwrap();
            } else {
                let to = [b"renamed ", &name(i)[..]].concat();
                dir.rename(name(i), &dir, &to, Default::default()).unwrap();
            }
        }
        rig.unmount();
        let Some(mount) = KernelMount::new(&rig) else { return };
        let want = (0..count).filter(|i| i % 2 == 1).map(|i| [b"renamed ", &name(i)[..]].concat()).collect();
        assert_eq!(names_in(&mount.at.join("dir")), want, "{kind:?}");
        assert!(getxattr(mount.at.join("dir"), "user.number3", &mut [0_u8; 64]).is_err());
        assert_eq!(value_of(&mount.at.join("dir"), "user.number4"), [4; 60]);
    }
}
