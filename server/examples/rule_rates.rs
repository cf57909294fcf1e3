//! `cargo run --release --example rule_rates -- 1000000`: what that many one-reading records cost the rules.

use muster_server::rules::bench::{Fleet, rates};

fn main() -> anyhow::Result<()> {
    let records = std::env::args().nth(1).map_or(Ok(1_000_000), |count| count.parse())?;
    for (name, fleet) in [
        ("one rule on every device", Fleet { devices: 10_000, rules: 1, devices_per_rule: 10_000 }),
        (
            "1,000 rules, each on 100 of 10,000 devices",
            Fleet { devices: 10_000, rules: 1_000, devices_per_rule: 100 },
        ),
        ("100 rules on every one of 100 devices", Fleet { devices: 100, rules: 100, devices_per_rule: 100 }),
    ] {
        let rates = rates(fleet, records.min(if fleet.rules == 100 { records / 10 } else { records }))?;
        println!(
            "{name}: {} records, {} evaluations, {} alerts in {:.2} s of processor: {:.0} records/s, {:.0} evaluations/s per core",
            rates.records,
            rates.evaluations,
            rates.opened,
            rates.cpu_seconds,
            rates.records_per_core(),
            rates.evaluations_per_core()
        );
    }
    Ok(())
}
