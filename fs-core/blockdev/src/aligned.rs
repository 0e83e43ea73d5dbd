//! Page-aligned memory, and a bounded pool of it.
//!
//! A buffer is a slice of whole pages, so its address and capacity satisfy any `direct_align` up to
//! [`PAGE`]. Memory is zeroed once, when it comes from the system; the pool hands it out again with
//! whatever the last user left in it, so `take` is for callers that overwrite all of it and
//! `take_zeroed` for those that do not. The pool keeps a fixed number of buffers per size class and
//! lets the rest go, so its memory is bounded by [`POOL_BYTES`].

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment of every [`AlignedBuf`] in bytes.
pub const PAGE: usize = 4096;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Bytes that start on a page boundary. Dereferences to its `len` bytes.
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    ///
    /// # Panics
    /// When the system has no memory left, as `Vec` does.
    #[must_use]
    pub fn zeroed(len: usize) -> AlignedBuf {
        match AlignedBuf::try_zeroed(len) {
            Ok(buf) => buf,
            Err(error) => panic!("no memory for a buffer of {len} bytes: {error}"),
        }
    }

    /// `len` zero bytes.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn try_zeroed(len: usize) -> io::Result<AlignedBuf> {
        match Page::new_vec_zeroed(len.div_ceil(PAGE)) {
            Ok(pages) => Ok(AlignedBuf { pages, len }),
            Err(_) => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }

    /// Bytes up to which `set_len` can grow it.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Changes the visible length. Bytes that come into view hold what was last written there.
    ///
    /// # Panics
    /// When `len` is beyond the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "a buffer does not grow");
        self.len = len;
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.pages.as_slice().as_bytes()[..self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_slice().as_mut_bytes()[..self.len]
    }
}

/// Capacity of a size class in bytes and how many idle buffers of it are kept. The largest holds a
/// 1 MiB request with a header in front or a partial block at each end.
const CLASSES: [(usize, usize); 5] =
    [(4 << 10, 512), (16 << 10, 128), (64 << 10, 64), (256 << 10, 32), ((1 << 20) + (64 << 10), 16)];

/// Most memory that idle buffers occupy.
pub const POOL_BYTES: usize = {
    let mut sum = 0;
    let mut class = 0;
    while class < CLASSES.len() {
        sum += CLASSES[class].0 * CLASSES[class].1;
        class += 1;
    }
    sum
};

static IDLE: LazyLock<[ArrayQueue<AlignedBuf>; CLASSES.len()]> =
    LazyLock::new(|| CLASSES.map(|(_, kept)| ArrayQueue::new(kept)));

/// Fills the pool with a few buffers of each size whose memory exists already, so that data can be written out
/// when there is none left to be had.
pub fn fill_pool() {
    const AHEAD: [usize; CLASSES.len()] = [64, 16, 8, 4, 2];
    for ((idle, (capacity, _)), ahead) in IDLE.iter().zip(CLASSES).zip(AHEAD) {
        for _ in idle.len()..ahead {
            let Ok(mut buf) = AlignedBuf::try_zeroed(capacity) else { return };
            // Zeroed memory is not there before it is written.
            buf.set_len(capacity);
            buf.chunks_mut(PAGE).for_each(|page| page[0] = 1);
            drop(idle.push(buf));
        }
    }
}

/// An [`AlignedBuf`] that returns to the process-wide pool when dropped. Taking and giving back is one
/// lock-free queue operation; a length beyond the largest class is served by the system.
pub struct PooledBuf {
    buf: AlignedBuf,
    class: Option<usize>,
}

impl PooledBuf {
    /// `len` bytes of unspecified content, for a caller that overwrites them all.
    ///
    /// # Panics
    /// When the system has no memory left, as `Vec` does.
    #[must_use]
    pub fn take(len: usize) -> PooledBuf {
        match PooledBuf::try_take(len) {
            Ok(buf) => buf,
            Err(error) => panic!("no memory for a buffer of {len} bytes: {error}"),
        }
    }

    /// The same.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn try_take(len: usize) -> io::Result<PooledBuf> {
        let Some(class) = CLASSES.iter().position(|&(capacity, _)| len <= capacity) else {
            return Ok(PooledBuf { buf: AlignedBuf::try_zeroed(len)?, class: None });
        };
        let mut buf = match IDLE[class].pop() {
            Some(buf) => buf,
            None => AlignedBuf::try_zeroed(CLASSES[class].0)?,
        };
        buf.set_len(len);
        Ok(PooledBuf { buf, class: Some(class) })
    }

    /// The same for the way to the device, where a refusal loses data: when the system has no memory left, waits
    /// for one of the buffers that others give back.
    ///
    /// # Errors
    /// `OutOfMemory` after ten seconds.
    pub fn take_waiting(len: usize) -> io::Result<PooledBuf> {
        const TURN: Duration = Duration::from_millis(1);
        for _ in 0..10_000 {
            if let Ok(buf) = PooledBuf::try_take(len) {
                return Ok(buf);
            }
            thread::sleep(TURN);
        }
        PooledBuf::try_take(len)
    }

    /// `len` zero bytes.
    #[must_use]
    pub fn take_zeroed(len: usize) -> PooledBuf {
        let mut taken = PooledBuf::take(len);
        if taken.class.is_some() {
            taken.fill(0);
        }
        taken
    }
}

impl Deref for PooledBuf {
    type Target = AlignedBuf;
    fn deref(&self) -> &AlignedBuf {
        &self.buf
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut AlignedBuf {
        &mut self.buf
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        if let Some(class) = self.class {
            let buf = std::mem::replace(&mut self.buf, AlignedBuf { pages: Vec::new(), len: 0 });
            // A full queue hands the buffer back, and it goes to the system.
            drop(IDLE[class].push(buf));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed_when_asked() {
        for len in [0, 1, 4096, 4097, 1 << 20, (1 << 20) + 4096, 3 << 20] {
            let mut dirty = PooledBuf::take(len);
            assert_eq!((dirty.as_ptr() as usize) % PAGE, 0);
            assert_eq!(dirty.len(), len);
            dirty.fill(0x5a);
            drop(dirty);
            assert!(PooledBuf::take_zeroed(len).iter().all(|&byte| byte == 0), "{len}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        let error = PooledBuf::try_take(1 << 50).err().map(|error| error.kind());
        assert_eq!(error, Some(std::io::ErrorKind::OutOfMemory));
    }

    #[test]
    fn a_filled_pool_has_buffers_of_each_size() {
        fill_pool();
        assert!(IDLE.iter().all(|idle| !idle.is_empty()));
    }

    #[test]
    fn idle_memory_is_bounded() {
        let many: Vec<_> = (0..3 * CLASSES[4].1).map(|_| PooledBuf::take(CLASSES[4].0)).collect();
        drop(many);
        assert!(IDLE[4].len() <= CLASSES[4].1);
    }
}
