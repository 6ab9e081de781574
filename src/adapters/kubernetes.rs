//! Kubernetes clusters through their API servers, each with a credential of its own.
//!
//! No watches: few objects are read again and again, because an old watch hides a dead server. What a
//! proof rests on is read from the store and never from a server's cache: no read here carries a
//! `resourceVersion`. Every change carries the uid and the version of what it changes, so that an old
//! one that lands late meets a newer object and does nothing.
//!
//! How to come in is in `access` and `tokens`, one call in `call`, what the answer means in `error`.

mod error;
mod object;
mod tokens;
mod eks;
mod access;
mod call;
mod cluster;
mod health;
mod review;
mod changes;
pub mod fence;
pub mod workloads;
pub mod operator;

pub use access::{Access, Server};
pub use call::Run;
pub use changes::{Scaled, rivals};
pub use cluster::{Cluster, NodeLook, Settings};
pub use error::ClusterError;
pub use object::{Object, Owner, Place, Resource, Version, resources};
pub use review::Need;
pub use tokens::{Token, TokenSource, Tokens};

/// The name under which our changes stand in an object's managed fields.
pub const MANAGER: &str = "failover";
