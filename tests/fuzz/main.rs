//! Everything that is read from outside, fed with damaged input: the answer is an error, never a
//! crash, and memory stays bounded.
//!
//! Each target damages good samples at random. `FUZZ_SECONDS` says how long each goes on (one
//! second where it is not set), `FUZZ_SEED` repeats a run; a crash prints both seed and input.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "all of this crate is tests; clippy's own exception ends at functions marked so"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::ports::Clock;

mod net;
mod texts;

/// A small generator of numbers: the same seed, the same run.
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }

    /// A sample with a few things done to it.
    fn damage(&mut self, sample: &[u8]) -> Vec<u8> {
        let mut bytes = sample.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = (at + self.below(40)).min(bytes.len());
            match self.below(9) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                2 => drop(bytes.drain(at..end)),
                3 => bytes.truncate(at),
                4 => {
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, copy);
                }
                5 => {
                    let word = WORDS[self.below(WORDS.len())];
                    bytes.splice(at..end, word.bytes());
                }
                6 => {
                    let word = WORDS[self.below(WORDS.len())];
                    bytes.splice(at..at, word.bytes());
                }
                7 => {
                    let many = 1 + self.below(2000);
                    let byte = bytes.get(at).copied().unwrap_or(b'[');
                    bytes.splice(at..at, std::iter::repeat_n(byte, many));
                }
                _ => bytes.reverse(),
            }
        }
        bytes
    }
}

/// What parsers stumble over.
const WORDS: &[&str] = &[
    "-1",
    "0",
    "18446744073709551616",
    "9007199254740993",
    "1e400",
    "NaN",
    "null",
    "true",
    "\"\"",
    "{}",
    "[]",
    "[[[[[[[[",
    "\u{0}",
    "\u{feff}",
    "\\u0000",
    "\\ud800",
    "\n",
    "\"",
    "'",
    "=",
    "1h",
    "99999999999999999999y",
    "FFFFFFFF/FFFFFFFF",
    "/",
    "..",
    "%",
    "%00",
    "\r\n\r\n",
    "💥",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Feeds a target with damaged samples for the time that was asked for.
pub(crate) fn fuzz(name: &str, samples: &[Vec<u8>], mut target: impl FnMut(&[u8])) {
    let seed = number("FUZZ_SEED").unwrap_or_else(|| SystemClock.wall().0);
    let lasting = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(1));
    let mut random = Random(seed);
    let end = SystemClock.now().plus(lasting);
    let mut inputs = 0u64;
    while SystemClock.now() < end {
        let sample = random.below(samples.len());
        let input = random.damage(&samples[sample]);
        inputs += 1;
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
            std::fs::write(&kept, &input).unwrap();
            panic!(
                "{name} broke on input {inputs} of FUZZ_SEED={seed}; it is kept in {}",
                kept.display()
            );
        }
    }
    println!("{name}: {inputs} inputs, FUZZ_SEED={seed}");
    let peak = peak_memory_kib();
    assert!(peak < 1 << 20, "{name}: {peak} KiB of memory at the peak");
}

/// The most memory that this process ever had.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
