//! Whether the rounds of repair come to an end: repairs that return round after round do not.

use std::collections::BTreeSet;

use crate::problem::Code;
use crate::report::Finding;

/// Rounds with the same repairs, one after the other, that make a circle.
const CIRCLE: usize = 3;

/// A repair, whatever the values that it put right.
type Repair = (Code, Option<u32>, Option<u32>, Option<u64>);

/// The repairs of each turn so far.
#[derive(Default)]
pub struct Turns(Vec<BTreeSet<Repair>>);

impl Turns {
    /// Adds the repairs of a turn.
    pub fn add(&mut self, findings: &[Finding]) {
        let fixed = findings.iter().filter(|finding| finding.fixed && finding.problem.code.is_damage());
        self.0.push(fixed.map(repair).collect());
    }

    /// Whether the last turns all made the same repairs.
    #[must_use]
    pub fn go_in_circles(&self) -> bool {
        let last = self.0.last().filter(|last| !last.is_empty());
        last.is_some_and(|last| self.0.iter().rev().take_while(|turn| *turn == last).count() >= CIRCLE)
    }

    /// Whether the last turn made the repairs of an earlier one, all of them.
    #[must_use]
    pub fn repeats(&self) -> bool {
        let Some((last, earlier)) = self.0.split_last() else { return false };
        !last.is_empty() && earlier.contains(last)
    }

    /// The kinds of repairs that were made in more than one turn, by name.
    #[must_use]
    pub fn returning(&self) -> String {
        let mut seen = BTreeSet::new();
        let mut names = BTreeSet::new();
        for repair in self.0.iter().flatten() {
            if !seen.insert(repair) {
                names.insert(repair.0.row().name);
            }
        }
        names.into_iter().collect::<Vec<_>>().join(", ")
    }
}

fn repair(finding: &Finding) -> Repair {
    let problem = &finding.problem;
    (
        problem.code,
        problem.ino.map(ext4_format::Ino::get),
        problem.group.map(|group| group.0),
        problem.block.map(|block| block.0),
    )
}

#[cfg(test)]
mod tests {
    use ext4_format::Ino;

    use super::*;
    use crate::problem::Problem;

    fn turn(inodes: &[u32]) -> Vec<Finding> {
        let problem = |ino: &u32| Problem::of(Code::MultiplyClaimed, Ino::new(*ino).unwrap());
        let finding = |ino| Finding { problem: problem(ino).values(*ino, 0_u32), fixed: true, path: None };
        inodes.iter().map(finding).collect()
    }

    #[test]
    fn a_circle_is_the_same_repairs_again_and_again() {
        let mut turns = Turns::default();
        for inodes in [&[12, 13][..], &[13], &[13]] {
            turns.add(&turn(inodes));
            assert!(!turns.go_in_circles());
        }
        turns.add(&turn(&[13]));
        assert!(turns.go_in_circles());
        assert_eq!(turns.returning(), "multiply-claimed");
        turns.add(&[]);
        assert!(!turns.go_in_circles() && !turns.repeats());
    }

    #[test]
    fn two_states_that_follow_each_other_are_one_too() {
        let mut turns = Turns::default();
        for inodes in [[12], [13]] {
            turns.add(&turn(&inodes));
            assert!(!turns.repeats());
        }
        turns.add(&turn(&[12]));
        assert!(turns.repeats() && !turns.go_in_circles());
    }
}
