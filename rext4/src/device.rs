//! What a volume lies on: [`BlockDevice`] and the devices there are.
//!
//! A type of your own needs little more than reading and writing at a position; [`BlockDevice`] states the contract.

use std::sync::Arc;

#[doc(inline)]
pub use blockdev::sim::{Fill, Image, MemDevice};
#[doc(inline)]
pub use blockdev::{
    BlockDevice, DeviceGeometry, Direct, Error, FileDevice, Op, OpenError, OpenOptions, Result, Window, open,
};

/// A device of `size` bytes in memory, which reads as zeros. It takes memory for what is written, not for its size.
///
/// [`MemDevice::snapshot`] gives a copy of what it holds; to keep it, read the device into a file.
#[must_use]
pub fn memory(size: u64) -> Arc<MemDevice> {
    Arc::new(MemDevice::new(size, Fill::Zero))
}
