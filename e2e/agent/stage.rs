//! The stage of the agent's tests: a scripted gateway, and the agent as a process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub const DEVICE: &str = "tor1-01";
pub const TOKEN: &str = "5bdcc146bf60754e6a042426089575c7";
/// Longest time that anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

// === The scripted gateway ===

#[derive(Debug, Clone)]
pub struct Seen {
    pub at: Instant,
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: serde_json::Value,
}

impl Seen {
    pub fn is_get(&self) -> bool {
        self.method == "GET"
    }

    pub fn wait_seconds(&self) -> u64 {
        self.path.rsplit_once("waitSeconds=").unwrap().1.parse().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// `name@hash` of every observation of a report.
    pub fn observations(&self) -> Vec<String> {
        let text = |o: &serde_json::Value, key: &str| o[key].as_str().unwrap().to_owned();
        self.body["observations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| format!("{}@{}", text(o, "name"), text(o, "observedSpecHash")))
            .collect()
    }
}

pub enum Reply {
    Answer(String),
    /// Until the script changes; then the new script is asked.
    Park,
    HangUp,
}

pub type BoxedReply = Box<dyn Fn() -> Reply + Send + Sync>;
pub type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

#[derive(Clone)]
pub struct Gateway {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub script: Arc<(Mutex<(u64, Script)>, Condvar)>,
}

impl Gateway {
    pub fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gateway = Self {
            port: listener.local_addr().unwrap().port(),
            seen: Arc::default(),
            script: Arc::new((Mutex::new((0, Arc::new(script))), Condvar::new())),
        };
        let server = gateway.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                thread::spawn(move || server.serve(stream.unwrap()));
            }
        });
        gateway
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn play(&self, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) {
        let mut current = self.script.0.lock().unwrap();
        *current = (current.0 + 1, Arc::new(script));
        self.script.1.notify_all();
    }

    pub fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        loop {
            let seen = read_request(&mut reader)?;
            self.seen.lock().unwrap().push(seen.clone());
            loop {
                let (number, script) = self.script.0.lock().unwrap().clone();
                match script(&seen) {
                    Reply::Answer(text) => {
                        writer.write_all(text.as_bytes()).ok()?;
                        break;
                    }
                    Reply::HangUp => return None,
                    Reply::Park => drop(self.script.1.wait_while(self.script.0.lock().unwrap(), |s| s.0 == number)),
                }
            }
        }
    }

    pub fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn gets(&self) -> Vec<Seen> {
        self.all().into_iter().filter(Seen::is_get).collect()
    }

    pub fn reports(&self) -> Vec<Seen> {
        self.all().into_iter().filter(|s| !s.is_get()).collect()
    }

    /// Waits for a report with exactly these observations, later than `after`.
    pub fn await_report(&self, after: Instant, observations: &[&str]) -> Seen {
        await_some(&format!("a report of {observations:?}"), || {
            self.reports().into_iter().find(|r| r.at > after && r.observations() == observations)
        })
    }
}

pub fn read_request(reader: &mut impl BufRead) -> Option<Seen> {
    let mut line = || -> Option<String> {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let at = Instant::now();
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |n| n.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { at, method, path, headers, body: serde_json::from_slice(&body).unwrap_or_default() })
}

pub fn answer(status: u16, headers: &str, body: &str) -> Reply {
    Reply::Answer(format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()))
}

pub fn ack() -> Reply {
    answer(200, "", r#"{"ack":true}"#)
}

/// A truthful gateway: `items` are (name, generation), `H` is the heartbeat, seconds.
pub fn desired(
    heartbeat: u64,
    revision: u64,
    items: &[(&str, i64)],
) -> impl Fn(&Seen) -> Reply + Clone + Send + Sync + 'static {
    let list: Vec<String> = items
        .iter()
        .map(|(name, g)| {
            format!(r#"{{"uid":"uid-{name}","namespace":"infra","name":"{name}","generation":{g},"spec":{{"g":{g}}},"specHash":"sha256:{g}"}}"#)
        })
        .collect();
    let body =
        format!(r#"{{"deviceName":"{DEVICE}","heartbeatIntervalSeconds":{heartbeat},"items":[{}]}}"#, list.join(","));
    let etag =
        format!("\"{heartbeat}-{}\"", items.iter().map(|(n, g)| format!("{n}{g}")).collect::<Vec<_>>().join("-"));
    move |seen| match seen.header("if-none-match") {
        _ if !seen.is_get() => ack(),
        Some(tag) if tag == etag && seen.wait_seconds() > 0 => Reply::Park,
        Some(tag) if tag == etag => answer(304, &format!("ETag: {etag}\r\nX-Praetor-Revision: {revision}\r\n"), ""),
        _ => answer(200, &format!("ETag: {etag}\r\nX-Praetor-Revision: {revision}\r\n"), &body),
    }
}

/// Reports are acknowledged; GETs get `reply`.
pub fn only_reports(
    reply: impl Fn() -> Reply + Send + Sync + 'static,
) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    move |seen| if seen.is_get() { reply() } else { ack() }
}

#[allow(clippy::disallowed_methods, reason = "a pause between two looks, with a deadline")]
pub fn await_some<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn await_true(what: &str, mut condition: impl FnMut() -> bool) {
    await_some(what, || condition().then_some(()));
}

// === The agent ===

pub struct Agent {
    pub child: Child,
    pub log: Arc<Mutex<String>>,
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_praetor-agent"));
    // Not the containers of the machine on which this runs.
    command.env_clear().env("APOLLO_AGENT_CONTAINER_SOCKET", "/nonexistent/docker.sock").stdin(Stdio::null());
    command
}

impl Agent {
    /// Everything by environment variables, as a unit file would.
    pub fn start(urls: &str, state: &Path, token: Option<&str>) -> Self {
        let mut command = command();
        command.env("APOLLO_DEVICE_NAME", DEVICE).env("APOLLO_GATEWAY_URL", urls).env("APOLLO_AGENT_STATE_FILE", state);
        command.env("APOLLO_DEVICE_TOKEN", token.unwrap_or(""));
        Self::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::<Mutex<String>>::default();
        let (mut stderr, sink) = (child.stderr.take().unwrap(), Arc::clone(&log));
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut chunk) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        Self { child, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Sends a signal and waits for the end.
    pub fn end(mut self, name: &str) -> (ExitStatus, Duration, String) {
        let start = Instant::now();
        self.signal(name);
        let status = await_some("the end of the agent", || self.child.try_wait().unwrap());
        let took = start.elapsed();
        // The reader of the log sees the end a moment later.
        if name != "-KILL" {
            await_true("the last line", || self.log().contains("agent ends"));
        }
        (status, took, self.log())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("agent/state.json");
    (folder, state)
}
