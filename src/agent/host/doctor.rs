//! Edge: `praetor-agent doctor`: looks at everything that the agent needs, changes nothing, and says what to do.

use super::answer::ask;
use super::commands::{FileFlag, FileRead};
use super::findings::{self, Finding, Sent, Space};
use super::live::{Live, Wanted};
use super::lock::{self, Holder, absolute_folder_of};
use super::screen::age;
use crate::agent::arguments::{ArgumentError, Arguments};
use crate::agent::backend::{self, Folders, container};
use crate::agent::client::{Client, Outgoing, RequestError};
use crate::agent::endpoint::Endpoint;
use crate::agent::holding::Record;
use crate::agent::process::spec::BackendKind;
use crate::agent::token::{Token, TokenError};
use crate::agent::trust::Trust;
use crate::runtime::clock::unix_seconds;
use crate::wire::TOKEN_HEADER;
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, Method, header};
use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// For all gateways, which are asked at the same time, and then for all backends; files take no time.
const GATEWAYS: Duration = Duration::from_secs(6);
const BACKENDS: Duration = Duration::from_secs(3);
/// Longest answer that is read, bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Names are looked up by blocking threads; those that hang are left behind at the end.
const LOOKUPS: usize = 4;

/// Check everything that the agent of this device needs, and say what to do
///
/// Looks at settings, token, gateways, clock, state folder, disk and backends as the agent would, and changes nothing.
/// It takes 10 s at most. Exit code 0: nothing keeps the agent from its work; otherwise 1.
#[derive(Debug, Default, Args)]
pub struct Doctor {
    #[command(flatten)]
    agent: Arguments,

    #[command(flatten)]
    file: FileFlag,
}

/// Writes what is found.
///
/// # Errors
/// When the output cannot be written, or the operating system refuses what every program needs.
pub fn doctor(command: &Doctor, file: &FileRead, out: &mut impl Write) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(LOOKUPS).build()?;
    let findings = runtime.block_on(tokio::task::LocalSet::new().run_until(examine(&command.agent, file)));
    runtime.shutdown_timeout(Duration::ZERO);
    out.write_all(findings::render(&findings).as_bytes())?;
    let fails = findings.iter().any(|finding| finding.verdict == findings::Verdict::Fail);
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn examine(agent: &Arguments, file: &FileRead) -> Vec<Finding> {
    let mut all = vec![settings(file)];
    if matches!(file, FileRead::Denied(_)) {
        // Whatever else would be said comes of that alone.
        return all;
    }
    let device = agent.device();
    all.push(match &device {
        Ok(name) => Finding::fine("name", name.clone()),
        Err(error) => Finding::fail("name", error.to_string(), "it is the name of the NetworkSwitch in the cluster"),
    });
    let (token, said) = token(agent);
    all.push(said);
    let gateways = agent.gateways();
    let trust = agent.trust();
    let mut theirs = None;
    match (gateways, trust) {
        (Err(error), _) => all.push(Finding::fail("gateway", error.to_string(), "")),
        (_, Err(error)) => {
            all.push(Finding::fail(
                "gateway",
                error.to_string(),
                "put the CA of the gateways' certificate there (PEM)",
            ));
        }
        (Ok(gateways), Ok(trust)) => {
            // Where the name is missing, whether a gateway can be reached is still worth knowing.
            let name = device.as_ref().map_or("unnamed", String::as_str);
            let (mut found, date) = ask_all(gateways, Rc::new(trust), name, token.as_ref()).await;
            findings::one_is_enough(&mut found);
            theirs = date;
            all.extend(found);
        }
    }
    if let Err(error) = agent.policy() {
        all.push(Finding::fail("artifacts", error.to_string(), ""));
    }
    all.push(findings::clock(unix_seconds(), theirs));
    let state_file = agent.state_file();
    let folder = &absolute_folder_of(&state_file);
    all.push(writable(folder));
    all.extend(room(folder));
    let (wanted, said) = state(&state_file, device.as_ref().ok().map(String::as_str));
    all.push(said);
    let folders = Folders { state: folder.to_owned(), device: device.unwrap_or_default() };
    all.extend(backends(&folders, agent.containers(), &wanted).await);
    all.push(running(folder));
    all
}

fn settings(file: &FileRead) -> Finding {
    let what = "settings";
    match file {
        FileRead::Absent => Finding::fine(what, "flags and variables alone; there is no settings file"),
        FileRead::Denied(path) => Finding::fail(what, format!("{} may not be read", path.display()), "run as root"),
        FileRead::Used(path, settings) => {
            let mode = fs::metadata(path).map_or(0, |file| file.permissions().mode() & 0o7777);
            if settings.get("APOLLO_DEVICE_TOKEN").is_some() && mode & 0o077 != 0 {
                let text = format!("{} holds the token, and others can read it (mode {mode:04o})", path.display());
                return Finding::fail(what, text, format!("run: chmod 0600 {}", path.display()));
            }
            Finding::fine(what, path.display().to_string())
        }
    }
}

fn token(agent: &Arguments) -> (Option<Token>, Finding) {
    let what = "token";
    match agent.token() {
        Ok(token) if token.value.is_none() => {
            let advice = "name its file with --device-token-file; only a gateway with --insecure-no-auth takes requests without one";
            (Some(token), Finding::warn(what, "this device has none", advice))
        }
        Ok(token) => {
            let said = match token.concern() {
                Some(concern) => Finding::warn(what, concern, ""),
                None => Finding::fine(what, token.to_string()),
            };
            (Some(token), said)
        }
        Err(error) => {
            let advice = match &error {
                ArgumentError::Token(TokenError::Exposed(_)) => {
                    "then it counts; whoever has seen it can speak for this device until the secret is changed"
                }
                ArgumentError::Token(TokenError::File(..)) => {
                    "the file holds one line, the output of `praetor-manager token DEVICE`; root can read it"
                }
                _ => "",
            };
            (None, Finding::fail(what, error.to_string(), advice))
        }
    }
}

/// What each gateway says, in order, and the first one's clock, seconds since 1970.
async fn ask_all(
    gateways: Vec<Endpoint>,
    trust: Rc<Trust>,
    device: &str,
    token: Option<&Token>,
) -> (Vec<Finding>, Option<i64>) {
    let value = token.and_then(|token| token.value.clone());
    let mut headers = HeaderMap::new();
    headers.extend(value.map(|value| (HeaderName::from_static(TOKEN_HEADER), value)));
    let sent = match token {
        None => Sent::Unusable,
        Some(_) if headers.is_empty() => Sent::None,
        Some(_) => Sent::Token,
    };
    let request = Outgoing {
        method: Method::GET,
        route: format!("v1/devices/{device}/desired?waitSeconds=0"),
        headers,
        body: Bytes::new(),
        timeout: GATEWAYS,
        max_answer: MAX_ANSWER_BYTES,
    };
    let mut asking = JoinSet::new();
    for (number, gateway) in gateways.into_iter().enumerate() {
        let (request, trust, device) = (request.clone(), Rc::clone(&trust), device.to_owned());
        asking.spawn_local(async move {
            let answer = Client::new(trust).send(number, &gateway, &request).await;
            match answer {
                Ok(answer) => {
                    let date =
                        answer.headers.get(header::DATE).and_then(|date| findings::http_date(date.to_str().ok()?));
                    (number, findings::answered(&gateway.to_string(), &device, sent, answer.status, &answer.body), date)
                }
                Err(error) => (number, unreachable(&gateway, &error), None),
            }
        });
    }
    let mut found = asking.join_all().await;
    found.sort_by_key(|(number, ..)| *number);
    let date = found.iter().find_map(|(.., date)| *date);
    (found.into_iter().map(|(_, finding, _)| finding).collect(), date)
}

fn unreachable(gateway: &Endpoint, error: &RequestError) -> Finding {
    let advice = match error {
        RequestError::Lookup(..) => "look at /etc/resolv.conf and the name, or use an address in the URL",
        RequestError::Connect(_, error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            "the host is there, nothing listens on that port: is the manager up, and is it the port of its Service?"
        }
        RequestError::Connect(..) | RequestError::Timeout(_) => {
            "nothing comes back: look at routes, firewalls and the management VRF of this device"
        }
        RequestError::Untrusted(_) | RequestError::Outdated(..) => {
            "the certificate must be signed by a CA in --gateway-ca-file, name the URL's host, and be valid by this device's clock"
        }
        RequestError::Trust(_) => "name a file with the CA of the gateways' certificate",
        _ => {
            "something answers that does not speak HTTP as a gateway does: check http:// or https://, the port, and proxies"
        }
    };
    Finding::fail("gateway", format!("{gateway}: {error}"), advice)
}

fn writable(folder: &Path) -> Finding {
    let what = "folder";
    let path = folder.display();
    if !folder.exists() {
        let parent = folder.ancestors().find(|parent| parent.exists()).unwrap_or(Path::new("/"));
        return match access(parent, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Finding::fine(what, format!("{path} is not there yet; the agent will make it")),
            Err(error) => Finding::fail(
                what,
                format!("{path} is not there and cannot be made: {}: {}", parent.display(), io::Error::from(error)),
                "make it (0700, the agent's user), or name another place with --state-file",
            ),
        };
    }
    match access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Err(error) => Finding::fail(
            what,
            format!("{path} cannot be written: {}", io::Error::from(error)),
            "without it the device forgets at a reboot what to run: mount it writable, or name another place with --state-file",
        ),
        Ok(()) => match fs::metadata(folder).map(|folder| folder.permissions().mode() & 0o7777) {
            Ok(mode) if mode & 0o077 != 0 => Finding::warn(
                what,
                format!("{path} is open to other users (mode {mode:04o})"),
                format!("run: chmod 0700 {path}"),
            ),
            _ => Finding::fine(what, path.to_string()),
        },
    }
}

fn room(folder: &Path) -> Option<Finding> {
    let there = folder.ancestors().find(|parent| parent.exists())?;
    let system = statvfs(there).ok()?;
    let path = there.display().to_string();
    if system.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let advice = "mount it writable; a file system turns read-only by itself after an error: look at dmesg";
        return Some(Finding::fail("disk", format!("{path} is on a read-only file system"), advice));
    }
    let files = (system.f_files > 0).then_some(system.f_favail);
    Some(findings::space(&path, Space { bytes: system.f_bavail.saturating_mul(system.f_frsize), files }))
}

fn state(path: &Path, device: Option<&str>) -> (Vec<Wanted>, Finding) {
    let what = "state";
    let (shown, bytes) = (path.display(), fs::read(path));
    let finding = match &bytes {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::fine(what, format!("{shown} is not there yet: this device was never told what to run"))
        }
        Err(error) => Finding::fail(what, format!("{shown}: {error}"), "root can read it"),
        Ok(bytes) => match serde_json::from_slice::<Record<'_>>(bytes) {
            Ok(record) => {
                let wanted: Vec<_> = record.items.iter().map(Wanted::of).collect();
                let said = match device {
                    Some(device) if record.device_name != device => Finding::warn(
                        what,
                        format!("{shown} is about the device {}", record.device_name),
                        "the agent sets it aside at its next start and asks anew",
                    ),
                    _ => Finding::fine(what, format!("{shown}: {} to run", wanted.len())),
                };
                return (wanted, said);
            }
            Err(error) => Finding::warn(
                what,
                format!("{shown} cannot be used: {error}"),
                "the agent sets it aside at its next start and asks anew; until a gateway answers it starts nothing",
            ),
        },
    };
    (Vec::new(), finding)
}

async fn backends(folders: &Folders, containers: container::Options, wanted: &[Wanted]) -> Vec<Finding> {
    let mut probing = JoinSet::new();
    for backend in backend::all(folders, containers) {
        probing.spawn_local(async move {
            let probed = timeout(BACKENDS, backend.probe()).await;
            let said = probed.map_or_else(|_| Err("it does not answer".to_owned()), |r| r.map_err(|e| e.to_string()));
            (backend.kind(), said)
        });
    }
    let mut found: Vec<(BackendKind, Result<(), String>)> = probing.join_all().await;
    found.sort_by_key(|(kind, _)| *kind);
    findings::backends(&found, wanted)
}

fn running(folder: &Path) -> Finding {
    let what = "agent";
    if let Ok(answer) = ask(folder)
        && let Ok(live) = serde_json::from_slice::<Live<'_>>(&answer)
    {
        let since = format!("runs for {} as process {}", age(live.up_seconds), live.pid);
        return match live.desired.problem.as_ref().or(live.report.problem.as_ref()) {
            None => Finding::fine(what, since),
            Some(problem) => Finding::warn(
                what,
                format!("{since}, and has trouble: {problem}"),
                "see above; it tries again by itself",
            ),
        };
    }
    match lock::holder(folder) {
        Holder::Somebody => Finding::warn(
            what,
            "holds the state folder and does not answer",
            "look at its log; restart it: that ends no process",
        ),
        Holder::Nobody => Finding::warn(
            what,
            "does not run",
            "systemctl start praetor-agent, or /etc/init.d/praetor-agent start; not installed yet: praetor-agent install",
        ),
        Holder::Unknown(error) => Finding::warn(what, format!("{}: {error}", folder.display()), "run as root"),
    }
}
