//! Which workloads are run: every sequence of one and of two operations, and samples of longer ones.

use blockdev::sim::Dice;

use super::model::{Format, Model};
use super::ops::{Op, Persist, Step, Way, Workload, catalogue};

/// What is on the disk, durable, when a workload begins.
pub const START: &[Op] = &[
    Op::Mkdir("A"),
    Op::Mkdir("B"),
    Op::Create("foo"),
    Op::Append { file: "foo", way: Way::Cached, len: 70 },
    Op::SetXattr("foo", "user.base", 40),
    Op::Create("A/foo"),
    Op::Append { file: "A/foo", way: Way::Cached, len: 9 },
    Op::SetXattr("A/foo", "user.base", 600),
];

/// The model after [`START`], everything durable.
#[must_use]
pub fn start(format: Format) -> Model {
    let mut model = Model::new(format);
    for op in START {
        model.begin(op);
    }
    model.persisted(&START[0], Persist::Sync);
    model
}

/// Whether every step of a workload succeeds, and every persistence point has something to act on.
#[must_use]
pub fn possible(workload: &Workload, format: Format) -> bool {
    let mut model = start(format);
    workload.0.iter().all(|step| {
        let possible = model.possible(step.op()) && sensible(step);
        if possible {
            model.begin(step.op());
        }
        possible
    })
}

/// Whether the persistence point can follow the operation.
fn sensible(step: &Step) -> bool {
    let gone = matches!(step.op(), Op::Rmdir(_) | Op::Unlink(_) | Op::UnlinkOpen(_));
    let unopenable = gone || matches!(step.op(), Op::Symlink(..));
    let names = matches!(
        step.op(),
        Op::Create(_) | Op::Mkdir(_) | Op::Link(..) | Op::Rename(..) | Op::Exchange(..) | Op::Symlink(..)
    );
    match step.then {
        Persist::No | Persist::Sync => true,
        Persist::Fsync => !unopenable,
        Persist::Fdatasync => !unopenable && !matches!(step.op(), Op::Mkdir(_)),
        Persist::FsyncParent => gone || names,
    }
}

const LAST: [Persist; 4] = [Persist::Fsync, Persist::Fdatasync, Persist::FsyncParent, Persist::Sync];
const BETWEEN: [Persist; 2] = [Persist::No, Persist::Fsync];

/// Every sequence of `length` operations (one or two) that is possible: with each persistence point after
/// the last operation, and nothing or an fsync (a syncfs where there is nothing to fsync) in between.
#[must_use]
pub fn all(length: usize, format: Format) -> Vec<Workload> {
    let mut open = vec![Workload(vec![])];
    for position in 1..=length {
        let thens: &[Persist] = if position == length { &LAST } else { &BETWEEN };
        let mut longer = vec![];
        for shorter in &open {
            for op in 0..catalogue().len() {
                for &then in thens {
                    let mut step = Step { op, then };
                    if position < length && !sensible(&step) {
                        step.then = Persist::Sync;
                    }
                    let mut workload = shorter.clone();
                    workload.0.push(step);
                    if possible(&workload, format) {
                        longer.push(workload);
                    }
                }
            }
        }
        open = longer;
    }
    open
}

/// A sequence of `length` operations drawn by the dice, or fewer where they have led to a tree on which
/// hardly any operation is possible. The last one is made durable.
#[must_use]
pub fn sample(length: usize, format: Format, dice: &mut Dice) -> Workload {
    let mut model = start(format);
    let mut steps: Vec<Step> = vec![];
    let mut tries = 0;
    while steps.len() < length && tries < 200 * length {
        tries += 1;
        let op = dice.below(catalogue().len() as u64) as usize;
        let then = *dice.pick(&[Persist::No, Persist::No, LAST[0], LAST[1], LAST[2], LAST[3]]);
        let step = Step { op, then };
        if model.possible(step.op()) && sensible(&step) {
            model.begin(step.op());
            steps.push(step);
        }
    }
    if let Some(last) = steps.last_mut().filter(|last| last.then == Persist::No) {
        last.then = Persist::Sync;
    }
    Workload(steps)
}
