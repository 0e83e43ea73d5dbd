//! What fsync has to tell: the last failure to write a file's data, told once to each opening of the
//! file, as the kernel's `errseq_t` does. An opening that came after the failure hears of it only if nobody
//! has yet.

use smallvec::SmallVec;

use crate::error::Error;
use crate::types::OpenId;

/// The last failure of a file's writes, and who was told.
#[derive(Debug, Default)]
pub struct Failures {
    last: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    error: Error,
    /// The newest opening of any file when it happened.
    at: OpenId,
    /// Bounded by the openings that the file had when it happened.
    told: SmallVec<[OpenId; 2]>,
}

impl Failures {
    /// A write has failed; `now` is the newest opening of any file.
    pub fn record(&mut self, error: Error, now: OpenId) {
        self.last = Some(Failure { error, at: now, told: SmallVec::new() });
    }

    /// What `opening` has not been told yet.
    pub fn tell(&mut self, opening: OpenId) -> Option<Error> {
        let failure = self.last.as_mut()?;
        let news = failure.told.is_empty() || (opening <= failure.at && !failure.told.contains(&opening));
        if news {
            failure.told.push(opening);
        }
        news.then(|| failure.error.echo())
    }

    /// Forgets a failure that is `known` to its writer, who was told by his own call.
    pub fn forget_if(&mut self, known: impl FnOnce(&Error) -> bool) {
        self.last.take_if(|failure| known(&failure.error));
    }

    /// Nobody has the file open any more: what was told once is told to no later opening.
    pub fn all_closed(&mut self) {
        self.last.take_if(|failure| !failure.told.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Posix;

    fn told(failures: &mut Failures, opening: u64) -> bool {
        failures.tell(OpenId(opening)).is_some()
    }

    #[test]
    fn each_opening_hears_once() {
        let mut failures = Failures::default();
        assert!(!told(&mut failures, 1));
        failures.record(Posix::Busy.into(), OpenId(3));
        // 1 and 3 were open. 4 comes later, but before anybody knew; 5 comes after that.
        let heard = [4, 4, 5, 1, 3, 1, 3].map(|opening| told(&mut failures, opening));
        assert_eq!(heard, [true, false, false, true, true, false, false]);
        failures.record(Posix::Busy.into(), OpenId(5));
        assert!([1, 3, 4, 5].into_iter().all(|opening| told(&mut failures, opening)));
        failures.all_closed();
        assert!(!told(&mut failures, 2));
    }

    #[test]
    fn what_nobody_heard_outlives_the_last_close() {
        let mut failures = Failures::default();
        failures.record(Posix::Busy.into(), OpenId(3));
        failures.all_closed();
        assert!(told(&mut failures, 9) && !told(&mut failures, 10));
    }
}
