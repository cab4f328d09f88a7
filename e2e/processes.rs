//! The agent as a process, with real processes: init scripts, their links and their journals, in folders of the test's
//! own that are mounted where the device has its own. Needs root and `unshare`; says so plainly where it lacks them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

#[path = "agent/stage.rs"]
#[allow(dead_code, reason = "shared with the tests of the agent without processes")]
mod stage;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stage::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What the device's own folders are covered with.
const COVERED: [&str; 9] = [
    "etc/init.d",
    "etc/rc0.d",
    "etc/rc1.d",
    "etc/rc2.d",
    "etc/rc3.d",
    "etc/rc4.d",
    "etc/rc5.d",
    "etc/rc6.d",
    "var/log",
];
/// Holds a lock as long as it lives, so that a second copy is noticed whatever the timing.
const PROGRAM: &str = r#"#!/bin/sh
exec 9>>"$STAGE/lock"
flock -n 9 || echo "two copies" >>"$STAGE/trouble"
echo "$1 $$" >>"$STAGE/starts"
trap 'exit 0' TERM
while :; do sleep 1 9>&- & wait $!; done
"#;

/// A device with one process that may be wanted.
struct Device {
    /// Processes are found by their names: each device has its own.
    name: String,
    folder: tempfile::TempDir,
    gateway: Gateway,
    generation: u64,
    agent: Option<Agent>,
}

/// Says why nothing can be tested here.
fn lacking() -> Option<String> {
    let probe = Command::new("unshare").args(["--mount", "flock", "--version"]).output();
    let fine = probe.as_ref().is_ok_and(|output| output.status.success()) && Path::new("/etc/rc2.d").is_dir();
    (!fine).then(|| format!("needs root, unshare, flock and /etc/rc2.d: {probe:?}"))
}

fn hash(text: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text)))
}

impl Device {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in COVERED {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::create_dir(folder.path().join("artifacts")).unwrap();
        let name = format!("agent{}", folder.path().display())
            .to_lowercase()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        Self { name, folder, gateway: Gateway::start(|_| Reply::HangUp), generation: 0, agent: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The agent, with the test's folders where the device's are.
    fn start(&mut self) {
        let mounts: Vec<String> =
            COVERED.iter().map(|name| format!("mount --bind '{}' /{name}", self.path(name).display())).collect();
        let script = format!("{} && exec \"$0\"", mounts.join(" && "));
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_praetor-agent")]).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("APOLLO_DEVICE_NAME", DEVICE);
        command.env("APOLLO_GATEWAY_URL", self.gateway.url()).env("APOLLO_DEVICE_TOKEN", TOKEN);
        command.env("APOLLO_AGENT_STATE_FILE", self.path("agent/state.json"));
        command.env("APOLLO_AGENT_CONTAINER_SOCKET", "/nonexistent/docker.sock");
        self.agent = Some(Agent::spawn(command));
    }

    fn kill(&mut self) -> String {
        self.agent.take().unwrap().end("-KILL").2
    }

    fn log(&self) -> String {
        self.agent.as_ref().map(Agent::log).unwrap_or_default()
    }

    /// A program of this name, and its checksum.
    fn program(&self, name: &str, text: &str) -> (String, String) {
        let path = self.path("artifacts").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (path.to_str().unwrap().to_owned(), hex::encode(Sha256::digest(text)))
    }

    /// A spec of a program that tells `word` at its start.
    fn spec(&self, word: &str, policy: &str) -> Value {
        let (url, checksum) = self.program("agent.sh", &format!("{PROGRAM}# {word}\n"));
        // Each version's file has a name of its own, as in the world.
        let own = format!("{url}.{word}");
        fs::copy(&url, &own).unwrap();
        json!({"artifact": {"type": "file", "url": own, "checksumSHA256": checksum}, "restartPolicy": policy,
            "execution": {"backend": "initd", "command": [format!("agent.sh.{word}"), word],
                "env": [{"name": "STAGE", "value": self.folder.path()}]}})
    }

    /// What the gateway says from now on. Returns the hash of the spec.
    fn want(&mut self, spec: Option<&Value>) -> String {
        self.want_as("uid-1", spec)
    }

    fn want_as(&mut self, uid: &str, spec: Option<&Value>) -> String {
        self.generation += 1;
        let generation = self.generation;
        let text = spec.map(Value::to_string).unwrap_or_default();
        let (hash, name) = (hash(&text), self.name.clone());
        let items: Vec<Value> = spec
            .map(|spec| json!({"uid": uid, "namespace": "infra", "name": name, "generation": generation, "spec": spec, "specHash": hash}))
            .into_iter()
            .collect();
        let body = json!({"deviceName": DEVICE, "heartbeatIntervalSeconds": 1, "items": items}).to_string();
        let etag = format!("\"{generation}\"");
        let headers = format!("ETag: {etag}\r\nX-Praetor-Revision: {generation}\r\n");
        self.gateway.play(move |seen| match seen.header("if-none-match") {
            _ if !seen.is_get() => ack(),
            Some(tag) if tag == etag && seen.wait_seconds() > 0 => Reply::Park,
            Some(tag) if tag == etag => answer(304, &headers, ""),
            _ => answer(200, &headers, &body),
        });
        hash
    }

    /// The last report's only observation.
    fn said(&self) -> Option<Value> {
        let report = self.gateway.reports().pop()?;
        report.body["observations"].get(0).cloned()
    }

    /// Waits for an observation.
    fn await_said(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let said = self.said();
            if let Some(said) = said.as_ref().filter(|said| fits(said)) {
                return said.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}; said {said:#?}\n{}", self.log());
            await_true("a moment", || begun.elapsed() > Duration::ZERO);
            pause();
        }
    }

    fn await_running(&self, hash: &str) -> Value {
        self.await_said("it runs", |said| {
            said["processStarted"] == true && said["runningSpecHash"] == hash && said["observedSpecHash"] == hash
        })
    }

    /// Words and process ids of all starts.
    fn starts(&self) -> Vec<(String, i64)> {
        let text = fs::read_to_string(self.path("starts")).unwrap_or_default();
        let start = |line: &str| line.split_once(' ').map(|(word, pid)| (word.to_owned(), pid.parse().unwrap()));
        text.lines().filter_map(start).collect()
    }

    /// Process ids of all programs of this device that live.
    fn live(&self) -> Vec<i64> {
        self.starts().into_iter().map(|(_, pid)| pid).filter(|pid| self.is_ours(*pid)).collect()
    }

    fn is_ours(&self, pid: i64) -> bool {
        let dead = fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let stage = format!("STAGE={}", self.folder.path().display());
        !dead && String::from_utf8_lossy(&environment).contains(&stage)
    }

    fn assert_no_trouble(&self) {
        let trouble = fs::read_to_string(self.path("trouble")).unwrap_or_default();
        assert_eq!(trouble, "", "{:?}", self.starts());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        drop(self.agent.take());
        // What the agent leaves running on purpose; its shim first sees the end of it.
        for pid in self.live() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a pause between two looks, with a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

fn kill(pid: i64, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// A device, or a line about why there is none.
fn device() -> Option<Device> {
    match lacking() {
        None => Some(Device::new()),
        Some(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

#[test]
fn the_old_version_runs_until_the_new_one_can() {
    let Some(mut device) = device() else { return };
    let (one, two) = (device.spec("one", "Always"), device.spec("two", "Always"));
    let hash_one = device.want(Some(&one));
    device.start();
    let said = device.await_running(&hash_one);
    let pid = said["pid"].as_i64().unwrap();
    assert_eq!(device.live(), [pid]);
    assert_eq!((&said["artifactDownloaded"], &said["artifactVerified"]), (&json!(true), &json!(true)));
    let digest = format!("sha256:{}", one["artifact"]["checksumSHA256"].as_str().unwrap());
    assert_eq!((said["artifactDigest"].as_str(), &said["restartCount"]), (Some(&*digest), &json!(0)));
    device.await_said("healthy after five seconds", |said| said["healthy"] == true);

    // Its artifact is not what it should be: the old one goes on.
    let mut bad = two.clone();
    bad["artifact"]["checksumSHA256"] = json!("0".repeat(64));
    let hash_bad = device.want(Some(&bad));
    let said = device.await_said("the failure", |said| said["artifactVerifyReason"].is_string());
    assert_eq!(
        (said["observedSpecHash"].as_str(), said["runningSpecHash"].as_str()),
        (Some(&*hash_bad), Some(&*hash_one))
    );
    assert_eq!((&said["processStarted"], &said["healthy"], &said["pid"]), (&json!(true), &json!(true), &json!(pid)));
    assert_eq!((&said["artifactVerified"], &said["errorMessage"]), (&json!(false), &Value::Null));
    // No such command in it: the same, as a warning.
    let mut bad = two.clone();
    bad["execution"]["command"][0] = json!("nothing");
    device.want(Some(&bad));
    let said = device.await_said("the warning", |said| said["warningMessage"].is_string());
    assert!(said["warningMessage"].as_str().unwrap().contains("neither in the artifact nor on the device"), "{said}");
    assert_eq!((said["runningSpecHash"].as_str(), &said["errorMessage"]), (Some(&*hash_one), &Value::Null));
    // And one that is none.
    device.want(Some(&json!({"artifact": 1})));
    let said = device
        .await_said("the warning", |said| said["warningMessage"].as_str().is_some_and(|w| w.contains("cannot read")));
    assert_eq!((said["runningSpecHash"].as_str(), &said["pid"]), (Some(&*hash_one), &json!(pid)));
    assert_eq!(device.live(), [pid]);

    // A good one: one switch-over.
    let hash_two = device.want(Some(&two));
    let edit = Instant::now();
    let said = device.await_running(&hash_two);
    println!("edit to report of the new version: {:?}", edit.elapsed());
    assert_eq!(device.live(), [said["pid"].as_i64().unwrap()]);
    let words: Vec<_> = device.starts().into_iter().map(|(word, _)| word).collect();
    assert_eq!(words, ["one", "two"]);
    assert_eq!(said["warningMessage"], Value::Null);

    // The same spec for an object that was made anew: one switch-over, too.
    device.want_as("uid-2", Some(&two));
    await_true("another start", || device.starts().len() == 3);
    device.await_running(&hash_two);
    // Not wanted any more.
    device.want(None);
    await_true("the end of it", || device.live().is_empty());
    await_true("nothing is left of it", || fs::read_dir(device.path("etc/init.d")).unwrap().count() == 0);
    await_true("nothing is remembered", || fs::read_dir(device.path("agent/processes")).unwrap().count() == 0);
    assert_eq!(device.starts().len(), 3);
    device.assert_no_trouble();
}

#[test]
fn a_process_that_is_killed_is_restarted_and_counted() {
    let Some(mut device) = device() else { return };
    let spec = device.spec("one", "Always");
    let hash = device.want(Some(&spec));
    device.start();
    let first = device.await_running(&hash)["pid"].as_i64().unwrap();
    kill(first, "-KILL");
    let said = device.await_said("a restart", |said| said["processStarted"] == true && said["pid"] != first);
    assert_eq!(said["restartCount"], 1, "{said}");
    assert_eq!((said["lastTerminationReason"].as_str(), &said["exitCode"]), (Some("Signal SIGKILL"), &Value::Null));
    // Again: in ten seconds, and until then it is said how it ended.
    let second = said["pid"].as_i64().unwrap();
    kill(second, "-KILL");
    let said = device.await_said("the end", |said| said["processStarted"] == false);
    assert_eq!(
        (&said["exitCode"], &said["restartCount"], &said["errorMessage"]),
        (&json!(137), &json!(1), &Value::Null)
    );
    // An edit is no restart: it starts at once and the count stays.
    let other = device.spec("two", "Always");
    let hash = device.want(Some(&other));
    let said = device.await_running(&hash);
    assert_eq!(said["restartCount"], 2);
    device.assert_no_trouble();
}

#[test]
fn the_agents_death_stops_nothing() {
    let Some(mut device) = device() else { return };
    let spec = device.spec("one", "Always");
    let hash = device.want(Some(&spec));
    device.start();
    let pid = device.await_running(&hash)["pid"].as_i64().unwrap();
    device.await_said("a verdict", |said| said["healthy"] == true);
    device.kill();
    assert_eq!(device.live(), [pid]);
    let back = Instant::now();
    device.start();
    let report = await_some("a report of the new start", || {
        device
            .gateway
            .reports()
            .into_iter()
            .find(|report| report.at > back && report.body["observations"][0]["processStarted"] == true)
    });
    let said = &report.body["observations"][0];
    assert_eq!(
        (&said["pid"], &said["healthy"], &said["restartCount"]),
        (&json!(pid), &json!(true), &json!(0)),
        "{said}"
    );
    assert_eq!((device.live(), device.starts().len()), (vec![pid], 1));
    // It dies while nobody looks, and the gateway is away: it is started again from what is remembered.
    device.kill();
    device.gateway.play(|_| Reply::HangUp);
    kill(pid, "-KILL");
    await_true("its end", || device.live().is_empty());
    device.start();
    await_true("it runs again", || device.live().len() == 1);
    // On return it is told.
    device.want(Some(&spec));
    let said = device.await_said("the restart", |said| said["restartCount"] == 1);
    assert_eq!(said["lastTerminationReason"], "Signal SIGKILL");
    // SIGTERM stops nothing either.
    let (status, took, _) = device.agent.take().unwrap().end("-TERM");
    assert!(status.success() && took < Duration::from_secs(1), "{took:?}");
    assert_eq!(device.live().len(), 1);
    // Deleted while the agent is away: stopped when it is back.
    device.want(None);
    device.start();
    await_true("the end of it", || device.live().is_empty());
    device.assert_no_trouble();
}

#[test]
fn a_lost_memory_stops_nothing() {
    let Some(mut device) = device() else { return };
    let spec = device.spec("one", "Always");
    let hash = device.want(Some(&spec));
    device.start();
    let pid = device.await_running(&hash)["pid"].as_i64().unwrap();
    device.kill();
    // The list is gone, and the gateway, too.
    fs::write(device.path("agent/state.json"), "{").unwrap();
    device.gateway.play(|_| Reply::HangUp);
    device.start();
    await_true("a look", || device.log().contains("the device has this backend"));
    await_true("requests in vain", || device.gateway.reports().len() > 3);
    assert_eq!(device.live(), [pid]);
    // So is what is remembered of the process.
    device.kill();
    fs::remove_file(device.path("agent/state.json")).ok();
    fs::remove_dir_all(device.path("agent/processes")).unwrap();
    device.start();
    await_true("a look", || device.log().contains("the device has this backend"));
    assert_eq!(device.live(), [pid]);
    // It is wanted: taken over as it is.
    device.want(Some(&spec));
    let said = device.await_running(&hash);
    assert_eq!((&said["pid"], device.starts().len()), (&json!(pid), 1));
    // It is not, and again nobody remembers.
    device.kill();
    fs::remove_file(device.path("agent/state.json")).ok();
    fs::remove_dir_all(device.path("agent/processes")).unwrap();
    device.want(None);
    device.start();
    await_true("the end of it", || device.live().is_empty());
    device.assert_no_trouble();
}

#[test]
fn a_run_that_is_over_stays_so() {
    let Some(mut device) = device() else { return };
    let (url, checksum) = device.program("once.sh", "#!/bin/sh\necho \"$1 $$\" >>\"$STAGE/starts\"\nexit $2\n");
    let spec = |word: &str, code: &str, policy: &str| {
        json!({"restartPolicy": policy,
        "artifact": {"type": "file", "url": url, "checksumSHA256": checksum},
        "execution": {"backend": "initd", "command": ["once.sh", word, code], "env": [{"name": "STAGE", "value": device.folder.path()}]}})
    };
    let (well, ill, retried) =
        (spec("well", "0", "OnFailure"), spec("ill", "3", "Never"), spec("retried", "4", "OnFailure"));
    let hash = device.want(Some(&well));
    device.start();
    let over = |code: i64| move |said: &Value| said["exitCode"] == code && said["processStarted"] == false;
    let said = device.await_said("it is over", over(0));
    assert_eq!(
        (said["runningSpecHash"].as_str(), &said["restartCount"], &said["errorMessage"]),
        (Some(&*hash), &json!(0), &Value::Null)
    );
    device.want(Some(&ill));
    device.await_said("it is over", over(3));
    // Also for an agent that comes again, and when an older one is wanted again.
    device.kill();
    let back = Instant::now();
    device.start();
    await_true("a report", || {
        device.gateway.reports().iter().any(|r| r.at > back && over(3)(&r.body["observations"][0]))
    });
    device.want(Some(&well));
    device.await_said("it is over", over(0));
    device.want(Some(&retried));
    await_true("the first restart at once", || device.starts().len() == 4);
    device.await_said("how it ended", over(4));
    let words: Vec<_> = device.starts().into_iter().map(|(word, _)| word).collect();
    assert_eq!(words, ["well", "ill", "retried", "retried"]);
}

#[test]
fn a_backend_that_is_not_there_is_waited_for() {
    let Some(mut device) = device() else { return };
    let mut spec = device.spec("one", "Always");
    spec["execution"]["backend"] = json!("container");
    device.want(Some(&spec));
    device.start();
    let said = device.await_said("the warning", |said| said["warningReason"] == "BackendUnavailable");
    assert_eq!((&said["processStarted"], &said["errorMessage"]), (&json!(false), &Value::Null));
    assert_eq!(said["artifactDownloadAttempts"], Value::Null, "{said}");
}

/// As often as `PRAETOR_KILLS` says, 25 times unless it says something.
#[test]
fn killed_at_any_point_of_an_update_it_comes_to_what_is_wanted() {
    let Some(mut device) = device() else { return };
    let kills = std::env::var_os("PRAETOR_KILLS").map_or(25, |n| n.to_string_lossy().parse().unwrap());
    let mut specs: Vec<Value> = (0..6).map(|i| device.spec(&format!("v{i}"), "Always")).collect();
    // One whose artifact is not what it says; if it ever ran, that would be noted.
    let (url, _) = device.program("bad.sh", "#!/bin/sh\necho bad >>\"$STAGE/trouble\"\n");
    specs[5]["artifact"] = json!({"type": "file", "url": url, "checksumSHA256": "1".repeat(64)});
    specs[5]["execution"]["command"] = json!(["bad.sh"]);
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance % below
    };
    let good = device.want(Some(&specs[0]));
    device.start();
    device.await_running(&good);
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        let which = random(6) as usize;
        device.want(Some(&specs[which]));
        let at = Instant::now() + Duration::from_millis(random(400));
        await_true("its hour", || Instant::now() >= at);
        device.kill();
        assert!(device.live().len() <= 1);
        device.start();
        // Not each time: two deaths in one update are another story.
        if kill % 3 == 2 {
            let which = random(5) as usize;
            let begun = Instant::now();
            let hash = device.want(Some(&specs[which]));
            let said = device.await_running(&hash);
            slowest = slowest.max(begun.elapsed());
            await_true("nothing but it", || device.live() == [said["pid"].as_i64().unwrap()]);
        }
        device.assert_no_trouble();
    }
    let hash = device.want(Some(&specs[1]));
    device.await_running(&hash);
    println!("{kills} kills, {} starts of the process, at most {slowest:?} until it ran again", device.starts().len());
    assert_eq!(device.live().len(), 1);
    device.assert_no_trouble();
}
