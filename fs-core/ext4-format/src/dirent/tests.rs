//! Edits of a block against a map, and what has become old or never was true against the block.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const FORMAT: DirFormat = DirFormat { filetype: true, tail: true, hashed: false };

/// Every way of writing entries, in small, usual and the largest blocks.
fn kinds() -> impl Iterator<Item = (DirFormat, usize)> {
    let flags = [(false, false), (false, true), (true, false), (true, true)];
    let formats = flags.map(|(tail, hashed)| DirFormat { tail, hashed, ..FORMAT });
    formats.into_iter().flat_map(|format| [1024, 4096, 65536].map(|size| (format, size)))
}

fn ino(n: u32) -> Ino {
    Ino::new(n).unwrap()
}

fn names(bytes: &[u8]) -> BTreeMap<Vec<u8>, u32> {
    DirBlock::new(bytes, FORMAT)
        .entries()
        .map(Result::unwrap)
        .filter_map(|entry| Some((entry.name.to_vec(), entry.ino?.get())))
        .collect()
}

#[test]
fn record_lengths_of_large_blocks_use_the_low_bits() {
    for (len, size) in [(12, 1024), (65532, 65536), (65536, 65536), (131_072, 262_144), (262_144, 262_144)] {
        assert_eq!(decode_rec_len(encode_rec_len(len, size), size), len);
    }
}

#[test]
fn a_new_directory_has_dot_and_dotdot() {
    let mut bytes = vec![0xff; 1024];
    let _ = DirBlockMut::init_first(&mut bytes, FORMAT, ino(12), ino(2));
    DirBlock::new(&bytes, FORMAT).check().unwrap();
    assert_eq!(names(&bytes), BTreeMap::from([(b".".to_vec(), 12), (b"..".to_vec(), 2)]));
}

/// Puts `name` in and gives its place.
fn put(block: &mut DirBlockMut<'_>, name: &[u8]) -> At {
    block.insert(&new(name)).unwrap().unwrap();
    block.view().find(name).unwrap().unwrap().at
}

fn new(name: &[u8]) -> NewEntry<'_> {
    NewEntry { ino: ino(77), file_type: FileType::Regular, name }
}

fn slot_of(block: &DirBlockMut<'_>, name: &[u8]) -> Slot {
    match block.view().place(name).unwrap() {
        Placement::Free(slot) => slot,
        other => panic!("{other:?}"),
    }
}

/// Tries to put `name` where room no longer is.
fn refused(block: &mut DirBlockMut<'_>, slot: Slot, name: &[u8]) -> Option<Corruption> {
    let before = block.bytes.to_vec();
    let refused = match block.insert_at(slot, &new(name)) {
        Ok(Some(offset)) => panic!("written at {offset}"),
        Ok(None) => None,
        Err(c) => Some(c),
    };
    assert!(block.bytes == before, "refused, but changed");
    block.view().check().unwrap();
    refused
}

#[test]
fn an_old_slot_is_refused_and_not_written_through() {
    for (format, size) in kinds() {
        let mut bytes = vec![0; size];
        let mut block = DirBlockMut::init_first(&mut bytes, format, ino(12), ino(2));
        put(&mut block, b"first");
        let last = put(&mut block, b"last");
        let slot = slot_of(&block, b"new");
        assert_eq!(slot.offset, last.offset);
        // The record is gone: nothing is where it was.
        assert!(block.remove(last).unwrap());
        assert_eq!(refused(&mut block, slot, b"new").unwrap().field, "rec_len");
        // Another one, with a longer name, starts at the same byte.
        assert_eq!(put(&mut block, b"a longer name"), last);
        assert_eq!(refused(&mut block, slot, b"new"), None);
        // Somebody else took the room.
        let slot = slot_of(&block, b"new");
        assert!(block.insert_at(slot, &new(b"new")).unwrap().is_some());
        assert_eq!(refused(&mut block, slot, b"other"), None);
        // Room for a short name is none for a long one.
        let mut n = 0_u32;
        let slot = loop {
            match block.view().place(b"s").unwrap() {
                Placement::Free(slot) if block.view().place(&[b'l'; 100]).unwrap() == Placement::Full => {
                    break slot;
                }
                _ => put(&mut block, format!("{n:060}").as_bytes()),
            };
            n += 1;
        };
        assert_eq!(refused(&mut block, slot, &[b'l'; 100]), None);
        assert!(block.insert_at(slot, &new(b"s")).unwrap().is_some());
    }
}

#[test]
fn the_slot_of_a_free_record_grows_old_too() {
    for (format, size) in kinds() {
        let mut bytes = vec![0; size];
        let mut block = DirBlockMut::init(&mut bytes, format);
        let free = slot_of(&block, b"new");
        let first = put(&mut block, b"first");
        assert_eq!(refused(&mut block, free, b"new"), None);
        let behind = slot_of(&block, b"new");
        assert_eq!((free.offset, behind.offset), (first.offset, first.offset));
        assert!(block.remove(first).unwrap());
        assert_eq!(refused(&mut block, behind, b"new"), None);
        assert!(block.insert_at(free, &new(b"new")).unwrap().is_some());
    }
}

#[test]
fn a_slot_of_another_block_is_refused() {
    for (format, size) in kinds() {
        let mut large = vec![0; size * 4];
        let mut block = DirBlockMut::init(&mut large, format);
        let names: Vec<_> = (0..size / 12).map(|n| format!("{n:06}")).collect();
        assert_eq!(block.fill(names.iter().map(|name| new(name.as_bytes()))), names.len());
        let slot = slot_of(&block, b"new");
        assert!(slot.offset > size);
        let mut bytes = vec![0; size];
        let mut small = DirBlockMut::init(&mut bytes, format);
        assert_eq!(refused(&mut small, slot, b"new").unwrap().field, "rec_len");
    }
}

#[test]
fn an_entry_is_found_again_behind_a_new_one() {
    for (format, size) in kinds() {
        let mut bytes = vec![0; size];
        let mut block = DirBlockMut::init(&mut bytes, format);
        put(&mut block, b"first");
        let gap = put(&mut block, b"a name that leaves a gap");
        let at = put(&mut block, b"entry");
        put(&mut block, b"last");
        assert!(block.remove(gap).unwrap());
        let at = At { front: 0, ..at };
        assert_eq!(put(&mut block, b"between"), gap);
        assert!(block.set_target(at, ino(99), FileType::Fifo));
        assert_eq!(block.view().find(b"entry").unwrap().unwrap().ino, Some(ino(99)));
        assert!(block.remove(at).unwrap());
        block.view().check().unwrap();
        let left: Vec<_> = block.view().entries().map(|entry| entry.unwrap().name.to_vec()).collect();
        assert_eq!(left, [&b"first"[..], b"between", b"last"]);
        // Nothing starts there now, nor in the middle of a record.
        for offset in [at.offset, at.offset + 4, 4] {
            assert!(!block.remove(At { offset, front: 0 }).unwrap());
            assert!(!block.set_target(At { offset, front: 0 }, ino(5), FileType::Fifo));
        }
    }
}

proptest! {
    #[test]
    fn edits_follow_a_map(
        // Few names, so that many come and go, and together too long for the smallest block.
        ops in proptest::collection::vec(("[ab]{1,3}|[ab]{1,4}c{40}", any::<bool>(), 1_u32..9999), 1..250),
        (format, size) in proptest::sample::select(kinds().collect::<Vec<_>>()),
    ) {
        let mut bytes = vec![0; size];
        let mut block = DirBlockMut::init(&mut bytes, format);
        // The places as they were when the names went in: by now others stand in front.
        let mut model: BTreeMap<Vec<u8>, (u32, At)> = BTreeMap::new();
        for (name, add, n) in ops {
            let name = name.into_bytes();
            let there = block.view().find(&name).unwrap();
            let known = model.get(&name).map(|known| known.0);
            prop_assert_eq!(there.map(|entry| entry.ino.unwrap().get()), known);
            let placement = block.view().place(&name).unwrap();
            let entry = NewEntry { ino: ino(n), file_type: FileType::Regular, name: &name };
            match (model.get(&name).copied(), placement) {
                (Some((_, at)), Placement::Taken) if add => {
                    prop_assert!(block.set_target(at, ino(n), FileType::Fifo));
                    model.insert(name, (n, at));
                }
                (Some((_, at)), Placement::Taken) => {
                    prop_assert!(block.remove(at).unwrap());
                    model.remove(&name);
                }
                (None, Placement::Free(slot)) => {
                    let offset = if add { block.insert(&entry) } else { block.insert_at(slot, &entry) };
                    let at = block.view().find(&name).unwrap().unwrap().at;
                    prop_assert_eq!(offset.unwrap(), Some(at.offset));
                    model.insert(name, (n, at));
                }
                (None, Placement::Full) => prop_assert_eq!(block.insert(&entry).unwrap(), None),
                (known, placement) => prop_assert!(false, "{known:?} {placement:?}"),
            }
            block.view().check().unwrap();
        }
        let found: BTreeMap<Vec<u8>, u32> = block.view().entries().map(Result::unwrap)
            .filter_map(|entry| Some((entry.name.to_vec(), entry.ino?.get()))).collect();
        prop_assert_eq!(found, model.into_iter().map(|(name, (n, _))| (name, n)).collect());
    }

    #[test]
    fn a_split_keeps_every_name_on_its_side(
        all in proptest::collection::btree_map("[a-z]{1,30}", 1_u32..9999, 2..25),
        few in 1_u32..200,
    ) {
        // A poor hash makes collisions, which the continuation bit is for.
        let hash = |name: &[u8]| Some(name.iter().map(|&b| u32::from(b)).sum::<u32>() % few * 2);
        let mut bytes = vec![0; 1024];
        let mut block = DirBlockMut::init(&mut bytes, FORMAT);
        for (name, n) in &all {
            let entry = NewEntry { ino: ino(*n), file_type: FileType::Regular, name: name.as_bytes() };
            prop_assert!(block.insert(&entry).unwrap().is_some());
        }
        let mut right = vec![0xff; 1024];
        let split = split_by_hash(&mut bytes, &mut right, FORMAT, hash).unwrap().unwrap();
        DirBlock::new(&bytes, FORMAT).check().unwrap();
        DirBlock::new(&right, FORMAT).check().unwrap();
        let (low, high) = (names(&bytes), names(&right));
        prop_assert!(!low.is_empty() && !high.is_empty());
        prop_assert!(high.keys().all(|name| hash(name).unwrap() >= split.hash));
        prop_assert!(low.keys().all(|name| hash(name).unwrap() <= split.hash));
        prop_assert_eq!(split.continued, low.keys().any(|name| hash(name) == Some(split.hash)));
        prop_assert_eq!(low.len() + high.len(), all.len());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        (offset, front, used) in (0..400_usize, 0..400_usize, 0..40_usize),
        tail in any::<bool>(),
        hashed in any::<bool>(),
    ) {
        let format = DirFormat { tail, hashed, ..FORMAT };
        let block = DirBlock::new(&bytes, format);
        let _ = (block.check(), block.find(b"new"), block.place(b"new"));
        let entry = NewEntry { ino: ino(5), file_type: FileType::Regular, name: b"new" };
        let edit = |change: &dyn Fn(&mut DirBlockMut<'_>)| {
            let mut copy = bytes.clone();
            change(&mut DirBlockMut::new(&mut copy, format));
        };
        for at in [At { offset, front }, At { offset: 12, front: 0 }, At { offset: 0, front }] {
            edit(&|block| drop(block.remove(at)));
            edit(&|block| {
                let _ = block.set_target(at, ino(5), FileType::Fifo);
            });
        }
        edit(&|block| drop(block.insert(&entry)));
        edit(&|block| drop(block.insert_at(Slot { offset, used }, &entry)));
    }
}
