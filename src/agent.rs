//! The process at a site, beside its database: observes, holds the write lease, fences.

pub mod pod;
pub mod config;
pub mod guard_protocol;
pub mod own_files;
pub mod volume;
pub mod first;
pub mod guard;
pub mod guard_link;
mod recovery;
pub mod local;
mod receiver;
pub mod standby;
pub mod store;
pub mod installation;
pub mod workloads;
pub mod keeper;
pub mod reporter;
pub mod assembly;
pub mod cluster;
pub mod metrics;
pub mod api;
pub mod run;
