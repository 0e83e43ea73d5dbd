//! One entry of FUSE over io_uring: a ring, the memory that a request arrives in, and the two
//! commands that carry it. Knows how bytes are exchanged, not what they mean. Beside it the scheduler's
//! [`Policy`] of the thread that serves it, which safe code cannot set.
//!
//! Layouts are those of the kernel's `Documentation/filesystems/fuse-io-uring.rst` and its public
//! header `linux/fuse.h`.
//!
//! **Whose memory.** From REGISTER or COMMIT_AND_FETCH until its completion the entry's memory is the
//! kernel's; from the completion until the next command it is ours. [`Entry::fetch`] passes the
//! border one way and [`Entry::commit`] the other, and a [`Message`] borrows the entry in between.
//! It is never freed then: a ring that is closed releases it at a time of its own, and entries live as long
//! as their mount. Memory that the kernel has never known goes with its [`Blank`].

mod policy;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};

pub use policy::Policy;

const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
const PAGE: usize = 4096;
/// A queue that no machine has.
const NO_QUEUE: u16 = u16::MAX;

/// Room for a request's or reply's header.
pub const HEADER_LEN: usize = 128;
/// Room for an operation's structure.
pub const OPERATION_LEN: usize = 128;

/// `struct fuse_uring_req_header`.
#[repr(C)]
struct Header {
    in_out: [u8; HEADER_LEN],
    operation: [u8; OPERATION_LEN],
    flags: u64,
    commit_id: u64,
    payload_len: u32,
    padding: u32,
    reserved: u64,
}

const _: () = assert!(size_of::<Header>() == 288);

/// `struct iovec`.
#[repr(C)]
struct Vector {
    base: *mut u8,
    len: usize,
}

/// What a request arrives in and its reply leaves from.
struct Memory {
    vectors: NonNull<[Vector; 2]>,
    header: NonNull<Header>,
    payload: NonNull<u8>,
    payload_len: usize,
}

impl Memory {
    fn layout(payload_len: usize) -> io::Result<Layout> {
        Layout::from_size_align(PAGE + payload_len, PAGE).map_err(io::Error::other)
    }

    fn new(payload_len: usize) -> io::Result<Memory> {
        let whole = Memory::layout(payload_len)?;
        // SAFETY: the layout has a size. The header page comes first, the payload starts a page.
        let base = NonNull::new(unsafe { alloc_zeroed(whole) }).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: one page in, inside of the allocation.
        let payload = unsafe { base.add(PAGE) };
        let header = base.cast::<Header>();
        let vectors = [
            Vector { base: base.as_ptr(), len: size_of::<Header>() },
            Vector { base: payload.as_ptr(), len: payload_len },
        ];
        Ok(Memory { vectors: NonNull::from(Box::leak(Box::new(vectors))), header, payload, payload_len })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Ok(whole) = Memory::layout(self.payload_len) else { return };
        // SAFETY: `new` has made both, with this layout and as a box. Nobody refers to them: an entry, whose
        // memory the kernel knows, never drops it.
        unsafe {
            drop(Box::from_raw(self.vectors.as_ptr()));
            dealloc(self.header.as_ptr().cast(), whole);
        }
    }
}

/// An entry of one queue, with a ring of its own. It belongs to the thread that registered it.
pub struct Entry {
    ring: IoUring<Entry128, cqueue::Entry>,
    device: i32,
    queue: u16,
    /// The kernel's as well: never dropped.
    memory: ManuallyDrop<Memory>,
    /// The result of a registration that had completed when it was looked at.
    first: Option<i32>,
    /// Not `Send`: requests are copied in by the thread that registered the entry.
    _thread: std::marker::PhantomData<*const ()>,
}

/// A request that has arrived.
pub struct Message<'a> {
    /// The request's header; the reply's goes to the same place.
    pub header: &'a mut [u8; HEADER_LEN],
    /// The operation's structure, and possibly old bytes behind it.
    pub operation: &'a [u8; OPERATION_LEN],
    /// Everything else that came is in the first `received` bytes; the reply is written to the same
    /// place.
    pub payload: &'a mut [u8],
    /// How much of the payload came.
    pub received: usize,
}

/// Whether this process may use io_uring the way this needs: make a ring, enter it, and have it pass
/// commands on. Each of these can be forbidden by itself.
///
/// # Errors
/// The kernel's reason why not.
pub fn probe() -> io::Result<()> {
    let mut ring = IoUring::<Entry128, cqueue::Entry>::builder().build(1)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !probe.is_supported(opcode::UringCmd80::CODE) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: a NOP refers to nothing.
    unsafe { ring.submission().push(&opcode::Nop::new().build().into()) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1).map(drop)
}

/// A ring and its memory, which belong to no queue yet. What a registration could fail of for want of
/// means is had by then.
pub struct Blank {
    ring: IoUring<Entry128, cqueue::Entry>,
    memory: Memory,
}

// SAFETY: nothing was submitted, so the kernel knows of no thread and no memory, and nobody else does.
unsafe impl Send for Blank {}

impl Blank {
    /// One for requests and replies of at most `payload_len` bytes.
    ///
    /// # Errors
    /// Those of making a ring.
    pub fn new(payload_len: usize) -> io::Result<Blank> {
        Ok(Blank { ring: IoUring::builder().build(1)?, memory: Memory::new(payload_len)? })
    }

    /// Registers it as one more entry of `queue`, to be served by this thread.
    ///
    /// # Errors
    /// The kernel's refusal; the whole connection then comes over /dev/fuse.
    pub fn register(self, device: BorrowedFd<'_>, queue: u16) -> io::Result<Entry> {
        let entry = self.ask(device, queue)?;
        match entry.first {
            Some(refused) if refused < 0 => Err(io::Error::from_raw_os_error(-refused)),
            _ => Ok(entry),
        }
    }

    /// Makes the kernel serve the whole connection through /dev/fuse again, by a registration that it
    /// has to refuse. Without effect once every queue has an entry.
    ///
    /// # Errors
    /// When the kernel could not be told, and goes on waiting for the queues.
    pub fn send_back(self, device: BorrowedFd<'_>) -> io::Result<()> {
        match self.ask(device, NO_QUEUE)?.first {
            Some(refused) if refused < 0 => Ok(()),
            _ => Err(io::Error::other("a queue that does not exist was registered")),
        }
    }

    /// Asks for a registration. A refusal is there at once; a good one completes with its first request.
    fn ask(self, device: BorrowedFd<'_>, queue: u16) -> io::Result<Entry> {
        let Blank { ring, memory } = self;
        let (device, memory) = (device.as_raw_fd(), ManuallyDrop::new(memory));
        let mut entry = Entry { ring, device, queue, memory, first: None, _thread: std::marker::PhantomData };
        entry.push(REGISTER, 0)?;
        entry.ring.submit()?;
        entry.first = entry.completed();
        Ok(entry)
    }
}

impl Entry {
    fn completed(&mut self) -> Option<i32> {
        let mut completion = self.ring.completion();
        completion.sync();
        completion.next().map(|done| done.result())
    }

    fn push(&mut self, command: u32, commit_id: u64) -> io::Result<()> {
        // `struct fuse_uring_cmd_req`: flags, commit id, queue, padding.
        let mut words = [0; 80];
        words[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        words[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        let vectors = self.memory.vectors.as_ptr() as u64;
        let command =
            opcode::UringCmd80::new(types::Fd(self.device), command).cmd(words).addr(Some(vectors)).build();
        let command = with_len(command, 2);
        let mut submission = self.ring.submission();
        // SAFETY: the memory behind the vectors lives for ever, and from here until the completion
        // nothing of ours refers to it: `Message` borrows the entry, and has ended.
        unsafe { submission.push(&command) }.map_err(|_| io::Error::other("the ring is full"))
    }

    /// Sends what [`Entry::commit`] has prepared and waits for the next request.
    ///
    /// # Errors
    /// `NotConnected` when the mount has ended; anything else is a failure of the ring.
    pub fn fetch(&mut self) -> io::Result<Message<'_>> {
        let result = loop {
            if let Some(result) = self.first.take().or_else(|| self.completed()) {
                break result;
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        };
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        // SAFETY: the command has completed, so the memory is ours until the next one, which takes
        // the entry mutably and ends these borrows. Header and payload do not overlap.
        let (header, payload) = unsafe {
            let payload =
                std::slice::from_raw_parts_mut(self.memory.payload.as_ptr(), self.memory.payload_len);
            (self.memory.header.as_mut(), payload)
        };
        let received = (header.payload_len as usize).min(payload.len());
        Ok(Message { header: &mut header.in_out, operation: &header.operation, payload, received })
    }

    /// Prepares the reply: the message's header, and the first `len` bytes of its payload. It is
    /// sent by the next [`Entry::fetch`] or [`Entry::send`].
    ///
    /// # Errors
    /// When a reply is prepared already.
    pub fn commit(&mut self, len: usize) -> io::Result<()> {
        // SAFETY: called between a completion and the next command: the memory is ours.
        let header = unsafe { self.memory.header.as_mut() };
        header.payload_len = len as u32;
        let id = header.commit_id;
        self.push(COMMIT_AND_FETCH, id)
    }

    /// Sends the prepared reply without waiting for a request.
    ///
    /// # Errors
    /// Those of the ring.
    pub fn send(&mut self) -> io::Result<()> {
        self.ring.submit().map(drop)
    }
}

/// The entry with its field `len` set, for which the crate has no setter.
fn with_len(mut command: Entry128, len: u32) -> Entry128 {
    const LEN_AT: usize = 24;
    const { assert!(size_of::<Entry128>() == 128) };
    let bytes = (&raw mut command).cast::<u8>();
    // SAFETY: an Entry128 is the kernel's `struct io_uring_sqe`, plain integers, with `len` at this
    // place, aligned as the structure is.
    unsafe { bytes.add(LEN_AT).cast::<u32>().write(len) };
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_where_the_kernel_reads_it() {
        let plain = opcode::UringCmd80::new(types::Fd(3), REGISTER).addr(Some(0x1234)).build();
        let set = with_len(plain, 0xabcd);
        // SAFETY: plain integers.
        let bytes: [u8; 128] = unsafe { std::mem::transmute(set) };
        assert_eq!(bytes[16..24], 0x1234u64.to_ne_bytes());
        assert_eq!(bytes[24..28], 0xabcdu32.to_ne_bytes());
    }

    #[test]
    fn memory_that_was_not_registered_goes() {
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = size();
        (0..512).for_each(|_| drop(Blank::new(1 << 20).unwrap()));
        assert!(size() < before + (256 << 10), "{before} KiB, then {}", size());
    }

    #[test]
    fn what_is_no_fuse_device_is_refused() {
        use std::os::fd::AsFd;
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        assert!(Blank::new(8192).unwrap().register(file.as_fd(), 0).is_err());
    }
}
