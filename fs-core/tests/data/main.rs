//! The data path against byte models, failing devices and power cuts. Every image ends at e2fsck.

mod conversions;
mod faults;
mod harness;
mod model;
mod parallel;
mod power_cut;
