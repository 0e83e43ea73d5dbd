//! Answering a READ by splice(2): header and data are gathered in a pipe, as references to pages,
//! and moved to the FUSE device in one call.
//!
//! The header, which carries the length, goes in first; the plan knows the length. A device that
//! then gives less has failed, and the request is answered by copying, which finds the error: the
//! pipe with its half message is thrown away, nothing of it was sent.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use blockdev::PAGE;
use fs_core::{ReadPlan, Segment};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use zerocopy::IntoBytes;

use super::super::wire::abi::OutHeader;
use crate::service::Source;

/// Pages of a pipe that takes the largest reply; without privilege it is smaller, and so are the
/// replies that go through it.
const PAGES: usize = 512;
const UNPRIVILEGED_PAGES: usize = 256;

/// A pipe, empty between two replies.
pub struct Pipe {
    input: OwnedFd,
    output: OwnedFd,
    zeros: File,
    slots: usize,
}

/// What became of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The request is answered.
    Yes,
    /// It is not; the pipe is empty.
    No,
    /// It is not, and the pipe must go.
    Spoiled,
}

impl Pipe {
    /// A pipe, unless the system has none to spare.
    #[must_use]
    pub fn new() -> Option<Pipe> {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let bytes = [PAGES, UNPRIVILEGED_PAGES]
            .iter()
            .find_map(|pages| fcntl_setpipe_size(&input, pages * PAGE).ok())?;
        Some(Pipe { input, output, zeros: File::open("/dev/zero").ok()?, slots: bytes / PAGE })
    }

    /// Answers the READ `unique` with what `plan` says.
    pub fn reply(&mut self, device: &File, unique: u64, plan: &ReadPlan<'_>, source: Source<'_>) -> Sent {
        if !self.takes(plan, source.align) {
            return Sent::No;
        }
        let len = size_of::<OutHeader>() + plan.len() as usize;
        let header = OutHeader { len: len as u32, error: 0, unique };
        if !self.put(header.as_bytes()) || !plan.segments().iter().all(|s| self.gather(s, &source)) {
            return Sent::Spoiled;
        }
        match splice(&self.output, None, device, None, len, SpliceFlags::empty()) {
            Ok(moved) if moved == len => Sent::Yes,
            _ => Sent::Spoiled,
        }
    }

    /// Whether the pipe has a slot for every page, and the device takes every part as it is.
    fn takes(&self, plan: &ReadPlan<'_>, align: u64) -> bool {
        let fits = |segment: &Segment| match segment {
            Segment::Device { offset, len } => (offset | len).is_multiple_of(align),
            _ => true,
        };
        let pages = |segment: &Segment| segment.len() as usize / PAGE + 2;
        let needed: usize = plan.segments().iter().map(pages).sum();
        !plan.is_empty() && needed < self.slots && plan.segments().iter().all(fits)
    }

    fn gather(&self, segment: &Segment, source: &Source<'_>) -> bool {
        match segment {
            Segment::Device { offset, len } => self.pull(source.file, Some(source.start + offset), *len),
            Segment::Zeros { len } => self.pull(self.zeros.as_fd(), None, *len),
            Segment::Memory(bytes) => self.put(bytes),
        }
    }

    /// Copies bytes into the pipe.
    fn put(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match rustix::io::write(&self.input, bytes) {
                Ok(n) if n > 0 => bytes = &bytes[n..],
                Err(rustix::io::Errno::INTR) => {}
                _ => return false,
            }
        }
        true
    }

    /// Moves `len` bytes of a file into the pipe.
    fn pull(&self, file: BorrowedFd<'_>, mut offset: Option<u64>, mut len: u64) -> bool {
        while len > 0 {
            match splice(file, offset.as_mut(), &self.input, None, len as usize, SpliceFlags::NONBLOCK) {
                Ok(moved) if moved > 0 => len -= moved as u64,
                Err(rustix::io::Errno::INTR) => {}
                _ => return false,
            }
        }
        true
    }
}
