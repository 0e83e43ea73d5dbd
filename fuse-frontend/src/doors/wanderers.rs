//! Which clients the scheduler moves to another processor while they wait for a reply.

use std::sync::atomic::{AtomicU64, Ordering};

/// Clients that are remembered at once. Two of one place displace each other, and then count as settled.
const PLACES: usize = 64;
/// Requests from one processor after which a client counts as settled again.
const PATIENCE: u16 = 256;

/// The clients seen last. Races only lose what was learned.
pub struct Wanderers([AtomicU64; PLACES]);

/// What is known of a client: packed, so that it is read and written at once.
#[derive(Clone, Copy, Default)]
struct Client {
    /// A thread, by the id that comes with its requests; zero for nobody.
    thread: u32,
    /// The processor of its last request.
    processor: u16,
    /// For how many more requests it counts as wandering.
    patience: u16,
}

impl Wanderers {
    /// Knows nobody.
    #[must_use]
    pub fn new() -> Wanderers {
        Wanderers(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// A request of `thread` came from `processor`; says whether that client wanders.
    pub fn follow(&self, thread: u32, processor: u16) -> bool {
        if thread == 0 {
            return false;
        }
        let place = &self.0[thread as usize % PLACES];
        let known = Client::unpack(place.load(Ordering::Relaxed));
        let patience = match known {
            _ if known.thread != thread => 0,
            _ if known.processor != processor => PATIENCE,
            _ => known.patience.saturating_sub(1),
        };
        place.store(Client { thread, processor, patience }.pack(), Ordering::Relaxed);
        patience > 0
    }
}

impl Client {
    fn pack(self) -> u64 {
        u64::from(self.thread) << 32 | u64::from(self.processor) << 16 | u64::from(self.patience)
    }

    fn unpack(word: u64) -> Client {
        Client { thread: (word >> 32) as u32, processor: (word >> 16) as u16, patience: word as u16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_changes_processors_wanders_until_settled() {
        let wanderers = Wanderers::new();
        assert!(!wanderers.follow(7, 0), "seen for the first time");
        assert!(!wanderers.follow(7, 0));
        assert!(wanderers.follow(7, 1));
        let more = (0..2 * PATIENCE).take_while(|_| wanderers.follow(7, 1)).count();
        assert_eq!(more, usize::from(PATIENCE) - 1);
        assert!(!wanderers.follow(7, 1));
    }

    #[test]
    fn each_client_has_a_processor_of_its_own() {
        let wanderers = Wanderers::new();
        for _ in 0..3 {
            assert!(!wanderers.follow(7, 0));
            assert!(!wanderers.follow(8, 1));
        }
        assert!(!wanderers.follow(7 + PLACES as u32, 1), "another one of the same place");
        assert!(!wanderers.follow(7, 1), "displaced, so new");
        assert!(!wanderers.follow(0, 0) && !wanderers.follow(0, 1), "the kernel itself is nobody");
    }
}
