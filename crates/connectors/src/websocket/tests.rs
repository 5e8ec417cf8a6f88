//! Against a server that answers each connection as the test says.

use super::*;
use crate::{
    contract::{Behind, Heard, Recorder},
    social::proxy::Proxy,
};
use futures::{SinkExt, StreamExt};
use std::net::SocketAddr;
use tidemill_core::{Clock, ManualClock, StopHandle, Timestamp};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::handshake::server::{ErrorResponse, Request, Response},
};

/// What a connection is sent after its subscription, and then.
#[derive(Clone)]
enum Then {
    /// It is closed.
    Close(Vec<Message>),
    /// It is served, pings and all, until the client goes.
    Serve(Vec<Message>),
    /// Nobody looks at it any more.
    Ignore(Vec<Message>),
    /// It is not opened.
    Refuse(u16),
}

struct Server {
    address: SocketAddr,
    /// The headers `authorization` and `sec-websocket-protocol`, then the subscription.
    asked: mpsc::UnboundedReceiver<[String; 3]>,
    pings: mpsc::UnboundedReceiver<()>,
}

#[expect(clippy::result_large_err, reason = "the handshake's signature")]
async fn serve(script: Vec<Then>, subscribes: bool) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ask, asked) = mpsc::unbounded_channel();
    let (ping, pings) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut ignored = Vec::new();
        for turn in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let then = script[turn.min(script.len() - 1)].clone();
            let mut told = [String::new(), String::new(), String::new()];
            let look = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
                let header = |name: &str| request.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_string();
                told[0] = header("authorization");
                told[1] = header("sec-websocket-protocol");
                if !told[1].is_empty() {
                    response.headers_mut().insert("sec-websocket-protocol", told[1].parse().unwrap());
                }
                let Then::Refuse(status) = &then else { return Ok(response) };
                Err(hyper::Response::builder().status(*status).body(Some("go away".to_string())).unwrap())
            };
            let Ok(mut socket) = accept_hdr_async(stream, look).await else {
                drop(ask.send(told));
                continue;
            };
            if subscribes {
                told[2] = socket.next().await.unwrap().unwrap().into_text().unwrap().to_string();
            }
            if ask.send(told).is_err() {
                return;
            }
            let (Then::Close(messages) | Then::Serve(messages) | Then::Ignore(messages)) = &then else { continue };
            for message in messages {
                socket.send(message.clone()).await.unwrap();
            }
            match then {
                Then::Serve(_) => {
                    while let Some(Ok(message)) = socket.next().await {
                        if message.is_ping() {
                            // Not every test counts them.
                            let _unheard = ping.send(());
                        }
                    }
                }
                Then::Ignore(_) => ignored.push(socket),
                Then::Close(_) => drop(socket.close(None).await),
                Then::Refuse(_) => {}
            }
        }
    });
    Server { address, asked, pings }
}

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
    clock: Arc<ManualClock>,
}

fn client(server: &Server) -> WebSocket {
    WebSocket::new([format!("ws://{}/feed?key=hunter2", server.address)])
}

fn common(clock: &Arc<ManualClock>, most: usize) -> Common {
    let mut common = Common::new(QUIET);
    common.link.clock = Arc::clone(clock) as Arc<dyn Clock>;
    common.link.proxy = Proxy::Direct;
    common.gather = Some(Duration::ZERO);
    common.max_line = most;
    common
}

fn start(client: WebSocket, most: usize) -> Running {
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let client = client.common(common(&clock, most));
    let intake = Recorder::resuming(None);
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

fn text(text: &str) -> Message {
    Message::text(text)
}

#[tokio::test]
async fn messages_are_records_and_each_opening_subscribes() {
    let long = "x".repeat(101);
    let first = vec![text("one"), text(""), Message::binary(&b"\x00two"[..]), text(&long), text("three")];
    let mut server = serve(vec![Then::Close(first), Then::Serve(vec![text("four")])], true).await;
    let client = client(&server).subscribe("{\"op\":\"subscribe\",\"key\":\"{token}\"}").token("hunter3".into());
    let running = start(client, 100);
    let heard = running.until(|heard| heard.records.len() == 4).await;
    assert_eq!(heard.records, [&b"one"[..], b"\x00two", b"three", b"four"]);
    assert_eq!(heard.refused.len(), 1);
    assert!(heard.refused[0].0.contains("a message of 101 bytes"), "{:?}", heard.refused);
    for _ in 0..2 {
        let asked = server.asked.recv().await.unwrap();
        assert_eq!(asked, ["", "", "{\"op\":\"subscribe\",\"key\":\"hunter3\"}"]);
    }
    let states = heard.states.join("; ");
    assert!(states.contains("; what was sent during the interruption is lost"), "{states}");
    assert!(states.contains("the server closed the connection") && !states.contains("hunter"), "{states}");
    assert_eq!(running.end().await.resume, None);
}

#[tokio::test]
async fn pings_keep_a_quiet_connection_and_find_a_dead_one() {
    let script = vec![Then::Serve(vec![text("one")]), Then::Serve(vec![])];
    let mut server = serve(script, false).await;
    let running = start(client(&server), 100);
    running.until(|heard| heard.records.len() == 1).await;
    // Three minutes of silence with pings that are answered.
    let mut pings = 0;
    while pings < 9 {
        running.clock.advance(Duration::from_secs(20));
        server.pings.recv().await.unwrap();
        pings += 1;
    }
    assert_eq!(running.intake.heard().states.len(), 1, "{:?}", running.intake.heard().states);
    running.end().await;
    // One that nobody reads any more.
    let server = serve(vec![Then::Ignore(vec![text("one")]), Then::Serve(vec![text("two")])], false).await;
    let running = start(client(&server), 100);
    let heard = running.until(|heard| heard.records.len() == 2).await;
    assert!(heard.states.iter().any(|state| state.contains("nothing came for 60 s")), "{:?}", heard.states);
    assert!(running.clock.now() >= Timestamp(60_000_000));
    running.end().await;
}

/// What holds us up is no silence of the server.
#[tokio::test]
async fn a_connection_outlives_a_log_that_is_behind() {
    let mut server = serve(vec![Then::Serve(vec![text("one")])], false).await;
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let client = client(&server).common(common(&clock, 100));
    let behind = Behind::new();
    let given: Arc<dyn Intake> = Arc::<Behind>::clone(&behind);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { client.run(given, stopped).await });
    behind.entered(1).await;
    clock.advance(2 * QUIET);
    behind.let_through(1);
    let heard = behind.heard.until(|heard| heard.records.len() == 1).await;
    assert_eq!(heard.states.len(), 1, "{:?}", heard.states);
    // It listens again, and pings as before.
    let pinged = async {
        loop {
            clock.advance(Duration::from_secs(5));
            if tokio::time::timeout(Duration::from_millis(20), server.pings.recv()).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), pinged).await.unwrap();
    assert_eq!(behind.heard.heard().states.len(), 1, "{:?}", behind.heard.heard().states);
    stop.stop();
    task.await.unwrap().unwrap();
}

/// While the clock stands still, only bytes end the gathering.
#[tokio::test]
async fn an_endless_row_of_empty_messages_holds_nothing_back() {
    let messages: Vec<_> = std::iter::once(text("one")).chain(std::iter::repeat_n(text(""), 10_000)).collect();
    let server = serve(vec![Then::Serve(messages)], false).await;
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let mut common = common(&clock, 100);
    common.gather = None;
    let client = client(&server).common(common);
    let intake = Recorder::resuming(None);
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { client.run(given, stopped).await });
    intake.until(|heard| heard.records == [b"one"]).await;
    stop.stop();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn servers_are_taken_in_turn() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = format!("ws://{}/", gone.local_addr().unwrap());
    drop(gone);
    let mut server = serve(vec![Then::Serve(vec![text("one")])], false).await;
    let there = format!("ws://{}/", server.address);
    let mut client = WebSocket::new([nowhere, there]).token("hunter3".into());
    client.protocol = Some("feed.v1".to_string());
    let running = start(client, 100);
    running.until(|heard| heard.records == [b"one"]).await;
    assert_eq!(server.asked.recv().await.unwrap(), ["Bearer hunter3", "feed.v1", ""]);
    running.end().await;
}

#[tokio::test]
async fn a_server_that_refuses_needs_a_human_unless_it_is_only_busy() {
    let server = serve(vec![Then::Refuse(401)], false).await;
    let error = start(client(&server), 100).task.await.unwrap().unwrap_err().chain();
    assert!(error.contains("401") && error.contains("check the credentials") && !error.contains("hunter"), "{error}");
    let server = serve(vec![Then::Refuse(429), Then::Refuse(500), Then::Serve(vec![text("one")])], false).await;
    let running = start(client(&server), 100);
    let heard = running.until(|heard| heard.records.len() == 1).await;
    for wait in ["reconnecting in 60.0 s: the server answered 429", "reconnecting in 5.0 s: the server answered 500"] {
        assert!(heard.states.iter().any(|state| state.contains(wait)), "{wait}: {:?}", heard.states);
    }
    running.end().await;
}

#[test]
fn options_are_checked() {
    let open = |pairs: &[(&str, &str)]| {
        let options = Options::new("stream \"s\"", pairs.iter().copied());
        WebSocket::input(&options).and_then(|input| options.finish().map(|()| input))
    };
    let Input::Receivers(all) = open(&[("url", "wss://a.example/f?key=hunter2, ws://127.0.0.1:1/")]).unwrap() else {
        panic!("a receiver")
    };
    assert_eq!(all[0].describe(), "websocket wss://a.example/f");
    for (pairs, wanted) in [
        (vec![], "option `url` is missing"),
        (vec![("url", ",")], "names no server"),
        (vec![("url", "https://a.example/")], "must begin with wss://"),
        (vec![("url", "wss://a.example/, ws://b.example/"), ("token_env", "T")], "only by TLS"),
        (vec![("url", "wss://a/"), ("subscribe", "{token}")], "`token_file` or `token_env`"),
        (vec![("url", "wss://a/"), ("ping", "2m")], "option `ping`"),
        (vec![("url", "wss://a/"), ("protocol", "a b")], "option `protocol`"),
        (vec![("url", "wss://a/"), ("subscription", "x")], "did you mean `subscribe`?"),
    ] {
        let error = open(&pairs).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
