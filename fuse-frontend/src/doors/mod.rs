//! Doors: one per transport. Each turns messages into calls of the [`crate::service`] and answers
//! into messages, and nothing else.
//!
//! [`fuser`] is the portable one, a library's. Our own speak the protocol themselves ([`wire`],
//! [`dispatch`]): they mount ([`mount`]), shake hands ([`handshake`]), and serve what comes through
//! /dev/fuse ([`dev`]) or through io_uring ([`ring`]).

mod aside;
mod backchannel;
pub mod caller_memory;
mod crew;
pub mod dev;
pub mod dispatch;
mod ear;
pub mod fuser;
pub mod handshake;
mod home;
pub mod mount;
pub mod notify;
pub mod old_pages;
pub mod reserve;
pub mod ring;
mod wanderers;
pub mod wire;

use std::fs::File;
use std::io;
use std::sync::Arc;

use self::caller_memory::CallerMemory;
use self::dispatch::{Answer, Dispatch};
use self::old_pages::OldPages;
use self::reserve::Reserve;
use self::ring::Rings;
use self::wire::abi::{InHeader, init};
use self::wire::{Body, Request};
use crate::options::Transport;

/// What a door of our own serves.
#[derive(Clone)]
pub struct Part {
    /// The connection.
    pub device: Arc<File>,
    /// What answers.
    pub dispatch: Arc<Dispatch>,
    /// What INIT has settled.
    pub capabilities: u64,
    /// Smallest READ that the dev door answers by splice, in bytes.
    pub splice_from: u32,
    /// Threads to serve with.
    pub reserve: Arc<Reserve>,
    /// What becomes of pages that the kernel read before a direct write.
    pub old_pages: Arc<OldPages>,
    /// Reads what a request leaves in its caller's memory.
    pub caller_memory: Arc<CallerMemory>,
    /// Hears how serving ended, once nothing is being answered any more (or when that failed).
    pub on_end: Arc<dyn Fn(Ended) + Send + Sync>,
}

impl Part {
    /// Reads a request.
    ///
    /// # Errors
    /// The answer to one that does not follow the protocol.
    fn parse<'a>(&self, header: InHeader, body: Body<'a>) -> Result<Request<'a>, Answer> {
        tracing::debug!(opcode = header.opcode, node = header.nodeid, "request");
        Request::parse(header, body, self.capabilities).map_err(|error| {
            tracing::error!(opcode = header.opcode, %error);
            Answer::Reply(Err(libc::EIO))
        })
    }
}

/// Serves a connection through `rings`, if INIT has settled that and the kernel takes them, else with
/// `threads` threads on /dev/fuse; says which it is.
///
/// # Errors
/// When neither can be had: the mount has to go.
pub fn serve(part: Part, rings: Option<Rings>, threads: usize) -> io::Result<Transport> {
    if let Some(rings) = rings
        && part.capabilities & init::OVER_IO_URING != 0
        && rings.serve(&part)?
    {
        return Ok(Transport::Ring);
    }
    let reserve = part.reserve.clone();
    dev::serve(part, threads, None)?;
    // Those that rings were to have.
    reserve.dismiss();
    Ok(Transport::Dev)
}

/// How serving ended.
#[derive(Debug)]
pub enum Ended {
    /// By umount(2).
    Unmounted,
    /// The kernel was told to give the connection up.
    Aborted,
    /// Reading failed.
    Failed(io::Error),
}
