//! Real sockets on the loopback, and a log that does what the test says.

mod faults;

use super::*;
use crate::{
    contract::{Heard, Recorder},
    social::http::{Link, Request, Response},
};
use bytes::Bytes;
use futures::future::join_all;
use hyper::header::HeaderName;
use std::{
    io::Write,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};
use tidemill_core::{Ack, Block, DeadLetter, StopHandle};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinHandle,
};

/// What the log does with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// It is durable at once.
    Quick,
    /// It is appended, and durable when the test says so.
    Slow,
    /// It is not appended before the mood changes.
    Behind,
    /// It has failed.
    Broken,
}

struct Log {
    kept: Arc<Recorder>,
    mood: watch::Sender<Mood>,
    /// Calls of `append`.
    calls: watch::Sender<usize>,
    acks: Mutex<Vec<oneshot::Sender<Result<()>>>>,
}

#[async_trait]
impl Intake for Log {
    async fn append(&self, block: Block, resume: Option<String>) -> Result<Ack> {
        self.calls.send_modify(|calls| *calls += 1);
        let mut mood = self.mood.subscribe();
        let mood = *mood.wait_for(|mood| *mood != Mood::Behind).await.unwrap();
        if mood == Mood::Broken {
            return Err(Error::external("the log is closed").fatal());
        }
        let kept = self.kept.append(block, resume).await?;
        if mood == Mood::Quick {
            return Ok(kept);
        }
        let (done, ack) = Ack::pair();
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        Ok(ack)
    }

    async fn refuse(&self, letter: DeadLetter) -> Result<()> {
        self.kept.refuse(letter).await
    }

    fn resume(&self) -> Option<String> {
        self.kept.resume()
    }

    fn report(&self, state: &str) {
        self.kept.report(state);
    }
}

struct Running {
    log: Arc<Log>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
    address: SocketAddr,
}

async fn start(listen: HttpListen, resume: Option<String>) -> Running {
    let (stop, stopped) = StopHandle::new();
    let kept = Recorder::resuming(resume);
    let log =
        Arc::new(Log { kept, mood: watch::channel(Mood::Quick).0, calls: watch::channel(0).0, acks: Mutex::default() });
    let given: Arc<dyn Intake> = Arc::<Log>::clone(&log);
    let task = tokio::spawn(async move { listen.run(given, stopped).await });
    let heard = log.kept.until(|h| h.states.iter().any(|s| s.starts_with("listening on "))).await;
    let state = heard.states.iter().find_map(|s| s.strip_prefix("listening on ")).unwrap();
    let address = state.split(',').next().unwrap().parse().unwrap();
    Running { log, stop, task, address }
}

fn listen() -> HttpListen {
    HttpListen::new("127.0.0.1:0")
}

fn limited(change: impl FnOnce(&mut Limits)) -> HttpListen {
    let mut limits = Limits::default();
    change(&mut limits);
    listen().limits(limits)
}

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// Status, `Retry-After`, and the answer as JSON.
type Told = (u16, Option<String>, serde_json::Value);

async fn told(mut response: Response) -> Told {
    let after = response.header("retry-after").map(str::to_string);
    let body = response.whole(1 << 20).await.unwrap();
    (response.status.as_u16(), after, serde_json::from_slice(&body).unwrap())
}

impl Running {
    fn request(&self, kind: &'static str, body: impl Into<Bytes>) -> Request {
        Request::get(&format!("http://{}/", self.address)).unwrap().post(kind, body)
    }

    async fn send(&self, request: &Request) -> Told {
        let link = Link { proxy: crate::social::proxy::Proxy::Direct, ..Link::default() };
        told(link.send(request).await.unwrap()).await
    }

    async fn post(&self, kind: &'static str, body: impl Into<Bytes>) -> Told {
        self.send(&self.request(kind, body)).await
    }

    fn posting(self: &Arc<Self>, request: Request) -> JoinHandle<Told> {
        let running = Arc::clone(self);
        tokio::spawn(async move { running.send(&request).await })
    }

    fn mood(&self, mood: Mood) {
        self.log.mood.send_replace(mood);
    }

    /// Completes all acks that are open.
    fn sync(&self, result: impl Fn() -> Result<()>) {
        let acks = std::mem::take(&mut *self.log.acks.lock().unwrap_or_else(PoisonError::into_inner));
        for ack in acks {
            drop(ack.send(result()));
        }
    }

    fn heard(&self) -> Heard {
        self.log.kept.heard()
    }

    fn records(&self) -> Vec<String> {
        self.heard().records.into_iter().map(|r| String::from_utf8(r).unwrap()).collect()
    }

    /// A whole request and answer over another connection: what was about to happen has happened.
    async fn round(&self) {
        let get = Request::get(&format!("http://{}/", self.address)).unwrap();
        assert_eq!(self.send(&get).await.0, 405);
    }
}

fn keyed(request: Request, key: &str) -> Request {
    request.header(HeaderName::from_static("idempotency-key"), key)
}

fn encoded(request: Request, encoding: &str) -> Request {
    request.header(hyper::header::CONTENT_ENCODING, encoding)
}

#[tokio::test]
async fn what_is_posted_is_kept_and_counted() {
    let running = start(listen(), None).await;
    for (kind, body, count) in [
        (JSON, "{\"n\":1}", 1),
        ("application/cloudevents+json; charset=utf-8", "[{\"n\":2}, {\"n\":3}]", 2),
        (LINES, "{\"n\":4}\n\n{\"n\":5}\n", 2),
        ("text/plain", "six\nseven", 2),
        (JSON, "[]", 0),
    ] {
        let (status, _, answer) = running.post(kind, body).await;
        assert_eq!((status, &answer["records"]), (200, &serde_json::json!(count)), "{body}: {answer}");
    }
    let wanted = ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}", "{\"n\":4}", "{\"n\":5}", "six", "seven"];
    assert_eq!(running.records(), wanted);
    assert_eq!(running.heard().blocks, 4, "a request is a block, and none is empty");
    running.stop.stop();
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn compressed_and_chunked_bodies_are_taken() {
    let running = start(listen(), None).await;
    let text: String = (0..20_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let gzip = encoded(running.request(LINES, gzip.finish().unwrap()), "gzip");
    assert_eq!(running.send(&gzip).await.2["records"], 20_000);
    let zstd = zstd::stream::encode_all(text.as_bytes(), 1).unwrap();
    let zstd = encoded(running.request(LINES, zstd), "zstd");
    assert_eq!(running.send(&zstd).await.2["records"], 20_000);
    let mut peer = TcpStream::connect(running.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
    peer.write_all(format!("{head}4\r\none\n\r\n3\r\ntwo\r\n0\r\n\r\n").as_bytes()).await.unwrap();
    running.log.kept.until(|h| h.records.len() == 40_002).await;
    let records = running.records();
    assert_eq!(records[..20_000], records[20_000..40_000]);
    assert_eq!(records[40_000..], ["one", "two"]);
}

#[tokio::test]
async fn nobody_is_told_200_before_the_records_are_durable() {
    let running = Arc::new(start(listen(), None).await);
    running.mood(Mood::Slow);
    let posting = running.posting(running.request(JSON, "{}"));
    running.log.kept.until(|h| h.records.len() == 1).await;
    running.round().await;
    assert!(!posting.is_finished(), "it is not durable");
    running.sync(|| Ok(()));
    assert_eq!(posting.await.unwrap().0, 200);
    // A sync that fails.
    let posting = running.posting(running.request(JSON, "{}"));
    running.log.kept.until(|h| h.records.len() == 2).await;
    running.sync(|| Err(Error::external("the disk is gone")));
    let (status, after, answer) = posting.await.unwrap();
    assert_eq!((status, after.as_deref()), (503, Some("5")));
    assert!(answer["error"].as_str().unwrap().contains("not known"), "{answer}");
}

#[tokio::test]
async fn a_log_that_is_behind_takes_nothing_of_a_request() {
    let running = Arc::new(start(limited(|l| l.wait = Duration::from_millis(50)), None).await);
    running.mood(Mood::Behind);
    let key = |n: u32| keyed(running.request(JSON, "{}"), &format!("k{n}"));
    let all = join_all((0..4).map(|n| running.posting(if n % 2 == 0 { key(n) } else { running.request(JSON, "{}") })));
    for done in all.await {
        let (status, after, answer) = done.unwrap();
        assert_eq!((status, after.as_deref()), (503, Some("1")), "{answer}");
    }
    running.mood(Mood::Quick);
    assert_eq!(running.heard().blocks, 0);
    let (status, _, answer) = running.send(&key(0)).await;
    assert_eq!((status, answer.get("repeated")), (200, None), "what was not taken is not remembered");
    assert_eq!(running.heard().blocks, 1);
}

#[tokio::test]
async fn what_is_held_of_requests_is_bounded() {
    let small = |l: &mut Limits| (l.body, l.expanded, l.queue) = (1000, 1000, 2000);
    let running = Arc::new(start(limited(small), None).await);
    running.mood(Mood::Behind);
    let body = || "x".repeat(900);
    let first: Vec<_> = (0..2).map(|_| running.posting(running.request("text/plain", body()))).collect();
    running.log.calls.subscribe().wait_for(|calls| *calls == 2).await.unwrap();
    let refused = running.post("text/plain", body()).await;
    assert_eq!((refused.0, refused.1.as_deref()), (429, Some("1")), "{}", refused.2);
    running.mood(Mood::Quick);
    for posting in first {
        assert_eq!(posting.await.unwrap().0, 200);
    }
    let sent = running.post("text/plain", body()).await;
    assert_eq!(sent.0, 200, "there is room again: {}", sent.2);
}

#[tokio::test]
async fn what_is_wrong_is_told_with_the_place_and_what_helps() {
    let small = |l: &mut Limits| (l.body, l.expanded, l.records, l.record, l.keys) = (200, 300, 3, 50, 0);
    let running = start(limited(small), None).await;
    let bomb = zstd::stream::encode_all(&vec![b'\n'; 1000][..], 1).unwrap();
    let cases: Vec<(Request, u16, &str, &str)> = vec![
        (running.request("application/x-www-form-urlencoded", "a=1"), 415, "Content-Type", "application/json"),
        (encoded(running.request(JSON, "{}"), "br"), 415, "Content-Encoding", "gzip or zstd"),
        (encoded(running.request(JSON, "{}"), "gzip"), 400, "not whole gzip", "compress it anew"),
        (running.request(LINES, "x".repeat(201)), 413, "over 200 bytes", "`max_body`"),
        (encoded(running.request(LINES, bomb), "zstd"), 413, "over 300 bytes when", "`max_expanded`"),
        (running.request(LINES, "1\n2\n3\n4\n"), 413, "4 records", "`max_records`"),
        (running.request(LINES, format!("1\n{}\n", "x".repeat(51))), 413, "51 bytes", "`max_line`"),
        (running.request(JSON, "[{}, {\"a\":tru}]"), 400, "not JSON", "array of objects"),
        (keyed(running.request(JSON, "{}"), "k"), 400, "Idempotency-Key", "`idempotency_keys`"),
        (running.request(JSON, "{}").header(hyper::header::ORIGIN, "http://evil.example"), 403, "page", "program"),
        (Request::get(&format!("http://{}/", running.address)).unwrap(), 405, "posted", "POST"),
        (Request::get(&format!("http://{}/x", running.address)).unwrap().post(JSON, "{}"), 404, "path", "post to /"),
    ];
    for (request, status, error, fix) in cases {
        let (got, _, answer) = running.send(&request).await;
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_string();
        assert_eq!(got, status, "{answer}");
        assert!(text("error").contains(error) && text("fix").contains(fix), "{status}: {answer}");
    }
    let (_, _, answer) = running.post(JSON, "[{}, {\"a\":tru}]").await;
    assert_eq!(answer["place"], "item 2, byte 10");
    assert_eq!(running.heard().blocks, 0);
    let state = running.heard().states.into_iter().rfind(|s| s.contains("refused")).unwrap();
    assert!(state.contains("refused 13 requests") && state.contains("400"), "{state}");
}

#[tokio::test]
async fn only_those_with_a_token_may_post_and_none_is_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\nhunter3\n").unwrap();
    let listen = listen().tokens(Place::File(file.path().to_path_buf()));
    assert!(!format!("{listen:?} {}", listen.describe()).contains("hunter"));
    let running = start(listen, None).await;
    let with = |token: &str| running.request(JSON, "{}").authorization(token);
    let refused = |told: &Told| told.0 == 401 && told.2["fix"].as_str().unwrap().contains("Bearer");
    for wrong in ["", "Bearer", "Bearer hunter", "Bearer hunter22", "Basic hunter2", "hunter2"] {
        let told = running.send(&with(wrong)).await;
        assert!(refused(&told), "{wrong}: {told:?}");
    }
    assert!(refused(&running.post(JSON, "{}").await));
    for right in ["Bearer hunter2", "bearer hunter3"] {
        assert_eq!(running.send(&with(right)).await.0, 200, "{right}");
    }
    // Replaced without a restart.
    std::fs::write(file.path(), "hunter4").unwrap();
    assert_eq!(running.send(&with("Bearer hunter2")).await.0, 401);
    assert_eq!(running.send(&with("Bearer hunter4")).await.0, 200);
    // One that can't be read lets nobody in.
    std::fs::write(file.path(), "").unwrap();
    assert_eq!(running.send(&with("Bearer hunter4")).await.0, 503);
    let heard = running.heard();
    assert_eq!(heard.records.len(), 3);
    assert!(!heard.states.join(" ").contains("hunter"), "{:?}", heard.states);
    running.stop.stop();
    running.task.await.unwrap().unwrap();
    // And at the start it is an error for a human.
    let again = HttpListen::new("127.0.0.1:0").tokens(Place::File(file.path().to_path_buf()));
    let (_stop, stopped) = StopHandle::new();
    let error = again.run(Recorder::resuming(None), stopped).await.unwrap_err();
    assert!(error.chain().contains("no credential"), "{}", error.chain());
}

#[tokio::test]
async fn a_key_is_taken_once() {
    let running = Arc::new(start(limited(|l| l.keys = 3), None).await);
    running.mood(Mood::Slow);
    let one = |n: u32| keyed(running.request(JSON, format!("{{\"n\":{n}}}")), &format!("key-{n}"));
    let (first, second) = (running.posting(one(1)), running.posting(one(1)));
    running.log.kept.until(|h| h.records.len() == 1).await;
    running.round().await;
    assert!(!first.is_finished() && !second.is_finished(), "the one that is the same waits too");
    running.sync(|| Ok(()));
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!((first.0, second.0, running.heard().blocks), (200, 200, 1));
    let repeated = |told: &Told| told.2.get("repeated") == Some(&serde_json::json!(true));
    assert!(repeated(&first) != repeated(&second), "{first:?} {second:?}");
    running.mood(Mood::Quick);
    let other = running.send(&keyed(running.request(JSON, "{\"n\":7}"), "key-1")).await;
    assert_eq!(other.0, 422, "{}", other.2);
    for n in [2, 3] {
        assert!(!repeated(&running.send(&one(n)).await));
    }
    // One without a key leaves them.
    assert_eq!(running.post(JSON, "{}").await.0, 200);
    running.stop.stop();
    let token = running.heard().resume;
    // The next life knows them; the oldest is forgotten for a new one.
    let running = start(limited(|l| l.keys = 3), token).await;
    for (n, known) in [(1, true), (3, true), (4, false), (2, true), (1, false)] {
        let request = keyed(running.request(JSON, format!("{{\"n\":{n}}}")), &format!("key-{n}"));
        let told = running.send(&request).await;
        assert_eq!((told.0, repeated(&told)), (200, known), "{n}: {}", told.2);
    }
    assert_eq!(running.records(), ["{\"n\":4}", "{\"n\":1}"]);
}

#[tokio::test]
async fn a_log_that_is_broken_ends_the_receiver() {
    let running = start(listen(), None).await;
    running.mood(Mood::Broken);
    let (status, _, answer) = running.post(JSON, "{}").await;
    assert_eq!(status, 503, "{answer}");
    let error = running.task.await.unwrap().unwrap_err();
    assert!(error.chain().contains("the log is closed"), "{}", error.chain());
}

#[tokio::test]
async fn a_request_that_breaks_off_or_dawdles_leaves_nothing() {
    let running = start(limited(|l| l.read = Duration::from_millis(100)), None).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\n";
    let mut broken = TcpStream::connect(running.address).await.unwrap();
    broken.write_all(format!("{head}one\ntwo\n").as_bytes()).await.unwrap();
    drop(broken);
    running.log.kept.until(|h| h.states.iter().any(|s| s.contains("broke off"))).await;
    let mut slow = TcpStream::connect(running.address).await.unwrap();
    slow.write_all(format!("{head}one\ntwo\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("`read_timeout`"), "{answer}");
    assert_eq!(running.heard().blocks, 0);
}

#[tokio::test]
async fn a_stop_answers_those_who_wait() {
    let running = Arc::new(start(listen(), None).await);
    running.mood(Mood::Slow);
    let posting = running.posting(running.request(JSON, "{}"));
    running.log.kept.until(|h| h.records.len() == 1).await;
    running.stop.stop();
    running.sync(|| Ok(()));
    assert_eq!(posting.await.unwrap().0, 200);
    Arc::into_inner(running).unwrap().task.await.unwrap().unwrap();
}

#[test]
fn options_are_checked() {
    let open = |pairs: &[(&str, &str)]| {
        let options = Options::new("stream \"s\"", [("address", "127.0.0.1:0")].iter().chain(pairs).copied());
        HttpListen::input(&options).and_then(|input| options.finish().map(|()| input))
    };
    let Input::Receivers(all) = open(&[("path", "/in/posts"), ("max_body", "1MiB"), ("token_env", "T")]).unwrap()
    else {
        panic!("a receiver")
    };
    assert_eq!(all[0].describe(), "http 127.0.0.1:0/in/posts");
    for (pairs, wanted) in [
        (vec![("address", "http://127.0.0.1:80/in")], "option `address` must be host:port"),
        (vec![("path", "in")], "option `path` must begin with `/`"),
        (vec![("path", "/in?x=1")], "option `path`"),
        (vec![("token", "hunter2")], "`token_file`"),
        (vec![("max_body", "1GiB")], "option `max_body` must be between"),
        (vec![("queue_bytes", "1MiB")], "option `queue_bytes` must hold one request"),
        (vec![("max_records", "0")], "option `max_records`"),
        (vec![("idempotency_keys", "5000")], "option `idempotency_keys` must be 4096"),
        (vec![("read_timeout", "0s")], "option `read_timeout`"),
        (vec![("max_bodies", "1")], "did you mean `max_body`?"),
    ] {
        let error = open(&pairs).unwrap_err().to_string();
        assert!(error.contains(wanted) && !error.contains("hunter2"), "{pairs:?}: {error}");
    }
    let missing = HttpListen::input(&Options::new("s", [("path", "/")])).unwrap_err().to_string();
    assert!(missing.contains("option `address` is missing"), "{missing}");
}
