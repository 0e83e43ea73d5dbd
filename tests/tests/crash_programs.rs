//! Real programs on a served volume under power cuts: each program's own check of integrity on every sampled
//! state. `make crash` takes more states and more rounds.

use tests::crashlab::epochs::Density;
use tests::crashlab::judge::Court;
use tests::crashlab::programs::{self, program};
use tests::scale::{Need, can_run, pick};

fn judge(name: &str, block: u32, storm: Option<u64>) {
    let program = program(name).unwrap();
    if !can_run(name, &[Need::Root, Need::Loop, Need::Fuse]) {
        return;
    }
    let base = programs::base(block).unwrap();
    let recording = programs::record(program, &base, pick(24, 120), storm).unwrap();
    let density = Density { exhaustive: 0, sampled: 0, seed: 0 };
    let court = Court { kernel_every: 4, recut_every: 0, density, may_be_flagged: false };
    let tally = programs::judge(&court, program, &recording, pick(24, 400), 1)
        .unwrap_or_else(|why| panic!("{why:#}"));
    eprintln!("{name}: {} events, {tally:?}", recording.events().len());
}

#[test]
fn sqlite_keeps_its_transactions_with_a_rollback_journal() {
    judge("sqlite-rollback", 4096, Some(1));
}

#[test]
fn sqlite_keeps_its_transactions_with_a_write_ahead_log() {
    judge("sqlite-wal", 4096, None);
    judge("sqlite-wal", 1024, None);
}

#[test]
fn a_repository_of_git_stays_whole() {
    judge("git", 4096, None);
}

#[test]
fn delivered_mails_are_whole_and_present() {
    judge("spool", 1024, Some(2));
}

#[test]
fn installed_packages_are_old_or_new() {
    judge("packages", 4096, Some(3));
}

#[test]
fn what_msync_has_answered_is_there() {
    judge("mapped", 4096, None);
}
