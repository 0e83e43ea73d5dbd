//! The plain arguments and answers of the public API.

use std::time::Duration;

use ext4_format::Ino;
use ext4_format::inode::{FileType, Time as Timestamp};

/// Who asks. New files belong to them, some blocks may be set aside for others than them, and a change by
/// somebody without privileges takes a file's away. Operations do not check permissions; that is
/// [`crate::check_access`].
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Bits to take off the mode of what is created.
    pub umask: u32,
}

impl Credentials {
    /// The superuser, without a umask; the default.
    #[must_use]
    pub const fn root() -> Credentials {
        Credentials { uid: 0, gid: 0, groups: Vec::new(), umask: 0 }
    }

    /// Whether they are in the group `gid`.
    #[must_use]
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// A file's attributes as `stat(2)` shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Distinguishes successive files of one inode number.
    pub generation: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space taken, in 512-byte units.
    pub sectors: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Birth, where the inode is large enough to keep it.
    pub crtime: Option<Timestamp>,
    /// File type and permission bits, as in `st_mode`.
    pub mode: u16,
    /// Number of names (1 for a directory that has more than the format can count).
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major and minor number of a device file.
    pub rdev: (u32, u32),
    /// Inode flags (`EXT4_*_FL`).
    pub flags: u32,
}

impl Attr {
    /// The type of the file; `None` for one that is damaged.
    #[must_use]
    pub fn kind(&self) -> Option<FileType> {
        FileType::from_mode(self.mode)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind() == Some(FileType::Directory)
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind() == Some(FileType::Regular)
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.kind() == Some(FileType::Symlink)
    }

    /// The permission bits.
    #[must_use]
    pub fn permissions(&self) -> u16 {
        self.mode & !FileType::MODE_MASK
    }
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The time of the request.
    Now,
    /// This time.
    At(Timestamp),
}

/// The attributes to change; `None` leaves one as it is.
#[derive(Clone, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (the file type is kept).
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Birth.
    pub crtime: Option<Timestamp>,
    /// Take away set-user-id, set-group-id and file capabilities, as a change by this caller does.
    pub kill_privileges: Option<Credentials>,
    /// Where the time of this change comes from.
    pub times: TimesFrom,
}

/// Where the time of a change of an inode comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TimesFrom {
    /// The volume's clock.
    #[default]
    Now,
    /// The caller, who keeps the times of its writes itself.
    Caller(Timestamp),
    /// The same, for the times of writes that were accepted earlier: inode flags that forbid changes and were
    /// set since do not apply to them.
    Earlier(Timestamp),
}

impl TimesFrom {
    /// The caller's time of the change.
    pub(crate) fn ctime(self) -> Option<Timestamp> {
        match self {
            TimesFrom::Now => None,
            TimesFrom::Caller(time) | TimesFrom::Earlier(time) => Some(time),
        }
    }
}

/// What to do when the volume turns out to be damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorPolicy {
    /// Record it and go on.
    Continue,
    /// Record it and refuse every further change.
    RemountReadOnly,
    /// Record it and end the process.
    Panic,
}

/// When reading a file moves its access time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Atime {
    /// Never.
    Never,
    /// When it is not after the last change, or a day old.
    Relative,
    /// At every read.
    Strict,
}

/// How a volume is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Change nothing.
    pub read_only: bool,
    /// With `read_only`: recover the volume on its device first, if it needs that, and let
    /// [`crate::Filesystem::resume`] make it writable later. Has no effect where the device, its features or
    /// multi-mount protection speak against it.
    pub recover_on_device: bool,
    /// Do not replay the journal (only with `read_only`).
    pub no_recovery: bool,
    /// Instead of the superblock's own.
    pub errors: Option<ErrorPolicy>,
    /// Access time.
    pub atime: Atime,
    /// No access times on directories.
    pub no_dir_atime: bool,
    /// How long a change may stay in memory only.
    pub commit_interval: Duration,
    /// Bound of the metadata cache, in bytes.
    pub cache_bytes: usize,
    /// Bound of file data that waits in write-behind, in bytes.
    pub write_behind_bytes: usize,
    /// Send flushes to the device (off: a power cut may lose everything).
    pub barrier: bool,
    /// Discard freed blocks once their transaction is durable.
    pub discard: bool,
    /// Who may use the reserved blocks besides root, instead of the superblock's own.
    pub reserved_uid: Option<u32>,
    /// The same for a group.
    pub reserved_gid: Option<u32>,
    /// Block of the superblock to use, in 1 KiB units, instead of the first.
    pub superblock: Option<u64>,
    /// Write data out early when a file is replaced by rename or truncated and rewritten.
    pub auto_da_alloc: bool,
    /// `statfs` counts the filesystem's own blocks as part of its size.
    pub minix_df: bool,
    /// Largest size of a directory, in bytes.
    pub max_dir_size: Option<u64>,
    /// Blocks of a RAID's stripe, instead of what the superblock says.
    pub stripe: Option<u32>,
    /// New files take the group of their directory, whether it has set-group-id or not.
    pub bsd_groups: bool,
    /// Where the volume appears, for the record in its superblock (`s_last_mounted`); empty: not known.
    pub mount_point: Vec<u8>,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_only: false,
            recover_on_device: false,
            no_recovery: false,
            errors: None,
            atime: Atime::Relative,
            no_dir_atime: false,
            commit_interval: Duration::from_secs(5),
            cache_bytes: 64 << 20,
            write_behind_bytes: 32 << 20,
            barrier: true,
            discard: false,
            reserved_uid: None,
            reserved_gid: None,
            superblock: None,
            auto_da_alloc: true,
            minix_df: false,
            max_dir_size: None,
            stripe: None,
            bsd_groups: false,
            mount_point: Vec::new(),
        }
    }
}

/// Space and inodes, as `statfs(2)` shows them. Blocks in units of `block_size`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks that files can use (with `minix_df`: all).
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for an ordinary user.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name, in bytes.
    pub name_max: u32,
    /// The volume's UUID folded to 64 bits.
    pub id: u64,
}
