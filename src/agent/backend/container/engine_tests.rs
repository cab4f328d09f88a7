//! Edge: the client against engines that are scripted.

use super::super::events::Events;
use super::*;
use std::collections::VecDeque;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// The first lines of the requests, and the connections.
type Server = JoinHandle<(Vec<String>, Vec<UnixStream>)>;

/// An engine that gives one answer for each connection and closes none; with the first lines of the requests.
fn scripted(answers: Vec<String>) -> (TempDir, Engine, Server) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(async move {
        let mut seen = Vec::new();
        let mut open = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            seen.push(String::from_utf8(head).unwrap().lines().next().unwrap().to_owned());
            stream.write_all(answer.as_bytes()).await.unwrap();
            open.push(stream);
        }
        (seen, open)
    });
    (folder, Engine::new(socket), server)
}

fn json(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn version(newest: &str, oldest: &str) -> String {
    let parts = r#"[{"Name":"Engine","Version":"20"},{"Name":"docker-init","Version":"N/A"}]"#;
    json("200 OK", &format!(r#"{{"ApiVersion":"{newest}","MinAPIVersion":"{oldest}","Components":{parts}}}"#))
}

fn get(path: &str) -> Question<'_> {
    Question::new(Method::GET, path)
}

#[tokio::test]
async fn the_version_is_one_that_both_know() {
    for (newest, oldest, asked) in
        [("1.41", "1.12", "1.41"), ("1.51", "1.24", "1.41"), ("1.52", "1.44", "1.44"), ("1.40", "", "1.40")]
    {
        let (_folder, engine, server) =
            scripted(vec![version(newest, oldest), json("200 OK", "[]"), json("200 OK", "[]")]);
        for _ in 0..2 {
            assert_eq!(engine.ask::<Vec<Value>>(get("/containers/json")).await.unwrap(), Vec::<Value>::new());
        }
        let path = format!("GET /v{asked}/containers/json HTTP/1.1");
        assert_eq!(server.await.unwrap().0, ["GET /version HTTP/1.1", &path, &path]);
        assert!(!engine.about().await.unwrap().has_init);
    }
    let (_folder, engine, _server) = scripted(vec![version("1.24", "1.12")]);
    let error = engine.about().await.unwrap_err().to_string();
    assert!(error.ends_with("is too old: its API is 1.24, 1.30 is needed"), "{error}");
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let engine = Engine::new(socket.clone());
    let said = format!("the container engine at {}", socket.display());
    assert_eq!(engine.ping().await.unwrap_err().to_string(), format!("{said} is not there: no such socket"));
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(engine.ping().await.unwrap_err().to_string(), format!("{said} does not listen"));
}

#[tokio::test]
async fn after_it_was_away_it_is_asked_for_its_version_again() {
    let (_folder, engine, server) =
        scripted(vec![version("1.41", "1.12"), String::new(), version("1.40", "1.12"), json("200 OK", "7")]);
    let path = "/x";
    let asking = engine.ask::<u8>(get(path).within(Duration::from_millis(200)));
    let error = asking.await.unwrap_err();
    assert!(matches!(&error, EngineError::Away(_, why) if why == "does not answer in time"), "{error}");
    assert_eq!(engine.ask::<u8>(get(path)).await.unwrap(), 7);
    assert_eq!(server.await.unwrap().0[3], "GET /v1.40/x HTTP/1.1");
}

#[tokio::test]
async fn its_words_are_passed_on_in_one_line() {
    let (_folder, engine, _server) = scripted(vec![
        version("1.41", "1.12"),
        json("409 Conflict", r#"{"message":"the name\n is  taken"}"#),
        json("404 Not Found", r#"{"message":"no such container"}"#),
        json("500 Internal Server Error", ""),
        json("204 No Content", ""),
        json("200 OK", "{"),
    ]);
    let mut said = Vec::new();
    for _ in 0..2 {
        said.push(engine.ask::<Value>(get("/x")).await.unwrap_err());
    }
    assert_eq!(said[0], EngineError::Refused { status: 409, message: "the name is taken".into() });
    assert_eq!(EngineError::or_none(Err::<(), _>(said[1].clone())), Ok(None));
    let error = engine.ask::<Value>(get("/x")).await.unwrap_err();
    assert_eq!(error.to_string(), "the container engine answers 500 Internal Server Error");
    assert_eq!(engine.ask::<Value>(get("/x")).await.unwrap(), Value::Null);
    assert!(matches!(engine.ask::<Value>(get("/x")).await.unwrap_err(), EngineError::Strange(..)));
}

#[tokio::test]
async fn no_answer_is_longer_than_allowed() {
    let long = format!("\"{}\"", "x".repeat(MAX_ANSWER_BYTES));
    let (_folder, engine, _server) = scripted(vec![version("1.41", "1.12"), json("200 OK", &long)]);
    let error = engine.ask::<String>(get("/x")).await.unwrap_err().to_string();
    assert!(error.ends_with("gives an answer of more than 4 MiB"), "{error}");
}

#[tokio::test]
async fn lines_come_one_by_one() {
    let body = "5\r\n{\"a\":\r\n7\r\n1}\r\n{\"a\r\n6\r\n\":2}\r\n\r\n0\r\n\r\n";
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let (_folder, engine, _server) = scripted(vec![version("1.41", "1.12"), answer]);
    let mut stream = engine.open(get("/events")).await.unwrap();
    let mut lines = VecDeque::new();
    while let Some(line) = stream.line::<Value>().await.unwrap() {
        lines.push_back(line["a"].as_i64().unwrap());
    }
    assert_eq!(lines, [1, 2]);
}

#[tokio::test]
async fn a_refused_stream_is_an_error() {
    let (_folder, engine, _server) =
        scripted(vec![version("1.41", "1.12"), json("404 Not Found", r#"{"message":"manifest unknown"}"#)]);
    let error = engine.open(get("/images/create")).await.unwrap_err();
    assert_eq!(error, EngineError::Refused { status: 404, message: "manifest unknown".into() });
}

#[tokio::test]
async fn events_wake_and_silence_does_not() {
    let event = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
    let (_folder, engine, _server) = scripted(vec![version("1.41", "1.12"), event.to_owned()]);
    let mut events = Events::default();
    events.changed(&engine).await; // the stream is there: something may have happened before
    events.changed(&engine).await; // the event
    let waiting = timeout(Duration::from_millis(200), events.changed(&engine)).await;
    assert!(waiting.is_err(), "nothing has happened");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_away_is_asked_less_and_less_often() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let engine = Engine::new(socket.clone());
    let mut events = Events::default();
    let begun = tokio::time::Instant::now();
    // Dropped and called again all the time, as the agent's loop does.
    while begun.elapsed() < Duration::from_secs(300) {
        assert!(timeout(Duration::from_millis(900), events.changed(&engine)).await.is_err());
    }
    assert!((14..=18).contains(&events.attempts()), "{} attempts in 5 minutes", events.attempts());
}
