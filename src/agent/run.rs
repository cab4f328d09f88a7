//! Edge: the two loops, one that asks and one that reports, and the signals that end them.

use super::arguments::Settings;
use super::artifact::store::Store;
use super::backend::{self, Folders};
use super::cadence::{Outcome, Polling, Reporting};
use super::client::{Client, Incoming, Outgoing};
use super::endpoint::Endpoint;
use super::holding::{Answer, Change, ChangeKind, Holding, Verdict};
use super::host::answer::Door;
use super::host::live::{Live, Note, Wanted};
use super::host::lock::{self, Taken};
use super::process::reconcile::Word;
use super::process::spec::BackendKind;
use super::process::supervisor::Supervisor;
use super::refusal::bad_request;
use super::report::Reporter;
use super::state::StateFile;
use super::token::Token;
use super::trouble::Trouble;
use crate::runtime::clock::unix_seconds;
use crate::wire::capabilities::Capabilities;
use crate::wire::desired::DesiredState;
use crate::wire::report::{Observation, Rejection, ReportAnswer};
use crate::wire::{MIN_REVISION_HEADER, REVISION_HEADER, TOKEN_HEADER};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

/// Longest body of an answer with desired state: thousands of processes.
const MAX_DESIRED_BYTES: usize = 16 * 1024 * 1024;
/// Longest body of any other answer.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// What an answer may take beyond the time for which it is held back on purpose.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end waits for what blocks: a name lookup, the disk.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);

/// Types of artifacts that this agent fetches.
const ARTIFACT_TYPES: [&str; 3] = ["oci", "http", "file"];

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system refused what every program needs.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// There is one already.
    #[error(transparent)]
    Taken(#[from] Taken),
}

/// What both loops share. Single-threaded: no borrow is held across an `.await`.
struct Shared {
    settings: Settings,
    token: RefCell<Token>,
    holding: RefCell<Holding>,
    state: RefCell<StateFile>,
    reporting: RefCell<Reporting>,
    /// Who runs the processes; nobody does when the agent is only to observe.
    supervisor: Option<Supervisor>,
    started: Instant,
    /// How it stands with each of the two ways, for whoever asks on the device.
    asked: RefCell<Note>,
    told: RefCell<Note>,
    rejected: RefCell<Vec<Rejection>>,
    /// What is to be reported changed, or the interval between reports.
    wake_report: Notify,
}

/// Runs until SIGTERM or SIGINT. What the device runs goes on without the agent.
///
/// # Errors
/// Only at the start.
pub fn run(settings: Settings) -> Result<(), StartError> {
    log_to_stderr(&settings);
    // One thread, and for what blocks two more while they are needed: one for an artifact that is hashed or unpacked,
    // one that stays free for host names and for what is written. A device has better things to do with its memory.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let result = LocalSet::new().block_on(&runtime, serve(settings));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result
}

fn log_to_stderr(settings: &Settings) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(settings.log_level)
        .with_target(false)
        // Its complaint about a log that nobody takes any more would go to the same place, and end the agent.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that a test has set up its own.
    let _ = if settings.log_json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
}

async fn serve(mut settings: Settings) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let folder = lock::folder_of(&settings.state_file).to_owned();
    let _lock = lock::take(&folder).await?;
    let door = Door::open(&folder)
        .inspect_err(|error| debug!(%error, "no socket in the state folder: praetor-agent status cannot ask"));
    let mut state = StateFile::new(settings.state_file.clone());
    let holding = state.load(&settings.device);
    let reporter = Reporter::new(rand::random());
    let gateways: Vec<String> = settings.gateways.iter().map(ToString::to_string).collect();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        device = settings.device,
        gateways = gateways.join(","),
        boot_id = reporter.boot_id(),
        held = holding.items().len(),
        revision = holding.revision(),
        observe_only = settings.observe_only,
        "agent started"
    );
    if settings.token.value.is_none() {
        warn!("no device token (--device-token-file, APOLLO_DEVICE_TOKEN): requests carry none");
    }
    if let Some(concern) = settings.token.concern() {
        warn!(concern, "the token's file");
    }
    if settings.gateways.iter().any(|gateway| gateway.tls.is_some()) {
        info!(trust = %settings.trust, "gateways with https:// are checked");
    }
    // What is remembered is acted on at once: after a reboot everything starts without the network.
    let changed = Rc::new(Notify::new());
    let supervisor = (!settings.observe_only).then(|| supervise(&settings, changed.clone()));
    let word = if state.loaded() { Word::Remembered } else { Word::Nobody };
    if let Some(supervisor) = &supervisor {
        supervisor.remember_dropped(holding.dropped());
        supervisor.desire(holding.items(), word);
    }
    let shared = Shared {
        supervisor,
        token: RefCell::new(std::mem::replace(&mut settings.token, Token::none())),
        reporting: RefCell::new(Reporting::new(settings.gateways.len(), holding.heartbeat())),
        holding: RefCell::new(holding),
        state: RefCell::new(state),
        started: Instant::now(),
        asked: RefCell::default(),
        told: RefCell::default(),
        rejected: RefCell::default(),
        wake_report: Notify::new(),
        settings,
    };
    let saved_revision = shared.holding.borrow().revision();
    tokio::select! {
        () = shared.poll() => {}
        () = shared.report(reporter, &changed) => {}
        () = shared.supervise() => {}
        () = shared.say(door.as_ref().ok()) => {}
        name = either(&mut terminate, &mut interrupt) => info!(signal = name, "agent ends; what it holds stays in the state file"),
    }
    let holding = shared.holding.borrow();
    if holding.revision() != saved_revision || shared.state.borrow().owes() {
        shared.state.borrow_mut().save(&holding.record());
    }
    Ok(())
}

/// Who runs the processes; `changed` is woken when one of them should be reported at once.
fn supervise(settings: &Settings, changed: Rc<Notify>) -> Supervisor {
    let folder = lock::absolute_folder_of(&settings.state_file);
    let store = Store::open(lock::absolute(&settings.artifact_folder), settings.artifacts.clone());
    let backends =
        backend::all(&Folders { state: folder.clone(), device: settings.device.clone() }, settings.containers.clone());
    Supervisor::new(&settings.device, &folder, backends, Rc::new(store), move || changed.notify_one())
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

// === impl Shared: what the device should run ===

impl Shared {
    /// Asks for ever.
    async fn poll(&self) {
        let gateways = &self.settings.gateways;
        let mut polling = Polling::new(Instant::now(), gateways.len());
        let mut client = Client::new(self.settings.trust.clone());
        let mut trouble = Trouble::new("desired");
        loop {
            sleep_until(polling.due().into()).await;
            let ask = polling.ask(Instant::now(), rand::random());
            let request = self.question(ask.wait_seconds);
            let answer = client.send(ask.gateway, &gateways[ask.gateway], &request).await;
            let (outcome, problem) = match answer {
                Ok(answer) => self.judge(&gateways[ask.gateway], &answer),
                Err(error) => (failed(None), Some(error.to_string())),
            };
            let held = self.holding.borrow().items().len();
            self.asked.borrow_mut().set(Instant::now(), &gateways[ask.gateway], problem.as_ref());
            trouble.note(Instant::now(), &gateways[ask.gateway], problem, held);
            polling.answered(Instant::now(), outcome, self.holding.borrow().heartbeat(), rand::random());
        }
    }

    fn question(&self, wait_seconds: u64) -> Outgoing {
        let mut holding = self.holding.borrow_mut();
        let before = holding.asks_afresh();
        let question = holding.question(Instant::now());
        if holding.asks_afresh() && !before {
            warn!("every answer for ten minutes was from the past: the cluster was restored; taking its word");
        }
        let wait = if holding.asks_afresh() { 0 } else { wait_seconds };
        let mut headers = HeaderMap::new();
        if let Some(etag) = question.etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
            headers.insert(header::IF_NONE_MATCH, etag);
        }
        if let Some(revision) = question.min_revision {
            headers.insert(HeaderName::from_static(MIN_REVISION_HEADER), revision.into());
        }
        self.outgoing(
            Method::GET,
            &format!("desired?waitSeconds={wait}"),
            headers,
            Bytes::new(),
            wait,
            MAX_DESIRED_BYTES,
        )
    }

    /// What an answer means for the next request, and what was wrong with it.
    fn judge(&self, gateway: &Endpoint, answer: &Incoming) -> (Outcome, Option<String>) {
        let retry_after = retry_after(&answer.headers);
        let revision = text(&answer.headers, REVISION_HEADER).and_then(|revision| revision.parse().ok());
        let about = match answer.status {
            StatusCode::OK => match serde_json::from_slice::<DesiredState>(&answer.body) {
                Ok(state) => Answer::Desired {
                    etag: text(&answer.headers, header::ETAG.as_str()).map(str::to_owned),
                    revision,
                    state,
                },
                Err(error) => return (failed(retry_after), Some(format!("the body of 200 is not readable: {error}"))),
            },
            StatusCode::NOT_MODIFIED => Answer::NotModified { revision },
            StatusCode::SERVICE_UNAVAILABLE if retry_after == Some(Duration::from_secs(1)) => Answer::Behind,
            _ => return (failed(retry_after), Some(self.explain(gateway, answer))),
        };
        let mut holding = self.holding.borrow_mut();
        let verdict = holding.received(Instant::now(), unix_seconds(), about);
        let owes = self.state.borrow().owes();
        if matches!(verdict, Verdict::Changed(_)) || (owes && verdict == Verdict::Unchanged) {
            // First on the disk, then in the world.
            self.state.borrow_mut().save(&holding.record());
        }
        if let (Verdict::Changed(_) | Verdict::Unchanged, Some(supervisor)) = (&verdict, &self.supervisor) {
            supervisor.desire(holding.items(), Word::Heard);
        }
        match verdict {
            Verdict::Changed(changes) => {
                changes.iter().for_each(tell);
                info!(held = holding.items().len(), revision = holding.revision(), "desired state taken over");
                let mut reporting = self.reporting.borrow_mut();
                reporting.set_heartbeat(holding.heartbeat());
                if !changes.is_empty() {
                    reporting.observations_changed();
                }
                self.wake_report.notify_one();
                (Outcome::News, None)
            }
            Verdict::Unchanged => (Outcome::Nothing, None),
            Verdict::Old => (failed(retry_after), Some("the gateway is behind what this device has seen".to_owned())),
            Verdict::Refused(why) => (failed(retry_after), Some(why.to_owned())),
        }
    }
}

fn tell(change: &Change) {
    let Change { kind, namespace, name, generation, spec_hash } = change;
    let what = match kind {
        ChangeKind::Wanted => "process wanted",
        ChangeKind::Updated => "process changed",
        ChangeKind::Dropped => "process no longer wanted",
        ChangeKind::Returning => "process listed again after it was dropped; taken up if it stays",
        ChangeKind::Older => "process listed at an older generation; the held one stays",
    };
    info!(namespace, name, generation, spec_hash, "{what}");
}

// === impl Shared: reports ===

impl Shared {
    /// Reports for ever; `changed` is woken when a process did something that should be known at once.
    async fn report(&self, mut reporter: Reporter, changed: &Notify) {
        let gateways = &self.settings.gateways;
        let mut client = Client::new(self.settings.trust.clone());
        let mut trouble = Trouble::new("report");
        loop {
            loop {
                let due = self.reporting.borrow().due(Instant::now());
                tokio::select! {
                    () = sleep_until(due.into()) => break,
                    () = self.wake_report.notified() => {} // perhaps due earlier now
                    () = changed.notified() => self.reporting.borrow_mut().observations_changed(),
                }
            }
            // Whoever renews the token in its file need not have the old one refused first.
            self.reload_token();
            let number = self.reporting.borrow_mut().start(Instant::now());
            let gateway = &gateways[number];
            if let Some(backends) = self.supervisor.as_ref().and_then(Supervisor::backends) {
                let backends = backends.into_iter().map(BackendKind::as_str);
                reporter.set_capabilities(Capabilities::new(backends, ARTIFACT_TYPES));
            }
            let bodies = {
                let holding = self.holding.borrow();
                reporter.bodies(unix_seconds(), &self.observations(&holding))
            };
            let mut outcome = Outcome::Nothing;
            let mut problem = None;
            let mut refused = Vec::new();
            for body in bodies.unwrap_or_default() {
                let mut headers = HeaderMap::new();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                let request = self.outgoing(Method::POST, "report", headers, body.into(), 0, MAX_ANSWER_BYTES);
                let sent = client.send(number, gateway, &request).await;
                let sent = sent.map_err(|error| (None, error.to_string()));
                match sent.and_then(|answer| self.acknowledged(gateway, &answer)) {
                    Ok(more) => refused.extend(more),
                    Err((retry_after, why)) => {
                        (outcome, problem) = (failed(retry_after), Some(why));
                        break;
                    }
                }
            }
            if problem.is_none() {
                reporter.acknowledged();
            }
            if problem.is_none() && refused != *self.rejected.borrow() {
                refused.iter().for_each(|Rejection { namespace, name, reason }| {
                    warn!(namespace, name, reason, "observation rejected")
                });
                self.rejected.replace(refused);
            }
            self.told.borrow_mut().set(Instant::now(), gateway, problem.as_ref());
            trouble.note(Instant::now(), gateway, problem, self.holding.borrow().items().len());
            self.reporting.borrow_mut().answered(Instant::now(), outcome, rand::random());
        }
    }

    /// What is said of everything that is held.
    fn observations<'a>(&self, holding: &'a Holding) -> Vec<Observation<'a>> {
        let seen = holding.items().iter().map(|item| self.supervisor.as_ref()?.observation(item));
        holding.observations().zip(seen).map(|(known, seen)| seen.unwrap_or(known)).collect()
    }

    /// Looks after the processes for ever, if it is to.
    async fn supervise(&self) {
        match &self.supervisor {
            Some(supervisor) => supervisor.run().await,
            None => std::future::pending().await,
        }
    }

    /// What was rejected, or why the report must be repeated and when.
    fn acknowledged(
        &self,
        gateway: &Endpoint,
        answer: &Incoming,
    ) -> Result<Vec<Rejection>, (Option<Duration>, String)> {
        let again = |why: String| Err((retry_after(&answer.headers), why));
        match answer.status {
            StatusCode::OK => match serde_json::from_slice::<ReportAnswer>(&answer.body) {
                Ok(ReportAnswer { ack: true, rejected }) => Ok(rejected),
                Ok(_) => again("the report is not acknowledged".to_owned()),
                Err(error) => again(format!("the body of 200 is not readable: {error}")),
            },
            StatusCode::SERVICE_UNAVAILABLE => again("503: the report is not written yet".to_owned()),
            _ => again(self.explain(gateway, answer)),
        }
    }
}

// === impl Shared: for whoever asks on the device ===

impl Shared {
    /// Answers on the socket, if there is one.
    async fn say(&self, door: Option<&Door>) {
        match door {
            Some(door) => door.serve(|| self.live()).await,
            None => std::future::pending().await,
        }
    }

    fn live(&self) -> Vec<u8> {
        let (now, holding) = (Instant::now(), self.holding.borrow());
        let live = Live {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            up_seconds: now.saturating_duration_since(self.started).as_secs(),
            device: self.settings.device.clone(),
            gateways: self.settings.gateways.iter().map(ToString::to_string).collect(),
            token: self.token.borrow().to_string(),
            observe_only: self.settings.observe_only,
            heartbeat_seconds: holding.heartbeat().as_secs(),
            revision: holding.revision(),
            desired: self.asked.borrow().contact(now),
            report: self.told.borrow().contact(now),
            rejected: self.rejected.borrow().clone(),
            wanted: Wanted::all(&holding),
            observations: self.observations(&holding),
        };
        serde_json::to_vec(&live).unwrap_or_default()
    }
}

// === impl Shared: both ways ===

impl Shared {
    fn outgoing(
        &self,
        method: Method,
        route: &str,
        mut headers: HeaderMap,
        body: Bytes,
        wait_seconds: u64,
        max_answer: usize,
    ) -> Outgoing {
        headers
            .insert(header::USER_AGENT, HeaderValue::from_static(concat!("praetor-agent/", env!("CARGO_PKG_VERSION"))));
        if let Some(token) = &self.token.borrow().value {
            headers.insert(HeaderName::from_static(TOKEN_HEADER), token.clone());
        }
        Outgoing {
            method,
            route: format!("v1/devices/{}/{route}", self.settings.device),
            headers,
            body,
            timeout: Duration::from_secs(wait_seconds) + ANSWER_TIMEOUT,
            max_answer,
        }
    }

    /// Takes up the token that its file holds now, if there is a file and it can be read.
    fn reload_token(&self) {
        let mut token = self.token.borrow_mut();
        let concern = token.concern().map(str::to_owned);
        match token.reload() {
            Ok(true) => info!("the token's file holds another token now"),
            Ok(false) => {}
            Err(error) => debug!(%error, "the token's file cannot be read again"),
        }
        if let Some(new) = token.concern().filter(|new| Some(*new) != concern.as_deref()) {
            warn!(concern = new, "the token's file; the next start may refuse it");
        }
    }

    /// A status that is neither good nor about desired state, for people. A token that is refused is read again.
    fn explain(&self, gateway: &Endpoint, answer: &Incoming) -> String {
        match answer.status {
            StatusCode::UNAUTHORIZED => {
                self.reload_token();
                "401: the gateway refuses this device's token".to_owned()
            }
            StatusCode::FORBIDDEN => {
                "403: the gateway says that none of the reported processes is this device's".to_owned()
            }
            StatusCode::BAD_REQUEST => bad_request(gateway.tls.is_some(), &answer.body),
            StatusCode::NOT_FOUND => "404: the gateway does not know this device".to_owned(),
            other => other.to_string(),
        }
    }
}

fn failed(retry_after: Option<Duration>) -> Outcome {
    Outcome::Failed { retry_after }
}

/// `Retry-After` in seconds; the form with a date is not used by gateways.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text(headers, header::RETRY_AFTER.as_str())?.parse().ok().map(Duration::from_secs)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}
