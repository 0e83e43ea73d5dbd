//! The journal alone under power cuts: a small share of what `make crash` does.

use jbd2::LogChecksum;
use tests::crashlab::epochs::Density;
use tests::crashlab::journal::Run;

#[test]
fn the_journal_keeps_its_promise_after_every_cut() {
    let mut states = 0;
    for seed in 0..12 {
        let checksum =
            [LogChecksum::None, LogChecksum::Compat, LogChecksum::V2, LogChecksum::V3][seed as usize % 4];
        let block_size = if seed % 3 == 0 { 4096 } else { 1024 };
        let run = Run { block_size, log_blocks: 48, checksum, steps: 40, seed };
        let density = Density { exhaustive: 4, sampled: 4, seed };
        states += run.record().unwrap().judge_all(density).unwrap();
    }
    eprintln!("{states} states");
    assert!(states > 2_000, "{states}");
}
