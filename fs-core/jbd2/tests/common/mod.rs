//! A small volume for the journal's tests: homes at the front, a log in two runs behind them.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;

use blockdev::sim::{Fill, Image};
use blockdev::{BlockDevice, Clock, Timestamp};
use ext4_format::jbd2::SuperBlock;
use ext4_format::{BlockNo, Corruption, Tid};
use jbd2::{
    Buffer, CommitObserver, Credits, Error, Handle, Journal, LogChecksum, LogExtent, LogFeatures,
    LogLocation, Options,
};

pub struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp { sec: 1_700_000_000, nsec: 5 }
    }
}

/// How a volume is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub block_size: u32,
    pub log_blocks: u32,
    pub features: LogFeatures,
}

pub const HOMES: u64 = 400;

pub fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for checksum in [LogChecksum::None, LogChecksum::Compat, LogChecksum::V2, LogChecksum::V3] {
        for wide in [false, true] {
            let block_size = if wide { 4096 } else { 1024 };
            shapes.push(Shape { block_size, log_blocks: 256, features: LogFeatures { checksum, wide } });
        }
    }
    shapes
}

impl Shape {
    pub fn small() -> Shape {
        Shape {
            block_size: 1024,
            log_blocks: 64,
            features: LogFeatures { checksum: LogChecksum::V3, wide: true },
        }
    }

    /// The second run lies in front of the first.
    pub fn location(&self) -> LogLocation {
        let first = self.log_blocks / 3;
        let rest = self.log_blocks - first;
        LogLocation {
            extents: vec![
                LogExtent { first: 0, len: first, start: BlockNo(HOMES + u64::from(rest) + 7) },
                LogExtent { first, len: rest, start: BlockNo(HOMES) },
            ],
        }
    }

    pub fn blocks(&self) -> u64 {
        HOMES + u64::from(self.log_blocks) + 16
    }

    /// An image with an empty log whose blocks hold stale bytes.
    pub fn image(&self) -> Image {
        let mut image = Image::new(self.blocks() * u64::from(self.block_size), Fill::Stale(1));
        let sb = SuperBlock::new(self.block_size, self.log_blocks, 0, *b"journal of tests");
        image.write(self.location().extents[0].start.0 * u64::from(self.block_size), &sb.encode());
        image
    }

    pub fn options(&self) -> Options {
        Options {
            cache_bytes: 1 << 20,
            features: Some(self.features),
            clock: Arc::new(Still),
            closing_credits: 2,
            ..Options::default()
        }
    }

    pub fn open(&self, dev: Arc<dyn BlockDevice>) -> Arc<Journal> {
        Journal::open(dev, self.block_size, self.location(), self.options()).expect("open the log")
    }

    /// Content that tells stamps and sectors apart.
    pub fn bytes(&self, stamp: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.block_size as usize];
        for (i, sector) in bytes.chunks_exact_mut(512).enumerate() {
            sector[8..16].copy_from_slice(&stamp.to_le_bytes());
            sector[504..].copy_from_slice(&(stamp ^ i as u64).to_le_bytes());
        }
        if stamp.is_multiple_of(5) {
            // A block that looks like the journal's own has to be escaped.
            bytes[..4].copy_from_slice(&ext4_format::jbd2::MAGIC_BYTES);
        }
        bytes
    }

    pub fn at(&self, block: u64) -> u64 {
        block * u64::from(self.block_size)
    }

    pub fn on_disk(&self, dev: &dyn BlockDevice, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.block_size as usize];
        dev.read_at(self.at(block), &mut bytes).expect("read the device");
        bytes
    }
}

pub fn any(_: &[u8]) -> Result<(), Corruption> {
    Ok(())
}

pub fn read(journal: &Journal, block: u64) -> Buffer {
    journal.read(BlockNo(block), any).expect("read a block")
}

pub fn write(handle: &Handle<'_>, block: u64, bytes: &[u8]) {
    let buf = read(handle.journal(), block);
    handle.write(&buf).expect("write a block").copy_from_slice(bytes);
}

/// One handle that writes these blocks; its transaction.
pub fn write_all(shape: &Shape, journal: &Journal, blocks: &[(u64, u64)]) -> Tid {
    let handle = journal.start(Credits::blocks(blocks.len() as u32)).expect("start");
    for (block, stamp) in blocks {
        write(&handle, *block, &shape.bytes(*stamp));
    }
    let tid = handle.tid();
    handle.finish().expect("finish");
    tid
}

/// Collects what an observer is told.
#[derive(Default)]
pub struct Witness {
    pub committed: std::sync::Mutex<Vec<Tid>>,
    pub aborted: std::sync::Mutex<Vec<String>>,
}

impl CommitObserver for Witness {
    fn closing(&self, _tid: Tid, _handle: &Handle<'_>) -> jbd2::Result<()> {
        Ok(())
    }
    fn committed(&self, tid: Tid) {
        self.committed.lock().unwrap().push(tid);
    }
    fn aborted(&self, cause: &Error) {
        self.aborted.lock().unwrap().push(cause.to_string());
    }
}
