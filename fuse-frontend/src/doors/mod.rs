//! Doors: one per transport. Each turns messages into calls of the [`crate::service`] and answers
//! into messages, and nothing else.

pub mod fuser;
