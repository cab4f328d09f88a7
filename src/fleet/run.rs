//! Edge: two loops a device, one that asks and one that reports, all on one thread.

use super::arguments::{Settings, Spread};
use super::connection::{Incoming, Line, Outgoing};
use super::device::{Device, Verdict};
use super::pace::{self, Outcome, Patience};
use super::tally::{Route, Summary, Tally};
use crate::runtime::clock::unix_seconds;
use crate::wire::report::ReportAnswer;
use crate::wire::{MIN_REVISION_HEADER, REVISION_HEADER, TOKEN_HEADER, token};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use rand::{random, random_range};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until};

/// What an answer may take beyond the time for which it is held back on purpose.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The time between reports until the gateway has said one.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// What all devices share. One thread, so no borrow is held across an `.await`.
struct Fleet {
    settings: Settings,
    tally: RefCell<Tally>,
    stop: Cell<bool>,
}

/// One device's two loops share this.
struct Member {
    fleet: Rc<Fleet>,
    name: Box<str>,
    token: Option<HeaderValue>,
    device: RefCell<Device>,
    /// There is news to report, or the device is done.
    wake: Notify,
    done: Cell<bool>,
    asking: Way,
    reporting: Way,
}

/// How one of a device's loops reaches gateways.
struct Way {
    /// One for each gateway, or one for whichever it is.
    lines: Box<[Rc<Line>]>,
    /// Where the next request goes, counted from 0.
    gateway: Cell<usize>,
    /// Since when requests fail.
    failing: Cell<Option<Instant>>,
}

/// Runs the fleet until it is told to end, or has done what it should.
///
/// # Errors
/// When the operating system refuses what every program needs.
pub fn run(settings: Settings) -> std::io::Result<Summary> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let summary = local.block_on(&runtime, serve(settings))?;
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(summary)
}

async fn serve(settings: Settings) -> std::io::Result<Summary> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let begun = Instant::now();
    let (duration, progress) = (settings.duration, settings.progress);
    let fleet = Rc::new(Fleet { settings, tally: RefCell::default(), stop: Cell::new(false) });
    let mut devices = JoinSet::new();
    tokio::select! {
        () = fleet.start(begun, &mut devices) => {}
        () = fleet.tell(begun, progress) => {}
        () = after(duration) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    fleet.stop.set(true);
    devices.shutdown().await;
    let tally = fleet.tally.borrow();
    Ok(tally.summary(begun.elapsed()))
}

async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => sleep(duration).await,
        None => std::future::pending().await,
    }
}

// === impl Fleet ===

impl Fleet {
    /// Starts one device after the other, and returns when all of them are done.
    async fn start(self: &Rc<Self>, begun: Instant, devices: &mut JoinSet<()>) {
        let settings = &self.settings;
        let shared: Vec<Rc<Line>> = (0..settings.shared_connections.unwrap_or(0)).map(|_| Rc::default()).collect();
        for (number, name) in settings.names.iter().enumerate() {
            let due = begun + pace::start_of(number, settings.ramp_per_second);
            if due > Instant::now() {
                sleep_until(due).await;
            }
            let way = || {
                let lines = match (shared.is_empty(), settings.spread) {
                    (false, _) => [shared[number % shared.len()].clone()].into(),
                    (true, Spread::Sticky) => [Rc::default()].into(),
                    (true, Spread::Random) => settings.gateways.iter().map(|_| Rc::default()).collect(),
                };
                Way { lines, gateway: Cell::new(number % settings.gateways.len()), failing: Cell::default() }
            };
            let member = Rc::new(Member {
                name: name.as_str().into(),
                token: token::derive(&settings.secret, name).and_then(|token| HeaderValue::try_from(token).ok()),
                device: RefCell::new(Device::new(random(), settings.heartbeat.unwrap_or(HEARTBEAT))),
                wake: Notify::new(),
                done: Cell::new(false),
                asking: way(),
                reporting: way(),
                fleet: self.clone(),
            });
            self.tally.borrow_mut().started += 1;
            devices.spawn_local(async move {
                tokio::join!(member.ask(), member.report());
            });
        }
        while devices.join_next().await.is_some() {}
    }

    /// A line now and then; never returns.
    async fn tell(&self, begun: Instant, every: Option<Duration>) {
        loop {
            after(every).await;
            let summary = self.tally.borrow().summary(begun.elapsed());
            eprintln!(
                "{:>6} s  {} devices, {} connections  desired {:?}  reports {:?}  changes {}",
                summary.seconds,
                summary.devices,
                summary.connections,
                summary.desired.by_code,
                summary.reports.by_code,
                summary.changes
            );
        }
    }
}

// === impl Member ===

impl Member {
    /// Asks what the device should run until the device is done.
    async fn ask(&self) {
        let settings = &self.fleet.settings;
        let mut patience = Patience::new(settings.gateways.len());
        while !self.done.get() {
            let begun = Instant::now();
            let wait = if patience.failures() > 0 { 0 } else { self.wait_seconds() };
            let outcome = self.asked(wait).await;
            self.ended(&self.asking, Route::Desired, outcome);
            let heartbeat = self.heartbeat();
            let next = match patience.after(outcome, heartbeat, random()) {
                Some(pause) => (Instant::now() + pause).max(begun + pace::MIN_GET_GAP),
                None => {
                    let plain = if settings.wait.is_zero() { heartbeat } else { Duration::ZERO };
                    begun + pace::get_gap(Duration::from_secs(wait), begun.elapsed(), outcome, plain)
                }
            };
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.is_done() => {}
            }
        }
    }

    fn wait_seconds(&self) -> u64 {
        if self.device.borrow().etag().is_some() { pace::wait_seconds(self.fleet.settings.wait, random()) } else { 0 }
    }

    async fn asked(&self, wait: u64) -> Outcome {
        let mut headers = HeaderMap::new();
        {
            let device = self.device.borrow();
            if let Some(etag) = device.etag().and_then(|etag| HeaderValue::try_from(etag).ok()) {
                headers.insert(header::IF_NONE_MATCH, etag);
            }
            if let Some(revision) = device.revision() {
                headers.insert(HeaderName::from_static(MIN_REVISION_HEADER), revision.into());
            }
        }
        let query = if wait == 0 { String::new() } else { format!("?waitSeconds={wait}") };
        let waited = Duration::from_secs(wait);
        let request = self.outgoing(Method::GET, &format!("desired{query}"), headers, Bytes::new(), waited);
        let answer = self.send(&self.asking, Route::Desired, &request, |answer| match answer.status {
            StatusCode::NOT_MODIFIED => answer.took.checked_sub(waited),
            _ => waited.is_zero().then_some(answer.took),
        });
        let Some(answer) = answer.await else { return Outcome::Failed { retry_after: None } };
        let text = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        let revision = text(REVISION_HEADER).and_then(|revision| revision.parse().ok());
        let verdict = match answer.status {
            StatusCode::OK => self.device.borrow_mut().received(&self.name, text("etag"), revision, &answer.body),
            StatusCode::NOT_MODIFIED => self.device.borrow_mut().unchanged(revision),
            _ => return failed(&answer),
        };
        let mut tally = self.fleet.tally.borrow_mut();
        match verdict {
            Verdict::Changed => {
                tally.changes += 1;
                self.wake.notify_waiters();
                Outcome::News
            }
            Verdict::Same => Outcome::Nothing,
            Verdict::Old => {
                tally.travelled_back += 1;
                failed(&answer)
            }
            Verdict::Unreadable => {
                tally.unreadable += 1;
                failed(&answer)
            }
        }
    }

    /// Reports until the device is done.
    async fn report(&self) {
        let settings = &self.fleet.settings;
        let mut patience = Patience::new(settings.gateways.len());
        let mut rounds = 0;
        loop {
            let begun = Instant::now();
            let news = self.wake.notified();
            tokio::pin!(news);
            // News that comes while the report is under way is told by the next one.
            news.as_mut().enable();
            let informed = self.device.borrow().knows();
            let outcome = self.reported().await;
            self.ended(&self.reporting, Route::Report, outcome);
            if let Some(pause) = patience.after(outcome, self.heartbeat(), random()) {
                sleep(pause).await;
                continue;
            }
            rounds += u64::from(informed);
            if settings.rounds.is_some_and(|wanted| rounds >= wanted) {
                self.done.set(true);
                self.wake.notify_waiters();
                return;
            }
            tokio::select! {
                () = sleep_until(begun + pace::report_gap(self.heartbeat(), settings.jitter, random())) => {}
                () = news => {}
            }
        }
    }

    async fn reported(&self) -> Outcome {
        let bodies = self.device.borrow_mut().reports(unix_seconds(), self.fleet.settings.observe);
        for body in bodies {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let request = self.outgoing(Method::POST, "report", headers, body.into(), Duration::ZERO);
            let answer = self.send(&self.reporting, Route::Report, &request, |answer| Some(answer.took)).await;
            let Some(answer) = answer else { return Outcome::Failed { retry_after: None } };
            let said = serde_json::from_slice::<ReportAnswer>(&answer.body)
                .ok()
                .filter(|said| said.ack && answer.status == StatusCode::OK);
            let Some(said) = said else { return failed(&answer) };
            let mut tally = self.fleet.tally.borrow_mut();
            tally.acknowledged += 1;
            tally.rejected += said.rejected.len() as u64;
        }
        Outcome::Nothing
    }

    fn outgoing(&self, method: Method, route: &str, mut headers: HeaderMap, body: Bytes, waits: Duration) -> Outgoing {
        if let Some(token) = &self.token {
            headers.insert(HeaderName::from_static(TOKEN_HEADER), token.clone());
        }
        Outgoing {
            method,
            route: format!("/v1/devices/{}/{route}", self.name),
            headers,
            body,
            timeout: waits + ANSWER_TIMEOUT,
        }
    }

    /// Sends a request and counts it; `time` says what of it tells about the gateway's speed.
    async fn send(
        &self,
        way: &Way,
        route: Route,
        request: &Outgoing,
        time: impl FnOnce(&Incoming) -> Option<Duration>,
    ) -> Option<Incoming> {
        let gateway = way.gateway.get();
        let line = &way.lines[gateway % way.lines.len()];
        let (result, opened) = line.send(gateway, &self.fleet.settings.gateways[gateway], request).await;
        let mut tally = self.fleet.tally.borrow_mut();
        tally.connections += opened;
        // What breaks because the fleet ends says nothing.
        if !self.fleet.stop.get() {
            match &result {
                Ok(answer) => tally.ended(route, answer.status.as_str(), time(answer)),
                Err(error) => tally.ended(route, error.to_string(), None),
            }
        }
        result.ok()
    }

    /// Chooses where the next request of a loop goes: after a failure to the next gateway.
    fn ended(&self, way: &Way, route: Route, outcome: Outcome) {
        let gateways = self.fleet.settings.gateways.len();
        if matches!(outcome, Outcome::Failed { .. }) {
            way.failing.set(way.failing.get().or_else(|| Some(Instant::now())));
            way.gateway.set((way.gateway.get() + 1) % gateways);
            return;
        }
        if let Some(since) = way.failing.take() {
            self.fleet.tally.borrow_mut().recovered(route, since.elapsed());
        }
        if self.fleet.settings.spread == Spread::Random {
            way.gateway.set(random_range(0..gateways));
        }
    }

    fn heartbeat(&self) -> Duration {
        self.fleet.settings.heartbeat.unwrap_or_else(|| self.device.borrow().heartbeat())
    }

    /// Returns when the device is done.
    async fn is_done(&self) {
        loop {
            let woken = self.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if self.done.get() {
                return;
            }
            woken.await;
        }
    }
}

fn failed(answer: &Incoming) -> Outcome {
    let retry_after = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Outcome::Failed { retry_after: retry_after.map(Duration::from_secs) }
}
