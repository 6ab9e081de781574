//! The part that decides. Pure: no clock, no I/O, no randomness, no async; time comes in as an
//! argument. Read the files in this order; each imports only files named before it.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::float_arithmetic,
        clippy::string_slice,
        clippy::as_conversions,
        clippy::iter_over_hash_type
    )
)]

pub mod text;
pub mod effect;
pub mod units;
pub mod format;
pub mod digest;
pub mod rate;
pub mod lasting;
pub mod document;
pub mod topology;
pub mod answer;
pub mod reason;
pub mod data;
pub mod credential;
pub mod policy;
pub mod timers;
pub mod observation;
pub mod position;
pub mod arrival;
pub mod replay;
pub mod waits;
pub mod sqlstate;
pub mod detector;
pub mod instance;
pub mod lease;
pub mod claims;
pub mod synchrony;
pub mod rehearsal;
pub mod skew;
pub mod replication;
pub mod loss;
pub mod situation;
pub mod writable;
pub mod clocks;
pub mod condition;
pub mod standby;
pub mod vantages;
pub mod rehearsed;
pub mod provenance;
pub mod primaries;
pub mod gate;
pub mod decision;
pub mod rearm;
pub mod horizon;
pub mod readiness;
pub mod receipt;
pub mod step;
pub mod plan;
pub mod command;
pub mod happening;
pub mod saga;
pub mod from_log;
pub mod fencing;
pub mod chain;
pub mod witness;
