//! Edge: what the kernel says of this process, under the names that every Prometheus client uses.
//!
//! Read from `/proc` at each scrape; where there is none, nothing is registered.

use prometheus::{Counter, Gauge, Opts, Registry};
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clock ticks a second in `/proc/self/stat`: `USER_HZ` of Linux, 100 wherever Rust's standard library runs on it.
const TICKS: f64 = 100.0;

/// See the help texts.
#[derive(Debug, Clone)]
pub struct ProcessMetrics {
    cpu: Counter,
    resident: Gauge,
    open_fds: Gauge,
}

/// One look at `/proc/self`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    resident_bytes: f64,
    open_fds: f64,
}

// === impl ProcessMetrics ===

impl ProcessMetrics {
    /// Registers all of them; none without `/proc`.
    ///
    /// # Errors
    /// When one is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Option<Self>> {
        if read().is_none() {
            return Ok(None);
        }
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let cpu = Counter::with_opts(Opts::new(
            "process_cpu_seconds_total",
            "Processor time of this process, user and system, seconds.",
        ))?;
        registry.register(Box::new(cpu.clone()))?;
        // This process has just begun; its metrics are among the first things that it makes.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        gauge("process_start_time_seconds", "When this process began, seconds since 1970.")?.set(now.as_secs_f64());
        if let Some(limit) = max_fds() {
            gauge("process_max_fds", "Files and connections that this process may have open.")?.set(limit);
        }
        let resident = gauge("process_resident_memory_bytes", "Resident memory of this process, bytes.")?;
        let open_fds = gauge("process_open_fds", "Files and connections that this process has open.")?;
        let metrics = Self { cpu, resident, open_fds };
        metrics.sample();
        Ok(Some(metrics))
    }

    /// Updates what is sampled.
    pub fn sample(&self) {
        let Some(usage) = read() else { return };
        self.cpu.inc_by((usage.cpu_seconds - self.cpu.get()).max(0.0));
        self.resident.set(usage.resident_bytes);
        self.open_fds.set(usage.open_fds);
    }
}

fn read() -> Option<Usage> {
    let (stat, status) = (fs::read_to_string("/proc/self/stat").ok()?, fs::read_to_string("/proc/self/status").ok()?);
    Some(Usage { cpu_seconds: cpu_seconds(&stat)?, resident_bytes: resident_bytes(&status)?, open_fds: open_fds()? })
}

/// Since Linux 6.2 the folder's size says it (proc_pid_fd(5)). Walking through thousands of entries takes milliseconds,
/// and leaves an inode of each in memory that is charged to the pod.
#[allow(clippy::cast_precision_loss)]
fn open_fds() -> Option<f64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        // The folder that is being read is open, too.
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64),
        open => Some(open as f64),
    }
}

/// User and system time: fields 14 and 15 of proc(5)'s stat. The second, the program's name in parentheses, may itself
/// hold spaces and parentheses.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

/// None when there is no limit.
fn max_fds() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let stat = "4711 (a) b (c)) S 1 4711 4711 0 -1 4194560 1039 0 0 0 250 50 0 0 20 0 9 0 8888 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("4711 (a) S 1"), None);
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t9\n"), Some(2_097_152.0));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_is_measured() {
        let registry = Registry::new();
        let metrics = ProcessMetrics::register(&registry).unwrap().unwrap();
        let block = vec![1_u8; 32 << 20];
        let before = metrics.resident.get();
        assert!(before > f64::from(1 << 20), "{before} bytes");
        // Pages count once they are touched; vec! of a value that is not 0 has done that.
        assert_eq!(block.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 32 << 20);
        metrics.sample();
        assert!(metrics.cpu.get() > 0.0 && metrics.open_fds.get() >= 3.0);
        // Other tests may give memory back meanwhile.
        let after = metrics.resident.get();
        assert!(after - before > f64::from(16 << 20), "{before} bytes, then {after}");
        drop(block);
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        metrics.sample();
        assert!(metrics.open_fds.get() >= files.len() as f64);
        let started = registry.gather().into_iter().find(|f| f.name() == "process_start_time_seconds").unwrap();
        assert!(started.get_metric()[0].get_gauge().get_value() > 1_700_000_000.0);
    }
}
