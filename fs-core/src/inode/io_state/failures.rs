//! What fsync has to report: the last failure to write a file's data, once to each open file description, as
//! the kernel's `errseq_t` does. A file that is opened after the failure is told only if nobody has been yet.

use crate::error::Error;

/// Up to where an open file description has been told of a file's write errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorCursor(u64);

/// The last failure of a file's writes.
#[derive(Debug, Default)]
pub struct Failures {
    /// `None` after a failure that was taken back.
    last: Option<Error>,
    /// Failures so far.
    count: u64,
    /// Whether somebody was told of the last one.
    seen: bool,
}

impl Failures {
    /// A write has failed.
    pub fn record(&mut self, error: Error) {
        self.last = Some(error);
        self.count += 1;
        self.seen = false;
    }

    /// The cursor of a file that is being opened.
    #[must_use]
    pub fn cursor(&self) -> ErrorCursor {
        ErrorCursor(if self.seen { self.count } else { self.count.saturating_sub(1) })
    }

    /// What has not been reported at `cursor` yet, which moves on.
    pub fn report(&mut self, cursor: &mut ErrorCursor) -> Option<Error> {
        if cursor.0 == self.count {
            return None;
        }
        cursor.0 = self.count;
        self.seen |= self.last.is_some();
        self.last.as_ref().map(Error::echo)
    }

    /// Takes a failure back that was reported to its writer by the writer's own call.
    pub fn forget_if(&mut self, known: impl FnOnce(&Error) -> bool) {
        self.last.take_if(|error| known(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Posix;

    #[test]
    fn each_open_file_is_told_once() {
        let mut failures = Failures::default();
        let (mut first, mut second) = (failures.cursor(), failures.cursor());
        let told = |failures: &mut Failures, cursor: &mut ErrorCursor| failures.report(cursor).is_some();
        assert!(!told(&mut failures, &mut first));
        failures.record(Posix::Busy.into());
        // Opened later, but before anybody knew.
        let mut third = failures.cursor();
        assert!(told(&mut failures, &mut third) && !told(&mut failures, &mut third));
        let mut fourth = failures.cursor();
        assert!(!told(&mut failures, &mut fourth));
        for cursor in [&mut first, &mut second] {
            assert!(told(&mut failures, cursor) && !told(&mut failures, cursor));
        }
        failures.record(Posix::Busy.into());
        for cursor in [&mut first, &mut second, &mut third, &mut fourth] {
            assert!(told(&mut failures, cursor) && !told(&mut failures, cursor));
        }
    }

    #[test]
    fn what_was_taken_back_is_told_to_nobody() {
        let mut failures = Failures::default();
        let mut open = failures.cursor();
        failures.record(Error::NoSpace);
        failures.forget_if(|error| matches!(error, Error::NoSpace));
        assert!(failures.report(&mut open).is_none());
        failures.record(Posix::Busy.into());
        failures.forget_if(|error| matches!(error, Error::NoSpace));
        assert!(failures.report(&mut open).is_some());
    }
}
