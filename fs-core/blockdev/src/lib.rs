//! Floor 1: how a device is reached.

mod device;
mod env;

pub use device::{BlockDevice, DeviceGeometry, Error, Op, Result};
pub use env::{Chance, Clock, Env, Timestamp, Workers};
