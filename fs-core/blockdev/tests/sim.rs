//! The simulated devices against plain models of themselves.

use blockdev::sim::{
    Dice, Fault, FaultDevice, Fill, Image, Keep, MemDevice, Recorder, StateName, Walk, When,
};
use blockdev::{BlockDevice, Op};
use proptest::prelude::*;

const SIZE: usize = 600 << 10;

#[derive(Clone, Debug)]
enum Step {
    Write { at: usize, len: usize, byte: u8 },
    Zero { at: usize, len: usize },
    Refill { at: usize, len: usize },
    Copy,
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    (0..SIZE, prop_oneof![1usize..600, 1usize..20_000, Just(300 << 10)])
        .prop_map(|(at, len)| (at, len.min(SIZE - at)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write { at, len, byte }),
        1 => range().prop_map(|(at, len)| Step::Zero { at, len }),
        1 => range().prop_map(|(at, len)| Step::Refill { at, len }),
        1 => Just(Step::Copy),
    ]
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read(0, &mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn an_image_is_a_vector_and_its_copies_stay(
        steps in proptest::collection::vec(step(), 1..25),
        own in prop_oneof![Just(Fill::Zero), Just(Fill::Stale(7))],
    ) {
        let mut image = Image::new(SIZE as u64, own);
        let fresh = content(&image);
        let mut model = fresh.clone();
        let mut copies = vec![];
        for step in steps {
            match step {
                Step::Write { at, len, byte } => {
                    image.write(at as u64, &vec![byte; len]);
                    model[at..at + len].fill(byte);
                }
                Step::Zero { at, len } => {
                    image.fill(at as u64, len as u64, Fill::Zero);
                    model[at..at + len].fill(0);
                }
                Step::Refill { at, len } => {
                    image.fill(at as u64, len as u64, own);
                    model[at..at + len].copy_from_slice(&fresh[at..at + len]);
                }
                Step::Copy => copies.push((image.clone(), model.clone())),
            }
        }
        copies.push((image.clone(), model));
        for (image, model) in &copies {
            prop_assert!(content(image) == *model);
        }
        // What is not listed as written reads as the fill.
        let mut rest = fresh;
        for range in image.written() {
            let (start, end) = (range.start as usize, range.end as usize);
            image.read(range.start, &mut rest[start..end]);
        }
        prop_assert!(rest == copies.last().unwrap().1);
    }
}

#[test]
fn stale_bytes_tell_where_they_are_from() {
    let image = Image::new(1 << 20, Fill::Stale(0xabcd));
    let mut word = [0; 8];
    image.read(0x1238, &mut word);
    assert_eq!(u64::from_le_bytes(word), 0xabcd_0000_0000_1238);
}

/// A recorded history of sector writes and flushes: per sector, the values it may hold after a cut.
struct History {
    recorder: Recorder,
    /// Per sector: its settled value and the open ones since.
    may_hold: Vec<(u8, Vec<u8>)>,
}

const SECTORS: usize = 24;

impl History {
    fn run(seed: u64, steps: usize) -> History {
        let mut dice = Dice::new(seed);
        let recorder = Recorder::new(Image::new((SECTORS * 512) as u64, Fill::Zero));
        let mut may_hold = vec![(0, vec![]); SECTORS];
        for step in 0..steps {
            if dice.one_in(5) {
                recorder.flush().unwrap();
                for (settled, open) in &mut may_hold {
                    *settled = *open.last().unwrap_or(settled);
                    open.clear();
                }
                continue;
            }
            let byte = step as u8 + 1;
            let first = dice.below(SECTORS as u64) as usize;
            let count = (1 + dice.below(5) as usize).min(SECTORS - first);
            recorder.write_at((first * 512) as u64, &vec![byte; count * 512]).unwrap();
            for (_, open) in &mut may_hold[first..first + count] {
                open.push(byte);
            }
        }
        History { recorder, may_hold }
    }
}

#[test]
fn every_crash_state_holds_only_old_or_new_sectors_and_its_name_builds_it_again() {
    for seed in 0..60 {
        let steps = 30;
        let history = History::run(seed, steps);
        let recording = history.recorder.recording();
        let mut walk = Walk::new(&recording);
        let cut = recording.events().len();
        walk.go_to(cut);
        let keeps = walk.keeps(6, 20, seed);
        let mut by_fingerprint = std::collections::HashMap::new();
        for keep in keeps {
            let state = walk.build(keep);
            let bytes = content(&state.image);
            for (sector, (settled, open)) in history.may_hold.iter().enumerate() {
                let found = &bytes[sector * 512..][..512];
                assert!(found.iter().all(|byte| *byte == found[0]), "sector {sector} is mixed");
                assert!(found[0] == *settled || open.contains(&found[0]), "{seed} {keep:?} sector {sector}");
            }
            let name = StateName { cut, keep };
            let again = recording.build(name.to_string().parse().unwrap());
            assert_eq!(again.fingerprint, state.fingerprint);
            assert!(content(&again.image) == bytes);
            let same = by_fingerprint.entry(state.fingerprint).or_insert_with(|| bytes.clone());
            assert!(*same == bytes, "one fingerprint, two disks");
        }
        let distinct: std::collections::HashSet<_> = by_fingerprint.values().collect();
        assert_eq!(distinct.len(), by_fingerprint.len(), "one disk, two fingerprints");
        assert!(content(&walk.build(Keep::All).image) == content(&history.recorder.snapshot()));
    }
}

#[test]
fn few_open_writes_are_tried_in_every_combination() {
    let recorder = Recorder::new(Image::new(1 << 16, Fill::Zero));
    for i in 0..5 {
        recorder.write_at(i * 4096, &[1; 4096]).unwrap();
    }
    let recording = recorder.recording();
    let mut walk = Walk::new(&recording);
    walk.go_to(5);
    let prints: std::collections::HashSet<_> =
        walk.keeps(5, 0, 0).into_iter().map(|keep| walk.build(keep).fingerprint).collect();
    // 32 subsets, and the last write torn in three places on top of all others.
    assert_eq!(prints.len(), 32 + 3);
}

#[test]
fn state_names_are_words() {
    for name in ["0:all", "7:none", "12:m2f", "3:l9", "4:t2.7", "900:sdeadbeef"] {
        assert_eq!(name.parse::<StateName>().unwrap().to_string(), name);
    }
    for wrong in ["", "7", "7:", "x:all", "7:mxyz", "7:t3", "7:q1", "7:é"] {
        assert!(wrong.parse::<StateName>().is_err(), "{wrong}");
    }
}

#[test]
fn discarded_and_zeroed_ranges_can_be_lost_too() {
    let mut base = Image::new(1 << 16, Fill::Zero);
    base.write(0, &[9; 8192]);
    let recorder = Recorder::new(base);
    recorder.write_zeroes(0, 4096).unwrap();
    recorder.discard(4096, 4096).unwrap();
    let recording = recorder.recording();
    let first = |keep| {
        let bytes = content(&recording.build(StateName { cut: 2, keep }).image);
        (bytes[0], bytes[4096])
    };
    assert_eq!(first(Keep::Nothing), (9, 9));
    assert_eq!(first(Keep::Chosen(1)), (0, 9));
    let (zeroed, discarded) = first(Keep::All);
    assert_eq!(zeroed, 0);
    assert_ne!(discarded, 9);
}

#[test]
fn faults_strike_when_told_and_tear_between_sectors() {
    let device = FaultDevice::new(MemDevice::new(1 << 20, Fill::Zero), 3);
    let fault = |op, when, sticky| Fault { op, when, sticky, errno: 5 };
    device.arm(fault(Op::Write, When::Nth(1), false));
    let data = vec![0xee; 16 * 512];
    device.write_at(0, &data).unwrap();
    let error = device.write_at(1 << 16, &data).unwrap_err();
    assert_eq!(error.source.raw_os_error(), Some(5));
    let mut torn = vec![0; 16 * 512];
    device.read_at(1 << 16, &mut torn).unwrap();
    let sectors: Vec<u8> = torn.chunks(512).map(|sector| sector[0]).collect();
    assert!(torn.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
    assert!(sectors.contains(&0) && sectors.contains(&0xee), "{sectors:?}");
    device.write_at(1 << 16, &data).unwrap();

    let sticky = device.arm(fault(Op::Flush, When::Nth(1), true));
    assert!(device.flush().is_ok());
    assert!(device.flush().is_err());
    assert!(device.flush().is_err());
    device.disarm(sticky);
    assert!(device.flush().is_ok());

    device.arm(fault(Op::Read, When::Touching(4096..8192), true));
    let mut page = [0; 4096];
    assert!(device.read_at(0, &mut page).is_ok());
    assert!(device.read_at(8191, &mut page).is_err());
    assert!(device.read_at(8192, &mut page).is_ok());
    assert_eq!(device.struck(), 4);
}

#[test]
fn a_memory_device_keeps_to_its_end_and_its_right_to_write() {
    let device = MemDevice::new(1 << 20, Fill::Zero);
    assert!(device.write_at(u64::MAX - 1, &[0; 4]).is_err());
    assert!(device.read_at((1 << 20) - 1, &mut [0; 2]).is_err());
    let geometry = blockdev::DeviceGeometry { read_only: true, ..device.geometry() };
    let device = device.with_geometry(geometry);
    assert!(device.write_at(0, &[0]).is_err() && device.discard(0, 1).is_err());
    assert!(device.write_zeroes(0, 1).is_err() && device.read_at(0, &mut [0]).is_ok());
}
