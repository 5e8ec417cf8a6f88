//! Against a server that answers each connection as the test says.

use super::*;
use crate::{
    contract::{Heard, Recorder},
    social::proxy::Proxy,
};
use std::net::SocketAddr;
use tidemill_core::{Clock, ManualClock, StopHandle, Timestamp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
};

/// A server: what it was asked, connection by connection.
struct Server {
    address: SocketAddr,
    asked: mpsc::UnboundedReceiver<String>,
}

/// What a connection is answered; it is then closed, unless it is to `stay`.
#[derive(Clone)]
struct Answer {
    text: String,
    stay: bool,
}

fn answer(status: &str, kind: &str, body: &str, stay: bool) -> Answer {
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n");
    Answer { text: format!("{head}{body}"), stay }
}

fn events(body: &str, stay: bool) -> Answer {
    answer("200 OK", "text/event-stream; charset=utf-8", body, stay)
}

/// Answers connection by connection; the last answer again and again.
async fn serve(answers: Vec<Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ask, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut open = Vec::new();
        for turn in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.unwrap() == 1 {
                head.push(byte[0]);
            }
            if ask.send(String::from_utf8(head).unwrap().to_ascii_lowercase()).is_err() {
                return;
            }
            let Answer { text, stay } = answers[turn.min(answers.len() - 1)].clone();
            stream.write_all(text.as_bytes()).await.unwrap();
            if stay {
                open.push(stream);
            }
        }
    });
    Server { address, asked }
}

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
    clock: Arc<ManualClock>,
}

impl Server {
    fn client(&self) -> Sse {
        Sse::new(format!("http://{}/events?key=hunter2", self.address))
    }

    /// What the next connection asked for in a header.
    async fn asked(&mut self, header: &str) -> Option<String> {
        let head = self.asked.recv().await.unwrap();
        head.lines().find_map(|line| line.strip_prefix(&format!("{header}: "))).map(str::to_string)
    }
}

fn start(client: Sse, token: Option<String>) -> Running {
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let mut common = Common::new(QUIET);
    common.link.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    common.link.proxy = Proxy::Direct;
    common.gather = Some(Duration::ZERO);
    let client = client.common(common);
    let intake = Recorder::resuming(token);
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { client.run(given, stopped).await });
    Running { intake, stop, task, clock }
}

impl Running {
    /// Until something holds, while the clock goes on.
    async fn until(&self, holds: impl Fn(&Heard) -> bool) -> Heard {
        for _ in 0..1000 {
            if let Ok(heard) = tokio::time::timeout(Duration::from_millis(20), self.intake.until(&holds)).await {
                return heard;
            }
            self.clock.advance(Duration::from_secs(1));
        }
        panic!("waited in vain; heard {:?}", self.intake.heard());
    }

    async fn end(self) -> Heard {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
        self.intake.heard()
    }
}

fn says<'a>(what: &'a str) -> impl Fn(&Heard) -> bool + 'a {
    move |heard| heard.states.iter().any(|state| state.contains(what))
}

#[tokio::test]
async fn a_connection_goes_on_from_the_last_event() {
    let mut server = serve(vec![
        events("id: 1\ndata: one\n\nid: 2\ndata: two\n\nid: 3\ndata: begun", false),
        events("id: 3\ndata: three\n\n: a comment\n\nid: 7\n\n", false),
        events("id: 8\ndata: line 1\ndata: line 2\n\n", true),
    ])
    .await;
    let running = start(server.client(), None);
    let heard = running.until(|heard| heard.records.len() == 4).await;
    assert_eq!(heard.records, [&b"one"[..], b"two", b"three", b"line 1\nline 2"]);
    assert!(heard.refused.is_empty() && !heard.states.join(" ").contains("hunter2"), "{heard:?}");
    for wanted in [None, Some("2"), Some("7")] {
        assert_eq!(server.asked("last-event-id").await.as_deref(), wanted);
    }
    let token = running.end().await.resume;
    assert_eq!(token.as_deref(), Some("8"));
    // A restart goes on there; what a first start is told to begin with counts no more.
    let mut server = serve(vec![events("id: 9\ndata: nine\n\n", true)]).await;
    let mut client = server.client();
    client.from = Some("5".to_string());
    let running = start(client.clone(), token);
    running.until(|heard| heard.records == [b"nine"]).await;
    assert_eq!(server.asked("last-event-id").await.as_deref(), Some("8"));
    running.end().await;
    let running = start(client, None);
    assert_eq!(server.asked("last-event-id").await.as_deref(), Some("5"));
    running.end().await;
}

#[tokio::test]
async fn events_of_other_kinds_are_passed_over_and_their_ids_count() {
    let body = "event: update\nid: 1\ndata: yes\n\nevent: ping\nid: 2\ndata: no\n\nid: 3\ndata: plain\n\nevent: ping\nid: 4\ndata: no\n\n";
    let mut server = serve(vec![events(body, false), events("", true)]).await;
    let running = start(server.client().events(["update", "message"]), None);
    let heard = running.until(|heard| heard.states.iter().filter(|s| s.starts_with("connected")).count() == 2).await;
    assert_eq!(heard.records, [&b"yes"[..], b"plain"]);
    assert_eq!(
        (server.asked("last-event-id").await, server.asked("last-event-id").await.as_deref()),
        (None, Some("4"))
    );
    running.end().await;
}

#[tokio::test]
async fn a_silent_server_is_taken_for_dead_and_lost_events_are_told() {
    let server = serve(vec![events("data: one\n\n", true), events("data: two\n\n", true)]).await;
    let running = start(server.client(), None);
    running.until(|heard| heard.records.len() == 1).await;
    let heard = running.until(|heard| heard.records.len() == 2).await;
    assert!(says("nothing came for 60 s")(&heard), "{:?}", heard.states);
    assert!(says("have no ids, so those of the interruption are lost")(&heard), "{:?}", heard.states);
    assert!(running.clock.now() >= Timestamp(60_000_000));
    running.end().await;
}

#[tokio::test]
async fn a_server_that_has_no_more_ends_the_input() {
    let server = serve(vec![events("data: last\n\n", false), answer("204 No Content", "", "", false)]).await;
    let running = start(server.client(), None);
    running.until(says("ended: the server has no more")).await;
    running.task.await.unwrap().unwrap();
    assert_eq!(running.intake.heard().records, [b"last"]);
}

#[tokio::test]
async fn what_is_no_stream_needs_a_human() {
    for (refusal, wanted) in [
        (answer("200 OK", "text/html", "<html>", false), "not with server-sent events; is `url` right?"),
        (answer("401 Unauthorized", "text/plain", "who are you", false), "check the credentials"),
        (answer("404 Not Found", "text/plain", "", false), "404"),
    ] {
        let mut server = serve(vec![refusal]).await;
        let running = start(server.client().token("hunter3".into()), None);
        let error = running.task.await.unwrap().unwrap_err();
        assert!(error.chain().contains(wanted) && !error.chain().contains("hunter"), "{}", error.chain());
        assert_eq!(server.asked("authorization").await.as_deref(), Some("bearer hunter3"));
    }
}

#[test]
fn options_are_checked() {
    let open = |pairs: &[(&str, &str)]| {
        let options = Options::new("stream \"s\"", pairs.iter().copied());
        Sse::input(&options).and_then(|input| options.finish().map(|()| input))
    };
    let Input::Receivers(all) = open(&[("url", "https://a.example/e?key=hunter2"), ("events", "a,b")]).unwrap() else {
        panic!("a receiver")
    };
    assert_eq!(all[0].describe(), "sse https://a.example/e");
    assert!(open(&[("url", "http://a.example/e")]).is_ok());
    assert!(open(&[("url", "http://127.0.0.1/e"), ("token_env", "T")]).is_ok());
    for (pairs, wanted) in [
        (vec![], "option `url` is missing"),
        (vec![("url", "ftp://a")], "option `url`"),
        (vec![("url", "http://a.example/e"), ("token_env", "T")], "only by TLS"),
        (vec![("url", "https://a.example/e"), ("token", "hunter2")], "`token_file`"),
        (vec![("url", "https://a.example/e"), ("last_event_id", "")], "option `last_event_id`"),
        (vec![("url", "https://a.example/e"), ("event", "a")], "did you mean `events`?"),
    ] {
        let error = open(&pairs).unwrap_err().to_string();
        assert!(error.contains(wanted) && !error.contains("hunter2"), "{error}");
    }
}
