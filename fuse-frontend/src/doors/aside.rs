//! Replies that leave the client on its processor.
//!
//! A ring's thread and its client share a processor, which makes a round trip two switches between them.
//! The scheduler likes to undo that: it wakes the client while the replying thread still runs, and
//! finds any idle processor a better place. Waking that one costs several times the round trip (in a virtual
//! machine the host has to run it first), the client's caches are cold there, and the next reply
//! sends it back. But a processor that runs nothing above SCHED_IDLE counts as idle: with that policy a
//! thread sends its reply and has stepped aside for the client.
//!
//! On a processor with other work such a thread hardly runs at all. So it has the policy for the moment of
//! sending only, holding no lock; and a watch looks whether somebody does not come out of this moment, gives
//! the thread its policy back, and has nobody do it for the next second.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuse_uring::Policy;
use parking_lot::Mutex;

use super::reserve::Reserve;
use super::wanderers::Wanderers;

/// How often the watch looks, while there is something to be seen. A thread is helped after one to two.
const TICK: Duration = Duration::from_millis(2);
/// Ticks for which nobody steps aside after somebody had to be helped.
const PAUSE: u32 = 500;
/// Ticks without a reply after which the watch goes to sleep.
const QUIET: u32 = 50;

/// The threads that may step aside, and whom for.
pub struct Aside {
    wanderers: Wanderers,
    seats: Mutex<Vec<Arc<Moment>>>,
    paused: AtomicBool,
    awake: AtomicBool,
    wake: SyncSender<()>,
}

/// Whether a thread is sending.
struct Moment {
    thread: i32,
    /// Odd while it has [`Policy::Idle`].
    turns: AtomicU64,
}

/// A thread's right to step aside.
pub struct Seat {
    aside: Arc<Aside>,
    moment: Arc<Moment>,
}

/// What the watch remembers from tick to tick.
#[derive(Default)]
struct Watch {
    seen: Vec<(i32, u64)>,
    quiet: u32,
    pause: u32,
}

impl Aside {
    fn new(wake: SyncSender<()>) -> Aside {
        let [paused, awake] = [false, false].map(AtomicBool::new);
        Aside { wanderers: Wanderers::new(), seats: Mutex::default(), paused, awake, wake }
    }

    /// Starts the watch on a thread of `reserve`. `None` when threads could step aside but not come back,
    /// or have a policy of their own.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(reserve: &Reserve) -> io::Result<Option<Arc<Aside>>> {
        let (wake, wakes) = sync_channel(1);
        let (tell, told) = sync_channel(1);
        let aside = Arc::new(Aside::new(wake));
        let watched = Arc::downgrade(&aside);
        reserve.run("rext4-watch", move || {
            let can = can_come_back();
            // Nobody listens any more: then nobody steps aside either.
            if tell.send(can).is_ok() && can {
                watch(&watched, &wakes);
            }
        })?;
        Ok(told.recv().unwrap_or(false).then_some(aside))
    }

    /// For the calling thread, which alone may use it.
    #[must_use]
    pub fn seat(self: &Arc<Self>) -> Seat {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        let moment = Arc::new(Moment { thread, turns: AtomicU64::new(0) });
        self.seats.lock().push(moment.clone());
        Seat { aside: self.clone(), moment }
    }

    /// One tick. False when the watch may sleep.
    fn look(&self, watch: &mut Watch) -> bool {
        let now: Vec<(i32, u64)> =
            self.seats.lock().iter().map(|m| (m.thread, m.turns.load(Ordering::SeqCst))).collect();
        let is_stuck = |seen: &&(i32, u64)| seen.1 % 2 == 1 && watch.seen.contains(seen);
        let stuck: Vec<i32> = now.iter().filter(is_stuck).map(|seen| seen.0).collect();
        watch.pause = if stuck.is_empty() { watch.pause.saturating_sub(1) } else { PAUSE };
        self.paused.store(watch.pause > 0, Ordering::SeqCst);
        stuck.into_iter().for_each(come_back);
        watch.quiet = if now == watch.seen { watch.quiet + 1 } else { 0 };
        watch.seen = now;
        watch.quiet < QUIET || watch.pause > 0
    }

    /// Whether the watch may sleep now. Who begins to send after this sees that it does.
    fn falls_asleep(&self) -> bool {
        self.awake.store(false, Ordering::SeqCst);
        self.seats.lock().iter().all(|m| m.turns.load(Ordering::SeqCst).is_multiple_of(2))
    }

    fn wake_watch(&self) {
        if !self.awake.load(Ordering::SeqCst) && !self.awake.swap(true, Ordering::SeqCst) {
            // Full means that it has been called already.
            let _ = self.wake.try_send(());
        }
    }
}

impl Seat {
    /// Whether to step aside for the client of this request: [`Wanderers::follow`].
    #[must_use]
    pub fn follow(&self, thread: u32, unique: u64, processor: u16) -> bool {
        self.aside.wanderers.follow(thread, unique, processor)
    }

    /// Sends, having stepped aside if nobody had trouble with that lately.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn step_aside(&self, send: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.aside.paused.load(Ordering::SeqCst) {
            return send();
        }
        self.moment.turns.fetch_add(1, Ordering::SeqCst);
        self.aside.wake_watch();
        let sent = Policy::Idle.give(self.moment.thread).and_then(|()| send());
        come_back(self.moment.thread);
        self.moment.turns.fetch_add(1, Ordering::SeqCst);
        sent
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.aside.seats.lock().retain(|moment| !Arc::ptr_eq(moment, &self.moment));
    }
}

/// Tries it with the calling thread.
fn can_come_back() -> bool {
    let me = rustix::thread::gettid().as_raw_nonzero().get();
    Policy::of(me) == Some(Policy::Other)
        && Policy::Idle.give(me).and_then(|()| Policy::Other.give(me)).is_ok()
}

fn come_back(thread: i32) {
    // Possible when the door was opened; whoever took the right away since has a slow server.
    if let Err(error) = Policy::Other.give(thread) {
        tracing::warn!(thread, %error, "a thread keeps the policy SCHED_IDLE");
    }
}

/// Looks after the threads until nobody is left who could step aside.
fn watch(aside: &Weak<Aside>, wakes: &Receiver<()>) {
    let mut watch = Watch::default();
    while wakes.recv().is_ok() {
        loop {
            std::thread::sleep(TICK);
            let Some(aside) = aside.upgrade() else { return };
            if !aside.look(&mut watch) && aside.falls_asleep() {
                break;
            }
        }
        watch = Watch::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Option<Arc<Aside>> {
        let aside = Aside::start(&Reserve::new(1).unwrap()).unwrap();
        assert_eq!(aside.is_some(), can_come_back());
        aside
    }

    /// The policy of the calling thread while it sends.
    fn while_sending(seat: &Seat) -> Option<Policy> {
        let mut inside = None;
        seat.step_aside(|| {
            inside = Policy::of(seat.moment.thread);
            Ok(())
        })
        .unwrap();
        inside
    }

    /// On a busy machine this thread may be helped before it has looked, and so each is tried until it is
    /// seen. They hang if it never is.
    #[test]
    fn a_reply_is_sent_as_idle_and_nothing_else_is() {
        let Some(aside) = start() else { return };
        let seat = aside.seat();
        while while_sending(&seat) != Some(Policy::Idle) {}
        assert_eq!(Policy::of(seat.moment.thread), Some(Policy::Other));
        assert!(seat.step_aside(|| Err(io::ErrorKind::NotConnected.into())).is_err());
        assert_eq!(Policy::of(seat.moment.thread), Some(Policy::Other));
    }

    #[test]
    fn who_does_not_get_to_run_is_helped() {
        let Some(aside) = start() else { return };
        let seat = aside.seat();
        seat.step_aside(|| {
            while Policy::of(seat.moment.thread) == Some(Policy::Idle) {
                std::thread::yield_now();
            }
            Ok(())
        })
        .unwrap();
        while while_sending(&seat) != Some(Policy::Idle) {}
    }

    #[test]
    fn nobody_follows_for_a_while() {
        let (wake, _wakes) = sync_channel(1);
        let aside = Arc::new(Aside::new(wake));
        let (seat, mut watch) = (aside.seat(), Watch::default());
        let paused = || aside.paused.load(Ordering::SeqCst);
        for _ in 0..2 {
            seat.step_aside(|| {
                aside.look(&mut watch);
                assert!(!paused(), "it has only begun");
                aside.look(&mut watch);
                Ok(())
            })
            .unwrap();
            assert!(paused());
            assert_eq!(while_sending(&seat), Policy::of(seat.moment.thread), "not now");
            assert_eq!((0..PAUSE).take_while(|_| paused()).map(|_| aside.look(&mut watch)).count(), 500);
        }
    }

    #[test]
    fn the_watch_sleeps_and_wakes() {
        let Some(aside) = start() else { return };
        let seat = aside.seat();
        for _ in 0..2 {
            seat.step_aside(|| Ok(())).unwrap();
            while aside.awake.load(Ordering::SeqCst) {
                std::thread::sleep(TICK);
            }
        }
    }
}
