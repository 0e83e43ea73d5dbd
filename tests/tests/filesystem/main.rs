//! What a user of the filesystem must see, shown on the system under test (rext4, unless `REXT4_SUT` says kernel,
//! fuse2fs or loop) and judged by e2fsck and the kernel.

mod crash;
mod round_trip;
mod storm;
