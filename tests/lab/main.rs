//! Tests with real parts.

mod pair;
mod postgres;
