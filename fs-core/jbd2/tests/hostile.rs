//! Logs that nobody wrote in good faith, and logs made by hand to pin down what a replay means.

mod common;

use blockdev::sim::{Dice, Image, MemDevice, Recorder};
use common::*;
use ext4_format::jbd2::{BlockType, Header, LogFormat, SuperBlock, Tag};
use ext4_format::{BlockNo, Tid};
use jbd2::{Error, LogExtent, LogLocation, recovery};

/// Writes log blocks by hand.
struct Forge {
    shape: Shape,
    image: Image,
    sb: SuperBlock,
    format: LogFormat,
    at: u32,
}

impl Forge {
    fn new(shape: Shape, first: Tid) -> Forge {
        let image = shape.image();
        let mut sb = SuperBlock::new(shape.block_size, shape.log_blocks, 0, *b"journal of tests");
        let incompat = match shape.features.checksum {
            jbd2::LogChecksum::V3 => 0x13,
            jbd2::LogChecksum::V2 => 0xb,
            _ => 0x3,
        };
        sb.set_incompat(ext4_format::jbd2::Incompat(incompat));
        sb.set_tail(Some(1), first);
        Forge { shape, image, format: sb.format(), sb, at: 1 }
    }

    fn put(&mut self, bytes: &[u8]) {
        let runs = self.shape.location().extents;
        let run = runs.iter().rfind(|run| run.first <= self.at).unwrap();
        let home = run.start.0 + u64::from(self.at - run.first);
        self.image.write(self.shape.at(home), bytes);
        self.at += 1;
    }

    fn blocks(&mut self, tid: Tid, blocks: &[(u64, u64)]) -> &mut Forge {
        let mut descriptor = self.format.descriptor(self.shape.block_size as usize, tid, &self.sb.uuid());
        let mut data = Vec::new();
        for (block, stamp) in blocks {
            let mut bytes = self.shape.bytes(*stamp);
            let escaped = bytes.starts_with(&ext4_format::jbd2::MAGIC_BYTES);
            if escaped {
                bytes[..4].fill(0);
            }
            let csum = self.format.tag_csum(tid, &bytes);
            assert!(descriptor.push(Tag { block: BlockNo(*block), escaped, csum }));
            data.push(bytes);
        }
        self.put(&descriptor.finish());
        data.iter().for_each(|bytes| self.put(bytes));
        self
    }

    fn revoke(&mut self, tid: Tid, blocks: &[u64]) -> &mut Forge {
        let blocks: Vec<BlockNo> = blocks.iter().copied().map(BlockNo).collect();
        self.put(&self.format.revoke_block(self.shape.block_size as usize, tid, &blocks));
        self
    }

    fn commit(&mut self, tid: Tid) -> &mut Forge {
        self.put(&self.format.commit_block(self.shape.block_size as usize, tid, 1_700_000_000, 0));
        self
    }

    fn device(&mut self) -> MemDevice {
        self.image.write(self.shape.at(self.shape.location().extents[0].start.0), &self.sb.encode());
        MemDevice::from_image(self.image.clone())
    }

    fn recover(&mut self) -> (jbd2::Result<recovery::Recovered>, MemDevice) {
        let dev = self.device();
        (recovery::recover(&dev, self.shape.block_size, &self.shape.location()), dev)
    }
}

#[test]
fn a_revoke_kills_copies_up_to_its_own_transaction_and_none_after() {
    // Also across the wrap of the sequence.
    for first in [Tid(7), Tid(u32::MAX - 1)] {
        let (second, third) = (first.next(), first.next().next());
        let mut forge = Forge::new(Shape::small(), first);
        forge.blocks(first, &[(1, 11), (2, 12), (3, 13)]).commit(first);
        forge.blocks(second, &[(1, 21), (4, 24)]).revoke(second, &[1, 2]).commit(second);
        forge.blocks(third, &[(2, 32)]).commit(third);
        let (found, dev) = forge.recover();
        let found = found.unwrap();
        assert_eq!((found.transactions, found.blocks, found.revokes), (3, 3, 2));
        let shape = forge.shape;
        let stale = shape.on_disk(&MemDevice::from_image(shape.image()), 1);
        assert_eq!(shape.on_disk(&dev, 1), stale, "revoked in the transaction that also wrote it");
        for (block, stamp) in [(2, 32), (3, 13), (4, 24)] {
            assert_eq!(shape.on_disk(&dev, block), shape.bytes(stamp));
        }
    }
}

#[test]
fn a_transaction_without_its_commit_block_ends_the_log() {
    let mut forge = Forge::new(Shape::small(), Tid(7));
    forge.blocks(Tid(7), &[(1, 1)]).commit(Tid(7));
    forge.blocks(Tid(8), &[(1, 2)]).revoke(Tid(8), &[1]);
    // A leftover of an earlier round, committed in its time.
    forge.blocks(Tid(3), &[(1, 3)]).commit(Tid(3));
    let (found, dev) = forge.recover();
    assert_eq!(found.unwrap().transactions, 1);
    assert_eq!(forge.shape.on_disk(&dev, 1), forge.shape.bytes(1));
    let mut bytes = [0; 1024];
    let at = forge.shape.at(forge.shape.location().extents[0].start.0);
    blockdev::BlockDevice::read_at(&dev, at, &mut bytes).unwrap();
    let sb = SuperBlock::parse(&bytes).unwrap();
    assert_eq!((sb.start(), sb.sequence()), (None, Tid(9)));
}

/// Flips a byte of the log block `at`, counted from the ring's first.
fn damaged(forge: &mut Forge, at: u32) -> jbd2::Result<recovery::Recovered> {
    let dev = forge.device();
    let runs = forge.shape.location().extents;
    let run = runs.iter().rfind(|run| run.first <= 1 + at).unwrap();
    let home = run.start.0 + u64::from(1 + at - run.first);
    let mut bytes = forge.shape.on_disk(&dev, home);
    bytes[40] ^= 1;
    blockdev::BlockDevice::write_at(&dev, forge.shape.at(home), &bytes).unwrap();
    let recorder = Recorder::new(dev.snapshot());
    let result = recovery::recover(&recorder, forge.shape.block_size, &forge.shape.location());
    if result.is_err() {
        assert!(recorder.recording().events().is_empty(), "a refused log is left as it is");
    }
    result
}

#[test]
fn damage_inside_a_committed_transaction_is_a_corruption_and_a_torn_end_is_not() {
    for shape in shapes()
        .into_iter()
        .filter(|shape| matches!(shape.features.checksum, jbd2::LogChecksum::V2 | jbd2::LogChecksum::V3))
    {
        let mut forge = Forge::new(shape, Tid(7));
        forge.blocks(Tid(7), &[(1, 1), (2, 2)]).commit(Tid(7));
        forge.revoke(Tid(8), &[9]).blocks(Tid(8), &[(3, 3)]).commit(Tid(8));
        // Descriptor, data, data, commit; revoke, descriptor, data, commit.
        for at in [0, 1, 2, 3, 4, 5, 6] {
            match damaged(&mut forge, at) {
                Err(Error::Corrupt(_)) => {}
                other => panic!("log block {at} of {shape:?}: {other:?}"),
            }
        }
        assert_eq!(damaged(&mut forge, 7).unwrap().transactions, 1, "the last commit block may be torn");
    }
}

#[test]
fn homes_outside_the_device_or_inside_the_log_are_refused() {
    let shape = Shape::small();
    for home in [shape.blocks(), u64::MAX, HOMES, HOMES + 60] {
        let mut forge = Forge::new(shape, Tid(7));
        forge.blocks(Tid(7), &[(home, 1)]).commit(Tid(7));
        assert!(matches!(forge.recover().0, Err(Error::Corrupt(_))), "{home}");
    }
}

#[test]
fn a_replay_is_confined_to_the_volume_on_a_larger_device() {
    let shape = Shape::small();
    let mut forge = Forge::new(shape, Tid(7));
    forge.blocks(Tid(7), &[(1, 1), (9, 9)]).commit(Tid(7));
    let dev = forge.device();
    let replay = recovery::scan(&dev, shape.block_size, &shape.location()).unwrap();
    for (volume, outside) in [(0..10, None), (1..10, None), (1..9, Some(9)), (2..10, Some(1))] {
        match (replay.confine(volume.clone()), outside) {
            (Ok(()), None) => {}
            (Err(Error::Corrupt(c)), Some(block)) => assert_eq!(c.found, block, "{volume:?}"),
            (answer, _) => panic!("{volume:?}: {answer:?}"),
        }
    }
    let before = shape.on_disk(&dev, 9);
    assert_ne!(before, shape.bytes(9), "a scan writes nothing");
    replay.apply(&dev, shape.block_size, &shape.location()).unwrap();
    assert_eq!(shape.on_disk(&dev, 9), shape.bytes(9));
}

#[test]
fn a_log_that_never_ends_is_walked_once() {
    let mut forge = Forge::new(Shape::small(), Tid(7));
    // Descriptors of one transaction all around the ring.
    while forge.at < forge.shape.log_blocks {
        let mut block = vec![0; forge.shape.block_size as usize];
        Header { kind: BlockType::Descriptor, sequence: Tid(7) }.encode_into(&mut block);
        forge.put(&block);
    }
    assert_eq!(forge.recover().0.unwrap().transactions, 0);
}

#[test]
fn absurd_locations_are_refused() {
    let shape = Shape::small();
    let dev = MemDevice::from_image(shape.image());
    let run = |first, len, start| LogExtent { first, len, start: BlockNo(start) };
    for extents in [
        vec![],
        vec![run(1, 63, HOMES)],
        vec![run(0, 0, HOMES)],
        vec![run(0, 64, u64::MAX)],
        vec![run(0, u32::MAX, HOMES)],
        vec![run(0, 32, HOMES), run(32, 32, HOMES + 8)],
        vec![run(0, 32, HOMES), run(40, 32, HOMES + 40)],
        vec![run(0, 8, HOMES + 50)],
    ] {
        let log = LogLocation { extents };
        assert!(matches!(recovery::scan(&dev, shape.block_size, &log), Err(Error::Corrupt(_))), "{log:?}");
    }
}

#[test]
fn random_damage_never_panics_and_never_hangs() {
    for shape in shapes() {
        let shape = Shape { log_blocks: 64, ..shape };
        for seed in 0..150 {
            let mut dice = Dice::new(seed);
            let mut forge = Forge::new(shape, Tid(7));
            forge.blocks(Tid(7), &[(1, 1), (2, 2)]).commit(Tid(7));
            forge.revoke(Tid(8), &[9]).blocks(Tid(8), &[(3, 3)]).commit(Tid(8));
            forge.device();
            for _ in 0..1 + dice.below(6) {
                let log_block = dice.below(10);
                let runs = shape.location().extents;
                let run = runs.iter().rfind(|run| u64::from(run.first) <= log_block).unwrap();
                let home = run.start.0 + log_block - u64::from(run.first);
                let at = shape.at(home) + dice.below(64) * 4;
                forge.image.write(at, &(dice.roll() as u32).to_be_bytes()[dice.below(4) as usize..]);
            }
            if log_superblock_still_parses(&mut forge) {
                let dev = MemDevice::from_image(forge.image.clone());
                let _ = recovery::recover(&dev, shape.block_size, &shape.location());
            }
        }
    }
}

/// Gives a damaged superblock its checksum again half of the time, so that damage gets past it.
fn log_superblock_still_parses(forge: &mut Forge) -> bool {
    let at = forge.shape.at(forge.shape.location().extents[0].start.0);
    let mut bytes = [0; 1024];
    forge.image.read(at, &mut bytes);
    let sum = ext4_format::csum::JournalCsum::superblock(&bytes);
    bytes[0xfc..0x100].copy_from_slice(&sum.to_be_bytes());
    forge.image.write(at, &bytes);
    SuperBlock::parse(&bytes).is_ok()
}

#[test]
fn a_log_too_short_for_any_transaction_is_refused_when_it_is_opened() {
    let shape = Shape { log_blocks: 30, ..Shape::small() };
    let dev = std::sync::Arc::new(MemDevice::from_image(shape.image()));
    let opened = jbd2::Journal::open(dev, shape.block_size, shape.location(), shape.options());
    assert!(matches!(opened.err(), Some(Error::Corrupt(c)) if c.field == "s_maxlen"));
}
