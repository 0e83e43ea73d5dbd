//! Harness, oracles, crash lab and benchmark: the only place that sees everything.
//!
//! A [`system::System`] is something that can format and serve an ext4 image: the kernel, fuse2fs, or rext4
//! in its two ways of reaching a device. Tests and benchmark speak to all of them alike, so that every judge
//! here can be judged itself on a system that is known to be right, or known to be wrong.

pub mod aio;
pub mod bench;
pub mod coherence;
pub mod crashlab;
pub mod differ;
pub mod forge;
pub mod gate;
pub mod load;
pub mod manifest;
pub mod model;
pub mod oracle;
mod rings;
pub mod run;
pub mod scale;
pub mod served;
pub mod system;
pub mod tree;
