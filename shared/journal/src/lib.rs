//! The durable segmented log: the agent's queue and the server's event log stand on it.

mod codec;
mod control;
pub mod fs;
mod journal;
mod ranges;
mod reader;
mod recover;
mod retain;
mod scan;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod state;
#[cfg(any(test, feature = "sim"))]
pub mod trials;
mod types;
mod writer;

pub use fs::{Fs, FsFile, RealFs};
pub use journal::Journal;
pub use reader::Reader;
pub use types::*;
