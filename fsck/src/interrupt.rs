//! SIGINT and SIGTERM end the check at its next step, and a question that waits for its answer.

use std::io::{self, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use std::os::fd::AsFd;

/// Whether a signal has come.
#[derive(Clone, Default)]
pub struct Interrupt(pub Arc<AtomicBool>);

impl Interrupt {
    /// Takes both signals for this process. Must come before any other thread.
    ///
    /// # Errors
    /// The system's.
    pub fn listen() -> io::Result<Interrupt> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block()?;
        let interrupt = Interrupt::default();
        let cancelled = Arc::clone(&interrupt.0);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            while set.wait().is_ok() {
                cancelled.store(true, Ordering::Relaxed);
            }
        })?;
        Ok(interrupt)
    }

    /// A line of the standard input; `None` at its end, and when a signal has come.
    pub fn line(&self) -> Option<String> {
        const TURN_MS: u16 = 100;
        let (input, mut line) = (stdin(), Vec::new());
        while !self.0.load(Ordering::Relaxed) {
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
