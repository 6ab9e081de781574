//! The real side of each port, one file per outside system. No adapter knows how a decision is
//! made, and only the composition roots name them.

pub mod keys;
pub mod http;
pub mod tls;
pub mod certificates;
