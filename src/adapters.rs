//! The real side of each port: one file for each outside system. No adapter knows another or how
//! a decision is made; only the composition roots name them.

pub mod clock;
pub mod reread;
pub mod files;
pub mod keys;
pub mod messages;
pub mod places;
pub mod http;
pub mod exposition;
pub mod tls;
pub mod certificates;
pub mod postgres;
pub mod dns;
pub mod order_keys;
pub mod agents;
pub mod site_probe;
pub mod front;
pub mod rfc2136;
pub mod weighted;
pub mod route53;
pub mod gcp;
pub mod kubernetes;
