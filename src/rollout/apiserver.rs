//! Edge: as much of an apiserver as the tests of leaders need, in memory: versions, preconditions, conflicts.

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

const DOMAIN: &str = "/apis/azure.com/v1alpha1/namespaces/n/";

/// One request that came in, and what was answered.
#[derive(Debug, Clone)]
pub struct Seen {
    pub who: &'static str,
    pub method: Method,
    /// Behind the group, version and namespace.
    pub path: String,
    pub body: Value,
    pub code: u16,
}

#[derive(Default)]
struct Store {
    revision: u64,
    objects: BTreeMap<String, Value>,
    seen: Vec<Seen>,
}

type Hook = Box<dyn Fn(&Seen) + Send + Sync>;

/// See the module. Everything is in the namespace `n`.
#[derive(Default)]
pub struct Apiserver {
    store: Mutex<Store>,
    /// Called with each write before it is done.
    pub before: Mutex<Option<Hook>>,
}

impl Apiserver {
    /// A client of somebody. Answers take a few milliseconds, the order in which they come is not that of the requests.
    pub fn client(self: &Arc<Self>, who: &'static str) -> Client {
        let apiserver = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let apiserver = apiserver.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..5))).await;
                let (code, answer) = apiserver.answer(who, head.method, head.uri.path(), body);
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..5))).await;
                let mut response = Response::new(Full::new(bytes::Bytes::from(answer.to_string())));
                *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        Client::new(service, "default")
    }

    /// Puts an object there, as somebody else would; returns it as it is then.
    pub fn put(&self, path: &str, object: Value) -> Value {
        self.store.lock().put(path, object)
    }

    /// All objects of a kind.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.store.lock().all(plural)
    }

    /// What was asked for so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.store.lock().seen.clone()
    }

    fn answer(&self, who: &'static str, method: Method, path: &str, body: Value) -> (u16, Value) {
        let short = path.strip_prefix(DOMAIN).unwrap_or(path).to_owned();
        let mut seen = Seen { who, method, path: short, body, code: 0 };
        if let Some(before) = self.before.lock().as_ref().filter(|_| seen.method != Method::GET) {
            before(&seen);
        }
        let mut store = self.store.lock();
        let (code, answer) = store.answer(&seen);
        seen.code = code;
        store.seen.push(seen);
        (code, answer)
    }
}

impl Store {
    fn answer(&mut self, Seen { method, path, body, .. }: &Seen) -> (u16, Value) {
        if let Some(plural) = path.strip_prefix("/apis/azure.com/v1alpha1/") {
            return (
                200,
                json!({"metadata": {"resourceVersion": self.revision.to_string()}, "items": self.all(plural)}),
            );
        }
        let events = path.starts_with("/apis/events.k8s.io/v1/namespaces/n/events");
        match *method {
            Method::POST => {
                let plural = if events { "events" } else { path };
                let path = format!("{plural}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return status(409, "AlreadyExists");
                }
                (201, self.put(&path, body.clone()))
            }
            Method::GET => {
                self.objects.get(path).map_or_else(|| status(404, "NotFound"), |object| (200, object.clone()))
            }
            Method::PATCH => {
                let (path, is_status) =
                    path.strip_suffix("/status").map_or((path.as_str(), false), |path| (path, true));
                let Some(mut object) = self.objects.get(path).cloned() else { return status(404, "NotFound") };
                let version = if is_status { &body["metadata"]["resourceVersion"] } else { &body[0]["value"] };
                if *version != object["metadata"]["resourceVersion"] {
                    return status(409, "Conflict");
                }
                if is_status {
                    object["status"] = body["status"].clone();
                } else {
                    for op in body.as_array().unwrap().iter().skip(1) {
                        let (parent, member) = op["path"].as_str().unwrap().rsplit_once('/').unwrap();
                        object.pointer_mut(parent).unwrap()[member] = op["value"].clone();
                    }
                }
                (200, self.put(path, object))
            }
            Method::DELETE => {
                let Some(object) = self.objects.get(path) else { return status(404, "NotFound") };
                let same = |member: &str| body["preconditions"][member] == object["metadata"][member];
                if !(same("uid") && same("resourceVersion")) {
                    return status(409, "Conflict");
                }
                self.revision += 1;
                self.objects.remove(path);
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => status(405, "MethodNotAllowed"),
        }
    }

    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.revision += 1;
        let before = self.objects.get(path);
        let generation = before.map_or(1, |before| {
            before["metadata"]["generation"].as_i64().unwrap_or(0) + i64::from(before["spec"] != object["spec"])
        });
        let uid =
            before.map_or_else(|| json!(format!("u{}", self.revision)), |before| before["metadata"]["uid"].clone());
        let metadata = &mut object["metadata"];
        metadata["namespace"] = "n".into();
        metadata["name"] = path.rsplit('/').next().unwrap().into();
        metadata["generation"] = generation.into();
        metadata["uid"] = uid;
        metadata["resourceVersion"] = self.revision.to_string().into();
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn all(&self, plural: &str) -> Vec<Value> {
        let of_kind = |path: &&String| path.split('/').next() == Some(plural);
        self.objects.keys().filter(of_kind).map(|path| self.objects[path].clone()).collect()
    }
}

fn status(code: u16, reason: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code}),
    )
}
