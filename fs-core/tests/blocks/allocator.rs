//! The allocator against a model, dumpe2fs and e2fsck.

#![expect(clippy::disallowed_types, reason = "a test has no order of locks")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use ext4_format::{BlockNo, FileBlock, GroupNo, Ino};
use fs_core::Error;
use fs_core::internals::alloc::{
    ALLOC_CREDITS, ALLOC_INODE_CREDITS, Allocator, BlockRequest, Depth, FREE_INODE_CREDITS, InodeKind, Run,
    Stream, TrimRange,
};
use fs_core::internals::tx::{self, Tx};
use jbd2::Credits;

use crate::rig::{Dice, Image, Rig, format, judges_present};

/// Layouts that differ in what the allocator has to know.
const LAYOUTS: [(&str, &str); 10] = [
    ("-t ext4 -b 4096", "96M"),
    ("-t ext4 -b 1024", "40M"),
    ("-t ext4 -b 1024 -O meta_bg,^resize_inode", "70M"),
    ("-t ext4 -b 4096 -O ^metadata_csum,uninit_bg,^64bit", "300M"),
    ("-t ext4 -O ^has_journal,^flex_bg -g 1024", "33M"),
    ("-t ext4 -O sparse_super2 -g 2048 -b 2048", "50M"),
    ("-t ext4 -b 1024 -g 256 -N 4000 -m 20", "9M"),
    ("-t ext4 -b 1024 -E stride=16,stripe_width=48", "40M"),
    ("-t ext3 -b 4096", "40M"),
    ("-t ext2 -b 1024", "20001K"),
];

fn handle(rig: &Rig, blocks: u32) -> Tx<'_> {
    tx::start(&rig.vol.journal, Credits::blocks(blocks)).unwrap()
}

fn blocks_of(run: Run) -> std::ops::Range<u64> {
    run.start.0..run.start.0 + u64::from(run.len)
}

fn free(rig: &Rig, start: u64, len: u32) {
    let tx = handle(rig, rig.alloc.free_credits(len));
    rig.alloc.free_blocks(&tx, BlockNo(start), len).unwrap();
    tx.finish().unwrap();
}

/// Takes blocks until there are none, in runs of up to `want`.
fn exhaust(rig: &Rig, want: u32, depth: Depth) -> Vec<Run> {
    let mut taken = Vec::new();
    loop {
        let tx = handle(rig, ALLOC_CREDITS);
        let request = BlockRequest { want, ..BlockRequest::one(BlockNo(0), depth) };
        match rig.alloc.alloc_blocks(&tx, request) {
            Ok(run) => taken.push(run),
            Err(Error::NoSpace) => return taken,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn every_block_is_handed_out_once_and_comes_back() {
    if !judges_present() {
        return;
    }
    for (options, size) in LAYOUTS {
        let image = format(options, size);
        let free_before: BTreeSet<u64> = image.free_blocks().into_iter().collect();
        let rig = Rig::open(&image.path);
        let counts = rig.alloc.counts();
        assert_eq!(counts.free_blocks, free_before.len() as u64, "{options}");
        let mut taken = exhaust(&rig, 1000, Depth::Ordinary);
        assert_eq!(rig.alloc.counts().free_blocks, counts.withheld.min(counts.free_blocks), "{options}");
        assert!(matches!(rig.alloc.reserve(1, false), Err(Error::NoSpace)));
        taken.extend(exhaust(&rig, 7, Depth::Pool));
        assert_eq!(rig.alloc.counts().free_blocks, 0, "{options}");
        let all: BTreeSet<u64> = taken.iter().flat_map(|run| blocks_of(*run)).collect();
        assert_eq!(all.len() as u64, taken.iter().map(|run| u64::from(run.len)).sum::<u64>(), "{options}");
        assert_eq!(all, free_before, "{options}");
        rig.close();
        assert!(image.free_blocks().is_empty(), "{options}");

        let rig = Rig::open(&image.path);
        for run in &taken {
            free(&rig, run.start.0, run.len);
        }
        assert_eq!(rig.alloc.counts(), counts, "{options}");
        assert!(exhaust(&rig, 1, Depth::Pool).is_empty(), "freed in a transaction that is not durable");
        rig.close();
        assert!(image.free_blocks().into_iter().eq(free_before), "{options}");
        image.assert_clean();
    }
}

#[test]
fn random_use_agrees_with_a_model() {
    if !judges_present() {
        return;
    }
    for (seed, (options, size)) in LAYOUTS.into_iter().enumerate() {
        let image = format(options, size);
        let mut rig = Rig::open(&image.path);
        let mut dice = Dice(0x9e37_79b9 + seed as u64);
        let mut owned: BTreeMap<u64, u32> = BTreeMap::new();
        let mut cooling: BTreeSet<u64> = BTreeSet::new();
        let last = rig.vol.geo.blocks_count;
        for step in 0..3000 {
            match dice.roll(100) {
                0 => {
                    rig.commit();
                    cooling.clear();
                }
                1 if step % 10 == 0 => {
                    rig.close();
                    let expected: BTreeSet<u64> =
                        owned.iter().flat_map(|(start, len)| *start..*start + u64::from(*len)).collect();
                    let free: BTreeSet<u64> = image.free_blocks().into_iter().collect();
                    assert!(free.is_disjoint(&expected), "{options} step {step}");
                    rig = Rig::open(&image.path);
                    cooling.clear();
                }
                2..=55 => {
                    let most = if dice.roll(4) == 0 { 3000 } else { 20 };
                    let want = 1 + dice.roll(most) as u32;
                    let request = BlockRequest {
                        goal: BlockNo(dice.roll(last)),
                        want,
                        at: FileBlock(0),
                        continues: dice.roll(2) == 0,
                        stream: (dice.roll(2) == 0).then_some(Stream {
                            owner: Ino::new(1 + dice.roll(100) as u32).unwrap(),
                            ahead: 50,
                        }),
                        depth: Depth::Privileged,
                        reserved: None,
                    };
                    let tx = handle(&rig, ALLOC_CREDITS);
                    match rig.alloc.alloc_blocks(&tx, request) {
                        Ok(run) => {
                            assert!(run.len >= 1 && run.len <= want);
                            for block in blocks_of(run) {
                                assert!(
                                    !cooling.contains(&block),
                                    "{options}: {block} was freed and not committed"
                                );
                                let before = owned.range(..=block).next_back();
                                assert!(
                                    before.is_none_or(|(s, l)| s + u64::from(*l) <= block),
                                    "{options}: {block}"
                                );
                            }
                            assert!(rig.alloc.may_hold_data(run.start, run.len.into()));
                            owned.insert(run.start.0, run.len);
                        }
                        Err(Error::NoSpace) => assert!(owned.len() > 5, "{options}"),
                        Err(e) => panic!("{options}: {e}"),
                    }
                }
                _ => {
                    let Some((&start, &len)) = owned.range(dice.roll(last)..).next() else { continue };
                    owned.remove(&start);
                    // A piece in the middle or an end; the rest stays.
                    let skip = dice.roll(len.into()) as u32 * u32::from(dice.roll(3) == 0);
                    let count = 1 + dice.roll(u64::from(len - skip)) as u32;
                    if skip > 0 {
                        owned.insert(start, skip);
                    }
                    if skip + count < len {
                        owned.insert(start + u64::from(skip + count), len - skip - count);
                    }
                    let first = start + u64::from(skip);
                    assert!(rig.alloc.in_use(BlockNo(first), count).unwrap());
                    free(&rig, first, count);
                    assert!(!rig.alloc.in_use(BlockNo(first), count).unwrap());
                    cooling.extend(first..first + u64::from(count));
                }
            }
        }
        for (start, len) in owned {
            free(&rig, start, len);
        }
        rig.close();
        image.assert_clean();
    }
}

#[test]
fn a_goal_is_met_and_a_run_is_not_cut_needlessly() {
    if !judges_present() {
        return;
    }
    let image = format("-t ext4 -O ^has_journal", "512M");
    let rig = Rig::open(&image.path);
    let ask = |goal: u64, want: u32, continues: bool| {
        let tx = handle(&rig, ALLOC_CREDITS);
        let request = BlockRequest {
            goal: BlockNo(goal),
            want,
            at: FileBlock(0),
            continues,
            stream: None,
            depth: Depth::Ordinary,
            reserved: None,
        };
        rig.alloc.alloc_blocks(&tx, request).unwrap()
    };
    let second = rig.vol.geo.group_first_block(GroupNo(2)).0;
    assert_eq!(ask(second + 100, 10, false), Run { start: BlockNo(second + 100), len: 10 });
    assert_eq!(ask(second + 95, 10, false).start.0, second + 110, "the hole of 5 is too small");
    assert_eq!(ask(second + 95, 10, true), Run { start: BlockNo(second + 95), len: 5 });
    let whole = ask(second, 32660, false);
    assert_eq!(whole.len, 32648, "nowhere in one piece: the longest there is");
    let whole = ask(second, 32640, false);
    assert_eq!(whole.len, 32640, "another group has it in one piece");
    assert_ne!(rig.vol.geo.group_of_block(whole.start), Some(GroupNo(2)));
    let mut reserved = rig.alloc.reserve(50, false).unwrap();
    let before = rig.alloc.counts();
    assert_eq!(before.reserved, 50);
    let tx = handle(&rig, ALLOC_CREDITS);
    let request = BlockRequest {
        goal: BlockNo(second + 1000),
        want: 80,
        at: FileBlock(0),
        continues: false,
        stream: None,
        depth: Depth::Ordinary,
        reserved: Some(&mut reserved),
    };
    assert_eq!(rig.alloc.alloc_blocks(&tx, request).unwrap().len, 50, "no more than was promised");
    drop(tx);
    let after = rig.alloc.counts();
    assert_eq!((after.reserved, after.free_blocks), (0, before.free_blocks - 50));
}

/// The commit that gives freed blocks back may be anybody's, and come before the question.
#[test]
fn a_retry_is_worth_it_when_blocks_have_come_back_since() {
    if !judges_present() {
        return;
    }
    let image = format("-t ext4 -b 1024", "16M");
    let rig = Rig::open(&image.path);
    let runs = exhaust(&rig, u32::MAX, Depth::Pool);
    let alloc = &rig.alloc;
    let mut retry = alloc.retry();
    assert!(!alloc.should_retry(&mut retry).unwrap());
    free(&rig, runs[0].start.0, runs[0].len);
    rig.commit();
    assert!(alloc.should_retry(&mut retry).unwrap(), "somebody has committed");
    assert!(!alloc.should_retry(&mut retry).unwrap(), "nothing has come back since");
    let mut retry = alloc.retry();
    free(&rig, runs[1].start.0, runs[1].len);
    assert!(alloc.should_retry(&mut retry).unwrap(), "a commit is needed, and made");
    let tx = handle(&rig, ALLOC_CREDITS);
    let run = alloc.alloc_blocks(&tx, BlockRequest::one(runs[1].start, Depth::Pool)).unwrap();
    assert_eq!(run.start, runs[1].start);
}

#[test]
fn a_trim_spares_what_is_used_or_freed_lately() {
    if !judges_present() {
        return;
    }
    let image = format("-t ext4 -b 1024 -m 0", "40M");
    let rig = Rig::open(&image.path);
    let size = u64::from(rig.vol.block_size());
    let run = {
        let tx = handle(&rig, 2 * ALLOC_CREDITS);
        let goal = BlockNo(rig.vol.geo.group_first_block(GroupNo(2)).0 + 300);
        let request = BlockRequest { want: 100, ..BlockRequest::one(goal, Depth::Ordinary) };
        rig.alloc.alloc_blocks(&tx, request).unwrap()
    };
    let content = vec![0xa5; (run.len as usize) * size as usize];
    rig.vol.dev.write_at(run.start.0 * size, &content).unwrap();
    rig.commit();
    free(&rig, run.start.0 + 50, 50);
    let all = TrimRange { start: BlockNo(0), len: u64::MAX, least: 1 };
    let free_now = rig.alloc.counts().free_blocks;
    assert_eq!(rig.alloc.trim(all).unwrap(), free_now - 50, "what was freed lately must survive a crash");
    let mut found = vec![0; content.len()];
    rig.vol.dev.read_at(run.start.0 * size, &mut found).unwrap();
    assert_eq!(found, content);
    rig.commit();
    assert_eq!(rig.alloc.trim(all).unwrap(), free_now);
    let short = TrimRange { start: BlockNo(run.start.0 + 60), len: 20, least: 21 };
    assert_eq!(rig.alloc.trim(short).unwrap(), 0);
    assert_eq!(rig.alloc.trim(TrimRange { least: 20, ..short }).unwrap(), 20);
    let rest: u64 = exhaust(&rig, 500, Depth::Pool).iter().map(|run| u64::from(run.len)).sum();
    assert_eq!(rest, free_now, "nothing is held back any more");
}

#[test]
fn more_groups_than_are_kept_in_memory() {
    if !judges_present() {
        return;
    }
    let image = format("-t ext4 -b 1024 -g 256 -N 4800 -O ^has_journal -m 0", "300M");
    let rig = Rig::open(&image.path);
    let geo = rig.vol.geo;
    assert!(geo.group_count > 1100);
    let before = rig.alloc.counts();
    let mut taken = Vec::new();
    let mut inodes = Vec::new();
    for round in 0..3 {
        for no in geo.groups() {
            let goal = BlockNo(geo.group_first_block(no).0 + 100);
            let tx = handle(&rig, ALLOC_CREDITS + ALLOC_INODE_CREDITS);
            let request = BlockRequest { want: 3, ..BlockRequest::one(goal, Depth::Ordinary) };
            taken.push(rig.alloc.alloc_blocks(&tx, request).unwrap());
            let parent = geo.inode_at(no, 0).unwrap();
            inodes.extend(rig.alloc.alloc_inode(&tx, parent, InodeKind::Other));
        }
        if round == 1 {
            for run in taken.split_off(taken.len() / 2) {
                free(&rig, run.start.0, run.len);
            }
            rig.commit();
        }
    }
    let all: BTreeSet<u64> = taken.iter().flat_map(|run| blocks_of(*run)).collect();
    assert_eq!(all.len() as u64, before.free_blocks - rig.alloc.counts().free_blocks);
    for run in taken {
        free(&rig, run.start.0, run.len);
    }
    for ino in inodes {
        let tx = handle(&rig, FREE_INODE_CREDITS);
        rig.alloc.free_inode(&tx, ino, false).unwrap();
    }
    assert_eq!(rig.alloc.counts(), before);
    rig.close();
    image.assert_clean();
}

#[test]
fn files_that_grow_side_by_side_do_not_interleave() {
    if !judges_present() {
        return;
    }
    let image = format("-t ext4 -b 4096 -O ^has_journal -N 64 -m 0", "32M");
    let rig = Rig::open(&image.path);
    let free = rig.alloc.counts().free_blocks;
    let mut runs = vec![Vec::<Run>::new(); 3];
    for round in 0..300 {
        for (i, runs) in runs.iter_mut().enumerate() {
            let owner = Ino::new(20 + i as u32).unwrap();
            let goal = match runs.last() {
                Some(last) => BlockNo(last.start.0 + u64::from(last.len)),
                None => rig.alloc.goal_for(owner, true),
            };
            let tx = handle(&rig, ALLOC_CREDITS);
            let stream = (round > 0).then_some(Stream { owner, ahead: round.clamp(8, 2048) });
            let depth = Depth::Ordinary;
            let request = BlockRequest { continues: round > 0, stream, ..BlockRequest::one(goal, depth) };
            let run = rig.alloc.alloc_blocks(&tx, request).unwrap();
            match runs.last_mut() {
                Some(last) if run.start == goal => last.len += 1,
                _ => runs.push(run),
            }
        }
    }
    let pieces: Vec<usize> = runs.iter().map(Vec::len).collect();
    assert!(pieces.iter().all(|n| *n <= 12), "{pieces:?}");
    // What is kept for them is still free for others when nothing else is.
    let rest: u64 = exhaust(&rig, 100, Depth::Pool).iter().map(|run| u64::from(run.len)).sum();
    assert_eq!(rest + 900, free);
}

#[test]
fn what_is_free_or_not_ours_cannot_be_freed() {
    if !judges_present() {
        return;
    }
    let image = format("-t ext4", "64M");
    let rig = Rig::open(&image.path);
    let free_block = image.free_blocks()[0];
    let table = rig.alloc.inode_place(Ino::ROOT).unwrap().0;
    let journal = locate_journal(&image);
    for block in [0, 1, table.0, journal, rig.vol.geo.blocks_count, u64::MAX] {
        assert!(!rig.alloc.may_hold_data(BlockNo(block), 1), "{block}");
        let tx = handle(&rig, 4);
        assert!(matches!(rig.alloc.free_blocks(&tx, BlockNo(block), 1), Err(Error::Corrupt(_))), "{block}");
    }
    let tx = handle(&rig, 4);
    assert!(matches!(rig.alloc.free_blocks(&tx, BlockNo(free_block), 1), Err(Error::Corrupt(_))));
    for ino in [1, 8, 11, 12, rig.vol.geo.inodes_count + 1] {
        let freed = rig.alloc.free_inode(&tx, Ino::new(ino).unwrap(), false);
        assert_eq!(matches!(freed, Err(Error::Corrupt(_))), ino != 11, "{ino}: {freed:?}");
    }
}

fn locate_journal(image: &Image) -> u64 {
    let text = image.debugfs("blocks <8>");
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_damaged_bitmap_puts_its_group_out_of_use() {
    if !judges_present() {
        return;
    }
    let image = format("-t ext4 -b 1024 -e continue", "40M");
    let (first, last) = {
        let rig = Rig::open(&image.path);
        let geo = rig.vol.geo;
        let tx = handle(&rig, ALLOC_CREDITS);
        let goal = BlockNo(geo.group_first_block(GroupNo(1)).0 + 500);
        rig.alloc.alloc_blocks(&tx, BlockRequest::one(goal, Depth::Ordinary)).unwrap();
        drop(tx);
        rig.close();
        (geo.group_first_block(GroupNo(1)).0, geo.group_first_block(GroupNo(2)).0)
    };
    let before = image.free_blocks();
    let text = image.debugfs("stats");
    let group1 = text.lines().find(|line| line.contains("Group  1")).unwrap();
    let place: u64 =
        group1.split("block bitmap at ").nth(1).unwrap().split(',').next().unwrap().trim().parse().unwrap();
    assert!(!(first..last).contains(&place), "flex_bg keeps it elsewhere");
    {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&image.path).unwrap();
        file.write_all_at(&[0x55; 16], place * 1024 + 40).unwrap();
    }
    let rig = Rig::open(&image.path);
    let taken: BTreeSet<u64> = exhaust(&rig, 100, Depth::Pool).into_iter().flat_map(blocks_of).collect();
    assert!(taken.range(first..last).next().is_none());
    assert_eq!(taken.len(), before.iter().filter(|b| !(first..last).contains(b)).count());
    assert_eq!(rig.vol.sb.lock().error_count(), 1);
}

#[test]
fn inode_numbers_are_handed_out_once_and_come_back() {
    if !judges_present() {
        return;
    }
    for (options, size) in LAYOUTS {
        let image = format(options, size);
        let free_before: BTreeSet<u64> = image.free_inodes().into_iter().collect();
        let rig = Rig::open(&image.path);
        let counts = rig.alloc.counts();
        assert_eq!(u64::from(counts.free_inodes), free_before.len() as u64);
        let mut taken = BTreeMap::new();
        let mut parent = Ino::ROOT;
        let mut dice = Dice(7);
        loop {
            let tx = handle(&rig, ALLOC_INODE_CREDITS);
            let kind = match dice.roll(4) {
                0 => InodeKind::Directory { top_level: dice.roll(2) == 0 },
                _ => InodeKind::Other,
            };
            match rig.alloc.alloc_inode(&tx, parent, kind) {
                Ok(ino) => {
                    assert!(taken.insert(u64::from(ino.get()), kind).is_none(), "{options}: {ino}");
                    assert!(rig.alloc.inode_in_use(ino).unwrap());
                    let (block, byte) = rig.alloc.inode_place(ino).unwrap();
                    if rig.vol.csum.group_descs() {
                        let bytes = rig.vol.read_meta(block, |_| Ok(())).unwrap().data();
                        let end = byte + rig.vol.geo.inode_size;
                        assert!(bytes[byte..end].iter().all(|b| *b == 0), "{options}: {ino}");
                    }
                    if dice.roll(3) == 0 {
                        parent = ino;
                    }
                }
                Err(Error::NoSpace) => break,
                Err(e) => panic!("{options}: {e}"),
            }
        }
        assert!(taken.keys().copied().eq(free_before.iter().copied()), "{options}");
        assert_eq!(rig.alloc.counts().free_inodes, 0);
        rig.close();
        assert!(image.free_inodes().is_empty());
        let rig = Rig::open(&image.path);
        for (ino, kind) in taken {
            let tx = handle(&rig, FREE_INODE_CREDITS);
            let ino = Ino::new(ino as u32).unwrap();
            rig.alloc.free_inode(&tx, ino, kind != InodeKind::Other).unwrap();
        }
        assert_eq!(rig.alloc.counts(), counts, "{options}");
        rig.close();
        assert!(image.free_inodes().into_iter().eq(free_before), "{options}");
        image.assert_clean();
    }
}

#[test]
fn threads_never_get_the_same_block() {
    if !judges_present() {
        return;
    }
    let image = format("-t ext4 -b 1024 -g 2048", "64M");
    let rig = Rig::open(&image.path);
    let before = rig.alloc.counts();
    let everybody = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (rig, everybody) = (&rig, &everybody);
            scope.spawn(move || live(rig, everybody, Dice(1 + thread)));
        }
    });
    assert!(everybody.lock().unwrap().is_empty());
    assert_eq!(rig.alloc.counts(), before);
    rig.close();
    image.assert_clean();
}

fn live(rig: &Rig, everybody: &Mutex<BTreeSet<u64>>, mut dice: Dice) {
    let alloc: &Allocator = &rig.alloc;
    let mut mine: Vec<Run> = Vec::new();
    let mut inodes = Vec::new();
    // Off the list first: once it is free, somebody else may get it at any time.
    let give_back = |run: Run| {
        let mut all = everybody.lock().unwrap();
        assert!(blocks_of(run).all(|block| all.remove(&block)));
        drop(all);
        free(rig, run.start.0, run.len);
    };
    for _ in 0..3000 {
        match dice.roll(60) {
            0 => rig.commit(),
            1..=35 => {
                let tx = handle(rig, ALLOC_CREDITS);
                let goal = BlockNo(dice.roll(rig.vol.geo.blocks_count));
                let want = 1 + dice.roll(400) as u32;
                let owner = Ino::new(20 + dice.roll(9) as u32).unwrap();
                let stream = (dice.roll(2) == 0).then_some(Stream { owner, ahead: 100 });
                let request = BlockRequest {
                    goal,
                    want,
                    at: FileBlock(0),
                    continues: false,
                    stream,
                    depth: Depth::Ordinary,
                    reserved: None,
                };
                match alloc.alloc_blocks(&tx, request) {
                    Ok(run) => {
                        let mut all = everybody.lock().unwrap();
                        assert!(blocks_of(run).all(|block| all.insert(block)), "{run:?}");
                        mine.push(run);
                    }
                    Err(Error::NoSpace) => {
                        drop(tx);
                        let _ = alloc.should_retry(&mut alloc.retry()).unwrap();
                    }
                    Err(e) => panic!("{e}"),
                }
            }
            36..=38 => {
                let tx = handle(rig, ALLOC_INODE_CREDITS);
                inodes.extend(alloc.alloc_inode(&tx, Ino::ROOT, InodeKind::Other));
            }
            39 if !inodes.is_empty() => {
                let tx = handle(rig, FREE_INODE_CREDITS);
                alloc.free_inode(&tx, inodes.swap_remove(0), false).unwrap();
            }
            _ if !mine.is_empty() => {
                let run = mine.swap_remove(dice.roll(mine.len() as u64) as usize);
                give_back(run);
            }
            _ => {}
        }
    }
    for run in mine {
        give_back(run);
    }
    for ino in inodes {
        let tx = handle(rig, FREE_INODE_CREDITS);
        alloc.free_inode(&tx, ino, false).unwrap();
    }
}
