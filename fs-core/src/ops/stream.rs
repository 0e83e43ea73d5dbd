//! A file as a stream: [`Read`], [`Write`] and [`Seek`] at a position that the handle keeps.

use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::error::{Error, Posix, Result};
use crate::node::OpenFile;

impl Read for OpenFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.read_at(buf, self.position)?;
        self.position += len as u64;
        Ok(len)
    }
}

impl Write for OpenFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.append {
            self.position = self.attributes()?.size;
        }
        let len = self.write_at(data, self.position)?;
        self.position += len as u64;
        Ok(len)
    }

    /// Does nothing: what is written is in the file. [`OpenFile::sync_all`] makes it durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for OpenFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let moved = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.attributes()?.size.checked_add_signed(by),
        };
        self.position = moved.ok_or(Error::Posix(Posix::Invalid))?;
        Ok(self.position)
    }
}

impl OpenFile {
    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// `Overflow` when the file ends before, and those of [`OpenFile::read_at`].
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], offset + done as u64)? {
                0 => return Err(Posix::Overflow.into()),
                len => done += len,
            }
        }
        Ok(())
    }

    /// Writes all of `data` at byte `offset`.
    ///
    /// # Errors
    /// Those of [`OpenFile::write_at`]; some of the data may have been written.
    pub fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            match self.write_at(&data[done..], offset + done as u64)? {
                0 => return Err(Error::NoSpace),
                len => done += len,
            }
        }
        Ok(())
    }
}
