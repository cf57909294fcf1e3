//! What a measured interval cost: CPU and memory of the server and of this process, and the load of others.
//!
//! Called by `modes`; `observe::sample` reads single figures with it. Reads `/proc` only; a server of another machine is not metered.

use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Clock ticks a second in `/proc` (USER_HZ, the same on every Linux that we run on).
const TICKS_PER_S: f64 = 100.0;

/// The cost of an interval.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Its length.
    pub seconds: f64,
    /// Cores that this process kept busy.
    pub generator_cores: f64,
    /// Cores that every process but server and generator kept busy.
    pub other_load_cores: f64,
    /// Memory of this process at the end.
    pub generator_rss_bytes: u64,
    /// The server's share, where its process id is known.
    pub server: Option<ServerCost>,
}

/// The server's cost.
#[derive(Clone, Debug, Serialize)]
pub struct ServerCost {
    /// Cores kept busy.
    pub cpu_cores: f64,
    /// CPU seconds used.
    pub cpu_s: f64,
    /// Memory at the start of the interval.
    pub rss_before_bytes: u64,
    /// Memory at its end.
    pub rss_bytes: u64,
}

/// A started measurement.
pub(crate) struct Meter {
    began: Instant,
    server: Option<u32>,
    start: Snapshot,
}

struct Snapshot {
    own_s: f64,
    server_s: f64,
    server_rss: u64,
    machine_s: f64,
}

impl Meter {
    pub(crate) fn start(server: Option<u32>) -> Result<Self> {
        Ok(Self { began: Instant::now(), server, start: Snapshot::take(server)? })
    }

    pub(crate) fn finish(&self) -> Result<Cost> {
        let seconds = self.began.elapsed().as_secs_f64();
        let end = Snapshot::take(self.server)?;
        let own_s = end.own_s - self.start.own_s;
        let server_s = end.server_s - self.start.server_s;
        let machine_s = end.machine_s - self.start.machine_s;
        Ok(Cost {
            seconds,
            generator_cores: own_s / seconds,
            other_load_cores: ((machine_s - own_s - server_s) / seconds).max(0.0),
            generator_rss_bytes: rss_bytes(std::process::id())?,
            server: self.server.map(|_| ServerCost {
                cpu_cores: server_s / seconds,
                cpu_s: server_s,
                rss_before_bytes: self.start.server_rss,
                rss_bytes: end.server_rss,
            }),
        })
    }
}

impl Snapshot {
    fn take(server: Option<u32>) -> Result<Self> {
        Ok(Self {
            own_s: cpu_s(std::process::id())?,
            server_s: server.map(cpu_s).transpose()?.unwrap_or(0.0),
            server_rss: server.map(rss_bytes).transpose()?.unwrap_or(0),
            machine_s: machine_busy_s()?,
        })
    }
}

/// CPU seconds of a process: from its threads' own clocks where the kernel keeps them, else in ticks.
pub(crate) fn cpu_s(pid: u32) -> Result<f64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The command's name may hold spaces; fields are counted behind its parenthesis.
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("no command in /proc stat")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    let from_ticks = (ticks(11) + ticks(12)) / TICKS_PER_S;
    let mut from_threads = 0.0;
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Ok(from_ticks) };
    for thread in threads.flatten() {
        from_threads += thread_cpu_s(&thread.path()).unwrap_or(0.0);
    }
    // Ended threads are in the ticks only.
    Ok(if from_threads + 0.05 >= from_ticks { from_threads } else { from_ticks })
}

/// CPU seconds of a thread by its directory in `/proc`.
pub(crate) fn thread_cpu_s(thread: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(thread.join("schedstat")).ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

/// CPU seconds of this process.
pub(crate) fn own_cpu_s() -> Result<f64> {
    cpu_s(std::process::id())
}

pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
    Ok(kilobytes * 1024)
}

/// CPU seconds that all cores were busy: everything but idle and waiting for disks.
pub(crate) fn machine_busy_s() -> Result<f64> {
    let stat = read("/proc/stat")?;
    let line = stat.lines().next().context("empty /proc/stat")?;
    let fields: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest times are in user already.
    let busy: f64 =
        fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, v)| v).sum();
    Ok(busy / TICKS_PER_S)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cost_is_measured() {
        let meter = Meter::start(Some(std::process::id())).unwrap();
        let mut sum = 0_u64;
        while meter.began.elapsed().as_millis() < 60 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let cost = meter.finish().unwrap();
        assert!(cost.generator_cores > 0.0 && cost.generator_rss_bytes > 100_000, "{cost:?}");
        assert!(cost.server.unwrap().cpu_s > 0.0);
    }
}
