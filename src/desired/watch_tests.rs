//! Edge: tests of list and watch against a scripted apiserver; time is paused.

use super::*;
use crate::desired::directory::Lookup;
use crate::desired::index::Settings;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use tokio::sync::mpsc;

/// What the apiserver does with one request.
enum Answer {
    /// All at once.
    Now(u16, Value),
    /// Lines of a watch as they come; the connection stays open until the sender is dropped.
    Lines(mpsc::UnboundedReceiver<String>),
    /// Nothing, for ever.
    Silence,
}

/// An apiserver that follows a script, and notes the paths and queries that it was asked for.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<String>>,
}

type Stream = StreamBody<futures::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

impl Script {
    fn client(self: &Arc<Self>) -> Client {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            script.asked.lock().push(request.uri().path_and_query().map(ToString::to_string).unwrap_or_default());
            let answer = script.answers.lock().pop_front();
            async move {
                let frame = |line: String| Ok(Frame::data(Bytes::from(line + "\n")));
                let (code, body): (u16, Stream) = match answer {
                    Some(Answer::Now(code, value)) => {
                        (code, StreamBody::new(futures::stream::once(async move { frame(value.to_string()) }).boxed()))
                    }
                    Some(Answer::Lines(lines)) => {
                        let lines =
                            futures::stream::unfold(lines, |mut lines| async { Some((lines.recv().await?, lines)) });
                        (200, StreamBody::new(lines.map(frame).boxed()))
                    }
                    Some(Answer::Silence) | None => (200, StreamBody::new(futures::stream::pending().boxed())),
                };
                let mut response = Response::new(body);
                *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        Client::new(service, "default")
    }

    fn then(&self, answer: Answer) {
        self.answers.lock().push_back(answer);
    }

    /// Answers with a watch, and gives its other end.
    fn then_watch(&self) -> mpsc::UnboundedSender<String> {
        let (sender, lines) = mpsc::unbounded_channel();
        self.then(Answer::Lines(lines));
        sender
    }

    async fn asked_times(&self, count: usize) {
        let asked = async {
            while self.asked.lock().len() < count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(600), asked).await.expect("it does not ask so often");
    }
}

fn process(name: &str, revision: u64) -> Value {
    json!({
        "metadata": {"namespace": "n", "name": name, "uid": name, "generation": 1, "resourceVersion": revision.to_string()},
        "spec": {"deviceRef": {"kind": "NetworkSwitch", "name": "d"}, "execution": {"backend": "initd"}},
    })
}

/// The type comes first, as the apiserver has it.
fn event(kind: &str, object: &Value) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn page(items: &[Value], revision: u64, next: Option<&str>) -> Answer {
    Answer::Now(200, json!({"metadata": {"resourceVersion": revision.to_string(), "continue": next}, "items": items}))
}

fn gone() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "too old", "reason": "Expired", "code": 410})
}

struct Stage {
    directory: Arc<Directory>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// Watches DeviceProcesses; the other kinds are in.
fn start(script: &Arc<Script>) -> Stage {
    let settings = Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false };
    let (directory, _) = Directory::new(settings);
    directory.finish_list(Kind::Switch, &HashSet::new(), 1);
    let stop = CancellationToken::new();
    let task = tokio::spawn(run(script.client(), Kind::Process, directory.clone(), LastEvents::new(), stop.clone()));
    Stage { directory, stop, task }
}

impl Stage {
    fn names(&self) -> Vec<String> {
        let Lookup::Known { .. } = self.directory.lookup("d") else { return Vec::new() };
        self.directory
            .read(|index| index.device("d").unwrap().processes.iter().map(|p| p.key.name.to_string()).collect())
    }

    /// Waits until these are known; fails when it ever sees fewer than `at_least`.
    async fn wait(&self, names: &[&str], at_least: usize) {
        let wait = async {
            while self.names() != names {
                assert!(self.names().len() >= at_least, "{:?}", self.names());
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(600), wait).await.unwrap_or_else(|_| panic!("{:?}", self.names()));
    }

    async fn progress(&self, revision: u64) {
        let progress = || self.directory.read(|index| index.progress(Kind::Process));
        let wait = async {
            while progress() < revision {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(600), wait).await.unwrap_or_else(|_| panic!("{}", progress()));
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(60), self.task).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_noticed_and_the_watch_goes_on_where_it_was() {
    let script = Arc::new(Script::default());
    script.then(page(&[process("p", 3)], 5, None));
    let first = script.then_watch();
    let stage = start(&script);
    stage.wait(&["p"], 0).await;
    first.send(event("ADDED", &process("q", 7))).unwrap();
    let bookmark =
        json!({"kind": "DeviceProcess", "apiVersion": "azure.com/v1alpha1", "metadata": {"resourceVersion": "9"}});
    first.send(event("BOOKMARK", &bookmark)).unwrap();
    stage.wait(&["p", "q"], 1).await;
    stage.directory.caught_up("d", 7).await;
    stage.progress(9).await;
    // The connection stays open, but nothing comes any more.
    let silent_since = tokio::time::Instant::now();
    let second = script.then_watch();
    script.asked_times(3).await;
    assert!(silent_since.elapsed() <= Duration::from_secs(67), "{:?}", silent_since.elapsed());
    assert!(script.asked.lock()[2].contains("resourceVersion=9"), "{:?}", script.asked.lock());
    second.send(event("DELETED", &process("p", 12))).unwrap();
    stage.wait(&["q"], 1).await;
    drop(first);
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn compacted_history_is_listed_again_and_nobody_sees_less_meanwhile() {
    let script = Arc::new(Script::default());
    script.then(page(&[process("p", 3), process("q", 4)], 5, None));
    let watch = script.then_watch();
    let stage = start(&script);
    stage.wait(&["p", "q"], 0).await;
    // In the stream; then the list fails in the middle, in four ways; then it succeeds, page by page.
    script.then(Answer::Now(
        503,
        json!({"kind": "Status", "status": "Failure", "message": "busy", "reason": "ServiceUnavailable", "code": 503}),
    ));
    script.then(page(&[process("r", 20)], 30, Some("more")));
    script.then(Answer::Now(410, gone()));
    script.then(page(&[process("r", 20)], 31, Some("more")));
    script.then(Answer::Silence);
    script.then(page(&[], 32, Some("more")));
    script.then(Answer::Now(
        500,
        json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "InternalError", "code": 500}),
    ));
    script.then(page(&[process("p", 3)], 40, Some("more")));
    script.then(page(&[process("r", 20)], 40, None));
    let last = script.then_watch();
    watch.send(event("ERROR", &gone())).unwrap();
    stage.wait(&["p", "q", "r"], 2).await;
    stage.wait(&["p", "r"], 2).await;
    script.asked_times(12).await;
    assert!(script.asked.lock()[11].contains("resourceVersion=40"), "{:?}", script.asked.lock());
    // As the answer to the request itself.
    script.then(Answer::Now(410, gone()));
    script.then(page(&[process("r", 20), process("s", 44)], 50, None));
    let _open = script.then_watch();
    sleep(Duration::from_secs(2)).await;
    drop(last);
    stage.wait(&["r", "s"], 1).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_moment_that_never_comes_is_given_up_for_a_list() {
    let script = Arc::new(Script::default());
    script.then(page(&[process("p", 3)], 5, None));
    let too_large = json!({"kind": "Status", "status": "Failure", "message": "Too large resource version", "reason": "Timeout", "code": 504});
    (0..REFUSALS).for_each(|_| script.then(Answer::Now(504, too_large.clone())));
    script.then(page(&[process("p", 3), process("q", 6)], 7, None));
    let _open = script.then_watch();
    let stage = start(&script);
    stage.wait(&["p", "q"], 0).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_went_back_ends_the_task() {
    let script = Arc::new(Script::default());
    script.then(page(&[process("p", 3), process("q", 4)], 50, None));
    let watch = script.then_watch();
    let stage = start(&script);
    stage.wait(&["p", "q"], 0).await;
    script.then(page(&[process("p", 3)], 20, None));
    watch.send(event("ERROR", &gone())).unwrap();
    timeout(Duration::from_secs(60), stage.task).await.expect("it ends").unwrap();
    let left = stage.directory.read(|index| index.count(Kind::Process));
    assert_eq!(left, 2, "nothing is taken from such a list");
}

#[tokio::test(start_paused = true)]
async fn a_list_beside_the_watch_is_not_undone_by_what_the_watch_shows_late() {
    let script = Arc::new(Script::default());
    script.then(page(&[process("p", 3)], 5, None));
    let watch = script.then_watch();
    let stage = start(&script);
    stage.wait(&["p"], 0).await;
    script.asked_times(2).await;
    // Three kinds; the order of the requests is that of the kinds.
    script.then(page(&[], 20, None));
    script.then(page(&[process("r", 14)], 20, None));
    script.then(page(&[], 20, None));
    relist_now(&script.client(), &stage.directory).await.unwrap();
    assert_eq!(stage.names(), ["r"]);
    for late in [
        ("MODIFIED", "p", 6),
        ("ADDED", "q", 8),
        ("DELETED", "p", 9),
        ("DELETED", "q", 10),
        ("ADDED", "r", 14),
        ("ADDED", "s", 21),
    ] {
        watch.send(event(late.0, &process(late.1, late.2))).unwrap();
    }
    stage.wait(&["r", "s"], 1).await;
    stage.end().await;
}
