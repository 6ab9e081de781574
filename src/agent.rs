//! The process at a site, beside its database: observes, holds the write lease, fences.

pub mod keeper;
pub mod reporter;
