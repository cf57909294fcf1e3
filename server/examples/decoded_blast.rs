//! `cargo run --release --example decoded_blast -- 1000000 100`: stores that many five-reading messages
//! of that many devices.

use muster_server::ingest::bench::{DEVICES_DEFAULT, decoded_blast};
use muster_server::platform::clock::SystemClock;
use std::sync::Arc;

fn main() -> anyhow::Result<()> {
    let messages = std::env::args().nth(1).map_or(Ok(500_000), |count| count.parse())?;
    let devices = std::env::args().nth(2).map_or(Ok(DEVICES_DEFAULT), |count| count.parse())?;
    let dir = std::env::temp_dir().join(format!("muster-decoded-blast-{}", std::process::id()));
    let blast = decoded_blast(&dir, messages, devices, Arc::new(SystemClock));
    std::fs::remove_dir_all(&dir)?;
    let blast = blast?;
    println!(
        "{} messages, {} readings, {} batches in {:.2} s ({:.2} s of processor): {:.0} msg/s, {:.0} msg/s per core",
        blast.messages,
        blast.readings,
        blast.batches,
        blast.seconds,
        blast.cpu_seconds,
        blast.messages as f64 / blast.seconds,
        blast.messages_per_core()
    );
    Ok(())
}
