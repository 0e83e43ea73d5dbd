//! Work on numbered pieces by all cores, with progress reported by the calling thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::context::lock;
use crate::error::{Error, Result};

/// Runs `work` for each piece below `pieces`, each thread with a state of its own from `start`. The first
/// error stops all. `report` gets the number of pieces done, and may stop by an error.
pub fn for_each<S>(
    threads: usize,
    pieces: u64,
    report: &mut dyn FnMut(u64) -> Result<()>,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, u64) -> Result<()> + Sync,
) -> Result<()> {
    let (next, done, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failure: std::sync::Mutex<Option<Error>> = std::sync::Mutex::new(None);
    let fail = |error| {
        stop.store(true, Relaxed);
        lock(&failure).get_or_insert(error);
    };
    let run = |mut report: Option<&mut dyn FnMut(u64) -> Result<()>>| {
        let mut state = start();
        while !stop.load(Relaxed) {
            let piece = next.fetch_add(1, Relaxed);
            if piece >= pieces {
                break;
            }
            let worked = work(&mut state, piece);
            let done = done.fetch_add(1, Relaxed) + 1;
            let reported = report.as_mut().map_or(Ok(()), |report| report(done));
            if let Err(error) = worked.and(reported) {
                fail(error);
            }
        }
    };
    let threads = threads.min(usize::try_from(pieces).unwrap_or(usize::MAX)).max(1);
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(|| run(None))).collect();
        run(Some(&mut *report));
        while helpers.iter().any(|helper| !helper.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
            if let Err(error) = report(done.load(Relaxed)) {
                fail(error);
            }
        }
    });
    match lock(&failure).take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
