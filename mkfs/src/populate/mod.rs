//! Builds images that hold a tree: from folders, tar archives and container images.
//!
//! Sources put their entries into one [`tree`]; [`order`] numbers them, [`plan`] with [`size`] and [`place`]
//! finds the size and the place of every block, [`copy`] writes the files' data in any number of threads, and [`contents`] gives the
//! metadata to [`crate::write`], which puts the superblock last. Contents are never held in memory: a folder's
//! and an archive's are read where they lie, a stream's wait in a [`spool`].

mod acl;
mod attributes;
mod builder;
mod content;
mod contents;
mod copy;
mod decoder;
mod directory;
mod error;
mod folder;
mod layer;
mod mapping;
mod oci;
mod order;
mod output;
mod owners;
mod place;
mod plan;
mod size;
mod source;
mod space;
mod spec;
mod spool;
mod tar;
mod tree;

pub use builder::{BuildReport, Event, ImageBuilder};
pub use error::Error;
pub use oci::Platform;
pub use owners::IdRange;
pub use size::Free;
pub use source::Source;
