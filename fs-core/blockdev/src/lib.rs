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
mod lease;
mod limits;
mod map;
mod message;
mod mount_table;
mod mount_users;
mod open;
mod patience;
pub mod sim;
mod uncached;
mod window;

pub use aligned::{AlignedBuf, PAGE, POOL_BYTES, PooledBuf, fill_pool};
pub use claim::{Holder, Mount, is_write_protected, mounted};
pub use device::{BlockDevice, DeviceGeometry, Error, Op, Result};
pub use env::{Chance, Clock, Env, Timestamp, Workers, host_name};
pub use file::FileDevice;
pub use heap::give_back_large;
pub use lease::{Lease, Leased};
pub use limits::{file_size_limit, file_size_limit_is_an_error};
pub use map::ReadOnlyMap;
pub use message::{in_one_line, plain};
pub use mount_table::{MountEntry, mount_table, mount_table_of};
pub use mount_users::{MountUser, mounted_elsewhere};
pub use open::{Direct, OpenError, OpenOptions, open};
pub use patience::open_when_free;
pub use window::Window;
