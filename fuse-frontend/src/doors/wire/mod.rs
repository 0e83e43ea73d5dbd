//! The FUSE protocol as bytes: what a message says, and how an answer is spelled. Knows neither
//! what requests mean nor how messages travel.

pub mod abi;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use reply::Reply;
pub use request::{Body, Label, Malformed, NewName, Operation, Request, split_header};
