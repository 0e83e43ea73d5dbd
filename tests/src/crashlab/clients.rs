//! Several clients at once, deterministically: one acts at a time, and whenever one is about to write file
//! data, which is when the filesystem holds no lock that others need, the dice may let another come in
//! between, on a thread of its own, up to the end of its step; and so on inside of that.
//!
//! Invariant: clients have disjoint directories, so that a step that came in never waits for the one it
//! interrupted. What touches all files (syncfs, the workers) neither comes in nor is interrupted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use blockdev::sim::Dice;
use fs_core::Filesystem;
use parking_lot::Mutex;

use super::ledger::Ledger;
use super::ops::Persist;
use super::subject::Client;

/// The clients of a run.
pub struct Crowd {
    /// Who is in the middle of a step is not at home.
    clients: Mutex<Vec<Option<Client>>>,
    fs: Arc<Filesystem>,
    /// What is promised to them.
    pub ledger: Ledger,
    dice: Mutex<Dice>,
    /// Something that touches all files is under way.
    undisturbed: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Crowd {
    /// All of them idle.
    #[must_use]
    pub fn new(clients: Vec<Client>, fs: Arc<Filesystem>, ledger: Ledger, seed: u64) -> Crowd {
        Crowd {
            clients: Mutex::new(clients.into_iter().map(Some).collect()),
            fs,
            ledger,
            dice: Mutex::new(Dice::new(seed)),
            undisturbed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Until all have done their steps.
    ///
    /// # Errors
    /// The first failure of any of them.
    pub fn run(&self) -> Result<()> {
        while self.one_step(false)? {
            if let Some(failure) = self.failure.lock().take() {
                return Err(failure);
            }
        }
        self.failure.lock().take().map_or(Ok(()), Err)
    }

    /// In the middle of somebody's step: a commit, or a step of somebody else.
    pub fn interrupt(&self) {
        if self.undisturbed.load(Ordering::SeqCst) {
            return;
        }
        if self.dice.lock().one_in(2) {
            // A failed commit aborts the journal, which the clients notice by themselves.
            drop(self.fs.step_commit());
            return;
        }
        // A thread has one handle and one stack of locks, so the other client needs its own.
        let came = std::thread::scope(|scope| scope.spawn(|| self.one_step(true)).join());
        if let Ok(Err(failure)) = came {
            self.failure.lock().get_or_insert(failure);
        }
    }

    /// A step of some client who is at home and has one left; `false` when there is none.
    fn one_step(&self, comes_in: bool) -> Result<bool> {
        let Some(mut client) = self.take_one(comes_in) else { return Ok(false) };
        let done = self.step(&mut client, comes_in).with_context(|| client.actor.home().to_owned());
        let index = client.index();
        self.clients.lock()[index] = Some(client);
        done.map(|()| true)
    }

    fn step(&self, client: &mut Client, comes_in: bool) -> Result<()> {
        let Some(step) = client.todo.pop_front() else { return Ok(()) };
        client.apply(step.op(), &self.ledger).with_context(|| format!("{:?}", step.op()))?;
        if !comes_in {
            self.undisturbed.store(true, Ordering::SeqCst);
            client.background();
            self.undisturbed.store(false, Ordering::SeqCst);
        }
        self.undisturbed.store(step.then == Persist::Sync, Ordering::SeqCst);
        let persisted = client.persist(&step, &self.ledger);
        self.undisturbed.store(false, Ordering::SeqCst);
        persisted.with_context(|| format!("{:?} {:?}", step.then, step.op()))
    }

    fn take_one(&self, comes_in: bool) -> Option<Client> {
        let mut clients = self.clients.lock();
        let may = |client: &Client| match client.todo.front() {
            Some(next) => !(comes_in && next.then == Persist::Sync),
            None => false,
        };
        let ready: Vec<usize> =
            (0..clients.len()).filter(|&at| clients[at].as_ref().is_some_and(may)).collect();
        if ready.is_empty() {
            return None;
        }
        clients[*self.dice.lock().pick(&ready)].take()
    }
}
