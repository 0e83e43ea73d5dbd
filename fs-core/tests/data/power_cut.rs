//! Power cuts at every point of a life of one file: what was synced is there, what was not is old
//! or new or zeros, and no byte ever comes from what the device held before.

use std::sync::Arc;

use blockdev::sim::{Dice, Event, MemDevice, Recorder, Walk};
use fs_core::{Credentials, FallocateMode, WriteKind};

use crate::harness::{STALE, e2fsck, manual, mke2fs, mount, open, pick, read_all, recover};

/// What the file held after each operation, and whether it was synced then.
struct Version {
    bytes: Vec<u8>,
    synced: bool,
}

fn live(args: &[&str], seed: u64, block: u64, rounds: usize) -> (Recorder, Vec<Version>) {
    let recorder = Recorder::new(mke2fs(args));
    let fs = mount(Arc::new(recorder.clone()), manual());
    let root = Credentials::root();
    let file = open(&fs, "file");
    fs.sync().unwrap();
    let mut dice = Dice::new(seed);
    let mut bytes: Vec<u8> = Vec::new();
    let mut versions = vec![Version { bytes: bytes.clone(), synced: true }];
    recorder.mark(0);
    for round in 1..=rounds {
        let mut synced = false;
        let at = dice.below(20) * block + if dice.one_in(3) { dice.below(block) } else { 0 };
        let len = if dice.one_in(2) { (1 + dice.below(6)) * block } else { 1 + dice.below(3 * block) };
        match dice.below(12) {
            0 => {
                file.set_len(at).unwrap();
                bytes.resize(at as usize, 0);
            }
            1 => {
                let mode = FallocateMode::PunchHole;
                file.fallocate_as(&root, at, len, mode).unwrap();
                let size = bytes.len() as u64;
                bytes[at.min(size) as usize..(at + len).min(size) as usize].fill(0);
            }
            2 => fs.step_convert(),
            3 => fs.tick().unwrap(),
            10 | 11 => {
                // Room for the direct writes to come, inside the file and behind its end.
                let keep_size = dice.one_in(2);
                let grown = file.fallocate_as(&root, at, len, FallocateMode::Allocate { keep_size }).is_ok();
                if grown && !keep_size {
                    bytes.resize(bytes.len().max((at + len) as usize), 0);
                }
            }
            4 | 5 => {
                file.sync(dice.one_in(2)).unwrap();
                synced = true;
            }
            n => {
                let mode = if n == 6 { WriteKind::Cached } else { WriteKind::Direct };
                let data = vec![(round % 100) as u8 + 1; len as usize];
                file.write_as(&root, &data, at, mode).unwrap();
                bytes.resize(bytes.len().max((at + len) as usize), 0);
                bytes[at as usize..(at + len) as usize].copy_from_slice(&data);
            }
        }
        versions.push(Version { bytes: bytes.clone(), synced });
        recorder.mark(round as u64);
    }
    fs.close().unwrap();
    (recorder, versions)
}

/// Checks a recovered file against the versions that the cut allows.
fn judge(found: &[u8], allowed: &[Version], what: &str) {
    assert!(!found.contains(&STALE), "{what}: byte {:?} is stale", found.iter().position(|b| *b == STALE));
    let least = allowed.iter().map(|v| v.bytes.len()).min().unwrap_or(0);
    let most = allowed.iter().map(|v| v.bytes.len()).max().unwrap_or(0);
    assert!((least..=most).contains(&found.len()), "{what}: size {} not in {least}..={most}", found.len());
    for (at, byte) in found.iter().enumerate() {
        let value = |v: &Version| v.bytes.get(at).copied().unwrap_or(0);
        let known = allowed.iter().any(|v| value(v) == *byte);
        // A block that lost its data reads as zeros only if it was not written when synced.
        let zeroed = *byte == 0 && allowed[1..].iter().any(|v| value(v) != value(&allowed[0]));
        assert!(known || zeroed, "{what}: byte {at} is {byte}, expected {}", value(&allowed[0]));
    }
}

fn cut_everywhere(args: &[&str], seed: u64, block: u64) {
    let rounds = pick(25, 200) as usize;
    let (recorder, versions) = live(args, seed, block, rounds);
    let recording = recorder.recording();
    let marks: Vec<(usize, usize)> = recording
        .events()
        .iter()
        .enumerate()
        .filter_map(|(i, event)| match event {
            Event::Mark(mark) => Some((i, *mark as usize)),
            _ => None,
        })
        .collect();
    let mut walk = Walk::new(&recording);
    let (mut states, mut torn) = (0, 0);
    for cut in marks[0].0 + 1..=recording.events().len() {
        walk.go_to(cut);
        let done = marks.iter().filter(|(i, _)| *i < cut).map(|(_, mark)| *mark).max().unwrap_or(0);
        let synced = (0..=done).rev().find(|&v| versions[v].synced).unwrap_or(0);
        let upto = (done + 1).min(versions.len() - 1);
        for keep in walk.keeps(3, 2, seed) {
            let what = format!("mke2fs {args:?} seed {seed} cut {cut} {keep:?}");
            let dev = Arc::new(MemDevice::from_image(walk.build(keep).image));
            let Some(fs) = recover(dev.clone()) else {
                torn += 1;
                continue;
            };
            judge(&read_all(&open(&fs, "file")), &versions[synced..=upto], &what);
            fs.close().unwrap();
            drop(fs);
            if states % 11 == 0 {
                e2fsck(&dev.snapshot(), &what);
            }
            states += 1;
        }
    }
    assert!(states > 100 && torn < states / 10, "{states} states, {torn} more with a torn superblock");
}

#[test]
fn extents_of_large_blocks() {
    cut_everywhere(&["-t", "ext4", "-b", "4096"], 1, 4096);
}

#[test]
fn extents_of_small_blocks() {
    cut_everywhere(&["-t", "ext4", "-b", "1024"], 2, 1024);
}

#[test]
fn indirect_blocks() {
    cut_everywhere(&["-t", "ext3", "-b", "1024"], 3, 1024);
}

/// The label that a volume and the copies of its superblock have after a cut at any point of its change.
#[test]
fn a_label_is_the_old_or_the_new_one() {
    let recorder = Recorder::new(mke2fs(&["-t", "ext4", "-b", "1024"]));
    let fs = mount(Arc::new(recorder.clone()), manual());
    fs.set_label(b"old").unwrap();
    recorder.mark(0);
    fs.set_label(b"new").unwrap();
    recorder.mark(1);
    fs.close().unwrap();
    drop(fs);
    let recording = recorder.recording();
    let mark = |n| recording.events().iter().position(|event| matches!(event, Event::Mark(m) if *m == n));
    let (begun, done) = (mark(0).unwrap(), mark(1).unwrap());
    let mut walk = Walk::new(&recording);
    let (mut olds, mut news, mut torn) = (0, 0, 0);
    for cut in begun + 1..=recording.events().len() {
        walk.go_to(cut);
        for keep in walk.keeps(3, 2, 7) {
            let what = format!("cut {cut} of {done} {keep:?}");
            let dev = Arc::new(MemDevice::from_image(walk.build(keep).image));
            let Some(fs) = recover(dev.clone()) else {
                torn += 1;
                continue;
            };
            let label = fs.label().unwrap();
            fs.close().unwrap();
            let image = dev.snapshot();
            let copies = [1_u64, 3, 5].map(|group| {
                let mut copy = vec![0; 3];
                image.read((1 + 8192 * group) * 1024 + 120, &mut copy);
                copy
            });
            assert!(copies.iter().all(|copy| *copy == label), "{what}: {label:?}, copies {copies:?}");
            match label.as_slice() {
                b"old" if cut <= done => olds += 1,
                b"new" => news += 1,
                other => panic!("{what}: {other:?}"),
            }
            if cut % 5 == 0 {
                e2fsck(&image, &what);
            }
        }
    }
    assert!(olds > 5 && news > 5 && torn < news / 2, "{olds} old, {news} new, {torn} torn");
}
