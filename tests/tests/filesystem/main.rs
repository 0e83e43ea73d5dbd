//! What a user of the filesystem must see, shown on the system under test (rext4, unless `REXT4_SUT` says
//! kernel, fuse2fs or loop) and judged by e2fsck and the kernel.

mod bad_input;
mod beside;
mod casefold;
mod crash;
mod damage;
mod deletions;
mod direct_aio;
mod direct_device;
mod direct_errors;
mod direct_faults;
mod direct_io;
mod direct_modes;
mod doors;
mod errors;
mod fuse2fs;
mod hostile_journal;
mod image_kinds;
mod ioctls;
mod memory;
mod mounting;
mod opcodes;
mod options;
mod rootless;
mod round_trip;
mod semantics;
mod shared_maps;
mod space;
mod special_inodes;
mod stalls;
mod storm;
mod suites;
mod times;
mod transports;
mod umount_helper;
mod xattrs;
