//! What stands in for services that cannot be had on one machine: small servers of ours that keep
//! the rules of the real ones, as far as a failover depends on them.

pub mod script;
pub mod shares;
pub mod cloud_dns;
pub mod load_balancer;
pub mod kubernetes;
