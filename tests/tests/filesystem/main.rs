//! What a user of the filesystem must see, shown on the system under test (rext4, unless `REXT4_SUT` says
//! kernel, fuse2fs or loop) and judged by e2fsck and the kernel.

mod bad_input;
mod beside;
mod crash;
mod deletions;
mod direct_aio;
mod direct_device;
mod direct_errors;
mod direct_faults;
mod direct_io;
mod direct_modes;
mod doors;
mod ends;
mod errors;
mod fuse2fs;
mod image_kinds;
mod ioctls;
mod limits;
mod memory;
mod messages;
mod mounting;
mod opcodes;
mod options;
mod remounts;
mod rootless;
mod round_trip;
mod semantics;
mod space;
mod stalls;
mod storm;
mod suites;
mod times;
mod transports;
mod umount_helper;
mod xattrs;
