//! Child processes that never outlive the test, folders that are removed after it, and free ports.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use rand::Rng as _;

/// A name that no other test uses: `<prefix>-<five characters>`.
pub fn unique(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"abcdefghjkmnpqrstuvwxyz23456789";
    let mut rng = rand::rng();
    let tail: String = (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    format!("{prefix}-{tail}")
}

/// A loopback port that was free a moment ago and that this process has not handed out before. Taken from below the
/// range that the kernel uses for outgoing connections, so that a server can come back on it after a restart.
pub fn free_port() -> u16 {
    static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    for _ in 0..10_000 {
        let port = rand::rng().random_range(15_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && TAKEN.lock().unwrap().insert(port) {
            return port;
        }
    }
    panic!("no free port between 15000 and 32000");
}

/// A temporary folder that is removed when it is dropped, and also when the whole process dies (statics never drop):
/// a small shell waits for the end of its standard input. `PRAETOR_E2E_KEEP=1` keeps it and says where it is.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    reaper: Option<(Child, ChildStdin)>,
}

impl Folder {
    /// Makes a new folder whose name begins with `praetor-<what>`.
    pub fn new(what: &str) -> Self {
        let path = std::env::temp_dir().join(unique(&format!("praetor-{what}")));
        fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        if std::env::var_os("PRAETOR_E2E_KEEP").is_some_and(|v| !v.is_empty()) {
            eprintln!("keeping {}", path.display());
            return Self { path, reaper: None };
        }
        // The second removal is for a server that was still writing while it was killed.
        let mut reaper = Command::new("sh")
            .args(["-c", "trap '' INT TERM HUP; read -r _; rm -rf \"$0\"; sleep 1; rm -rf \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let stdin = reaper.stdin.take().expect("piped");
        Self { path, reaper: Some((reaper, stdin)) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside of it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file inside of it, readable by its owner only, and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path.join(name);
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .expect("a file in the test's folder");
        file.write_all(content.as_ref()).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some((mut reaper, stdin)) = self.reaper.take() {
            let _ = fs::remove_dir_all(&self.path);
            drop(stdin);
            // Reaped elsewhere: nobody waits for its second look.
            std::thread::spawn(move || reaper.wait());
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self { code: status.code(), signal: status.signal() }
    }
}

/// What to start. The environment is exactly [`Launch::env`] and the test's own `PATH`: nothing of the developer's
/// machine (proxies, `KUBECONFIG`, log levels) reaches a child.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program's path or name.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its environment beside `PATH`.
    pub env: Vec<(OsString, OsString)>,
}

impl Launch {
    /// A program without arguments.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new() }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let key = key.into();
        self.env.retain(|(k, _)| *k != key);
        self.env.push((key, value.into()));
        self
    }

    /// With `setpriv --pdeathsig KILL` in front where it exists (util-linux); it becomes the program, so the id stays.
    fn command(&self) -> Command {
        static SETPRIV: OnceLock<bool> = OnceLock::new();
        let available = *SETPRIV.get_or_init(|| {
            let trial = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "true"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            trial.is_ok_and(|s| s.success())
        });
        let mut command = if available {
            let mut wrapped = Command::new("setpriv");
            wrapped.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
            wrapped
        } else {
            Command::new(&self.program)
        };
        command.args(&self.args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }
}

/// A running child with its output in a file. Killed on drop, and by the kernel when this process dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    exit: Option<Exit>,
}

impl Process {
    /// Starts it in a process group of its own, so that Ctrl-C reaches only the test. Output is appended to `log`.
    pub fn spawn(name: &str, launch: &Launch, log: &Path) -> Self {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|e| panic!("cannot open {}: {e}", log.display()));
        let errors = output.try_clone().expect("a second handle");
        let mut command = launch.command();
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let child = spawn_from_lasting_thread(command)
            .unwrap_or_else(|e| panic!("cannot start {name} ({}): {e}", launch.program.display()));
        Self { name: name.into(), child, log: log.into(), exit: None }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far, over all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of the log, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("last lines of {}:\n  {}", self.log.display(), lines[lines.len().saturating_sub(25)..].join("\n  "))
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("a child of ours").map(Exit::from);
        }
        self.exit
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`); nothing when it has ended.
    pub fn signal(&mut self, signal: &str) {
        // Not reaped before this look, so the id cannot belong to anyone else.
        if self.exited().is_none() {
            let sent = Command::new("kill").args([&format!("-{signal}"), &self.pid().to_string()]).status();
            assert!(sent.is_ok_and(|s| s.success()), "kill -{signal} {} ({})", self.pid(), self.name);
        }
    }

    /// Ends it at once (SIGKILL) and returns when it is gone.
    pub fn kill9(&mut self) -> Exit {
        let _ = self.child.kill();
        let exit = self.child.wait().expect("a child of ours").into();
        *self.exit.get_or_insert(exit)
    }

    /// Waits for its end.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Exit {
        let what = format!("{} to end", self.name);
        let begun = Instant::now();
        while self.exited().is_none() {
            assert!(
                begun.elapsed() < deadline,
                "waited {:.1} s for {what}; {}",
                deadline.as_secs_f64(),
                self.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.exit.expect("just seen")
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .and_then(|v| v.split_whitespace().next())
            .and_then(|v| v.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Its established TCP connections as `(local, remote)`, for "this agent talks to nobody else".
    pub fn connections(&self) -> Vec<(SocketAddr, SocketAddr)> {
        connections(self.pid())
    }
}

/// The established TCP connections of any process as `(local, remote)`, as seen in its network.
pub fn connections(pid: u32) -> Vec<(SocketAddr, SocketAddr)> {
    let socket = |fd: fs::DirEntry| {
        fs::read_link(fd.path()).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
    };
    let mine: HashSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .map(|fds| fds.flatten().filter_map(socket).collect())
        .unwrap_or_default();
    let tables =
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default());
    let rows =
        tables.iter().flat_map(|table| table.lines().skip(1)).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = rows.filter(|row| row.len() > 9 && row[3] == "01" && mine.contains(row[9]));
    established.filter_map(|row| Some((address(row[1])?, address(row[2])?))).collect()
}

/// `0100007F:1F90` is how /proc/net/tcp writes 127.0.0.1:8080: words of 32 bits in the machine's order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let bytes: Vec<u8> =
        hex::decode(ip).ok()?.chunks(4).flat_map(|word| word.iter().rev().copied().collect::<Vec<_>>()).collect();
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    Some(SocketAddr::from((ip, u16::from_str_radix(port, 16).ok()?)))
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.kill9();
        }
    }
}

/// Linux delivers the parent-death signal when the *thread* that started the child ends, and tests run on short-lived
/// threads: so every child is started from one thread that lives as long as the process.
fn spawn_from_lasting_thread(command: Command) -> std::io::Result<Child> {
    type Job = (Command, mpsc::Sender<std::io::Result<Child>>);
    static STARTER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("process-starter".into())
            .spawn(move || inbox.into_iter().for_each(|(mut command, answer)| drop(answer.send(command.spawn()))))
            .expect("a thread");
        Mutex::new(jobs)
    });
    let (answer, inbox) = mpsc::channel();
    STARTER.lock().unwrap().send((command, answer)).expect("the starter lives as long as the process");
    inbox.recv().expect("the starter answers")
}
