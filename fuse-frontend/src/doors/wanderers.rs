//! Which clients the scheduler moves to another processor while they wait for a reply.

use parking_lot::Mutex;

/// Clients that are remembered at once. Two of one place displace each other, and then count as settled.
const PLACES: usize = 64;
/// Requests from one processor after which a client counts as settled again.
const PATIENCE: u8 = 255;
/// Who moves twice within so many requests wanders. Moving now and then is nothing.
const SOON: u8 = 3;

/// The clients seen last.
pub struct Wanderers([Mutex<Client>; PLACES]);

/// What is known of a client.
#[derive(Clone, Copy, Default)]
struct Client {
    /// A thread, by the id that comes with its requests; zero for nobody.
    thread: u32,
    /// The processor of its last request, and that request's number.
    processor: u16,
    unique: u64,
    /// Requests since it came from another processor.
    settled: u8,
    /// For how many more requests it counts as wandering.
    patience: u8,
}

impl Wanderers {
    /// Knows nobody.
    #[must_use]
    pub fn new() -> Wanderers {
        Wanderers(std::array::from_fn(|_| Mutex::default()))
    }

    /// Request `unique` of `thread` came from `processor`; says whether that client wanders.
    pub fn follow(&self, thread: u32, unique: u64, processor: u16) -> bool {
        if thread == 0 {
            return false;
        }
        let mut client = self.0[thread as usize % PLACES].lock();
        if client.thread != thread || client.unique > unique {
            // Somebody new, or with several requests under way, who does not wait for this one alone.
            *client = Client { thread, processor, unique, settled: u8::MAX, patience: 0 };
        } else if client.processor == processor {
            client.settled = client.settled.saturating_add(1);
            client.patience = client.patience.saturating_sub(1);
        } else {
            if client.settled < SOON {
                client.patience = PATIENCE;
            }
            (client.processor, client.settled) = (processor, 0);
        }
        client.unique = unique;
        client.patience > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests in the order in which they were sent.
    struct Sent {
        wanderers: Wanderers,
        unique: u64,
    }

    impl Sent {
        fn new() -> Sent {
            Sent { wanderers: Wanderers::new(), unique: 0 }
        }

        fn from(&mut self, thread: u32, processor: u16) -> bool {
            self.unique += 2;
            self.wanderers.follow(thread, self.unique, processor)
        }
    }

    #[test]
    fn who_moves_twice_wanders_until_settled() {
        let mut sent = Sent::new();
        assert!(!sent.from(7, 0), "seen for the first time");
        assert!(!sent.from(7, 1), "moved once");
        assert!(!sent.from(7, 1));
        assert!(sent.from(7, 0), "and again");
        let more = (0..1000).take_while(|_| sent.from(7, 0)).count();
        assert_eq!(more, usize::from(PATIENCE) - 1);
        assert!(!sent.from(7, 0));
    }

    #[test]
    fn who_moves_now_and_then_does_not_wander() {
        let mut sent = Sent::new();
        for round in 0..10 {
            for _ in 0..=SOON {
                assert!(!sent.from(7, round % 2));
            }
        }
    }

    #[test]
    fn requests_that_overtake_each_other_say_nothing() {
        let wanderers = Wanderers::new();
        for batch in (0..100).step_by(4) {
            for (unique, processor) in [(batch + 2, 1), (batch, 0), (batch + 3, 1), (batch + 1, 0)] {
                assert!(!wanderers.follow(7, unique, processor));
            }
        }
    }

    #[test]
    fn each_client_has_a_processor_of_its_own() {
        let mut sent = Sent::new();
        for processor in [0, 1, 0, 1] {
            assert!(!sent.from(7, 0));
            assert!(!sent.from(8, 1));
            assert!(!sent.from(0, processor), "the kernel itself is nobody");
        }
        for processor in [0, 1, 0, 1] {
            assert!(!sent.from(9, processor), "displaced each time, so new");
            assert!(!sent.from(9 + PLACES as u32, 0));
        }
    }
}
