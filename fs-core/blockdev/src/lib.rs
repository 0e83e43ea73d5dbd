//! Floor 1: how a device is reached.
//!
//! [`BlockDevice`] is the contract; [`open`] gives the real thing, [`sim`] the simulated ones, and
//! [`Env`] everything else that a volume needs from outside. Nothing here knows what the bytes mean.

mod aligned;
mod claim;
mod device;
mod discard;
mod env;
mod file;
mod heap;
mod map;
mod mount_table;
mod open;
pub mod sim;

pub use aligned::{AlignedBuf, PAGE, POOL_BYTES, PooledBuf};
pub use claim::{Holder, Mount, mounted};
pub use device::{BlockDevice, DeviceGeometry, Error, Op, Result};
pub use env::{Chance, Clock, Env, Timestamp, Workers, host_name};
pub use file::FileDevice;
pub use heap::give_back_large;
pub use map::ReadOnlyMap;
pub use mount_table::{MountEntry, mount_table, mount_table_of};
pub use open::{Direct, OpenError, OpenOptions, open};
