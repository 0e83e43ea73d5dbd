//! The ring door: FUSE over io_uring.
//!
//! The kernel has one queue for each possible processor, and a request goes to the queue of its
//! caller's. Each thread here has a ring with one entry: a request waits for a thread that is free,
//! never behind one that is busy. FORGET and INTERRUPT still come over /dev/fuse, where one thread
//! of the `dev` door takes them.
//!
//! Once INIT has told it of rings, the kernel holds every request back until each queue has an entry. So
//! what can be wanting is had before ([`Rings::prepare`]); and if a queue is refused all the same, the
//! connection is sent back to /dev/fuse: a mount never hangs for want of a queue.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use blockdev::AlignedBuf;
use fuse_uring::{Blank, Entry};
use parking_lot::Mutex;
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use zerocopy::{FromBytes, IntoBytes};

use super::aside::{Aside, Seat};
use super::backchannel::Backchannel;
use super::crew::Act;
use super::dispatch::{Answer, Kernel};
use super::ear::Ear;
use super::handshake::MAX_WRITE;
use super::home::{self, Home};
use super::wire::Body;
use super::wire::abi::{InHeader, OutHeader, opcode};
use super::{Ended, Part, dev};

/// Room for replies to requests that carry names or data: the largest is an attribute's value.
const SCRATCH: usize = (64 << 10) + 4096;

/// The switch of the kernel's module.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// The list of processors that the machine could ever have.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// A table with a column for each processor that the machine could ever have.
const SOFTIRQS: &str = "/proc/softirqs";

/// How the threads are laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The kernel's queues, [`possible_processors`] of them.
    pub queues: usize,
    /// Threads for each queue.
    pub threads: usize,
    /// Each is at home on its queue's processor.
    pub pinned: bool,
}

/// All rings, before the kernel has heard of them.
pub struct Rings {
    layout: Layout,
    blanks: Vec<Vec<Blank>>,
    /// For [`Blank::send_back`].
    spare: Blank,
}

/// One of the kernel's queues.
struct Queue {
    part: Part,
    number: u16,
    layout: Layout,
    /// Threads that have a request in hand.
    serving: AtomicUsize,
    /// Where threads may step aside.
    aside: Option<Arc<Aside>>,
    back: Backchannel,
    /// For the first threads; a stand-in makes its own.
    blanks: Mutex<Vec<Blank>>,
}

impl Rings {
    /// Makes them, if the machine, its administrator and our limits let us.
    ///
    /// # Errors
    /// The reason why there can be none.
    pub fn prepare(layout: Layout) -> io::Result<Rings> {
        if read(SWITCH)?.trim() != "Y" {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{SWITCH} is off")));
        }
        fuse_uring::probe()?;
        let blank = || Blank::new(MAX_WRITE as usize);
        let of_queue = |_| (0..layout.threads).map(|_| blank()).collect();
        let blanks = (0..layout.queues).map(of_queue).collect::<io::Result<_>>()?;
        Ok(Rings { layout, blanks, spare: blank()? })
    }

    /// How many threads will serve.
    #[must_use]
    pub fn threads(&self) -> usize {
        // The one of /dev/fuse, and the watch of `Aside`.
        self.layout.queues * self.layout.threads + 2
    }

    /// Starts serving; false when a queue was refused, and the connection comes over /dev/fuse.
    ///
    /// # Errors
    /// When the kernel waits for queues that it will not get: the mount has to go.
    pub fn serve(self, part: &Part) -> io::Result<bool> {
        let Rings { layout, blanks, spare } = self;
        // The last of these parts is the dev door's thread: falling back, nobody tells on its behalf.
        let shared = Part { on_end: gather(layout.queues + 1, part.on_end.clone()), ..part.clone() };
        let can_wander = layout.pinned && layout.queues > 1;
        let aside = if can_wander { Aside::start(&part.reserve)? } else { None };
        let queue = |(number, blanks)| Queue::new(&shared, number as u16, layout, aside.clone(), blanks);
        let all: Vec<Arc<Queue>> = blanks.into_iter().enumerate().map(queue).collect();
        let grow = |queue: &Arc<Queue>| (0..layout.threads).try_for_each(|_| queue.back.crew.grow());
        // The last first: a queue that the kernel does not have is refused before any other has threads.
        if let Err(error) = all.iter().rev().try_for_each(grow) {
            spare.send_back(part.device.as_fd())?;
            tracing::warn!(%error, "a queue of io_uring was refused");
            return Ok(false);
        }
        let ear = Arc::new(Ear::new(part.device.clone())?);
        let heard = ear.clone();
        part.dispatch.service().forgets_arrive_by(move || heard.has_heard());
        dev::serve(shared, 1, Some(ear))?;
        Ok(true)
    }
}

/// Reports the end when `parts` have ended, and a failure at once. An abort that one of them has
/// seen counts for all.
fn gather(parts: usize, on_end: Arc<dyn Fn(Ended) + Send + Sync>) -> Arc<dyn Fn(Ended) + Send + Sync> {
    let (left, aborted) = (AtomicUsize::new(parts), AtomicBool::new(false));
    Arc::new(move |ended| {
        if matches!(ended, Ended::Failed(_)) {
            return on_end(ended);
        }
        aborted.fetch_or(matches!(ended, Ended::Aborted), Ordering::AcqRel);
        if left.fetch_sub(1, Ordering::AcqRel) == 1 {
            on_end(if aborted.load(Ordering::Acquire) { Ended::Aborted } else { Ended::Unmounted });
        }
    })
}

impl Queue {
    fn new(
        part: &Part,
        number: u16,
        layout: Layout,
        aside: Option<Arc<Aside>>,
        blanks: Vec<Blank>,
    ) -> Arc<Queue> {
        Arc::new_cyclic(|weak: &Weak<Queue>| {
            let with = |act: fn(Arc<Queue>) -> io::Result<()>| -> Act {
                let weak = weak.clone();
                Box::new(move || weak.upgrade().map_or(Err(io::ErrorKind::NotConnected.into()), act))
            };
            let back =
                Backchannel::new(part, layout.threads, with(start_thread), with(|queue| queue.rouse()));
            let (part, serving, blanks) = (part.clone(), AtomicUsize::new(0), Mutex::new(blanks));
            Queue { part, number, layout, serving, aside, back, blanks }
        })
    }

    /// Requests that had found no free entry are given out when a reply is sent, not when an entry is
    /// registered. A new request goes to a new entry, and with its reply the others follow: so one is
    /// provoked, from the queue's own processor, which is what makes it this queue's.
    fn rouse(&self) -> io::Result<()> {
        let place = sched_getaffinity(None)?;
        sched_setaffinity(None, &home::only(self.number))?;
        let provoked = self.back.provoke_request();
        sched_setaffinity(None, &place)?;
        provoked
    }
}

/// Starts a thread and waits until it has its entry.
fn start_thread(queue: Arc<Queue>) -> io::Result<()> {
    let prepared = queue.blanks.lock().pop();
    let blank = prepared.map_or_else(|| Blank::new(MAX_WRITE as usize), Ok)?;
    let (tell, registered) = sync_channel(1);
    let reserve = queue.part.reserve.clone();
    reserve.run("rext4-ring", move || run(&queue, blank, &tell))?;
    registered.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?
}

fn run(queue: &Queue, blank: Blank, tell: &SyncSender<io::Result<()>>) {
    let home = queue.layout.pinned.then(|| Home::settle(queue.number)).and_then(Result::ok);
    let entry = match blank.register(queue.part.device.as_fd(), queue.number) {
        Ok(entry) => entry,
        Err(error) => {
            let _ = tell.send(Err(error));
            return;
        }
    };
    let _ = tell.send(Ok(()));
    let mut server = Server {
        queue,
        entry,
        home,
        seat: queue.aside.as_ref().map(Aside::seat),
        scratch: AlignedBuf::zeroed(SCRATCH),
    };
    let ended = match server.serve() {
        // What the kernel says on every entry when the mount has ended, one way or the other.
        error if error.kind() == io::ErrorKind::NotConnected => Ended::Unmounted,
        error => Ended::Failed(error),
    };
    let is_last = queue.back.crew.leaves_last();
    if is_last || matches!(ended, Ended::Failed(_)) {
        (queue.part.on_end)(ended);
    }
}

/// A thread and what it needs.
struct Server<'a> {
    queue: &'a Queue,
    entry: Entry,
    home: Option<Home>,
    seat: Option<Seat>,
    scratch: AlignedBuf,
}

impl Server<'_> {
    /// Serves until something ends it.
    fn serve(&mut self) -> io::Error {
        loop {
            if let Err(error) = self.serve_one() {
                return error;
            }
        }
    }

    fn serve_one(&mut self) -> io::Result<()> {
        let Server { queue, entry, home, seat, scratch } = self;
        let message = entry.fetch()?;
        let serving = queue.serving.fetch_add(1, Ordering::Relaxed) + 1;
        let (header, _) =
            InHeader::read_from_prefix(&message.header[..]).map_err(|_| io::ErrorKind::InvalidData)?;
        let answer = if message.received == 0 {
            // Nothing came in the payload: the reply is written there at once.
            answer(queue, header, message.operation, &[], message.payload)
        } else {
            let received = &message.payload[..message.received];
            let answered = answer(queue, header, message.operation, received, scratch);
            if let Answer::Reply(Ok(len)) = answered {
                message.payload[..len].copy_from_slice(&scratch[..len]);
            }
            answered
        };
        let (errno, len) = match answer {
            Answer::Silence => (0, 0),
            Answer::Reply(Ok(len)) => (0, len),
            Answer::Reply(Err(errno)) => (errno, 0),
            Answer::Starved(_) => (libc::ENOSPC, 0),
        };
        let reply =
            OutHeader { len: (size_of::<OutHeader>() + len) as u32, error: -errno, unique: header.unique };
        message.header[..size_of::<OutHeader>()].copy_from_slice(reply.as_bytes());
        entry.commit(len)?;
        // Nobody waits for a RELEASE.
        let is_awaited = header.opcode != opcode::RELEASE;
        if is_awaited
            && let Some(seat) = seat
            && seat.follow(header.pid, header.unique, queue.number)
        {
            seat.step_aside(|| entry.send())?;
        }
        if let Answer::Starved(node) = answer {
            entry.send()?;
            queue.back.forget_attributes(node);
        }
        queue.serving.fetch_sub(1, Ordering::Relaxed);
        if is_awaited && let Some(home) = home {
            home.served(2 * serving > queue.layout.threads + 1);
        }
        Ok(())
    }
}

fn answer(queue: &Queue, header: InHeader, fixed: &[u8], payload: &[u8], out: &mut [u8]) -> Answer {
    match queue.part.parse(header, Body::split(fixed, payload)) {
        Ok(request) => queue.part.dispatch.answer(&request, out, &queue.back),
        Err(refusal) => refusal,
    }
}

/// How many queues the kernel has: one for each processor that it could ever have.
///
/// With a queue too few the kernel would hold every request back for ever. Container tools put lists of their
/// own over the kernel's, so two places have to say the same.
///
/// # Errors
/// Those of reading the kernel's lists; `InvalidData` when they contradict each other.
pub fn possible_processors() -> io::Result<usize> {
    agreed(&read(POSSIBLE)?, &read(SOFTIRQS)?)
}

fn read(file: &str) -> io::Result<String> {
    std::fs::read_to_string(file).map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
}

fn agreed(list: &str, table: &str) -> io::Result<usize> {
    let columns = table.lines().next().unwrap_or_default().split_whitespace().count();
    match count(list.trim()) {
        Some(listed) if listed == columns && listed > 0 => Ok(listed),
        listed => {
            let listed = listed.map_or_else(|| "no number".into(), |listed| listed.to_string());
            let said = format!("{POSSIBLE} says {listed} of processors, {SOFTIRQS} {columns}");
            Err(io::Error::new(io::ErrorKind::InvalidData, said))
        }
    }
}

/// The number of processors in a list like `0-3,8`.
fn count(list: &str) -> Option<usize> {
    let number = |digits: &str| digits.parse::<usize>().ok();
    list.split(',').try_fold(0usize, |sum, part| {
        let more = match part.split_once('-') {
            Some((first, last)) => number(last)?.checked_sub(number(first)?)?.checked_add(1)?,
            None => number(part).map(|_| 1)?,
        };
        sum.checked_add(more)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        assert_eq!(count("0-1"), Some(2));
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,8,10-11"), Some(7));
        assert_eq!(count("3-1"), None);
        assert_eq!(count(""), None);
        assert_eq!(count(&format!("0-{}", usize::MAX)), None);
        assert_eq!(count(&format!("1-{},0", usize::MAX)), None);
    }

    #[test]
    fn a_list_that_lies_is_not_believed() {
        let table = "                    CPU0       CPU1       \n          HI:          0          0\n";
        assert_eq!(agreed("0-1\n", table).unwrap(), 2);
        for list in ["0\n", "0-511\n", "0-18446744073709551615\n", "", "all"] {
            assert!(agreed(list, table).is_err(), "{list}");
        }
        assert!(agreed("0-1\n", "").is_err());
        assert!(possible_processors().unwrap() >= 1);
    }

    #[test]
    fn the_end_is_told_once_and_an_abort_is_not_lost() {
        let (tell, told) = std::sync::mpsc::channel();
        let on_end = gather(3, Arc::new(move |ended| tell.send(ended).unwrap()));
        on_end(Ended::Unmounted);
        on_end(Ended::Aborted);
        assert!(told.try_recv().is_err());
        on_end(Ended::Unmounted);
        assert!(matches!(told.try_recv(), Ok(Ended::Aborted)));
    }
}
