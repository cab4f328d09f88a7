//! Edge: the order of checks, and the 304 that most requests end in.
//!
//! Matched by hand rather than by a router: three routes are a page of code, and an unchanged device costs
//! little more than its HTTP parsing. What a connection has proved or said before is remembered with it.

use super::access_log::{self, AccessLog};
use super::answer::{Answer, DATE_BYTES, NO_STORE, Refusal, date};
use super::body::Bodies;
use super::connection::State;
use super::credentials::Credentials;
use super::desired::Query;
use super::metrics::GatewayMetrics;
use super::path::{self, Route};
use super::report::Reports;
use crate::desired::directory::{Directory, Lookup};
use crate::runtime::clock;
use crate::status::intake::Intake;
use crate::wire::etag::ETag;
use crate::wire::token::equal;
use crate::wire::{MIN_REVISION_HEADER, REVISION_HEADER, TOKEN_HEADER};
use bytes::Bytes;
use futures::FutureExt;
use http::header::{
    CACHE_CONTROL, CONNECTION, ETAG, EXPECT, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Body;
use parking_lot::RwLock;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

const TOKEN: HeaderName = HeaderName::from_static(TOKEN_HEADER);
const MIN_REVISION: HeaderName = HeaderName::from_static(MIN_REVISION_HEADER);
const REVISION: HeaderName = HeaderName::from_static(REVISION_HEADER);

/// Everything that requests need, shared by all connections.
pub struct Gateway<R = Intake> {
    pub(super) directory: Arc<Directory>,
    pub(super) reports: Arc<R>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) metrics: GatewayMetrics,
    pub(super) bodies: Bodies,
    pub(super) draining: CancellationToken,
    /// The same, without a lock.
    ending: AtomicBool,
    pub(super) access_log: AccessLog,
    /// Now, as answers carry it; moved once a second.
    pub(super) date: RwLock<[u8; DATE_BYTES]>,
}

/// One connection's side of the gateway.
pub struct Session<R = Intake> {
    gateway: Arc<Gateway<R>>,
    state: Arc<State>,
    memo: RefCell<Memo>,
}

/// What the last request of a connection showed.
struct Memo {
    /// The device whose `token` was good at `generation`; empty before the first.
    device: Box<str>,
    token: Box<[u8]>,
    generation: u64,
    validators: Validators,
}

/// The headers of an answer about desired state, made once for as long as nothing changes.
struct Validators {
    etag: ETag,
    revision: u64,
    headers: Option<[HeaderValue; 2]>,
}

/// A request under way.
struct Exchange<R> {
    gateway: Arc<Gateway<R>>,
    state: Arc<State>,
    route: Route,
    device: String,
    started: Instant,
    /// The generation of its credentials, if the request means the same whenever it comes again.
    recalled: Option<u64>,
}

/// What a request still has to do.
enum Work<B> {
    Desired(Query),
    Report(B),
}

/// An answer, now or later.
pub enum Answering {
    /// Now; empty once taken.
    Ready(Option<Answer>),
    /// Later.
    Later(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

// === impl Gateway ===

impl<R: Reports> Gateway<R> {
    /// Everything is handed in; nothing is started.
    #[must_use]
    pub fn new(
        directory: Arc<Directory>,
        reports: Arc<R>,
        credentials: Arc<Credentials>,
        metrics: GatewayMetrics,
        access_log: AccessLog,
    ) -> Arc<Self> {
        Arc::new(Self {
            directory,
            reports,
            credentials,
            metrics,
            bodies: Bodies::default(),
            draining: CancellationToken::new(),
            ending: AtomicBool::new(false),
            access_log,
            date: RwLock::new(date(clock::unix_seconds())),
        })
    }

    /// Moves the date; to be called once a second.
    pub(super) fn tick(&self) {
        *self.date.write() = date(clock::unix_seconds());
    }

    /// Whether every answer ends its connection.
    pub(super) fn is_draining(&self) -> bool {
        self.ending.load(Relaxed)
    }

    /// Answers parked polls at once and parks no more; every answer ends its connection from now on.
    pub fn drain(&self) {
        self.ending.store(true, Relaxed);
        self.draining.cancel();
    }

    fn finish(
        &self,
        state: &State,
        route: Option<Route>,
        target: &str,
        started: Instant,
        mut answer: Answer,
    ) -> Answer {
        let status = answer.status().as_u16();
        self.metrics.answered(route, status);
        if self.access_log.wants(status) {
            access_log::write(route, target, status, started.elapsed());
        }
        if state.end(status) | self.is_draining() {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    fn panicked(&self, what: &str) -> Answer {
        self.metrics.panics.inc();
        tracing::error!(route = what, "a handler panicked; the request is answered 500");
        Refusal::Broken.answer()
    }
}

// === impl Session ===

impl<R: Reports> Session<R> {
    pub(super) fn new(gateway: Arc<Gateway<R>>, state: Arc<State>) -> Self {
        let nothing = Validators { etag: crate::wire::etag::ETagBuilder::new(0).finish(), revision: 0, headers: None };
        Self {
            gateway,
            state,
            memo: RefCell::new(Memo { device: "".into(), token: [].into(), generation: 0, validators: nothing }),
        }
    }

    /// Answers a request.
    pub fn answer<B>(&self, request: Request<B>) -> Answering
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let started = Instant::now();
        self.state.begin(request.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()));
        let answered = catch_unwind(AssertUnwindSafe(|| self.dispatch(request, started)));
        answered.unwrap_or_else(|_| {
            let answer = self.gateway.panicked("unknown");
            Answering::Ready(Some(self.gateway.finish(&self.state, None, "", started, answer)))
        })
    }

    fn dispatch<B>(&self, request: Request<B>, started: Instant) -> Answering
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (http::request::Parts { uri, method, version, headers, .. }, body) = request.into_parts();
        let now = |route, target: &str, answer| {
            Answering::Ready(Some(self.gateway.finish(&self.state, route, target, started, answer)))
        };
        let Some((route, segment)) = Route::split(uri.path()) else {
            return now(None, uri.path(), Refusal::NoRoute.answer());
        };
        let mut memo = self.memo.borrow_mut();
        // A name that was good before is good again.
        let seen = !segment.is_empty() && *memo.device == *segment;
        let Some(device) = (if seen { Some(segment.into()) } else { path::device(segment) }) else {
            return now(Some(route), "", Refusal::BadName.answer());
        };
        let allowed = match route {
            Route::Desired => method == Method::GET || method == Method::HEAD,
            Route::Report | Route::Connect => method == Method::POST,
        };
        if !allowed {
            return now(Some(route), &device, Refusal::BadMethod(route).answer());
        }
        let token = headers.get(TOKEN).map(HeaderValue::as_bytes).unwrap_or_default();
        if !memo.vouches(&device, token, &self.gateway.credentials) {
            self.gateway.metrics.auth_failures.inc();
            return now(Some(route), &device, Refusal::BadToken.answer());
        }
        self.state.trust();
        // What means the same whenever it comes again on this connection.
        let plain = version == Version::HTTP_11
            && (method == Method::POST || (method == Method::GET && body.size_hint().exact() == Some(0)))
            && !headers.contains_key(EXPECT)
            && !headers.contains_key(UPGRADE);
        let recalled = plain.then_some(memo.generation);
        let work = match route {
            Route::Desired => {
                let min = headers.get(MIN_REVISION).and_then(|field| path::revision(field.as_bytes()));
                let query = Query { headers, min, wait: path::wait_seconds(uri.query()) };
                match self.unchanged(&mut memo.validators, &device, &query) {
                    Some(validators) => {
                        self.state.mean(recalled, route, &device, memo.validators.matched());
                        return now(Some(route), &device, unchanged(query.headers, validators));
                    }
                    None => Work::Desired(query),
                }
            }
            Route::Report | Route::Connect => match self.gateway.known(&device) {
                Ok(_) => Work::Report(body),
                Err(refusal) => return now(Some(route), &device, refusal.answer()),
            },
        };
        let exchange = Exchange {
            gateway: self.gateway.clone(),
            state: self.state.clone(),
            route,
            device: device.into_owned(),
            started,
            recalled,
        };
        Answering::Later(Box::pin(exchange.run(work)))
    }

    /// The validators of an answer that is 304 and need not wait.
    fn unchanged(&self, memo: &mut Validators, device: &str, query: &Query) -> Option<[HeaderValue; 2]> {
        let Lookup::Known { etag, revision } = self.gateway.directory.lookup(device) else { return None };
        let now = query.wait == Ok(0) && query.min.is_none_or(|min| min <= revision) && matches(&query.headers, &etag);
        now.then(|| memo.of(etag, revision))
    }
}

// === impl Exchange ===

impl<R: Reports> Exchange<R> {
    async fn run<B>(self, work: Work<B>) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let answered = AssertUnwindSafe(async {
            match work {
                Work::Desired(query) => self.gateway.desired(&self.device, query).await,
                Work::Report(body) => {
                    let (answer, settled) = self.gateway.report(self.route, &self.device, body).await;
                    if settled {
                        self.state.mean(self.recalled, self.route, &self.device, None);
                    }
                    answer
                }
            }
        });
        let answer = answered.catch_unwind().await.unwrap_or_else(|_| self.gateway.panicked(self.route.name()));
        if self.route != Route::Desired {
            self.gateway.metrics.report_seconds.observe(self.started.elapsed().as_secs_f64());
        }
        self.gateway.finish(&self.state, Some(self.route), &self.device, self.started, answer)
    }
}

// === impl Memo ===

impl Memo {
    /// Whether the token is good for the device. The last good one is only compared.
    fn vouches(&mut self, device: &str, token: &[u8], credentials: &Credentials) -> bool {
        let generation = credentials.generation();
        if self.generation == generation && *self.device == *device && equal(&self.token, token) {
            return true;
        }
        let good = credentials.accepts(device, token);
        if good {
            (self.device, self.token, self.generation) = (device.into(), token.into(), generation);
        }
        good
    }
}

// === impl Validators ===

impl Validators {
    fn matched(&self) -> Option<(ETag, u64)> {
        Some((self.etag, self.revision))
    }

    fn of(&mut self, etag: ETag, revision: u64) -> [HeaderValue; 2] {
        match &self.headers {
            Some(headers) if self.etag == etag && self.revision == revision => headers.clone(),
            _ => {
                let headers = validators(etag, revision);
                *self = Self { etag, revision, headers: Some(headers.clone()) };
                headers
            }
        }
    }
}

// === impl Answering ===

impl Future for Answering {
    type Output = Result<Answer, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            // Never polled again after it was ready.
            Self::Ready(answer) => answer.take().map_or(Poll::Pending, |answer| Poll::Ready(Ok(answer))),
            Self::Later(answer) => answer.as_mut().poll(cx).map(Ok),
        }
    }
}

/// Values of `ETag` and `X-Praetor-Revision`.
pub(super) fn validators(etag: ETag, revision: u64) -> [HeaderValue; 2] {
    // A tag is quotes and hex digits; were it not, an empty value would match nothing.
    let tag = HeaderValue::from_bytes(etag.as_bytes()).unwrap_or(HeaderValue::from_static(""));
    [tag, revision.into()]
}

/// Puts validators on an answer.
pub(super) fn with_validators(mut answer: Answer, [etag, revision]: [HeaderValue; 2]) -> Answer {
    let headers = answer.headers_mut();
    headers.insert(ETAG, etag);
    headers.insert(REVISION, revision);
    answer
}

/// A `304`. `headers` is a map to reuse; what it holds is dropped.
pub(super) fn unchanged(mut headers: HeaderMap, validators: [HeaderValue; 2]) -> Answer {
    headers.clear();
    headers.insert(CACHE_CONTROL, NO_STORE);
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    *answer.headers_mut() = headers;
    with_validators(answer, validators)
}

/// Whether any line of `If-None-Match` matches.
pub(super) fn matches(headers: &HeaderMap, etag: &ETag) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|field| etag.matches(field.as_bytes()))
}

impl<R: Reports, B> hyper::service::Service<Request<B>> for Session<R>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<B>) -> Answering {
        self.answer(request)
    }
}
