//! Whether memory is short: what the machine and the agent's control group still have, against a bound.
//!
//! [`crate::app`] looks at each health tick; pipelines ask [`LowMemory::is_low`] before an inference. Below
//! `device.memory_available_mib_min` inferences are shed, telemetry never; above it by a quarter they run again. Where the
//! system does not tell what it has, memory is never short, and the log says so once. Reads four small files a look.

use crate::metrics::Metrics;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Raised while memory is short; clones share it.
#[derive(Clone, Debug, Default)]
pub struct LowMemory(Arc<AtomicBool>);

impl LowMemory {
    /// Whether memory is short.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Says whether it is; true where that is news.
    pub fn set(&self, is_low: bool) -> bool {
        self.0.swap(is_low, Ordering::Relaxed) != is_low
    }
}

/// Looks at the memory and raises the flag.
pub struct MemoryWatch {
    bytes_min: u64,
    flag: LowMemory,
    available: Box<dyn FnMut() -> Option<u64> + Send>,
    was_unreadable: bool,
}

impl MemoryWatch {
    /// A watch of this machine.
    #[must_use]
    pub fn new(mib_min: u64, flag: LowMemory) -> Self {
        Self::with(mib_min, flag, Box::new(available_bytes))
    }

    /// A watch that is told what is available.
    #[must_use]
    pub fn with(mib_min: u64, flag: LowMemory, available: Box<dyn FnMut() -> Option<u64> + Send>) -> Self {
        Self { bytes_min: mib_min.saturating_mul(1 << 20), flag, available, was_unreadable: false }
    }

    /// Looks once.
    pub fn look(&mut self, metrics: &Metrics) {
        let available = (self.available)();
        if available.is_none() && !std::mem::replace(&mut self.was_unreadable, true) {
            tracing::warn!("the system does not tell how much memory is available, nothing is shed for it");
        }
        // Inference that ends for want of memory gives some back: without the quarter it would flap.
        let wanted = if self.flag.is_low() {
            self.bytes_min.saturating_add(self.bytes_min / 4)
        } else {
            self.bytes_min
        };
        let is_low = available.is_some_and(|bytes| bytes < wanted);
        metrics.memory(available.unwrap_or(0), is_low);
        if self.flag.set(is_low) {
            let (available_bytes, bytes_min) = (available, self.bytes_min);
            if is_low {
                tracing::warn!(available_bytes, bytes_min, "memory is short, inferences are shed");
            } else {
                tracing::info!(available_bytes, bytes_min, "memory is enough again, inferences run");
            }
        }
    }
}

/// What the machine and the control group still have, whichever is less; None where neither tells.
fn available_bytes() -> Option<u64> {
    let machine = read("/proc/meminfo").and_then(|text| available_of_machine(&text));
    let group =
        group_files().and_then(|[max, high, current, stat]| available_of_group(&max, &high, &current, &stat));
    machine.into_iter().chain(group).min()
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The files of the agent's own control group (version 2).
fn group_files() -> Option<[String; 4]> {
    let groups = read("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let dir = Path::new("/sys/fs/cgroup").join(own);
    let file = |name: &str| read(dir.join(name));
    // The root group has no limits, and none of these files.
    Some([file("memory.max")?, file("memory.high")?, file("memory.current")?, file("memory.stat")?])
}

fn available_of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The tighter limit less what is in use; files' pages that the kernel may drop at once do not count as used.
fn available_of_group(max: &str, high: &str, current: &str, stat: &str) -> Option<u64> {
    let limit = [max, high].into_iter().filter_map(|text| text.trim().parse::<u64>().ok()).min()?;
    let current: u64 = current.trim().parse().ok()?;
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")).unwrap_or("0");
    let used = current.saturating_sub(inactive.trim().parse().unwrap_or(0));
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn memory_is_short_below_the_bound_and_enough_a_quarter_above_it() {
        let flag = LowMemory::default();
        let told = Arc::new(Mutex::new(None));
        let tells = Arc::clone(&told);
        let mut watch = MemoryWatch::with(100, flag.clone(), Box::new(move || *tells.lock().unwrap()));
        let metrics = Metrics::new();
        let looks = [
            (Some(100), false),
            (Some(99), true),
            (Some(100), true),
            (Some(124), true),
            (Some(125), false),
            (Some(124), false),
            (Some(0), true),
            (None, false),
        ];
        for (mib, is_low) in looks {
            *told.lock().unwrap() = mib.map(|mib| mib << 20);
            watch.look(&metrics);
            assert_eq!(flag.is_low(), is_low, "{mib:?}");
            let text = metrics.text();
            assert!(text.contains(&format!("agent_memory_low {}", u8::from(is_low))), "{mib:?}: {text}");
        }
    }

    #[test]
    fn what_the_system_tells_is_understood() {
        let meminfo = "MemTotal:        1024 kB\nMemFree:    12 kB\nMemAvailable:     512 kB\n";
        assert_eq!(available_of_machine(meminfo), Some(512 * 1024));
        assert_eq!(available_of_machine("MemTotal: 1024 kB\n"), None);
        assert_eq!(available_of_machine("MemAvailable: many kB\n"), None);
        let stat = "anon 5\ninactive_file 30\nactive_file 7\n";
        assert_eq!(available_of_group("max\n", "max\n", "90\n", stat), None, "no limit");
        assert_eq!(available_of_group("100\n", "max\n", "90\n", stat), Some(40));
        assert_eq!(available_of_group("100\n", "80\n", "90\n", stat), Some(20), "the tighter limit counts");
        assert_eq!(available_of_group("100\n", "max\n", "500\n", ""), Some(0));
    }

    #[test]
    fn this_machine_tells() {
        let available = available_bytes().unwrap();
        assert!(available > 0 && available < 1 << 50, "{available}");
    }
}
