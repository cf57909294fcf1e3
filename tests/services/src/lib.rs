//! Real servers of the engines that Muster can stand on, as plain processes on ephemeral ports.
//!
//! Tests, the demo and the benches call it; it calls nothing of ours. Promise: what is started here listens on
//! 127.0.0.1 only, keeps its files in a directory of its own, and ends with the value that stands for it, or with the
//! thread that started it. A server that is not installed is an error that names the package.

mod clickhouse;
mod postgres;
pub mod python;
mod seaweedfs;

pub use clickhouse::ClickHouse;
pub use postgres::{Database, Postgres};
pub use seaweedfs::SeaweedFs;

use anyhow::{Context as _, Result, bail};
use std::net::TcpListener;
use std::process::{Command, Output};

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// Runs a command to its end; a failure has what it wrote.
fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{command:?}: {}\n{out}{err}", output.status);
    }
    Ok(output)
}
