//! Names and attributes: directories of every shape, the operations on them, extended attributes.
//! The volumes are made by mke2fs; e2fsck, the kernel and a model in memory judge.

mod attributes;
mod directories;
mod kernel;
mod model;
mod rig;
mod storm;
mod suspending;
mod unmounting;
