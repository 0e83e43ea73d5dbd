//! A stream that may be compressed: gzip, zstd or xz by its first bytes, else as it is. Unpacking runs in a
//! thread of its own, ahead of whoever reads.

use std::io::{self, Read};

use crossbeam::channel::{Receiver, bounded};

/// Bytes handed over at a time.
const CHUNK: usize = 256 << 10;
/// Chunks that wait for the reader.
const AHEAD: usize = 8;
/// Memory that an xz stream may ask for: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// How a stream is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz.
    Xz,
}

/// Bytes that tell how a stream is packed.
pub const MAGIC_LEN: usize = 6;

impl Packing {
    /// By the first bytes.
    pub fn of(first: &[u8]) -> Result<Packing, &'static str> {
        Ok(match first {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => {
                return Err("bzip2 is not supported; use gzip, zstd or xz");
            }
            [0x04, 0x22, 0x4d, 0x18, ..] => return Err("lz4 is not supported; use gzip, zstd or xz"),
            _ => Packing::None,
        })
    }

    /// A reader of the unpacked bytes.
    pub fn unpack(self, packed: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Packing::None => packed,
            Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(packed)?),
            Packing::Xz => {
                let stream =
                    liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
                Box::new(liblzma::read::XzDecoder::new_stream(packed, stream))
            }
        })
    }
}

/// Reads the first bytes of a stream and gives them back in front of the rest.
pub fn peek(mut stream: Box<dyn Read + Send>) -> io::Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut first = Vec::with_capacity(MAGIC_LEN);
    stream.by_ref().take(MAGIC_LEN as u64).read_to_end(&mut first)?;
    let again = io::Cursor::new(first.clone());
    Ok((first, Box::new(again.chain(stream))))
}

/// What a thread has read ahead.
pub struct ReadAhead {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
}

impl ReadAhead {
    /// Reads `stream` in a thread, which ends at the end of the stream, or when this is dropped and the stream
    /// gives something. Nobody waits for it: whoever feeds a pipe may be slow.
    pub fn new(mut stream: Box<dyn Read + Send>) -> ReadAhead {
        let (give, chunks) = bounded(AHEAD);
        std::thread::spawn(move || {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let read = stream.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
                let end = read.is_err() || chunk.is_empty();
                if give.send(read.map(|_| chunk)).is_err() || end {
                    return;
                }
            }
        });
        ReadAhead { chunks, chunk: Vec::new(), at: 0, ended: false }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() && !self.ended {
            match self.chunks.recv() {
                Ok(Ok(chunk)) => {
                    self.ended = chunk.is_empty();
                    (self.chunk, self.at) = (chunk, 0);
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(_) => self.ended = true,
            }
        }
        let len = buf.len().min(self.chunk.len() - self.at);
        buf[..len].copy_from_slice(&self.chunk[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}
