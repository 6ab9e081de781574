//! Tests of the whole with scripted parts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test may fail it"
)]

mod http;
mod runbooks;
mod tls;
mod sealed;
mod configuration;
mod logged;
mod executor;
mod keeper;
mod commands;
mod architecture;
mod cli;
mod metrics;
mod named_tests;
mod references;
mod golden;
mod guard_hello;
mod kubernetes;
mod chart;
