//! Rows of results, with target and verdict.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// What was measured, in the order in which it was.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 4]>,
}

impl Table {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row that has to hold.
    pub fn gate(
        &mut self,
        what: impl Into<String>,
        measured: impl Into<String>,
        target: impl Into<String>,
        holds: bool,
    ) {
        self.row(what.into(), measured.into(), target.into(), if holds { "held" } else { "**missed**" });
    }

    /// Adds a row for people to know.
    pub fn note(&mut self, what: impl Into<String>, measured: impl Into<String>) {
        self.row(what.into(), measured.into(), String::new(), "");
    }

    fn row(&mut self, what: String, measured: String, target: String, verdict: &str) {
        eprintln!("   {what}: {measured}  {target}  {verdict}");
        self.rows.push([what, measured, target, verdict.to_owned()]);
    }

    /// The whole table, with machine and date above it.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n\n| what | measured | target | |\n|---|---|---|---|\n", machine());
        for [what, measured, target, verdict] in &self.rows {
            let _ = writeln!(text, "| {what} | {measured} | {target} | {verdict} |");
        }
        text
    }

    /// Writes it to `bench.md` in cargo's target folder.
    pub fn write(&self) {
        let path = std::env::current_exe()
            .expect("this program")
            .ancestors()
            .nth(3)
            .map_or_else(|| PathBuf::from("bench.md"), |target| target.join("bench.md"));
        match std::fs::write(&path, self.markdown()) {
            Ok(()) => eprintln!("written to {}", path.display()),
            Err(error) => eprintln!("cannot write {}: {error}", path.display()),
        }
    }
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("?", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo")
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
        / 1024;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let date = praetor::wire::time::format(i64::try_from(seconds).unwrap_or(0));
    format!(
        "{cores} cores of {model}, {memory} GiB, Linux {}, {}",
        read("/proc/sys/kernel/osrelease").trim(),
        &date[..10]
    )
}

/// The middle of some figures; the lower one of two.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get((figures.len().max(1) - 1) / 2).copied().unwrap_or(f64::NAN)
}

/// The figure that a share (0 to 1) of all does not exceed.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn quantile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// A whole number with commas.
#[allow(clippy::cast_possible_truncation)]
pub fn commas(number: f64) -> String {
    let digits = (number.round() as i64).to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && digit != '-' && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
