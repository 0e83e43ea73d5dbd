//! SIGINT and SIGTERM end the check at its next step, and a question that waits for its answer. SIGUSR1 and
//! SIGUSR2 show and hide the progress.

use std::io::{self, stdin};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

/// What signals have asked for.
#[derive(Clone, Default)]
pub struct Interrupt {
    /// The check is to end.
    pub cancelled: Arc<AtomicBool>,
    shows: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes the signals for this process; `shows` tells whether progress is shown from the start. Must come
    /// before any other thread.
    ///
    /// # Errors
    /// The system's.
    pub fn listen(shows: bool) -> io::Result<Interrupt> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2] {
            set.add(signal);
        }
        set.thread_block()?;
        let interrupt = Interrupt { shows: Arc::new(AtomicBool::new(shows)), ..Interrupt::default() };
        let told = interrupt.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(signal) = set.wait() {
                match signal {
                    Signal::SIGUSR1 => told.shows.store(true, Ordering::Relaxed),
                    Signal::SIGUSR2 => told.shows.store(false, Ordering::Relaxed),
                    _ => told.cancelled.store(true, Ordering::Relaxed),
                }
            }
        })?;
        Ok(interrupt)
    }

    /// Whether progress is to be shown.
    pub fn shows_progress(&self) -> bool {
        self.shows.load(Ordering::Relaxed)
    }

    /// A line of the standard input; `None` at its end, and when a signal has come.
    pub fn line(&self) -> Option<String> {
        const TURN_MS: u16 = 100;
        let (input, mut line) = (stdin(), Vec::new());
        while !self.cancelled.load(Ordering::Relaxed) {
            let mut waits = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
            if matches!(poll(&mut waits, PollTimeout::from(TURN_MS)), Ok(0)) {
                continue;
            }
            // Byte by byte: what was read ahead could not be waited for.
            let mut byte = [0];
            match nix::unistd::read(input.as_fd(), &mut byte) {
                Ok(1) if byte[0] == b'\n' => return Some(String::from_utf8_lossy(&line).into_owned()),
                Ok(1) => line.push(byte[0]),
                _ => return None,
            }
        }
        None
    }
}
