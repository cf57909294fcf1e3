//! Reports of runs: their JSON, and what is made of it.

pub mod model;
