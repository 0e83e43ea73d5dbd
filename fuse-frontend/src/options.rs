//! The `-o` options: which are ours, which are the kernel's mount flags, which are harmless, and
//! which are refused with the reason. Spelled as the kernel's ext4 and fuse2fs spell them.

use std::path::PathBuf;
use std::time::Duration;

use blockdev::Direct;
use fs_core::{Atime, ErrorPolicy, MountOptions};

/// What `-o` asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the volume is mounted.
    pub volume: MountOptions,
    /// Byte at which the volume starts in the image or device.
    pub offset: u64,
    /// Let users other than the one who mounts in.
    pub allow_other: Option<bool>,
    /// Threads that serve, where it is not one for each ring.
    pub threads: Option<usize>,
    /// Whether to bypass the host's page cache on the way to the device.
    pub dio: Direct,
    /// Let the kernel send the parts of a direct request, and those of libaio and io_uring, side by side.
    pub async_dio: bool,
    /// Show counters as an attribute of the root directory.
    pub stats: bool,
    /// With [`Transport::Dev`], the smallest READ that is answered by splice, in bytes.
    pub splice_from: u32,
    /// How requests are to come.
    pub transport: Transport,
    /// With [`Transport::Ring`], threads for each processor; otherwise as the device wants it.
    pub ring_threads: Option<usize>,
    /// With [`Transport::Ring`], keep each thread on its processor.
    pub pinned: bool,
    /// Give the one who mounts, and nobody else, root's rights over the volume, so that a user can build a
    /// tree with other owners and set-id bits. Such a mount has neither devices nor set-id programs.
    pub fake_root: bool,
    /// Mount flags that FUSE itself understands.
    pub flags: Vec<Flag>,
    /// Refuse a write-protected device instead of mounting it read-only.
    pub must_write: bool,
    /// Have the mount taken away when the server ends, however it ends.
    pub auto_unmount: bool,
    /// A file that is there as long as the server uses the volume, as fuse2fs has it.
    pub lock_file: Option<PathBuf>,
}

/// Ways for requests to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// [`Transport::Ring`] where it can be had, else [`Transport::Dev`].
    #[default]
    Auto,
    /// FUSE over io_uring.
    Ring,
    /// Our own loop on /dev/fuse.
    Dev,
    /// The library `fuser`.
    Fuser,
}

/// A mount flag that goes to the kernel as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Flag {
    Dev,
    NoDev,
    Suid,
    NoSuid,
    Exec,
    NoExec,
    Sync,
    DirSync,
    NoAtime,
}

/// From here on splicing pages costs less than copying bytes (docs/PERFORMANCE.md).
const DEFAULT_SPLICE_FROM: u32 = 64 << 10;

/// A `-o` item that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// The name means nothing.
    #[error("unknown mount option '{0}'")]
    Unknown(String),
    /// The value cannot be read.
    #[error("mount option '{name}': '{value}' is not {wanted}")]
    Value {
        /// The option.
        name: String,
        /// What was given.
        value: String,
        /// What would have been right.
        wanted: &'static str,
    },
    /// The option exists, but not here.
    #[error("mount option '{name}' is not supported: {reason}")]
    Refused {
        /// The option.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// Two options exclude each other.
    #[error("mount options '{0}' and '{1}' exclude each other: {2}")]
    Exclusive(&'static str, &'static str, &'static str),
}

impl Default for Options {
    fn default() -> Self {
        Options {
            volume: MountOptions::default(),
            offset: 0,
            allow_other: None,
            threads: None,
            dio: Direct::Auto,
            async_dio: true,
            stats: false,
            splice_from: DEFAULT_SPLICE_FROM,
            transport: Transport::Auto,
            ring_threads: None,
            pinned: true,
            fake_root: false,
            flags: Vec::new(),
            must_write: false,
            auto_unmount: false,
            lock_file: None,
        }
    }
}

/// Options of ext4, of mount(8) and of fuse2fs that change nothing here.
const HARMLESS: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "loop",
    "delalloc",
    "nodelalloc",
    "data=ordered",
    "data=writeback",
    "orlov",
    "oldalloc",
    "journal_checksum",
    "nojournal_checksum",
    "journal_async_commit",
    "nombcache",
    "mbcache",
    "i_version",
    "dioread_lock",
    "dioread_nolock",
    "nodioread_nolock",
    "block_validity",
    "noblock_validity",
    "bh",
    "nobh",
    "debug",
    "force",
    "lazytime",
    "nolazytime",
    "init_itable",
    "noinit_itable",
    "prefetch_block_bitmaps",
    "no_prefetch_block_bitmaps",
    "acl",
    "user_xattr",
    "default_permissions",
    "no_default_opts",
    "nodebug",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "rw",
    "noquota",
    "big_writes",
    "nonempty",
    "uninit_bg",
    "nouid32",
    "dax=never",
    "dax=inode",
    "warn_on_error",
    "nowarn_on_error",
    "data_err=ignore",
    "data_err=abort",
    "mb_optimize_scan=0",
    "mb_optimize_scan=1",
    "no_mbcache",
    "inlinecrypt",
    "usrjquota=",
    "grpjquota=",
    "fuse2fs_debug",
    "blkdev",
    "kernel_cache",
    "auto_cache",
    "noauto_cache",
    "clone_fd",
    "hard_remove",
    "use_ino",
    "intr",
];

/// Options with a value that change nothing here.
const HARMLESS_VALUED: &[&str] = &[
    "inode_readahead_blks",
    "journal_ioprio",
    "max_batch_time",
    "min_batch_time",
    "init_itable",
    "subtype",
    "fsname",
    "comment",
    "mb_optimize_scan",
    "max_read",
    "entry_timeout",
    "attr_timeout",
    "negative_timeout",
    "ac_attr_timeout",
    "max_threads",
    "max_idle_threads",
];

/// Options that ask for what is not to be had, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("data=journal", "file data never goes through the journal; it is written before its mapping commits"),
    ("abort", "a mount begins writable or read-only; EXT4_IOC_SHUTDOWN ends a running one"),
    ("dax", "a FUSE server has no direct access to persistent memory"),
    ("dax=always", "a FUSE server has no direct access to persistent memory"),
    ("quota", "quota files are not maintained"),
    ("usrquota", "quota files are not maintained"),
    ("grpquota", "quota files are not maintained"),
    ("prjquota", "quota files are not maintained"),
    ("usrjquota", "quota files are not maintained"),
    ("grpjquota", "quota files are not maintained"),
    ("jqfmt", "quota files are not maintained"),
    ("journal_path", "a journal on another device is not supported"),
    ("journal_dev", "a journal on another device is not supported"),
    ("test_dummy_encryption", "encryption is not supported"),
    ("noacl", "access control lists of the volume are always honoured"),
    ("nouser_xattr", "extended attributes are always available"),
];

const FAKE_ROOT_ALONE: &str = "everybody who gets in would have root's rights over the volume";

impl Options {
    /// Takes the comma-separated items of one `-o`.
    pub fn apply(&mut self, items: &str) -> Result<(), OptionError> {
        items.split(',').filter(|item| !item.is_empty()).try_for_each(|item| self.apply_one(item))?;
        match self.fake_root && self.allow_other == Some(true) {
            true => Err(OptionError::Exclusive("fakeroot", "allow_other", FAKE_ROOT_ALONE)),
            false => Ok(()),
        }
    }

    fn apply_one(&mut self, item: &str) -> Result<(), OptionError> {
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (item, None),
        };
        if HARMLESS.contains(&item) {
            tracing::debug!(item, "mount option has no effect here");
            return Ok(());
        }
        if let Some((name, reason)) = REFUSED.iter().find(|(refused, _)| [item, name].contains(refused)) {
            return Err(OptionError::Refused { name: (*name).into(), reason });
        }
        let vol = &mut self.volume;
        match (name, value) {
            ("ro", None) => vol.read_only = true,
            ("norecovery" | "noload", None) => vol.no_recovery = true,
            ("errors", Some(v)) => {
                vol.errors = Some(match v {
                    "continue" => ErrorPolicy::Continue,
                    "remount-ro" => ErrorPolicy::RemountReadOnly,
                    "panic" => ErrorPolicy::Panic,
                    _ => return Err(bad(name, v, "continue, remount-ro or panic")),
                });
            }
            ("noatime", None) => {
                vol.atime = Atime::Never;
                self.flags.push(Flag::NoAtime);
            }
            ("relatime", None) => vol.atime = Atime::Relative,
            ("strictatime" | "atime", None) => vol.atime = Atime::Strict,
            ("nodiratime", None) => vol.no_dir_atime = true,
            ("diratime", None) => vol.no_dir_atime = false,
            ("commit", Some(v)) => {
                let seconds: u64 = number(name, v)?;
                vol.commit_interval = Duration::from_secs(if seconds == 0 { 5 } else { seconds.min(3600) });
            }
            ("cache" | "cache_size", Some(v)) => vol.cache_bytes = size(name, v)?.max(1 << 20) as usize,
            ("write_behind", Some(v)) => vol.write_behind_bytes = size(name, v)?.max(1 << 20) as usize,
            ("barrier", None | Some("1")) => vol.barrier = true,
            ("nobarrier", None) | ("barrier", Some("0")) => vol.barrier = false,
            ("discard", None) => vol.discard = true,
            ("nodiscard", None) => vol.discard = false,
            ("resuid", Some(v)) => vol.reserved_uid = Some(number(name, v)?),
            ("resgid", Some(v)) => vol.reserved_gid = Some(number(name, v)?),
            ("sb", Some(v)) => vol.superblock = Some(number(name, v)?),
            ("auto_da_alloc", None | Some("1")) => vol.auto_da_alloc = true,
            ("noauto_da_alloc", None) | ("auto_da_alloc", Some("0")) => vol.auto_da_alloc = false,
            ("grpid" | "bsdgroups", None) => vol.bsd_groups = true,
            ("nogrpid" | "sysvgroups", None) => vol.bsd_groups = false,
            ("minixdf", None) => vol.minix_df = true,
            ("bsddf", None) => vol.minix_df = false,
            ("max_dir_size_kb", Some(v)) => {
                let kib: u64 = number(name, v)?;
                vol.max_dir_size = (kib > 0).then_some(kib.saturating_mul(1024));
            }
            ("stripe", Some(v)) => vol.stripe = Some(number(name, v)?),
            ("offset", Some(v)) => {
                self.offset = size(name, v)?;
                if !self.offset.is_multiple_of(512) {
                    return Err(bad(name, v, "a multiple of 512"));
                }
            }
            ("allow_other", None) => self.allow_other = Some(true),
            ("noallow_other", None) => self.allow_other = Some(false),
            ("threads", Some(v)) => self.threads = Some(number::<usize>(name, v)?.clamp(1, 64)),
            ("dio", Some("auto")) => self.dio = Direct::Auto,
            ("dio", Some("always")) | ("direct", None | Some("1")) => self.dio = Direct::Always,
            ("dio", Some("never")) | ("nodirect", None) | ("direct", Some("0")) => self.dio = Direct::Never,
            ("dio", Some(v)) => return Err(bad(name, v, "auto, always or never")),
            ("async_dio", None) => self.async_dio = true,
            ("noasync_dio", None) => self.async_dio = false,
            ("stats", None) => self.stats = true,
            ("nostats", None) => self.stats = false,
            ("transport", Some(v)) => {
                self.transport = match v {
                    "auto" => Transport::Auto,
                    "ring" => Transport::Ring,
                    "dev" => Transport::Dev,
                    "fuser" => Transport::Fuser,
                    _ => return Err(bad(name, v, "auto, ring, dev or fuser")),
                };
            }
            ("splice", Some("never")) => self.splice_from = u32::MAX,
            ("splice", Some(v)) => self.splice_from = size(name, v)?.min(u32::MAX.into()) as u32,
            ("ring_threads", Some(v)) => self.ring_threads = Some(number::<usize>(name, v)?.clamp(1, 16)),
            ("pin", None) => self.pinned = true,
            ("nopin", None) => self.pinned = false,
            ("fakeroot", None) => self.fake_root = true,
            ("kernel", None) => {
                // fuse2fs: behave like the kernel's ext4 mount of root.
                self.allow_other = Some(true);
                self.flags.extend([Flag::Dev, Flag::Suid]);
            }
            ("auto_unmount", None) => self.auto_unmount = true,
            ("noauto_unmount", None) => self.auto_unmount = false,
            ("lockfile", Some(v)) if !v.is_empty() => self.lock_file = Some(v.into()),
            ("dev", None) => self.flags.push(Flag::Dev),
            ("nodev", None) => self.flags.push(Flag::NoDev),
            ("suid", None) => self.flags.push(Flag::Suid),
            ("nosuid", None) => self.flags.push(Flag::NoSuid),
            ("exec", None) => self.flags.push(Flag::Exec),
            ("noexec", None) => self.flags.push(Flag::NoExec),
            ("sync", None) => self.flags.push(Flag::Sync),
            ("async", None) => self.flags.retain(|f| *f != Flag::Sync),
            ("dirsync", None) => self.flags.push(Flag::DirSync),
            (_, Some(_)) if HARMLESS_VALUED.contains(&name) => {
                tracing::debug!(item, "mount option has no effect here");
            }
            (_, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => return Err(OptionError::Unknown(item.into())),
        }
        Ok(())
    }
}

fn bad(name: &str, value: &str, wanted: &'static str) -> OptionError {
    OptionError::Value { name: name.into(), value: value.into(), wanted }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, OptionError> {
    value.parse().map_err(|_| bad(name, value, "a number"))
}

/// A number of bytes, with an optional suffix K, M, G or T.
fn size(name: &str, value: &str) -> Result<u64, OptionError> {
    let wrong = || bad(name, value, "a size like 64M");
    let (digits, shift) = match value.char_indices().last() {
        Some((at, 'k' | 'K')) => (&value[..at], 10),
        Some((at, 'm' | 'M')) => (&value[..at], 20),
        Some((at, 'g' | 'G')) => (&value[..at], 30),
        Some((at, 't' | 'T')) => (&value[..at], 40),
        _ => (value, 0),
    };
    let n: u64 = digits.parse().map_err(|_| wrong())?;
    n.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(items: &str) -> Result<Options, OptionError> {
        let mut options = Options::default();
        options.apply(items).map(|()| options)
    }

    #[test]
    fn ours_are_taken() {
        let o = parsed("ro,noload,errors=panic,commit=30,offset=1M,cache=8M,resuid=7,noatime").unwrap();
        assert!(o.volume.read_only && o.volume.no_recovery);
        assert_eq!(o.volume.errors, Some(ErrorPolicy::Panic));
        assert_eq!(o.volume.commit_interval, Duration::from_secs(30));
        assert_eq!((o.offset, o.volume.cache_bytes), (1 << 20, 8 << 20));
        assert_eq!((o.volume.reserved_uid, o.volume.atime), (Some(7), Atime::Never));
    }

    #[test]
    fn the_way_to_the_device_is_chosen() {
        for (items, dio) in [
            ("rw", Direct::Auto),
            ("dio=always", Direct::Always),
            ("direct", Direct::Always),
            ("direct,dio=auto", Direct::Auto),
            ("dio=never", Direct::Never),
            ("nodirect", Direct::Never),
        ] {
            assert_eq!(parsed(items).unwrap().dio, dio, "{items}");
        }
        let said = parsed("dio=maybe").unwrap_err().to_string();
        assert!(said.contains("'maybe' is not auto, always or never"), "{said}");
    }

    #[test]
    fn those_of_others_are_ignored_or_refused_with_the_reason() {
        parsed("defaults,rw,data=ordered,x-systemd.automount,stripe=16").unwrap();
        let said = |items| parsed(items).unwrap_err().to_string();
        assert!(said("data=journal").contains("journal"));
        assert!(said("jqfmt=vfsv1").contains("quota") && said("prjquota").contains("quota"));
        assert!(said("journal_dev=0x801").contains("another device"));
        parsed("dax=never,nouid32,lazytime,acl,user_xattr,journal_checksum,block_validity,i_version")
            .unwrap();
        assert_eq!(parsed("splice=1M").unwrap().splice_from, 1 << 20);
        assert_eq!(parsed("splice=never").unwrap().splice_from, u32::MAX);
        assert!(parsed("bsdgroups").unwrap().volume.bsd_groups);
        assert!(!parsed("grpid,nogrpid").unwrap().volume.bsd_groups);
        assert!(said("frobnicate").contains("unknown mount option 'frobnicate'"));
        assert!(said("commit=soon").contains("'soon' is not a number"));
        assert!(said("offset=12").contains("'12' is not a multiple of 512"));
    }

    #[test]
    fn fakeroot_is_for_one_alone() {
        for items in ["fakeroot", "kernel,noallow_other,fakeroot,suid,dev", "fakeroot,noallow_other"] {
            assert!(parsed(items).unwrap().fake_root, "{items}");
        }
        for items in ["fakeroot,allow_other", "allow_other,fakeroot", "kernel,fakeroot"] {
            assert!(parsed(items).unwrap_err().to_string().contains("allow_other"), "{items}");
        }
        let mut options = parsed("allow_other").unwrap();
        assert!(options.apply("fakeroot").is_err(), "by another -o");
    }

    #[test]
    fn a_size_that_overflows_is_refused() {
        assert!(parsed("offset=99999999999T").is_err());
    }
}
