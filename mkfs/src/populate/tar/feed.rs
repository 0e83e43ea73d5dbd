//! Where the bytes of an archive come from, and where its contents stay.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::decoder::ReadAhead;
use super::super::error::{Error, Result};
use super::super::spool::Spool;

/// Why a feed has no more bytes.
pub enum Stop {
    /// The archive's fault or its file's.
    Input(io::Error),
    /// The spool's.
    Output(Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Input(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Output(error)
    }
}

/// The bytes of an archive, in order.
pub trait Feed {
    /// Fills as much of `buf` as there is; less only at the end.
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Passes over bytes, which must be there.
    fn skip(&mut self, len: u64) -> io::Result<()>;

    /// Passes over the contents of a file and says in which file and where they can be read again.
    fn keep(&mut self, len: u64) -> std::result::Result<(u16, u64), Stop>;

    /// The next byte of the archive, counted from its start.
    fn position(&self) -> u64;
}

/// Bytes read at a time while members are small.
const WINDOW: usize = 16 << 10;

/// An archive in a file.
pub struct Ranged<'f> {
    file: &'f File,
    number: u16,
    range: Range<u64>,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'f> Ranged<'f> {
    /// The archive in a range of a file, which has a number in the tree.
    pub fn new(file: &'f File, number: u16, range: Range<u64>) -> Ranged<'f> {
        Ranged { file, number, at: range.start, range, window: Vec::new(), window_at: 0 }
    }

    fn pass(&mut self, len: u64) -> io::Result<u64> {
        let start = self.at;
        match self.at.checked_add(len).filter(|end| *end <= self.range.end) {
            Some(end) => self.at = end,
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(start)
    }
}

impl Feed for Ranged<'_> {
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() && self.at < self.range.end {
            let inside = self.at.checked_sub(self.window_at).filter(|at| *at < self.window.len() as u64);
            let Some(from) = inside else {
                let len = (self.range.end - self.at).min(WINDOW as u64) as usize;
                self.window.resize(len, 0);
                let got = self.file.read_at(&mut self.window, self.at)?;
                self.window.truncate(got);
                self.window_at = self.at;
                if got == 0 {
                    break;
                }
                continue;
            };
            let from = from as usize;
            let len = (buf.len() - done).min(self.window.len() - from);
            buf[done..done + len].copy_from_slice(&self.window[from..from + len]);
            done += len;
            self.at += len as u64;
        }
        Ok(done)
    }

    fn skip(&mut self, len: u64) -> io::Result<()> {
        self.pass(len).map(|_| ())
    }

    fn keep(&mut self, len: u64) -> std::result::Result<(u16, u64), Stop> {
        Ok((self.number, self.pass(len)?))
    }

    fn position(&self) -> u64 {
        self.at - self.range.start
    }
}

/// An archive that passes once.
pub struct Streamed {
    stream: ReadAhead,
    spool: Spool,
    number: u16,
    at: u64,
    buffer: Vec<u8>,
}

impl Streamed {
    /// An archive whose contents go to `spool`, which has a number in the tree.
    pub fn new(stream: ReadAhead, spool: Spool, number: u16) -> Streamed {
        Streamed { stream, spool, number, at: 0, buffer: vec![0; 256 << 10] }
    }

    /// Hands the last contents to the spool.
    pub fn finish(&mut self) -> Result<()> {
        self.spool.flush()
    }

    fn pass(&mut self, len: u64, keep: bool) -> std::result::Result<(), Stop> {
        let mut left = len;
        while left > 0 {
            let most = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            let got = self.stream.read(&mut self.buffer[..most])?;
            if got == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if keep {
                self.spool.append(&self.buffer[..got])?;
            }
            self.at += got as u64;
            left -= got as u64;
        }
        Ok(())
    }
}

impl Feed for Streamed {
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.stream.read(&mut buf[done..])? {
                0 => break,
                got => done += got,
            }
        }
        self.at += done as u64;
        Ok(done)
    }

    fn skip(&mut self, len: u64) -> io::Result<()> {
        match self.pass(len, false) {
            Ok(()) => Ok(()),
            Err(Stop::Input(error)) => Err(error),
            Err(Stop::Output(error)) => Err(io::Error::other(error)),
        }
    }

    fn keep(&mut self, len: u64) -> std::result::Result<(u16, u64), Stop> {
        let start = self.spool.start(len)?;
        self.pass(len, true)?;
        Ok((self.number, start))
    }

    fn position(&self) -> u64 {
        self.at
    }
}
