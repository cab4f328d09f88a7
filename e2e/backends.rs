//! Every backend against the real thing: the rules that all of them keep, in `backends/conformance.rs`.
//!
//! `PRAETOR_BACKENDS` says which ones must be tested, for example `systemd,initd`: one that the machine lacks is then a
//! failure. Unset, one that the machine lacks is skipped with the reason. `PRAETOR_RULE` chooses rules by a part of
//! their names.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

#[path = "backends/conformance.rs"]
mod conformance;
#[path = "backends/device.rs"]
#[allow(dead_code, reason = "which parts are used depends on the backends that are built in")]
mod device;
#[path = "backends/initd.rs"]
mod initd;
#[path = "backends/systemd.rs"]
mod systemd;

use conformance::Site;
use praetor::agent::process::spec::BackendKind;

/// Runs the rules at the backend that `make` gives, or says why they cannot be run here.
fn judge(kind: BackendKind, make: impl FnOnce() -> Result<Box<dyn Site>, String>) {
    let asked = std::env::var_os("PRAETOR_BACKENDS").map(|list| list.to_string_lossy().into_owned());
    let name = kind.as_str();
    if asked.as_ref().is_some_and(|list| list.split(',').all(|word| word.trim() != name)) {
        return println!("{name}: not asked for");
    }
    match make() {
        Ok(site) => {
            let rule = std::env::var_os("PRAETOR_RULE").map(|rule| rule.to_string_lossy().into_owned());
            conformance::all(site.as_ref(), rule.as_deref());
        }
        Err(lacking) if asked.is_none() => println!("{name}: skipped: {lacking}"),
        Err(lacking) => panic!("{name} cannot be tested here: {lacking}"),
    }
}

#[test]
fn initd() {
    judge(BackendKind::Initd, || initd::Device::new().map(|device| Box::new(device) as Box<dyn Site>));
}

#[test]
fn init_scripts() {
    initd::scenes();
}

#[test]
fn systemd() {
    judge(BackendKind::Systemd, systemd::Units::of_this_machine);
}
