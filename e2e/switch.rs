//! A switch with a real service manager, on which the agent runs real processes: the part of `make demo` about it, three
//! minutes of it. It has systemd where that works, init scripts where not; `PRAETOR_SWITCHES=systemd,initd` says which
//! ones must be played. A machine that can have no switch at all skips it and says why.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::path::Path;
use std::process::{Command, Stdio};

/// What `hack/demo.sh switch` ends with when it cannot be played here.
const CANNOT: i32 = 3;

/// `init` is what the switch must have; empty: what works.
fn play(init: &str) {
    let programs = Path::new(env!("CARGO_BIN_EXE_praetor-manager")).parent().unwrap();
    assert_eq!(Some(programs), Path::new(env!("CARGO_BIN_EXE_praetor-agent")).parent());
    let said = Command::new("hack/demo.sh")
        .arg("switch")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PRAETOR_BIN", programs)
        .env("PRAETOR_SWITCH", init)
        .env_remove("KEEP")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    let last = out.lines().last().unwrap_or_default();
    match said.status.code() {
        Some(0) => println!("{last}"),
        Some(CANNOT) if init.is_empty() => println!("skipped: {last}"),
        _ => panic!("hack/demo.sh switch: {}\n{out}\n{err}", said.status),
    }
}

#[test]
fn a_switch_runs_what_it_is_told() {
    let asked = std::env::var_os("PRAETOR_SWITCHES").unwrap_or_default();
    for init in asked.to_string_lossy().split(',') {
        play(init.trim());
    }
}
