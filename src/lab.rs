//! The lab: real PostgreSQL pairs on this machine, made from nothing and thrown away. Product
//! code: whoever tries the program out gets the same pair that its tests run on.

pub mod pair;
