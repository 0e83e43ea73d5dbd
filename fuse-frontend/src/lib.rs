//! `mount.rext4`: serves an ext4 volume through FUSE.
//!
//! FUSE types live here and nowhere else, and inside this crate only in [`doors`] and where
//! `session` opens one: the [`service`] says what a request means and knows no transport.

mod auto_unmount;
pub mod background;
pub mod doors;
mod lock_file;
pub mod log;
pub mod memory;
mod mountpoint;
pub mod nodes;
pub mod options;
pub mod remount;
pub mod server;
pub mod service;
mod session;
pub mod unmounter;
