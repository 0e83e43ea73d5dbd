//! The superblock's bit fields and enumerations.

use crate::bits::flag_bits;

flag_bits! {
    /// `s_state`.
    State(u16) {
        /// Unmounted cleanly.
        VALID = 0x1;
        /// Errors were detected.
        ERROR = 0x2;
        /// Orphans are being recovered.
        ORPHANS = 0x4;
        /// A fast-commit replay is under way.
        FC_REPLAY = 0x20;
    }
}

flag_bits! {
    /// `s_flags`.
    Flags(u32) {
        /// Directory hashes take characters as signed.
        SIGNED_HASH = 0x1;
        /// Directory hashes take characters as unsigned.
        UNSIGNED_HASH = 0x2;
        /// To test development code.
        TEST_FILESYS = 0x4;
    }
}

flag_bits! {
    /// `s_default_mount_opts`.
    DefaultMountOpts(u32) {
        /// Debug messages.
        DEBUG = 0x1;
        /// New files take the group of their directory.
        BSDGROUPS = 0x2;
        /// user. attributes.
        XATTR_USER = 0x4;
        /// POSIX ACLs.
        ACL = 0x8;
        /// 16-bit owner numbers.
        UID16 = 0x10;
        /// Data are journalled.
        DATA_JOURNAL = 0x20;
        /// Data are written before the metadata commit.
        DATA_ORDERED = 0x40;
        /// Data are not ordered (both journal-mode bits).
        DATA_WRITEBACK = 0x60;
        /// No flushes.
        NOBARRIER = 0x100;
        /// Check block numbers against the metadata zones.
        BLOCK_VALIDITY = 0x200;
        /// Discard freed blocks.
        DISCARD = 0x400;
        /// No delayed allocation.
        NODELALLOC = 0x800;
    }
}

/// What the volume asks to be done at an error (`s_errors`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// Carry on.
    Continue = 1,
    /// Remount read-only.
    ReadOnly = 2,
    /// Panic.
    Panic = 3,
}
