//! The filesystem under power cuts: every sequence of one operation, promise by promise (docs/DURABILITY.md),
//! and a few of two. `make crash` goes through all of them on every kind of volume.

use blockdev::sim::Dice;
use tests::crashlab::epochs::Density;
use tests::crashlab::judge::{Court, Tally};
use tests::crashlab::ops::{Persist, Workload};
use tests::crashlab::subject::{self, Config};
use tests::crashlab::{kernel, workload};

/// Judges the workloads that `wanted` picks; debug builds check the order of locks meanwhile.
fn judge(config: &str, length: usize, share: usize, wanted: impl Fn(&Workload) -> bool) -> Tally {
    let config: &Config = subject::config(config).unwrap();
    let base = config.base().unwrap();
    let density = Density { exhaustive: 3, sampled: 2, seed: 1 };
    let kernel_every = if kernel::available() {
        100
    } else {
        assert!(std::env::var_os("CI").is_none(), "the kernel's opinion needs root and loop devices");
        eprintln!("SKIPPED: the kernel's opinion needs root and loop devices");
        0
    };
    let court = Court { kernel_every, recut_every: 40, density, may_be_flagged: false };
    let mut tally = Tally::default();
    for (salt, workload) in workload::all(length, config.format()).iter().filter(|w| wanted(w)).enumerate() {
        if salt % share != 0 {
            continue;
        }
        let run = config.run(&base, workload, 1).unwrap_or_else(|why| panic!("{workload}: {why:#}"));
        let judged = court.judge_all(config, &run, salt as u64);
        tally += judged.unwrap_or_else(|(state, why)| panic!("{workload} at {state}: {why:#}"));
    }
    eprintln!("{}: {tally:?}", config.name);
    assert!(tally.states > 50, "{tally:?}");
    tally
}

fn ends_in(workload: &Workload, persist: Persist) -> bool {
    workload.0.last().is_some_and(|step| step.then == persist)
}

#[test]
fn fsync_makes_content_names_and_attributes_durable() {
    judge("4k", 1, 1, |workload| ends_in(workload, Persist::Fsync));
}

#[test]
fn fdatasync_makes_content_size_and_birth_durable() {
    judge("1k", 1, 1, |workload| ends_in(workload, Persist::Fdatasync));
}

#[test]
fn fsync_of_a_directory_makes_its_entries_durable() {
    judge("wrap", 1, 1, |workload| ends_in(workload, Persist::FsyncParent));
}

#[test]
fn syncfs_makes_everything_durable() {
    judge("ext3", 1, 1, |workload| ends_in(workload, Persist::Sync));
}

#[test]
fn two_operations_in_a_row_keep_their_promises() {
    judge("4k", 2, 400, |_| true);
    judge("wrap", 2, 400, |_| true);
}

/// Each of these was broken once, and found by the lab.
#[test]
fn what_the_lab_has_found_stays_found() {
    let regressions: [&str; 6] = [
        // An inode that was forgotten and read again did not know that it had to be committed.
        "0f", "0d",
        // A zeroed range swallowed dirty data together with the size they would have brought.
        "21n,40f",
        // Data written after a collapse reached blocks that the disk still showed elsewhere in the file.
        "41n,20f", "42n,22f", // fdatasync of a directory left its names to the next commit.
        "25f,2p",
    ];
    let regressions: Vec<Workload> = regressions.iter().map(|text| text.parse().unwrap()).collect();
    let length_two: Vec<_> = regressions.iter().filter(|w| w.0.len() == 2).collect();
    judge("4k", 1, 1, |workload| regressions.contains(workload) || ends_in(workload, Persist::Sync));
    judge("4k", 2, 1, |workload| length_two.contains(&workload));
}

#[test]
fn failing_devices_take_nothing_that_was_durable() {
    let density = Density { exhaustive: 3, sampled: 2, seed: 1 };
    let court = Court { kernel_every: 0, recut_every: 0, density, may_be_flagged: true };
    let config = subject::config("4k").unwrap();
    let base = config.base().unwrap();
    let mut tally = Tally::default();
    let sampled = (0..60).map(|seed| (workload::sample(3, config.format(), &mut Dice::new(seed)), seed));
    // Where syncfs said nothing of data that were lost, and fdatasync nothing of data that stayed in memory.
    let found = [("39s,26s,11p", 14849), ("15s,19s", 22273), ("19n,8d,35f", 137_729)]
        .map(|(text, seed)| (text.parse().unwrap(), seed));
    for (workload, seed) in sampled.chain(found) {
        let run = config.run_on_failing(&base, &workload, seed).unwrap();
        let judged = court.judge_all(config, &run, seed);
        tally += judged.unwrap_or_else(|(state, why)| panic!("seed {seed}: {workload} at {state}: {why:#}"));
    }
    eprintln!("failing devices: {tally:?}");
    assert!(tally.states > 200, "{tally:?}");
}

/// Steps of three clients with a directory each, interleaved at every write of file data.
#[test]
fn several_clients_at_once_keep_their_promises() {
    let homes = ["one", "two", "three"].map(String::from);
    let density = Density { exhaustive: 2, sampled: 1, seed: 1 };
    let court = Court { kernel_every: 0, recut_every: 40, density, may_be_flagged: false };
    for name in ["4k", "1k"] {
        let config = subject::config(name).unwrap();
        let base = config.base_for(&homes).unwrap();
        let mut tally = Tally::default();
        for seed in 1..3 {
            let run =
                config.run_crowd(&base, &homes, seed).unwrap_or_else(|why| panic!("seed {seed}: {why:#}"));
            let judged = court.judge_all(config, &run, seed);
            tally += judged.unwrap_or_else(|(state, why)| panic!("seed {seed} at {state}: {why:#}"));
        }
        eprintln!("{name}: {tally:?}");
        assert!(tally.states > 200, "{tally:?}");
    }
}

/// Nothing is atomic and a check comes first; but what a syncfs had made durable and nobody touched is there.
#[test]
fn without_a_journal_what_was_synced_and_left_alone_is_there() {
    judge("unlogged", 1, 4, |_| true);
    judge("unlogged", 2, 800, |_| true);
}
