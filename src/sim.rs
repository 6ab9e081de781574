//! The whole program under one virtual clock: the shipped control loop, executor, keeper and
//! reporters on simulated ports, with faults drawn from a seed and checkers of the invariants that
//! stand outside of what they check.
//!
//! What is simulated is the world: the links between four places, two hosts with their guard and
//! database, clients that write, the traffic target and the log's disk. A seed fixes all of it, so
//! that whatever was found once is found again.

pub mod chance;
pub mod skew;
pub mod world;
pub mod machine;
pub mod entries;
pub mod invariant;
mod excuses;
pub mod checks;
pub mod network;
pub mod seals;
pub mod liar;
pub mod site_ports;
pub mod database;
pub mod controller_ports;
pub mod processes;
pub mod cluster;
pub mod copies;
pub mod observer;
pub mod restored;
pub mod faults;
pub mod partitions;
pub mod run;
pub mod seeds;
pub mod failure;
pub mod measured;
