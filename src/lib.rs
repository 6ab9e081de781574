//! failover moves a service and its PostgreSQL database between two clouds when the active one
//! dies, and can prove afterwards why it did so.

pub mod engine;
pub mod wire;
pub mod ports;
pub mod tasks;
pub mod prober;
pub mod adapters;
pub mod config;
pub mod agent;
pub mod app;
pub mod observer;
pub mod lab;
pub mod sim;
pub mod cli;
