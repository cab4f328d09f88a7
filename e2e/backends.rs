//! Every backend against the real thing: the rules that all of them keep, in `backends/conformance.rs`, and what only
//! one of them has.
//!
//! `PRAETOR_BACKENDS` says which ones must be tested, for example `systemd,initd`: one that the machine lacks is then a
//! failure. Unset, one that the machine lacks is skipped with the reason. `PRAETOR_RULE` chooses rules by a part of
//! their names.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

#[path = "backends/conformance.rs"]
mod conformance;
#[path = "backends/container.rs"]
mod container;
#[path = "backends/container_cases.rs"]
mod container_cases;
#[path = "backends/device.rs"]
#[allow(dead_code, reason = "which parts are used depends on the backends that are built in")]
mod device;
#[path = "backends/engine.rs"]
mod engine;
#[path = "backends/initd.rs"]
mod initd;
#[path = "backends/systemd.rs"]
mod systemd;

use conformance::Site;
use praetor::agent::process::spec::BackendKind;

/// Runs the rules at the backend that `make` gives, or says why they cannot be run here.
fn judge(kind: BackendKind, make: impl FnOnce() -> Result<Box<dyn Site>, String>) {
    where_it_is(kind, || {
        let site = make()?;
        let rule = std::env::var_os("PRAETOR_RULE").map(|rule| rule.to_string_lossy().into_owned());
        conformance::all(site.as_ref(), rule.as_deref());
        Ok(())
    });
}

/// Runs a test that needs something the machine may lack, or says that it does.
fn where_it_is(kind: BackendKind, test: impl FnOnce() -> Result<(), String>) {
    let asked = std::env::var_os("PRAETOR_BACKENDS").map(|list| list.to_string_lossy().into_owned());
    let name = kind.as_str();
    if asked.as_ref().is_some_and(|list| list.split(',').all(|word| word.trim() != name)) {
        return println!("{name}: not asked for");
    }
    match test() {
        Ok(()) => {}
        Err(lacking) if asked.is_none() => println!("{name}: skipped: {lacking}"),
        Err(lacking) => panic!("{name} cannot be tested here: {lacking}"),
    }
}

#[test]
fn systemd_keeps_the_rules() {
    judge(BackendKind::Systemd, systemd::Units::of_this_machine);
}

#[test]
fn init_scripts_keep_the_rules() {
    judge(BackendKind::Initd, || initd::Device::new().map(|device| Box::new(device) as Box<dyn Site>));
}

#[test]
fn init_scripts_for_themselves() {
    initd::scenes();
}

#[test]
fn containers_keep_the_rules() {
    judge(BackendKind::Container, || Ok(Box::new(container::Docker::new()?)));
}

#[test]
fn containers_have_images_and_an_engine() {
    where_it_is(BackendKind::Container, || {
        let docker = container::Docker::new()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            container_cases::images(&docker).await;
            container_cases::collection(&docker).await;
            container_cases::an_engine_that_goes_and_comes(&docker).await;
            container_cases::agents_that_die_in_updates(&docker).await;
        });
        Ok(())
    });
}
