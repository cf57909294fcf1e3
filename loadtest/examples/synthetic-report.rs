//! Writes the report of a made-up run: `cargo run -p muster-loadtest --example synthetic-report DIR SEED SECONDS`.
//!
//! For work on the report's pages, and to see what they show before a server is at hand.

use anyhow::{Context, Result};
use muster_loadtest::report::{model, store};
use std::path::Path;

#[path = "../src/report/synthetic.rs"]
mod synthetic;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, seed, seconds] = arguments.as_slice() else {
        anyhow::bail!("synthetic-report DIR SEED SECONDS");
    };
    let seed = seed.parse().context("SEED is no number")?;
    let seconds = seconds.parse().context("SECONDS is no number")?;
    let saved = store::save(Path::new(dir), &synthetic::report(seed, seconds))?;
    println!("{}", saved.html.display());
    Ok(())
}
