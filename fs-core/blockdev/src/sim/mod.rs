//! Simulated devices: memory that can be copied in an instant.

mod image;
mod mem;

pub use image::{Fill, Image};
pub use mem::MemDevice;
