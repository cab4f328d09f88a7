//! Load: one connection that counts, many that press, and wrk.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use praetor::wire::token;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::harness::free_port;
use super::served::{NAMESPACE, SECRET, device, process_name};

/// A child that is killed when it goes out of scope.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program as `serve`, perhaps behind another one (`taskset`, `valgrind`).
pub struct Server {
    /// The process.
    pub process: Running,
    /// Where it listens.
    pub address: SocketAddr,
    /// Memory that its index takes, bytes.
    pub index_bytes: u64,
}

impl Server {
    /// Starts it and waits until it listens.
    pub fn start(before: &[&str], devices: usize, processes: usize) -> Self {
        Self::start_as(before, devices, processes, "owner")
    }

    /// The same as the `owner` of every device, or as a replica that owns none of them: `other`.
    pub fn start_as(before: &[&str], devices: usize, processes: usize, place: &str) -> Self {
        let this = std::env::current_exe().expect("this program");
        let (devices, processes) = (devices.to_string(), processes.to_string());
        let own = [this.to_str().expect("a path in UTF-8"), "serve", &devices, &processes, place];
        // Gone when this program is.
        let command: Vec<&str> =
            ["setpriv", "--pdeathsig", "KILL"].into_iter().chain(before.iter().copied()).chain(own).collect();
        let child = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut process = Running(child.unwrap_or_else(|error| panic!("cannot start {}: {error}", command[0])));
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let (address, bytes) =
            line.trim().split_once(' ').unwrap_or_else(|| panic!("{} ended before it listened", command.join(" ")));
        Self { process, address: address.parse().expect("an address"), index_bytes: bytes.parse().expect("a number") }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }
}

/// nginx as one process on one core that answers 304.
pub struct Nginx {
    process: Running,
    _folder: super::harness::Folder,
    /// Where it listens.
    pub port: u16,
}

impl Nginx {
    /// Starts it; `None` when there is no nginx.
    pub fn start(core: &str) -> Option<Self> {
        let folder = super::harness::Folder::new("nginx");
        let port = free_port();
        let root = folder.path().display();
        let config = format!(
            "daemon off; master_process off; pid {root}/nginx.pid; error_log {root}/error.log warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 100000000; server_tokens off; tcp_nodelay on;\n\
             server {{ listen 127.0.0.1:{port}; location / {{ add_header Cache-Control no-store; add_header X-Praetor-Revision 2; return 304; }} }} }}\n"
        );
        let path = folder.write("nginx.conf", config);
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "-c", core, "nginx", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let nginx = Self { process: Running(child), _folder: folder, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begun.elapsed() > Duration::from_secs(5) {
                return None;
            }
            std::thread::yield_now();
        }
        Some(nginx)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }
}

/// User and system time that a process's threads have used.
pub fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    // Nanoseconds on a core, time waited for one, time slices.
    let used = threads.flatten().filter_map(|thread| {
        std::fs::read_to_string(thread.path().join("schedstat")).ok()?.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(used.sum())
}

/// The head of a request of the n-th device, without the blank line.
fn head(method: &str, number: usize, route: &str) -> String {
    let name = device(number);
    let token = token::derive(SECRET.as_bytes(), &name).expect("a token");
    format!(
        "{method} /v1/devices/{name}/{route} HTTP/1.1\r\nHost: praetor.example.com\r\nUser-Agent: praetor-agent/0.1.0\r\nX-Device-Token: {token}\r\n"
    )
}

/// What a real agent sends in the steady state; the number is the device's.
pub fn desired_request(number: usize, etag: &str) -> Vec<u8> {
    format!("{}If-None-Match: {etag}\r\nX-Praetor-Min-Revision: 2\r\n\r\n", head("GET", number, "desired")).into_bytes()
}

/// A report with one observation, of a process that runs and is well; nothing but the sequence and the time moves.
pub fn report_request(number: usize, spec_hash: &str, sequence: u64) -> Vec<u8> {
    let process = process_name(&device(number), 0);
    let body = format!(
        "{{\"agentVersion\":\"0.1.0\",\"timestamp\":\"2025-12-12T23:55:{:02}Z\",\"heartbeat\":true,\"bootId\":\"00112233445566778899aabbccddeeff\",\"sequence\":{sequence:010},\
         \"observations\":[{{\"namespace\":\"{NAMESPACE}\",\"name\":\"{process}\",\"observedSpecHash\":\"{spec_hash}\",\"runningSpecHash\":\"{spec_hash}\",\"processStarted\":true,\
         \"healthy\":true,\"pid\":4711,\"startTime\":\"2025-12-12T23:54:58Z\",\"restartCount\":0}}]}}",
        sequence % 60
    );
    // JSON has no leading zeros.
    let body =
        body.replace(&format!("\"sequence\":{sequence:010}"), &format!("\"sequence\":{}", 1_000_000_000 + sequence));
    format!(
        "{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        head("POST", number, "report"),
        body.len()
    )
    .into_bytes()
}

/// One keep-alive connection that waits for each answer.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    /// Opens it.
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, buffer: vec![0; 64 * 1024] }
    }

    /// Sends a request and returns the whole answer.
    pub fn ask(&mut self, request: &[u8]) -> &str {
        self.stream.write_all(request).expect("sent");
        let mut filled = 0;
        loop {
            filled += match self.stream.read(&mut self.buffer[filled..]).expect("an answer") {
                0 => panic!("the connection ended: {}", String::from_utf8_lossy(&self.buffer[..filled])),
                count => count,
            };
            let text = std::str::from_utf8(&self.buffer[..filled]).unwrap_or_default();
            if is_whole(text) {
                return std::str::from_utf8(&self.buffer[..filled]).expect("text");
            }
        }
    }
}

fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    header(head, "content-length").is_none_or(|length| body.len() >= length.parse::<usize>().expect("a number"))
}

/// A header's value in an answer.
pub fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| {
        line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    })
}

/// ETag of the n-th device and the specHash of its first process.
pub fn look(address: SocketAddr, number: usize) -> (String, String) {
    let mut wire = Wire::open(address);
    let answer = wire.ask(format!("{}\r\n", head("GET", number, "desired")).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let hash = answer.split("\"specHash\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a hash");
    (header(answer, "etag").expect("an etag").to_owned(), hash.to_owned())
}

/// What many connections at once press on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Press {
    /// 304s.
    Desired,
    /// Reports that change nothing.
    Report,
}

/// Answers a second, each connection a device of its own that waits for each answer. The first second is not counted.
pub fn press(address: SocketAddr, what: Press, connections: usize, seconds: u64, spec_hash: &str) -> f64 {
    let wanted: &[u8] = if what == Press::Desired { b"HTTP/1.1 304" } else { b"HTTP/1.1 200" };
    // A sequence never goes back: a report from the past is another path.
    static RUNS: AtomicU64 = AtomicU64::new(1);
    let first = RUNS.fetch_add(1, Ordering::Relaxed) * 100_000_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut etags = Vec::new();
        for number in 0..connections {
            etags.push(look(address, number).0);
        }
        let begun = Instant::now();
        let (from, until) = (begun + Duration::from_secs(1), begun + Duration::from_secs(1 + seconds));
        let mut tasks = tokio::task::JoinSet::new();
        for (number, etag) in etags.into_iter().enumerate() {
            let spec_hash = spec_hash.to_owned();
            tasks.spawn(async move {
                let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
                stream.set_nodelay(true).expect("no delay");
                let (mut request, mut buffer) = (desired_request(number, &etag), vec![0; 4096]);
                let (mut counted, mut sequence) = (0_u64, first);
                loop {
                    if what == Press::Report {
                        sequence += 1;
                        // Only what differs is written anew, so that the client is not what is measured.
                        if sequence == first + 1 {
                            request = report_request(number, &spec_hash, sequence);
                        } else {
                            set_sequence(&mut request, sequence);
                        }
                    }
                    stream.write_all(&request).await.expect("sent");
                    let mut filled = 0;
                    while !ends(&buffer[..filled]) {
                        filled += match stream.read(&mut buffer[filled..]).await.expect("an answer") {
                            0 => panic!("the connection ended"),
                            count => count,
                        };
                    }
                    assert!(buffer.starts_with(wanted), "{}", String::from_utf8_lossy(&buffer[..filled]));
                    let now = Instant::now();
                    counted += u64::from(now >= from && now < until);
                    if now >= until {
                        return counted;
                    }
                }
            });
        }
        let mut answers = 0;
        while let Some(counted) = tokio::time::timeout(Duration::from_secs(seconds + 10), tasks.join_next())
            .await
            .expect("every request is answered")
        {
            answers += counted.expect("a connection that did not fail");
        }
        #[allow(clippy::cast_precision_loss)]
        let rate = answers as f64 / seconds as f64;
        rate
    })
}

/// Whether an answer is complete: a 304 ends with its head, an acknowledgement with its body.
fn ends(answer: &[u8]) -> bool {
    answer.ends_with(b"\r\n\r\n") && answer.starts_with(b"HTTP/1.1 304") || answer.ends_with(b"}")
}

fn set_sequence(request: &mut [u8], sequence: u64) {
    let marker = b"\"sequence\":";
    let at = request.windows(marker.len()).position(|window| window == marker).expect("a sequence") + marker.len();
    request[at..at + 10].copy_from_slice((1_000_000_000 + sequence).to_string().as_bytes());
}

/// wrk's requests a second on one thread of a core; `None` when there is no wrk.
pub fn wrk(core: &str, url: &str, headers: &[String], connections: usize, seconds: u64) -> Option<f64> {
    let mut command = Command::new("taskset");
    command.args(["-c", core, "wrk", "-t1", &format!("-c{connections}"), &format!("-d{seconds}s")]);
    let output = command
        .args(headers.iter().flat_map(|header| ["-H", header]))
        .arg(url)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("Non-2xx or 3xx") || line.contains("Socket errors")) {
        eprintln!("   wrk: {}", line.trim());
    }
    text.lines().find_map(|line| line.strip_prefix("Requests/sec:"))?.trim().parse().ok()
}
