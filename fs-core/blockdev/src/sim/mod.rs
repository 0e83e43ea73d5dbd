//! Simulated devices: memory that can be copied in an instant, faults on demand, a recorder, and every
//! disk that a power cut could have left behind.

mod crash;
mod dice;
mod fault;
mod image;
mod mem;
mod record;

pub use crash::{CrashState, Keep, StateName, Walk};
pub use dice::Dice;
pub use fault::{Fault, FaultDevice, FaultId, When};
pub use image::{Fill, Image};
pub use mem::MemDevice;
pub use record::{Change, Event, Recorder, Recording};
