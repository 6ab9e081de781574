//! Tests with real parts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "all of this crate is tests; clippy's own exception ends at functions marked so"
)]

mod clock;
mod guard;
mod intruders;
mod signal_files;
mod thaw;
mod pair;
mod postgres;
mod sessions;
mod planted;
mod own_looks;
mod floods;
mod synchronous;
mod rfc2136;
mod recovering;
mod route53;
mod traffic;
mod google;
mod parts;
mod stage;
mod scrape;
mod check;
mod crash;
mod drill;
mod fenced;
mod old_word;
mod agent_file;
mod standing;
mod terminal;
mod secrets;
mod certificates;
mod skew;
mod bad_input;
mod later;
mod bounds;
mod knocking;
mod log_file;
mod outsiders;
mod observers;
mod instances;
mod log_behind;
mod log_disk;
mod outside;
mod partitions;
mod replay;
mod impostor;
mod rehearsal;
mod healing;
mod helm;
mod kubectl;
mod pod;
mod volume;
mod kubernetes;
