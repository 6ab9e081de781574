//! The lab: the whole product on one machine, with real parts made from nothing and thrown away.
//! Product code: whoever tries the program out gets the same parts that its tests run on.

pub mod network;
pub mod pair;
pub mod name_server;
pub mod doubles;
pub mod processes;
pub mod site_api;
pub mod client;
pub mod cluster;
pub mod layout;
pub mod standing;
pub mod error_lines;
pub mod supervisor;
pub mod second_agent;
pub mod scenario;
