//! An extra observer: a process in a place of its own that looks at both sites and tells the
//! controller what it saw. It holds no right, takes no orders, and listens nowhere.

pub mod config;
pub mod reporter;
pub mod run;
