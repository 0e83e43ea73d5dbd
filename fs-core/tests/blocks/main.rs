//! Blocks and who holds them: the allocator and the maps of files, on volumes made by mke2fs and
//! judged by e2fsck, dumpe2fs and a model in memory.

mod allocator;
mod full;
mod maps;
mod rig;
