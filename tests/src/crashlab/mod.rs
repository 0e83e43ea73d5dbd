//! The crash lab: record a workload's device writes once, make every disk that a power cut could have
//! left, recover each, and compare it with what had been promised (docs/DURABILITY.md).
//!
//! ```text
//!   workload --run on--> recorder --walk--> crash states --recover--> judges: model, fsck, kernel, e2fsck
//!       \------------> model: a promise per epoch ------------------------^
//! ```
//!
//! [`journal`] does the same one floor down, for the journal alone over raw blocks. Both name a failure
//! by one line that builds the state again.

pub mod actor;
pub mod clients;
pub mod epochs;
pub mod journal;
pub mod judge;
pub mod kernel;
pub mod ledger;
pub mod meddler;
pub mod model;
pub mod observe;
pub mod ops;
pub mod programs;
pub mod subject;
pub mod workload;
