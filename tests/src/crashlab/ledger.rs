//! The account of a run: what had been promised to each of its clients in each epoch.
//!
//! An epoch begins when an operation of any client begins, or when something has been made durable for one.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockdev::sim::Recorder;
use parking_lot::Mutex;

use super::model::{Promise, Tree};
use super::subject::Recorded;

/// The promises to all clients, by the directory that each works in.
pub type Promises = Vec<(Arc<str>, Arc<Promise>)>;

/// What holds for a cut in one epoch.
#[derive(Clone)]
pub struct Pledge(Promises);

impl Pledge {
    /// Whether `tree` keeps every promise; the reason if not.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, tree: &Tree, block: u64) -> Result<(), String> {
        self.for_each(tree, |promise, own| promise.check(own, block))
    }

    /// The same for a volume without a journal: only what had been made durable and was not touched since.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_steady(&self, tree: &Tree) -> Result<(), String> {
        self.for_each(tree, Promise::check_steady)
    }

    fn for_each(
        &self,
        tree: &Tree,
        check: impl Fn(&Promise, &Tree) -> Result<(), String>,
    ) -> Result<(), String> {
        for (home, promise) in &self.0 {
            if home.is_empty() {
                check(promise, tree)?;
                continue;
            }
            let below = format!("{home}/");
            let own = tree.iter().filter_map(|(name, found)| Some((name.strip_prefix(&below)?, found)));
            let own: BTreeMap<_, _> = own.map(|(name, found)| (name.to_owned(), found.clone())).collect();
            check(promise, &own).map_err(|why| format!("{home}: {why}"))?;
        }
        Ok(())
    }
}

/// The account while the run goes on.
pub struct Ledger {
    recorder: Recorder,
    pages: Mutex<Pages>,
}

struct Pages {
    now: Promises,
    epochs: Vec<Pledge>,
}

impl Ledger {
    /// An account that begins with these promises, each to the client in that directory. Without any, nothing
    /// is noted.
    #[must_use]
    pub fn new(recorder: Recorder, promises: Vec<(String, Promise)>) -> Ledger {
        let now: Promises =
            promises.into_iter().map(|(home, promise)| (home.into(), Arc::new(promise))).collect();
        let ledger = Ledger { recorder, pages: Mutex::new(Pages { now, epochs: vec![] }) };
        ledger.turn(&mut ledger.pages.lock());
        ledger
    }

    /// From here on, this is promised to the client of that number.
    pub fn next_epoch(&self, client: usize, promise: Promise) {
        let mut pages = self.pages.lock();
        if let Some((_, now)) = pages.now.get_mut(client) {
            *now = Arc::new(promise);
            self.turn(&mut pages);
        }
    }

    fn turn(&self, pages: &mut Pages) {
        self.recorder.mark(pages.epochs.len() as u64);
        let pledge = Pledge(pages.now.clone());
        pages.epochs.push(pledge);
    }

    /// The run as it is now.
    #[must_use]
    pub fn close(&self) -> Recorded {
        let pledges = self.pages.lock().epochs.clone();
        Recorded { recording: self.recorder.recording(), pledges }
    }
}
