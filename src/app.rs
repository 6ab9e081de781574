//! The controller: looks, decides, acts, and answers the agents and the command line.

pub mod journal;
pub mod brain;
