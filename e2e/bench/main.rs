//! The numbers: each benchmark prints rows of a Markdown table with the target and the verdict, measured beside its
//! floor or its peer in the same run. `hack/bench.sh` (or `make bench`) builds and runs them.
//!
//! ```text
//! hack/bench.sh                 everything; about half an hour, ten minutes of which are heartbeats
//! hack/bench.sh hot-path fanout some of it
//! ```
//!
//! | name | what |
//! |---|---|
//! | `hot-path` | user instructions of a 304 and of a report that changes nothing (needs valgrind) |
//! | `nginx` | 304s a second and core beside nginx (needs nginx and wrk) |
//! | `report` | reports a second beside 304s |
//! | `heartbeats` | requests to the apiserver while 1,000 agents report (`BENCH_MINUTES`, default 10) |
//! | `transition` | status writes for each transition of a process |
//! | `fanout` | 2,000 children beside a bare loop of creates, and a restart when all is right |
//! | `latency` | from an edit to the agent's body, beside a bare watch |
//! | `memory` | memory of the manager for each device (`BENCH_DEVICES`, default `10000,50000`) |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

#[path = "../harness/mod.rs"]
mod harness;

mod fanout;
mod gateway;
mod heartbeats;
mod latency;
mod load;
mod memory;
mod served;
mod table;

use std::process::ExitCode;
use table::Table;

const NAMES: [&str; 9] =
    ["hot-path", "replicas", "nginx", "report", "transition", "fanout", "latency", "memory", "heartbeats"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["serve", devices, processes, place] = arguments[..] {
        served::serve(devices.parse().expect("devices"), processes.parse().expect("processes"), place == "other");
        return ExitCode::SUCCESS;
    }
    // cargo bench says --bench; cargo test --all-targets does not, and wants no half hour of load.
    let Some(bench) = arguments.iter().position(|argument| *argument == "--bench") else {
        eprintln!("run this with hack/bench.sh");
        return ExitCode::SUCCESS;
    };
    arguments.remove(bench);
    if let Some(unknown) = arguments.iter().find(|name| !NAMES.contains(*name)) {
        eprintln!("there is no benchmark {unknown:?}; there are {}", NAMES.join(", "));
        return ExitCode::FAILURE;
    }
    let mut table = Table::new();
    for name in NAMES.into_iter().filter(|name| arguments.is_empty() || arguments.contains(name)) {
        eprintln!("== {name}");
        match name {
            "hot-path" => gateway::hot_path(&mut table),
            "replicas" => gateway::replicas(&mut table),
            "nginx" => gateway::nginx(&mut table),
            "report" => gateway::report(&mut table),
            "transition" => with_runtime(heartbeats::transition(&mut table)),
            "heartbeats" => with_runtime(heartbeats::heartbeats(&mut table)),
            "fanout" => with_runtime(fanout::fanout(&mut table)),
            "latency" => with_runtime(latency::latency(&mut table)),
            _ => with_runtime(memory::memory(&mut table)),
        }
    }
    print!("{}", table.markdown());
    table.write();
    ExitCode::SUCCESS
}

fn with_runtime(benchmark: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(benchmark);
}
