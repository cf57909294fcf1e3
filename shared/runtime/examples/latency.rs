//! `cargo run --release --example latency -- BUNDLE...`: each bundle on each engine of this build: load time, the golden
//! samples' largest difference, least and median latency of a run in microseconds.

use muster_runtime::{Bundle, EngineKind, Model};
use std::time::Instant;

const RUNS: usize = 500;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().len() < 2 {
        return Err("expected the directories of bundles".into());
    }
    for dir in std::env::args().skip(1) {
        let bundle = Bundle::open(&dir)?;
        for &kind in EngineKind::ALL {
            let began = Instant::now();
            let model = match Model::load_on(&bundle, kind) {
                Ok(model) => model,
                Err(error) => {
                    println!("{dir} {}: {error}", kind.as_str());
                    continue;
                }
            };
            let load_ms = began.elapsed().as_secs_f64() * 1e3;
            let mut session = model.session()?;
            let input: Vec<f32> =
                (0..model.manifest().input.elements()).map(|at| (at % 97) as f32 / 97.0).collect();
            let mut took = Vec::with_capacity(RUNS);
            for _ in 0..RUNS {
                let began = Instant::now();
                session.run(&input)?;
                took.push(began.elapsed().as_secs_f64() * 1e6);
            }
            took.sort_by(f64::total_cmp);
            println!(
                "{dir} {}: load {load_ms:.1} ms, difference {:e}, min {:.0} us, median {:.0} us",
                kind.as_str(),
                model.self_test().difference_max,
                took[0],
                took[RUNS / 2]
            );
        }
    }
    Ok(())
}
