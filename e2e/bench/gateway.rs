//! The device port without a cluster: instructions, and requests a second beside nginx.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use super::load::{self, Nginx, Press, Server, Wire};
use super::table::{Table, commas, median};

/// The core of what is measured, and of who presses.
const CORES: (&str, &str) = ("0", "1");

/// The device that asks.
const DEVICE: usize = 242;

fn seconds() -> u64 {
    std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// How many devices are indexed.
fn devices() -> usize {
    std::env::var("BENCH_INDEXED").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

fn exists(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    found.is_ok_and(|output| output.status.success())
}

/// The server under callgrind on one core, counting only while it is told to.
struct Counted {
    server: Server,
    folder: super::harness::Folder,
    dumps: usize,
}

impl Counted {
    fn start(processes: usize, devices: usize, place: &str) -> Self {
        let folder = super::harness::Folder::new("callgrind");
        let out = format!("--callgrind-out-file={}", folder.join("out").display());
        let valgrind = [
            "taskset",
            "-c",
            CORES.0,
            "valgrind",
            "-q",
            "--tool=callgrind",
            "--instr-atstart=no",
            "--compress-strings=no",
            &out,
        ];
        let server = Server::start_as(&valgrind, devices, processes, place);
        let counted = Self { server, folder, dumps: 0 };
        counted.control(&["-i", "on"]);
        counted
    }

    fn control(&self, arguments: &[&str]) {
        let done = Command::new("callgrind_control")
            .args(arguments)
            .arg(self.server.pid().to_string())
            .output()
            .expect("callgrind_control");
        assert!(done.status.success(), "callgrind_control {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Instructions of some exchanges and of what surrounds them.
    fn instructions(&mut self, exchanges: impl FnOnce()) -> (f64, PathBuf) {
        self.control(&["-z"]);
        exchanges();
        self.control(&["-d"]);
        self.dumps += 1;
        // One file for each dump and thread; an empty one is not written.
        let part = format!("out.{}", self.dumps);
        let files: Vec<PathBuf> =
            std::fs::read_dir(self.folder.path()).expect("the folder").flatten().map(|entry| entry.path()).collect();
        let path = files
            .into_iter()
            .find(|path| path.file_name().is_some_and(|name| *name == *part))
            .unwrap_or_else(|| panic!("callgrind wrote no {part}"));
        let text = std::fs::read_to_string(&path).expect("a profile");
        let total = text
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
        (total.and_then(|total| total.split_whitespace().next()?.parse().ok()).expect("totals"), path)
    }

    /// Instructions for one exchange: the difference of two run lengths.
    fn each(&mut self, name: &str, mut exchange: impl FnMut()) -> f64 {
        const RUNS: (u32, u32) = (1_000, 5_000);
        (0..1_000).for_each(|_| exchange());
        let (short, _) = self.instructions(|| (0..RUNS.0).for_each(|_| exchange()));
        let (long, profile) = self.instructions(|| (0..RUNS.1).for_each(|_| exchange()));
        if let Some(keep) = std::env::var_os("BENCH_PROFILES") {
            let _ = std::fs::copy(profile, PathBuf::from(keep).join(format!("{name}.callgrind")));
        }
        (long - short) / f64::from(RUNS.1 - RUNS.0)
    }
}

/// User instructions of a 304 and of a report that changes nothing.
pub fn hot_path(table: &mut Table) {
    if !exists("valgrind") || !exists("taskset") {
        return table.note("user instructions per 304", "not measured: valgrind or taskset is missing");
    }
    let mut first = None;
    for processes in [1, 5, 20] {
        let mut counted = Counted::start(processes, devices(), "owner");
        let address = counted.server.address;
        let (etag, hash) = load::look(address, DEVICE);
        let mut wire = Wire::open(address);
        let request = load::desired_request(DEVICE, &etag);
        let each =
            counted.each(&format!("304-{processes}"), || assert!(wire.ask(&request).starts_with("HTTP/1.1 304")));
        let what = format!(
            "user instructions per 304, {} devices with {processes} process(es) each",
            commas(devices() as f64)
        );
        let Some(base) = first else {
            first = Some(each);
            table.gate(what, commas(each), "≤ 9,000", each <= 9_000.0);
            let pair = ["1", "2"].map(|revision| {
                let text = String::from_utf8(request.clone()).expect("text");
                text.replace("Min-Revision: 2", &format!("Min-Revision: {revision}")).into_bytes()
            });
            let mut at = 0;
            let read = counted.each("304-read", || {
                at = 1 - at;
                assert!(wire.ask(&pair[at]).starts_with("HTTP/1.1 304"));
            });
            table.gate(
                "the same when every request differs from the one before in a header (read as HTTP each time)",
                commas(read),
                "≤ 9,000",
                read <= 9_000.0,
            );
            let others: Vec<Vec<u8>> =
                (0..64).map(|number| load::desired_request(number, &load::look(address, number).0)).collect();
            let mut at = 0;
            let fresh = counted.each("304-other-device", || {
                at = (at + 1) % others.len();
                assert!(wire.ask(&others[at]).starts_with("HTTP/1.1 304"));
            });
            table.note(
                "the same when every request of the connection is another device's (token derived anew)",
                commas(fresh),
            );
            let mut sequence = 0;
            let mut wire = Wire::open(address);
            let report = counted.each("report", || {
                sequence += 1;
                assert!(wire.ask(&load::report_request(DEVICE, &hash, sequence)).starts_with("HTTP/1.1 200"));
            });
            table.note("user instructions per report with one observation that changes nothing", commas(report));
            continue;
        };
        let apart = (each / base - 1.0) * 100.0;
        table.gate(
            what,
            format!("{} ({apart:+.1} %)", commas(each)),
            "± 2 % of that of one process",
            apart.abs() <= 2.0,
        );
    }
}

/// User instructions of a heartbeat at a replica that does not own the device.
pub fn replicas(table: &mut Table) {
    if !exists("valgrind") || !exists("taskset") {
        return table.note("user instructions of a heartbeat", "not measured: valgrind or taskset is missing");
    }
    let [owner, other] = ["owner", "other"].map(|place| {
        let mut counted = Counted::start(1, 1_000, place);
        let (_, hash) = load::look(counted.server.address, DEVICE);
        let (mut wire, mut sequence) = (Wire::open(counted.server.address), 0);
        counted.each(&format!("heartbeat-{place}"), || {
            sequence += 1;
            assert!(wire.ask(&load::report_request(DEVICE, &hash, sequence)).starts_with("HTTP/1.1 200"));
        })
    });
    table.gate(
        "user instructions of a heartbeat at a replica that does not own the device, beside one at its owner",
        format!("{} : {} = {:.2} ×", commas(other), commas(owner), other / owner),
        "≤ 1.2 ×",
        other <= 1.2 * owner,
    );
}

/// One run: answers a second, and what they come to on a core that does nothing else. The one who presses may well be
/// the slower of the two, so the second figure is what counts.
struct Run {
    rate: f64,
    of_core: f64,
}

fn measured(pid: u32, load: impl FnOnce() -> Option<f64>) -> Option<Run> {
    let (begun, before) = (Instant::now(), load::cpu_time(pid));
    let rate = load()?;
    let used = load::cpu_time(pid).saturating_sub(before).as_secs_f64();
    Some(Run { rate, of_core: rate * begun.elapsed().as_secs_f64() / used })
}

/// Pairs of runs: the median of the ratios by core, and what is printed of them.
fn pairs(a: impl Fn() -> Option<Run>, b: impl Fn() -> Option<Run>) -> Option<(f64, String)> {
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push((a()?, b()?));
    }
    let of = |figure: &dyn Fn(&(Run, Run)) -> f64| median(runs.iter().map(figure).collect());
    let ratio = of(&|(a, b)| a.of_core / b.of_core);
    let cores = [of(&|(a, _)| a.of_core), of(&|(_, b)| b.of_core)].map(commas);
    let rates = [of(&|(a, _)| a.rate), of(&|(_, b)| b.rate)].map(commas);
    Some((
        ratio,
        format!("{} : {} = {ratio:.2} × (a second, as pressed: {} : {})", cores[0], cores[1], rates[0], rates[1]),
    ))
}

/// 304s a second and core beside nginx.
pub fn nginx(table: &mut Table) {
    if !exists("nginx") || !exists("wrk") || !exists("taskset") {
        return table.note("304s a second and core beside nginx", "not measured: nginx, wrk or taskset is missing");
    }
    let server = Server::start(&["taskset", "-c", CORES.0], devices(), 1);
    let nginx = Nginx::start(CORES.0).expect("nginx");
    let (etag, _) = load::look(server.address, DEVICE);
    let request = String::from_utf8(load::desired_request(DEVICE, &etag)).expect("text");
    let headers: Vec<String> = request
        .lines()
        .skip(1)
        .filter(|line| !line.is_empty() && !line.starts_with("Host"))
        .map(ToOwned::to_owned)
        .collect();
    let path = request.split_whitespace().nth(1).expect("a path").to_owned();
    let (ours, theirs) = (format!("http://{}{path}", server.address), format!("http://127.0.0.1:{}{path}", nginx.port));
    for connections in [64, 1_000] {
        let press = |pid: u32, url: &str| measured(pid, || load::wrk(CORES.1, url, &headers, connections, seconds()));
        let (ratio, text) = pairs(|| press(server.pid(), &ours), || press(nginx.pid(), &theirs)).expect("wrk's result");
        let what = format!(
            "304s a second of one core, {connections} connections, beside nginx (`return 304`), median of 5 pairs"
        );
        table.gate(what, text, "≥ 0.95 ×", ratio >= 0.95);
    }
}

/// Reports a second beside 304s.
pub fn report(table: &mut Table) {
    let server = Server::start(&["taskset", "-c", CORES.0], devices(), 1);
    let (_, hash) = load::look(server.address, 0);
    let _ = Command::new("taskset").args(["-a", "-p", "-c", CORES.1, &std::process::id().to_string()]).output();
    let press = |what: Press| measured(server.pid(), || Some(load::press(server.address, what, 64, seconds(), &hash)));
    let (ratio, text) = pairs(|| press(Press::Report), || press(Press::Desired)).expect("figures");
    let _ = Command::new("taskset").args(["-a", "-p", "-c", "0-1023", &std::process::id().to_string()]).output();
    let what = "reports with one observation that change nothing, a second of one core, beside own 304s, 64 connections, median of 5 pairs";
    table.gate(what, text, "≥ 0.85 ×", ratio >= 0.85);
    let bytes = server.index_bytes as f64 / devices() as f64;
    table.note(
        format!(
            "memory of the index for each device with one process, {} devices, no cluster",
            commas(devices() as f64)
        ),
        format!("{} B", commas(bytes)),
    );
}
