//! Requests of libaio, several at once, for tests that want each one's own result: fio hides them. The calls
//! are made by perl, which has syscall(2) without a library.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;

use crate::run::{run, tool};

/// One request.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Reads `length` bytes at `offset`.
    Read {
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Writes `length` times `byte` at `offset`.
    Write {
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
        /// What.
        byte: u8,
    },
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// Bytes transferred, or an errno below zero.
    pub result: i64,
    /// Of a read: the sum of the bytes transferred, modulo 2^32.
    pub sum: u64,
}

const SCRIPT: &str = r#"
my ($setup, $submit, $events, $path, $flags, @requests) = @ARGV;
sysopen(my $file, $path, $flags) or die "$path: $!";
my $context = pack("Q", 0);
syscall($setup + 0, 128, $context) == 0 or die "io_setup: $!";
$context = unpack("Q", $context);
my (@bufs, @blocks);
for my $i (0 .. $#requests) {
    my ($code, $offset, $length, $byte) = split /:/, $requests[$i];
    $bufs[$i] = chr($byte) x $length;
    my $address = unpack("Q", pack("P", $bufs[$i]));
    $blocks[$i] = pack("QLLSsLQQqQLL", $i, 0, 0, $code, 0, fileno($file), $address, $length, $offset, 0, 0, 0);
}
my $list = join "", map { pack("Q", unpack("Q", pack("P", $_))) } @blocks;
my $count = @requests;
syscall($submit + 0, $context, $count, $list) == $count or die "io_submit: $!";
my $answers = "\0" x (32 * $count);
syscall($events + 0, $context, $count, $count, $answers, 0) == $count or die "io_getevents: $!";
my @lines;
for my $i (0 .. $count - 1) {
    my ($which, undef, $result) = unpack("QQq", substr($answers, 32 * $i, 32));
    my $is_read = $requests[$which] =~ /^0:/;
    my $sum = $is_read && $result > 0 ? unpack("%32C*", substr($bufs[$which], 0, $result)) : 0;
    $lines[$which] = "$result $sum\n";
}
print @lines;
"#;

/// Submits all `requests` on `path` together, opened for both ways with `flags` besides, and waits for them.
pub fn submit(path: &Path, flags: OFlags, requests: &[Request]) -> Result<Vec<Done>> {
    // io_setup, io_submit, io_getevents.
    let numbers = if cfg!(target_arch = "x86_64") { ["206", "209", "208"] } else { ["0", "2", "4"] };
    let flags = (flags | OFlags::RDWR).bits().to_string();
    let words = requests.iter().map(|request| match request {
        Request::Read { offset, length } => format!("0:{offset}:{length}:0"),
        Request::Write { offset, length, byte } => format!("1:{offset}:{length}:{byte}"),
    });
    let said = run(tool("perl").args(["-e", SCRIPT]).args(numbers).arg(path).arg(flags).args(words))?;
    let done = said.lines().map(|line| {
        let (result, sum) = line.split_once(' ').context("two numbers")?;
        Ok(Done { result: result.parse()?, sum: sum.parse()? })
    });
    let done = done.collect::<Result<Vec<_>>>()?;
    ensure!(done.len() == requests.len(), "{} answers: {said}", done.len());
    Ok(done)
}
