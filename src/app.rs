//! The controller: looks, decides, acts, and answers the agents and the command line.

pub mod config;
pub mod leadership;
pub mod journal;
pub mod brain;
pub mod control;
pub mod executor;
pub mod steps;
pub mod rehearser;
pub mod notes;
pub mod assembly;
pub mod metrics;
pub mod api;
pub mod run;
