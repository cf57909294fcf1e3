//! The machine itself: CPU, memory, disk, network and temperature.
//!
//! The first sample lacks the rates (CPU, network), which need two looks; it goes out at once so that a fresh
//! device shows up. A beat that finds its pipeline full waits for room; those that fall due meanwhile are skipped.

use super::{Content, Ended, Sample, SourceContext};
use crate::config::HostSource;
use crate::supervisor::Exit;
use muster_wire::Value;
use std::sync::Arc;
use std::time::Duration;
use sysinfo::{Components, CpuRefreshKind, Disks, MemoryRefreshKind, Networks, RefreshKind, System};
use tokio::time::{Instant, MissedTickBehavior};

struct Probe {
    system: System,
    networks: Networks,
    disks: Disks,
    components: Components,
    disk: std::path::PathBuf,
    last: Option<Instant>,
}

impl Probe {
    fn new(disk: std::path::PathBuf) -> Self {
        let refresh = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_cpu_usage())
            .with_memory(MemoryRefreshKind::everything());
        Self {
            system: System::new_with_specifics(refresh),
            networks: Networks::new_with_refreshed_list(),
            disks: Disks::new_with_refreshed_list(),
            components: Components::new_with_refreshed_list(),
            disk,
            last: None,
        }
    }

    fn sample(&mut self) -> Vec<(Arc<str>, Value)> {
        let mut values = Vec::with_capacity(16);
        let mut put = |name: &str, value: f64| values.push((Arc::from(name), Value::Number(value)));
        self.system.refresh_memory();
        self.system.refresh_cpu_usage();
        self.networks.refresh(true);
        let now = Instant::now();
        let since = self.last.replace(now).map(|last| now.duration_since(last).as_secs_f64());
        if let Some(seconds) = since.filter(|seconds| *seconds > 0.0) {
            put("cpu_percent", f64::from(self.system.global_cpu_usage()));
            let (mut received, mut sent) = (0, 0);
            for (_, network) in self.networks.iter().filter(|network| network.0 != "lo") {
                received += network.received();
                sent += network.transmitted();
            }
            put("network_received_bytes_per_s", count(received) / seconds);
            put("network_sent_bytes_per_s", count(sent) / seconds);
        }
        put("load_1min", System::load_average().one);
        let (total, used) = (self.system.total_memory(), self.system.used_memory());
        put("memory_used_bytes", count(used));
        if total > 0 {
            put("memory_used_percent", 100.0 * count(used) / count(total));
        }
        put("swap_used_bytes", count(self.system.used_swap()));
        self.disks.refresh(false);
        if let Some(disk) = self.disks.iter().find(|disk| disk.mount_point() == self.disk) {
            let (total, free) = (disk.total_space(), disk.available_space());
            put("disk_free_bytes", count(free));
            if total > 0 {
                put("disk_used_percent", 100.0 * count(total.saturating_sub(free)) / count(total));
            }
        }
        self.components.refresh(false);
        let hottest =
            self.components.iter().filter_map(sysinfo::Component::temperature).fold(f32::NAN, f32::max);
        if hottest.is_finite() {
            put("temperature_celsius", f64::from(hottest));
        }
        put("uptime_s", count(System::uptime()));
        values
    }
}

#[allow(clippy::cast_precision_loss)]
fn count(number: u64) -> f64 {
    number as f64
}

pub(super) async fn run(config: HostSource, mut context: SourceContext) -> Exit {
    let disk = config.disk.clone();
    // The look at the machine reads many small files: not on the thread that runs the connection.
    let Ok(mut probe) = tokio::task::spawn_blocking(move || Probe::new(disk)).await else {
        return Exit::Failed("the first look at the machine failed".into());
    };
    let mut beat = tokio::time::interval(Duration::from_millis(config.interval_ms));
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0;
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = context.stop.wait() => return Exit::Done,
        }
        let looked = tokio::task::spawn_blocking(move || {
            let values = probe.sample();
            (probe, values)
        });
        let Ok((again, values)) = looked.await else {
            return Exit::Failed("a look at the machine failed".into());
        };
        probe = again;
        number += 1;
        let content = Content::Row { values, number };
        let sample = Sample { measured_at_us: context.clock.now_us(), content };
        if context.send(sample).await == Err(Ended) {
            return Exit::Done;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_gives_finite_values_under_valid_names() {
        let mut probe = Probe::new("/".into());
        let first = probe.sample();
        let second = probe.sample();
        assert!(second.len() > first.len(), "rates need two looks");
        for (name, value) in first.iter().chain(&second) {
            assert_eq!(muster_wire::check_metric_name(name), Ok(()), "{name}");
            assert_eq!(value.check(), Ok(()), "{name}");
        }
        assert!(second.iter().any(|(name, _)| &**name == "memory_used_bytes"));
        assert!(second.iter().any(|(name, _)| &**name == "cpu_percent"));
    }
}
