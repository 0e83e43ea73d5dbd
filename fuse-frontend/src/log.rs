//! Where messages go.
//!
//! To whoever waits for the mount, and to the terminal of a server in the foreground: one line each on the
//! standard error, `mount.rext4: warning: ...`, without colours or times. About a running volume also to the
//! system's log (syslog, which the journal takes part in; without one /dev/kmsg), in the words of the kernel's
//! ext4: `rext4-fs error (device loop0): ...`. There a text comes once a minute, and a kind of message at
//! most ten times in five seconds, as with the kernel's own.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use fs_core::VOLUME_EVENTS;
use parking_lot::Mutex;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How many messages of a kind come in an interval.
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the same text is not repeated.
const REPEAT: Duration = Duration::from_secs(60);
/// Texts that are remembered.
const TEXTS: usize = 256;

/// The volume's name in the system's log.
static DEVICE: OnceLock<String> = OnceLock::new();

/// Has messages down to `level` shown (`REXT4_LOG` says more exactly which), and failures logged.
pub fn start(level: &str) {
    let shown = EnvFilter::try_from_env("REXT4_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let logged = Targets::new().with_default(LevelFilter::WARN).with_target(VOLUME_EVENTS, Level::INFO);
    tracing_subscriber::registry()
        .with(Terminal.with_filter(shown))
        .with(SystemLog::default().with_filter(logged))
        .init();
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default(panic);
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let what = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref().map(String::as_str));
        let what = what.unwrap_or("no message");
        tracing::error!(target: BUG, "a thread panicked at {place}: {what}");
    }));
}

/// Target of what the default panic hook has shown on the terminal already.
const BUG: &str = "panic";

/// Has messages from here on logged under the name of the volume on `device`: the kernel's name of a block
/// device, the path of an image.
pub fn name_volume(device: &Path) {
    let is_block = device.metadata().is_ok_and(|m| m.file_type().is_block_device());
    let name = match device.file_name() {
        Some(name) if is_block => name.to_string_lossy().into_owned(),
        _ => device.to_string_lossy().into_owned(),
    };
    let _ = DEVICE.set(name);
}

/// A message's text: what it says, then its error, then its other fields in brackets.
#[derive(Default)]
struct Text {
    message: String,
    reason: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "error" | "cause" | "e" => write!(self.reason, "{value:?}"),
            name => {
                let separator = if self.fields.is_empty() { "" } else { ", " };
                write!(self.fields, "{separator}{name}={value:?}")
            }
        };
    }

    fn record_error(&mut self, _field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.reason = blockdev::in_one_line(value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl Text {
    fn of(event: &Event<'_>) -> String {
        let mut text = Text::default();
        event.record(&mut text);
        let Text { mut message, reason, fields } = text;
        if !fields.is_empty() {
            let _ = write!(message, " ({fields})");
        }
        if !reason.is_empty() {
            let separator = if message.is_empty() { "" } else { ": " };
            let _ = write!(message, "{separator}{reason}");
        }
        blockdev::plain(&message)
    }
}

/// The standard error.
struct Terminal;

impl<S: Subscriber> Layer<S> for Terminal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target() == BUG {
            return;
        }
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        // A terminal that has gone away is nobody to tell.
        let _ = writeln!(io::stderr().lock(), "mount.rext4: {level}: {}", Text::of(event));
    }
}

/// The system's log.
#[derive(Default)]
struct SystemLog(Mutex<State>);

#[derive(Default)]
struct State {
    sink: Option<Sink>,
    limit: Limit,
}

impl<S: Subscriber> Layer<S> for SystemLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // What systemd reads from the standard error is in its journal already.
        let Some(device) = DEVICE.get().filter(|_| !stderr_is_journal()) else { return };
        let metadata = event.metadata();
        let text = in_kernel_words(metadata.target(), *metadata.level(), device, &Text::of(event));
        // A panic in here must not wait for itself.
        let Some(mut state) = self.0.try_lock_for(Duration::from_secs(1)) else { return };
        let kind = format!("{}:{}", metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
        if let Some(held) = state.limit.admits(&kind, &text, Instant::now()) {
            if held > 0 {
                state.send(Level::WARN, &format!("rext4-fs: {held} messages suppressed"));
            }
            state.send(*metadata.level(), &text);
        }
    }
}

fn in_kernel_words(target: &str, level: Level, device: &str, text: &str) -> String {
    match level {
        _ if target == VOLUME_EVENTS => format!("rext4-fs ({device}): {text}"),
        Level::ERROR => format!("rext4-fs error (device {device}): {text}"),
        _ => format!("rext4-fs warning (device {device}): {text}"),
    }
}

fn stderr_is_journal() -> bool {
    !crate::background::is_server() && std::env::var_os("JOURNAL_STREAM").is_some()
}

/// Which messages are not repeated.
#[derive(Default)]
struct Limit {
    kinds: HashMap<String, Window>,
    /// When each text came last, by its hash.
    texts: HashMap<u64, Instant>,
    hashes: RandomState,
}

struct Window {
    since: Instant,
    passed: u32,
    held: u32,
}

impl Limit {
    /// Whether a message may pass, and how many of its kind were held back since the last that did.
    fn admits(&mut self, kind: &str, text: &str, now: Instant) -> Option<u32> {
        let fresh = || Window { since: now, passed: 0, held: 0 };
        let window = self.kinds.entry(kind.to_owned()).or_insert_with(fresh);
        if now.duration_since(window.since) > INTERVAL {
            *window = Window { held: window.held, ..fresh() };
        }
        if self.texts.len() >= TEXTS {
            self.texts.retain(|_, last| now.duration_since(*last) < REPEAT);
            if self.texts.len() >= TEXTS {
                self.texts.clear();
            }
        }
        let text = self.hashes.hash_one(text);
        let repeats = self.texts.get(&text).is_some_and(|last| now.duration_since(*last) < REPEAT);
        if repeats || window.passed == BURST {
            window.held = window.held.saturating_add(1);
            return None;
        }
        self.texts.insert(text, now);
        window.passed += 1;
        Some(std::mem::take(&mut window.held))
    }
}

/// What takes the messages.
enum Sink {
    Syslog(Box<Logger<LoggerBackend, Formatter3164>>),
    Kernel(File),
}

impl Sink {
    fn open() -> Option<Sink> {
        let formatter = Formatter3164 {
            facility: Facility::LOG_DAEMON,
            hostname: None,
            process: "mount.rext4".into(),
            pid: std::process::id(),
        };
        match syslog::unix(formatter) {
            Ok(logger) => Some(Sink::Syslog(Box::new(logger))),
            Err(_) => File::options().write(true).open("/dev/kmsg").ok().map(Sink::Kernel),
        }
    }

    fn send(&mut self, level: Level, text: &str) -> bool {
        match self {
            Sink::Syslog(logger) => match level {
                Level::ERROR => logger.err(text),
                Level::WARN => logger.warning(text),
                _ => logger.info(text),
            }
            .is_ok(),
            Sink::Kernel(file) => {
                const DAEMON: u8 = 3 << 3;
                let severity = match level {
                    Level::ERROR => 3,
                    Level::WARN => 4,
                    _ => 6,
                };
                // One write is one record; longer ones are refused.
                let text: String = text.chars().take(800).collect();
                file.write_all(format!("<{}>{text}\n", DAEMON | severity).as_bytes()).is_ok()
            }
        }
    }
}

impl State {
    /// Sends a message; a log that was started anew is looked for once.
    fn send(&mut self, level: Level, text: &str) {
        for _ in 0..2 {
            if self.sink.is_none() {
                self.sink = Sink::open();
            }
            if self.sink.as_mut().is_some_and(|sink| sink.send(level, text)) {
                return;
            }
            self.sink = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_the_kernels() {
        let said = |target, level| in_kernel_words(target, level, "loop0", "inode #12: bad");
        assert_eq!(said("fs_core::volume", Level::ERROR), "rext4-fs error (device loop0): inode #12: bad");
        assert_eq!(said("jbd2", Level::WARN), "rext4-fs warning (device loop0): inode #12: bad");
        assert_eq!(said(VOLUME_EVENTS, Level::INFO), "rext4-fs (loop0): inode #12: bad");
    }

    #[test]
    fn a_text_comes_once_and_a_kind_in_bursts() {
        let mut limit = Limit::default();
        let start = Instant::now();
        assert_eq!(limit.admits("a", "same", start), Some(0));
        assert_eq!(limit.admits("a", "same", start), None);
        let passed = (0..100).filter(|n| limit.admits("b", &format!("text {n}"), start).is_some()).count();
        assert_eq!(passed, 10);
        let later = start + Duration::from_secs(6);
        assert_eq!(limit.admits("b", "another", later), Some(90));
        assert_eq!(limit.admits("a", "same", later), None);
        assert_eq!(limit.admits("a", "same", start + Duration::from_secs(61)), Some(2));
        for n in 0..1000 {
            limit.admits(&format!("kind {}", n % 7), &format!("many {n}"), later);
        }
        assert!(limit.texts.len() <= TEXTS);
    }
}
