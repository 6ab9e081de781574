//! The part that decides. Pure: no clock, no I/O, no randomness, no async; time comes in as an
//! argument. Read the files in this order; each imports only files named before it.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::float_arithmetic,
    clippy::string_slice,
    clippy::as_conversions,
    clippy::iter_over_hash_type
)]

pub mod units;
pub mod topology;
pub mod observation;
