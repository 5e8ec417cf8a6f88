//! Against a local server that speaks the protocol.

use super::*;
use crate::contract::Recorder;
use futures::{SinkExt, StreamExt};
use std::net::SocketAddr;
use tidemill_core::StopHandle;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
    },
};

/// A post by writer `n`, at `time_us`.
fn post(n: i64, time_us: i64) -> String {
    format!(
        r#"{{"did":"did:plc:w{n}","time_us":{time_us},"kind":"commit","commit":{{"rev":"r{n}","operation":"create","collection":"app.bsky.feed.post","rkey":"k{n}","record":{{"$type":"app.bsky.feed.post","text":"post {n}"}}}}}}"#
    )
}

/// A server of a fixed history: it sends what comes after the cursor, in its
/// order, and hangs up after as many frames as it is told for each connection.
struct Server {
    address: SocketAddr,
    /// The query of each connection.
    queries: mpsc::UnboundedReceiver<String>,
    task: JoinHandle<()>,
}

#[expect(clippy::result_large_err, reason = "the handshake's signature")]
async fn serve(history: Vec<String>, hang_up_after: Vec<usize>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, queries) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let mut hang_ups = hang_up_after.into_iter();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut query = String::new();
            let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
                query = request.uri().query().unwrap_or_default().to_string();
                Ok(response)
            };
            let mut socket = accept_hdr_async(stream, look).await.unwrap();
            let cursor = query.split('&').find_map(|p| p.strip_prefix("cursor=")).map(|c| c.parse::<i64>().unwrap());
            asked.send(query).unwrap();
            let most = hang_ups.next().unwrap_or(usize::MAX);
            let time = |frame: &str| {
                let value: serde_json::Value = serde_json::from_str(frame).unwrap_or_default();
                value["time_us"].as_i64().unwrap_or(i64::MAX)
            };
            let wanted = history.iter().filter(|f| cursor.is_none_or(|c| time(f) > c));
            let mut sent = 0;
            for frame in wanted.take(most) {
                socket.send(Message::text(frame.clone())).await.unwrap();
                sent += 1;
            }
            if sent < most {
                // All sent: it stays until the client goes.
                while let Some(Ok(_)) = socket.next().await {}
            }
            // Dropped without a goodbye.
        }
    });
    Server { address, queries, task }
}

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
}

fn start(server: &Server, token: Option<String>) -> Running {
    let quick = Backoff::between(Duration::from_millis(1), Duration::from_millis(5), 1);
    let client = Jetstream::new([format!("ws://{}/subscribe", server.address)], 1).backoff(quick);
    let intake = Recorder::resuming(token);
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { client.run(given, stopped).await });
    Running { intake, stop, task }
}

impl Running {
    async fn records(&self, count: usize) -> Vec<String> {
        let heard = self.intake.until(|h| h.records.len() >= count).await;
        heard.records.into_iter().map(|r| String::from_utf8(r).unwrap()).collect()
    }

    async fn end(self) -> Option<String> {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
        self.intake.heard().resume
    }
}

/// Three posts a second, with neighbours out of order as the real stream has them.
fn history(count: i64) -> Vec<String> {
    let mut posts: Vec<String> = (0..count).map(|n| post(n, 1_779_719_009_000_000 + n * 333_333)).collect();
    posts.chunks_mut(2).for_each(<[String]>::reverse);
    posts
}

#[tokio::test]
async fn posts_pass_and_other_frames_do_not() {
    let mut frames = vec![
        post(1, 1_000_000),
        post(2, 1_000_001).replace("create", "delete"),
        post(3, 1_000_002).replace("app.bsky.feed.post", "app.bsky.feed.like"),
        r#"{"did":"did:plc:a","time_us":1000003,"kind":"identity","identity":{"did":"did:plc:a","handle":"a.b","seq":1}}"#.to_string(),
        "not json".to_string(),
        r#"{"did":"did:plc:a","kind":"commit"}"#.to_string(),
    ];
    frames.push(post(4, 1_000_004));
    let mut server = serve(frames.clone(), vec![]).await;
    let running = start(&server, None);
    assert_eq!(running.records(2).await, [frames[0].clone(), frames[6].clone()]);
    let heard = running.intake.until(|h| h.refused.len() == 2).await;
    assert_eq!(heard.refused[0], ("not JSON: byte 0: expected an object".to_string(), b"not json".to_vec()));
    assert_eq!(heard.refused[1].0, "field \"time_us\": missing");
    assert_eq!(server.queries.recv().await.unwrap(), "wantedCollections=app.bsky.feed.post");
    running.end().await;
    server.task.abort();
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_when_the_connection_is_cut() {
    let history = history(200);
    let mut server = serve(history.clone(), vec![7, 30, 16, 17, 90]).await;
    let running = start(&server, None);
    let mut got = running.records(200).await;
    // The server is at its end and stays; nothing more comes.
    assert_eq!(got.len(), 200);
    let mut want = history;
    got.sort();
    want.sort();
    assert_eq!(got, want);
    let first = server.queries.recv().await.unwrap();
    assert!(!first.contains("cursor"), "{first}");
    // Seven posts were seen: the newest is number 7, the sixth in order being swapped with it.
    let second = server.queries.recv().await.unwrap();
    assert_eq!(
        second,
        format!("wantedCollections=app.bsky.feed.post&cursor={}", 1_779_719_009_000_000_i64 + 7 * 333_333 - 5_000_000)
    );
    running.end().await;
    server.task.abort();
}

#[tokio::test]
async fn a_restart_goes_on_with_the_token() {
    let history = history(60);
    // The first life hears a part; then the server is another one.
    let server = serve(history[..31].to_vec(), vec![]).await;
    let running = start(&server, None);
    let mut got = running.records(31).await;
    let token = running.end().await.unwrap();
    server.task.abort();
    assert!(token.len() < 400, "{token}");
    let server = serve(history.clone(), vec![]).await;
    let running = start(&server, Some(token));
    got.extend(running.records(29).await);
    running.end().await;
    server.task.abort();
    let mut want = history;
    got.sort();
    want.sort();
    assert_eq!(got, want);
}

#[test]
fn marks_are_bounded_and_survive_as_a_token() {
    let mut seen = Seen::from_token(None);
    assert_eq!(seen.cursor(), None);
    for n in 0..200_000 {
        assert!(seen.is_new(n, mark(&[&n.to_string()])));
    }
    assert_eq!((seen.recent.len(), seen.marks.len()), (MARKS, MARKS));
    assert!(!seen.is_new(7, mark(&["199999"])));
    let mut again = Seen::from_token(Some(&seen.token()));
    assert_eq!(again.cursor(), seen.cursor());
    assert!(!again.is_new(199_999, mark(&["199999"])));
    // Later events push out what a reconnect would not send.
    assert!(again.is_new(199_999 + OVERLAP_US + 1, 1));
    assert_eq!(again.recent.len(), 1);
    assert_eq!(Seen::from_token(Some("strange")).cursor(), None);
}

#[test]
fn options_are_checked() {
    let open = |key: &str, value: &str| Jetstream::input(&Options::new("stream \"s\"", [(key, value)]));
    assert!(open("url", "http://example.org").unwrap_err().to_string().contains("ws://"));
    assert!(open("url", "ws://a/subscribe, wss://b/subscribe").is_ok());
    let operations = |given: &[(&str, &str)]| {
        Jetstream::from_options(&Options::new("stream \"s\"", given.iter().copied())).unwrap().operations
    };
    // Posts are gone when they are deleted; in other formats a deletion is a row that nobody expects.
    assert_eq!(operations(&[("format", "post")]).unwrap(), ["create", "delete"]);
    assert_eq!(operations(&[("format", "json")]).unwrap(), ["create"]);
    assert_eq!(operations(&[("format", "post"), ("operations", "create")]).unwrap(), ["create"]);
    assert_eq!(operations(&[("operations", "all")]), None);
    assert!(collection_fits("app.bsky.graph.*", "app.bsky.graph.follow"));
    assert!(!collection_fits("app.bsky.feed.post", "app.bsky.feed.postgate"));
}

#[test]
fn a_secure_client_can_be_made() {
    assert!(!tls().unwrap().crypto_provider().cipher_suites.is_empty());
}

#[test]
fn a_frame_dated_far_ahead_does_not_move_the_place_to_go_on_from() {
    let client = Jetstream::new(["ws://x"], 1);
    let mut seen = Seen::from_token(None);
    assert!(client.take(&post(1, 1_000), &mut seen).unwrap());
    let refused = client.take(&post(2, i64::MAX), &mut seen).unwrap_err();
    assert!(refused.contains("more than a day ahead"), "{refused}");
    assert_eq!(seen.cursor(), Some(1_000 - OVERLAP_US));
}
