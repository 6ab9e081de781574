//! One file for each outside system. No adapter knows another; only the composition roots name
//! them.

pub mod files;
