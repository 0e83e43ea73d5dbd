//! The maps of files against a model in memory, and e2fsck.

use std::collections::BTreeMap;

use ext4_format::csum::Csum;
use ext4_format::inode::{Inode, flag};
use ext4_format::{BlockNo, FileBlock, Ino};
use fs_core::internals::alloc::{BlockRequest, Depth};
use fs_core::internals::extent::{self, AllocHow, MapCtx, MapRoot, Mapping, Progress};
use fs_core::internals::tx::{self, Tx};
use fs_core::{Error, Posix};
use jbd2::Credits;

use crate::rig::{Dice, Image, Rig, format, judges_present};

/// A regular file that debugfs made, whose map is under test.
struct File {
    rig: Rig,
    ino: Ino,
    disk: Inode,
    map: MapRoot,
}

/// What lies at a file block: where, and whether written.
type Model = BTreeMap<u32, (u64, bool)>;

impl File {
    fn open(image: &Image, ino: u32) -> File {
        let rig = Rig::open(&image.path);
        let ino = Ino::new(ino).unwrap();
        let (block, byte) = rig.alloc.inode_place(ino).unwrap();
        let bytes = rig.vol.read_meta(block, |_| Ok(())).unwrap().data();
        let record = &bytes[byte..byte + rig.vol.geo.inode_size];
        rig.vol.csum.verify_inode(record, ino).unwrap();
        let disk = Inode::decode(record, &rig.vol.inode_layout).unwrap();
        let map = MapRoot::new(disk.block, disk.has(flag::EXTENTS), disk.blocks);
        File { rig, ino, disk, map }
    }

    fn ctx(&self) -> MapCtx<'_> {
        MapCtx { vol: &self.rig.vol, alloc: &self.rig.alloc, ino: self.ino, generation: self.disk.generation }
    }

    /// Runs `change` on the map in a handle of `credits` besides the inode, and stores the inode.
    fn change<T>(
        &mut self,
        credits: Credits,
        change: impl FnOnce(&MapCtx<'_>, &Tx<'_>, &mut MapRoot) -> fs_core::Result<T>,
    ) -> fs_core::Result<T> {
        let credits = Credits { blocks: credits.blocks + 1, ..credits };
        let tx = tx::start(&self.rig.vol.journal, credits).unwrap();
        let mut map = self.map.clone();
        let done = change(&self.ctx(), &tx, &mut map);
        self.map = map;
        self.disk.block = self.map.block;
        self.disk.blocks = self.map.sectors;
        let end = extent::end(&self.ctx(), &self.map).unwrap();
        self.disk.size = self.disk.size.max(end * u64::from(self.rig.vol.block_size()));
        let (block, byte) = self.rig.alloc.inode_place(self.ino).unwrap();
        let buffer = self.rig.vol.read_meta(block, |_| Ok(())).unwrap();
        let mut bytes = tx.write(&buffer).unwrap();
        let record = &mut bytes[byte..byte + self.rig.vol.geo.inode_size];
        self.disk.encode_into(record, &self.rig.vol.inode_layout);
        self.rig.vol.csum.set_inode(record, self.ino);
        drop(bytes);
        tx.finish().unwrap();
        done
    }

    fn allocate(&mut self, at: u32, want: u32, unwritten: bool) -> fs_core::Result<extent::Segment> {
        let credits = Credits::blocks(extent::allocate_credits(&self.map, 1));
        self.change(credits, |ctx, tx, map| {
            let how = AllocHow { unwritten, depth: Depth::Ordinary, reserved: None };
            extent::allocate(ctx, tx, map, FileBlock(at), want, how)
        })
    }

    fn remove(&mut self, range: std::ops::Range<u64>) {
        for _ in 0..10_000 {
            let credits = extent::remove_credits(&self.ctx(), &self.map, false);
            let done =
                self.change(credits, |ctx, tx, map| extent::remove(ctx, tx, map, range.clone(), false));
            if done.unwrap() == Progress::Done {
                return;
            }
        }
        panic!("a removal does not end");
    }

    fn convert(&mut self, mut range: std::ops::Range<u64>, to_written: bool) {
        while range.start < range.end {
            let credits = extent::convert_credits(&self.map);
            let done =
                self.change(credits, |ctx, tx, map| extent::convert(ctx, tx, map, range.clone(), to_written));
            let done = done.unwrap();
            assert!(done > range.start, "a conversion does not go on");
            range.start = done;
        }
    }

    fn shift(&mut self, from: u64, by: i64) {
        let mut cursor = None;
        loop {
            let credits = Credits::blocks(extent::shift_credits(&self.map));
            let done =
                self.change(credits, |ctx, tx, map| extent::shift(ctx, tx, map, from, by, &mut cursor));
            if done.unwrap() == Progress::Done {
                return;
            }
        }
    }

    /// Asserts that the map says what the model says, in `range`.
    fn assert_is(&self, model: &Model, range: std::ops::Range<u32>, why: &str) {
        let ctx = self.ctx();
        let mut at = range.start;
        while at < range.end {
            let found = extent::lookup(&ctx, &self.map, FileBlock(at), range.end - at).unwrap();
            assert!(found.len >= 1 && found.len <= range.end - at, "{why}: {found:?}");
            for i in 0..found.len {
                let expected = model.get(&(at + i)).copied();
                let here = match found.mapping {
                    Mapping::Hole => None,
                    Mapping::Unwritten(b) => Some((b.0 + u64::from(i), false)),
                    Mapping::Written(b) => Some((b.0 + u64::from(i), true)),
                };
                assert_eq!(here, expected, "{why}: file block {}", at + i);
            }
            at += found.len;
        }
        let end = model.last_key_value().map_or(0, |(at, _)| u64::from(*at) + 1);
        assert_eq!(extent::end(&ctx, &self.map).unwrap(), end, "{why}");
    }

    /// Frees everything and leaves an empty file.
    fn finish(mut self, image: &Image, before: u64) {
        self.remove(0..u64::from(u32::MAX));
        assert_eq!(self.map.sectors, 0, "sectors of an empty file");
        self.disk.size = 0;
        self.change(Credits::blocks(0), |_, _, _| Ok(())).unwrap();
        assert_eq!(self.rig.alloc.counts().free_blocks, before);
        self.rig.close();
        image.assert_clean();
    }
}

fn prepared(options: &str, size: &str) -> Image {
    let image = format(options, size);
    image.debugfs("write /dev/null file");
    image
}

const FILE: u32 = 12;

fn record(model: &mut Model, at: u32, segment: extent::Segment) {
    let (start, written) = match segment.mapping {
        Mapping::Written(b) => (b.0, true),
        Mapping::Unwritten(b) => (b.0, false),
        Mapping::Hole => panic!("allocated a hole"),
    };
    for i in 0..segment.len {
        assert!(model.insert(at + i, (start + u64::from(i), written)).is_none(), "{} was mapped", at + i);
    }
}

fn hole_at(model: &Model, at: u32, end: u32) -> u32 {
    model.range(at..).next().map_or(end, |(next, _)| *next).min(end) - at
}

/// Random operations in a part of the file, in a layout.
fn storm(options: &str, size: &str, seed: u64, base: u32, extents: bool) {
    const SPAN: u32 = 1500;
    let image = prepared(options, size);
    let mut file = File::open(&image, FILE);
    let before = file.rig.alloc.counts().free_blocks;
    let mut dice = Dice(seed);
    let mut model = Model::new();
    let window = base..base + SPAN;
    for step in 0..4000_u32 {
        let at = base + dice.roll(SPAN.into()) as u32;
        let len = 1 + if dice.roll(8) == 0 { dice.roll(200) } else { dice.roll(3) } as u32;
        let end = at.saturating_add(len).min(base + SPAN);
        let range = u64::from(at)..u64::from(end);
        let why = format!("{options} seed {seed} step {step}");
        match dice.roll(20) {
            0..=9 => {
                let room = hole_at(&model, at, end);
                if room > 0 {
                    let unwritten = extents && dice.roll(2) == 0;
                    match file.allocate(at, room, unwritten) {
                        Ok(segment) => record(&mut model, at, segment),
                        Err(Error::NoSpace) => {
                            file.rig.commit();
                        }
                        Err(e) => panic!("{why}: {e}"),
                    }
                }
            }
            10..=13 if extents => {
                // As a direct write does it: cut first, convert exactly that later.
                let credits = Credits::blocks(extent::split_credits(&file.map));
                let cut = range.clone();
                file.change(credits, |ctx, tx, map| extent::split_unwritten(ctx, tx, map, cut)).unwrap();
                file.assert_is(&model, window.clone(), &why);
                let (free, sectors) = (file.rig.alloc.counts().free_blocks, file.map.sectors);
                file.convert(range, true);
                assert!(file.rig.alloc.counts().free_blocks >= free, "{why}: a conversion took a block");
                assert!(file.map.sectors <= sectors);
                model.range_mut(at..end).for_each(|(_, (_, written))| *written = true);
            }
            14 if extents => {
                file.convert(range, false);
                model.range_mut(at..end).for_each(|(_, (_, written))| *written = false);
            }
            15 if extents && step % 4 == 0 && end < base + SPAN => {
                // Collapse, then insert as much again.
                file.remove(range);
                model.retain(|b, _| !(at..end).contains(b));
                file.shift(end.into(), -i64::from(end - at));
                let gap = end - at;
                model = model.into_iter().map(|(b, v)| (if b >= end { b - gap } else { b }, v)).collect();
                file.assert_is(&model, window.clone(), &why);
                file.shift(at.into(), gap.into());
                model = model.into_iter().map(|(b, v)| (if b >= at { b + gap } else { b }, v)).collect();
            }
            16..=18 => {
                file.remove(range);
                model.retain(|b, _| !(at..end).contains(b));
            }
            _ => {
                if dice.roll(10) == 0 {
                    file.rig.commit();
                }
            }
        }
        if step % 16 == 0 {
            file.assert_is(&model, window.clone(), &why);
        }
        if step % 800 == 799 {
            file.rig.close();
            image.assert_clean();
            file = File::open(&image, FILE);
            file.assert_is(&model, window.clone(), &why);
        }
    }
    file.finish(&image, before);
}

#[test]
fn random_changes_agree_with_a_model() {
    if !judges_present() {
        return;
    }
    storm("-t ext4 -b 4096", "64M", 11, 0, true);
    storm("-t ext4 -b 1024", "32M", 12, 1 << 20, true);
    storm("-t ext4 -b 1024 -O ^has_journal,^metadata_csum", "32M", 13, u32::MAX - 1500, true);
    storm("-t ext3 -b 1024", "32M", 14, 0, false);
    storm("-t ext3 -b 1024", "32M", 15, 65_500, false);
    storm("-t ext2 -b 4096", "32M", 16, 1_049_000, false);
}

#[test]
fn a_full_volume_leaves_a_true_map() {
    if !judges_present() {
        return;
    }
    storm("-t ext4 -b 1024 -m 0 -N 16", "1600K", 21, 0, true);
    storm("-t ext4 -b 1024 -m 0 -N 16 -O ^has_journal", "512K", 22, 0, true);
    storm("-t ext2 -b 1024 -m 0 -N 16", "512K", 23, 0, false);
}

/// Every second block: as many extents as blocks.
fn fragmented(image: &Image, blocks: u32) -> (File, Model) {
    let mut file = File::open(image, FILE);
    let mut model = Model::new();
    for i in 0..blocks {
        let segment = file.allocate(2 * i, 1, i % 3 == 0).unwrap();
        record(&mut model, 2 * i, segment);
    }
    (file, model)
}

#[test]
fn deep_trees_grow_convert_and_shrink() {
    if !judges_present() {
        return;
    }
    for (options, blocks) in [("-t ext4 -b 1024", 30_000), ("-t ext4 -b 1024 -O ^metadata_csum", 4_000)] {
        let image = prepared(options, "80M");
        let before = {
            let rig = Rig::open(&image.path);
            rig.alloc.counts().free_blocks
        };
        let (file, mut model) = fragmented(&image, blocks);
        let depth = u16::from_le_bytes([file.map.block[6], file.map.block[7]]);
        assert!(depth >= 2, "depth {depth}");
        file.assert_is(&model, 0..2 * blocks, options);
        file.rig.close();
        image.assert_clean();
        let mut file = File::open(&image, FILE);
        file.convert(0..u64::from(2 * blocks), true);
        model.values_mut().for_each(|(_, written)| *written = true);
        file.assert_is(&model, 0..2 * blocks, options);
        // Filling the gaps merges it all where the blocks happen to be neighbours.
        for i in 0..blocks - 1 {
            let segment = file.allocate(2 * i + 1, 1, false).unwrap();
            record(&mut model, 2 * i + 1, segment);
        }
        file.assert_is(&model, 0..2 * blocks, options);
        file.remove(u64::from(blocks / 2)..u64::from(blocks));
        model.retain(|b, _| !(blocks / 2..blocks).contains(b));
        file.assert_is(&model, 0..2 * blocks, options);
        file.rig.close();
        image.assert_clean();
        let file = File::open(&image, FILE);
        file.assert_is(&model, 0..2 * blocks, options);
        file.finish(&image, before);
    }
}

#[test]
fn large_extents_respect_their_limits() {
    if !judges_present() {
        return;
    }
    let image = prepared("-t ext4 -b 4096 -O ^has_journal", "2G");
    let mut file = File::open(&image, FILE);
    let before = file.rig.alloc.counts().free_blocks;
    let mut model = Model::new();
    for unwritten in [true, false] {
        let mut at = if unwritten { 0 } else { 200_000 };
        let end = at + 120_000;
        while at < end {
            let segment = file.allocate(at, end - at, unwritten).unwrap();
            assert!(segment.len <= if unwritten { 32767 } else { 32768 });
            record(&mut model, at, segment);
            at += segment.len;
        }
    }
    file.assert_is(&model, 0..400_000, "allocated");
    file.convert(0..400_000, false);
    model.values_mut().for_each(|(_, written)| *written = false);
    file.assert_is(&model, 0..400_000, "unwritten");
    file.convert(0..400_000, true);
    model.values_mut().for_each(|(_, written)| *written = true);
    file.assert_is(&model, 0..400_000, "written");
    file.shift(100_000, 77);
    model = model.into_iter().map(|(b, v)| (if b >= 100_000 { b + 77 } else { b }, v)).collect();
    file.assert_is(&model, 0..400_000, "shifted");
    let last = file.allocate(u32::MAX - 1, 5, false).unwrap();
    assert_eq!(last.len, 1, "2^32 - 1 is no file block");
    record(&mut model, u32::MAX - 1, last);
    let past = file.allocate(u32::MAX, 1, false);
    assert!(matches!(past, Err(Error::Posix(Posix::FileTooBig))), "{past:?}");
    file.finish(&image, before);
}

#[test]
fn an_indirect_run_may_cross_pointer_blocks() {
    if !judges_present() {
        return;
    }
    let image = prepared("-t ext2 -b 1024 -m 0 -N 16", "2M");
    let mut file = File::open(&image, FILE);
    let before = file.rig.alloc.counts().free_blocks;
    let mut model = Model::new();
    let map = |file: &mut File, at: u32, fill: bool| {
        let credits = Credits::blocks(3 * extent::allocate_credits(&file.map, 1) + 64);
        file.change(credits, |ctx, tx, map| {
            let goal = BlockNo(500);
            let take = |want, goal| {
                let depth = Depth::Ordinary;
                let request = BlockRequest { want, continues: true, ..BlockRequest::one(goal, depth) };
                ctx.alloc.alloc_blocks(tx, request)
            };
            let run = take(400, goal)?;
            if fill {
                while take(1000, goal).is_ok() {}
            }
            extent::insert(ctx, tx, map, FileBlock(at), run, false).map(|()| run)
        })
    };
    // From the direct pointers over the indirect block into the double indirect ones.
    let run = map(&mut file, 7, false).unwrap();
    assert!(run.len > 300);
    record(&mut model, 7, extent::Segment { mapping: Mapping::Written(run.start), len: run.len });
    file.assert_is(&model, 0..2000, "inserted");
    file.rig.commit();
    // Again where no pointer block can be had: nothing is mapped, and the run is free again.
    let failed = map(&mut file, 12 + 256 * 3 - 5, true);
    assert!(matches!(failed, Err(Error::NoSpace)), "{failed:?}");
    file.assert_is(&model, 0..2000, "failed");
    let used = before - u64::from(run.len) - file.rig.alloc.counts().free_blocks;
    assert!(used > 0, "the volume was filled");
}

#[test]
fn a_map_that_names_metadata_is_refused() {
    if !judges_present() {
        return;
    }
    let image = prepared("-t ext4 -b 4096", "64M");
    let mut file = File::open(&image, FILE);
    let segment = file.allocate(0, 1, false).unwrap();
    let table = file.rig.alloc.inode_place(Ino::ROOT).unwrap().0;
    // ee_start_lo of the first extent.
    file.map.block[20..24].copy_from_slice(&(table.0 as u32).to_le_bytes());
    assert!(matches!(extent::lookup(&file.ctx(), &file.map, FileBlock(0), 1), Err(Error::Corrupt(_))));
    let credits = extent::remove_credits(&file.ctx(), &file.map, false);
    let removed = file.change(credits, |ctx, tx, map| extent::remove(ctx, tx, map, 0..1, false));
    assert!(matches!(removed, Err(Error::Corrupt(_))), "{segment:?}");
    assert!(file.rig.alloc.in_use(table, 1).unwrap());
}

#[test]
fn tree_blocks_carry_checksums() {
    if !judges_present() {
        return;
    }
    let image = prepared("-t ext4 -b 4096", "64M");
    let (file, _) = fragmented(&image, 50);
    let sb = *file.rig.vol.sb.lock();
    let generation = file.disk.generation;
    let child = u32::from_le_bytes(file.map.block[16..20].try_into().unwrap());
    file.rig.close();
    let bytes = std::fs::read(&image.path).unwrap();
    let node = &bytes[child as usize * 4096..][..4096];
    let ino = Ino::new(FILE).unwrap();
    Csum::new(&sb).verify_extent_block(node, ino, generation).unwrap();
    let mut damaged = bytes.clone();
    damaged[child as usize * 4096 + 40] ^= 1;
    std::fs::write(&image.path, &damaged).unwrap();
    let file = File::open(&image, FILE);
    assert!(matches!(extent::lookup(&file.ctx(), &file.map, FileBlock(0), 1), Err(Error::Corrupt(_))));
}
