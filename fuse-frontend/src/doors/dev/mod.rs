//! The dev door: our own loop on /dev/fuse.
//!
//! Each thread reads a request, answers it and reads the next. A request is read so that the data
//! of a WRITE begin on a page boundary, and go to the device from there. A large READ is answered
//! by `splice`, without the bytes ever being copied here.

mod splice;

use std::io::{self, IoSlice};
use std::sync::{Arc, Weak};

use blockdev::{AlignedBuf, PAGE};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use self::splice::Pipe;
use super::backchannel::Backchannel;
use super::dispatch::{Answer, Kernel};
use super::ear::Ear;
use super::handshake::MAX_WRITE;
use super::wire::abi::{InHeader, OutHeader, READ_LOCKOWNER, WriteIn};
use super::wire::{Body, Operation, split_header};
use super::{Ended, Part};

/// Where a request is put, so that the data of a WRITE start a page.
const START: usize = PAGE - size_of::<InHeader>() - size_of::<WriteIn>();

/// What the threads share.
struct Door {
    part: Part,
    ear: Option<Arc<Ear>>,
    back: Backchannel,
}

/// Starts serving with `threads` threads; one, which has an `ear`, when most requests come another way.
///
/// # Errors
/// When a thread cannot be started.
pub fn serve(part: Part, threads: usize, ear: Option<Arc<Ear>>) -> io::Result<()> {
    let door = Arc::new_cyclic(|weak: &Weak<Door>| {
        let weak = weak.clone();
        let start = move || match weak.upgrade() {
            Some(door) => start_thread(door),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        // A new thread reads whatever waits.
        let back = Backchannel::new(&part, threads, Box::new(start), Box::new(|| Ok(())));
        Door { part, ear, back }
    });
    (0..threads).try_for_each(|_| door.back.crew.grow())
}

fn start_thread(door: Arc<Door>) -> io::Result<()> {
    let reserve = door.part.reserve.clone();
    reserve.run("rext4-dev", move || {
        if let Some(ended) = Worker::new(&door).run()
            && (door.back.crew.leaves_last() || matches!(ended, Ended::Failed(_)))
        {
            (door.part.on_end)(ended);
        }
    })
}

/// One thread and its memory.
struct Worker<'a> {
    door: &'a Door,
    output: AlignedBuf,
    pipe: Option<Pipe>,
}

impl<'a> Worker<'a> {
    fn new(door: &'a Door) -> Worker<'a> {
        Worker { door, output: AlignedBuf::zeroed(MAX_WRITE as usize + PAGE), pipe: Pipe::new() }
    }

    /// Serves until the mount ends, or until there are threads enough without this one.
    fn run(&mut self) -> Option<Ended> {
        let mut input = AlignedBuf::zeroed(PAGE + MAX_WRITE as usize + PAGE);
        loop {
            let _turn = self.door.ear.as_ref().map(|ear| ear.turn());
            let len = match rustix::io::read(&self.door.part.device, &mut input[START..]) {
                Ok(len) => len,
                // A request that was interrupted before it was read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
                Err(Errno::NODEV) => return Some(Ended::Unmounted),
                Err(Errno::CONNABORTED) => return Some(Ended::Aborted),
                Err(errno) => return Some(Ended::Failed(errno.into())),
            };
            self.serve(&input[START..START + len]);
            if self.door.back.crew.dismisses() {
                return None;
            }
        }
    }

    fn serve(&mut self, message: &[u8]) {
        let Ok((header, body)) = split_header(message) else {
            tracing::error!(len = message.len(), "a message without a header that fits");
            return;
        };
        let unique = header.unique;
        let (part, back) = (&self.door.part, &self.door.back);
        let answer = match part.parse(header, Body::joined(body)) {
            Ok(request) => {
                if let Operation::Read(how) = &request.operation
                    && how.size >= part.splice_from
                    && how.read_flags & READ_LOCKOWNER == 0
                    && self.splice(header.unique, how.fh, how.offset, how.size)
                {
                    return;
                }
                part.dispatch.answer(&request, &mut self.output, back)
            }
            Err(refusal) => refusal,
        };
        match answer {
            Answer::Silence => {}
            Answer::Reply(result) => self.reply(unique, result),
            Answer::Starved(node) => {
                self.reply(unique, Err(libc::ENOSPC));
                back.forget_attributes(node);
            }
        }
    }

    /// Answers a READ without copying; false when nothing was sent.
    fn splice(&mut self, unique: u64, handle: u64, offset: u64, size: u32) -> bool {
        let service = self.door.part.dispatch.service();
        let (Some(pipe), Some(source)) = (&mut self.pipe, service.device()) else { return false };
        let Ok(opened) = service.open_file(handle) else { return false };
        let Ok(plan) = service.read_plan(&opened, offset, size) else { return false };
        match pipe.reply(&self.door.part.device, unique, &plan, source) {
            splice::Sent::Yes => true,
            splice::Sent::No => false,
            splice::Sent::Spoiled => {
                self.pipe = Pipe::new();
                false
            }
        }
    }

    fn reply(&self, unique: u64, result: Result<usize, i32>) {
        let (error, data) = match result {
            Ok(len) => (0, &self.output[..len]),
            Err(errno) => (-errno, &[][..]),
        };
        match self.send(unique, error, data) {
            // The request was interrupted, or the connection is gone: nobody waits.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(errno) => {
                tracing::error!(%errno, len = data.len(), "the kernel has refused a reply");
                let _ = self.send(unique, -libc::EIO, &[]);
            }
        }
    }

    fn send(&self, unique: u64, error: i32, data: &[u8]) -> Result<(), Errno> {
        let header = OutHeader { len: (size_of::<OutHeader>() + data.len()) as u32, error, unique };
        rustix::io::writev(&self.door.part.device, &[IoSlice::new(header.as_bytes()), IoSlice::new(data)])?;
        Ok(())
    }
}
