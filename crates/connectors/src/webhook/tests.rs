//! The sink against a server on this machine that refuses, is away and forgets as it is told to.

mod faults;

use super::*;
use crate::contract::{rows, stage};
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::{Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{collections::VecDeque, convert::Infallible};
use tidemill_core::Blame;
use tokio::net::TcpListener;

/// What was asked: the key, the batch, the token, the body.
type Asked = (String, String, Option<String>, String);

/// A server with an answer for each request; 204 when it has none left.
#[derive(Debug, Default)]
struct Desk {
    asked: Mutex<Vec<Asked>>,
    answers: Mutex<VecDeque<(u16, Option<&'static str>)>>,
}

impl Desk {
    fn answer(&self, answers: &[(u16, Option<&'static str>)]) {
        self.answers.lock().unwrap().extend(answers);
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn keys(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.0).collect()
    }

    async fn note(&self, request: hyper::Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_string());
        assert_eq!((head.method.as_str(), header("content-type").as_deref()), ("POST", Some("application/json")));
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let asked =
            (header("idempotency-key").unwrap(), header("tidemill-batch").unwrap(), header("authorization"), body);
        self.asked.lock().unwrap().push(asked);
        let (status, extra) = self.answers.lock().unwrap().pop_front().unwrap_or((204, None));
        let mut answer = Response::builder().status(status);
        if let Some((name, value)) = extra.and_then(|extra| extra.split_once(": ")) {
            answer = answer.header(name, value);
        }
        answer.body(Full::new(Bytes::from(if status == 422 { "no word" } else { "" }))).unwrap()
    }
}

/// A desk and its address.
async fn desk() -> (Arc<Desk>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook/?a=b", listener.local_addr().unwrap());
    let desk = Arc::new(Desk::default());
    let served = Arc::clone(&desk);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let desk = Arc::clone(&served);
            let service = service_fn(move |request| {
                let desk = Arc::clone(&desk);
                async move { Ok::<_, Infallible>(desk.note(request).await) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (desk, url)
}

/// The time, with all waits over at once and noted.
#[derive(Debug, Default)]
struct Skipping(Mutex<Vec<Duration>>);

impl Clock for Skipping {
    fn now(&self) -> Timestamp {
        WallClock.now().plus(self.0.lock().unwrap().iter().sum())
    }

    fn sleep_until(&self, deadline: Timestamp) -> BoxFuture<'_, ()> {
        let wait = deadline.since(self.now());
        self.0.lock().unwrap().push(wait);
        Box::pin(async {})
    }
}

fn sink(options: &[(&str, &str)], place: &Path) -> (Webhook, Arc<Skipping>) {
    let options = Options::new("sink \"out\"", options.iter().copied());
    let mut sink = Webhook::from_options(&options).unwrap();
    options.finish().unwrap();
    let clock = Arc::new(Skipping::default());
    sink.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    sink.place("p/out", place);
    (sink, clock)
}

fn row(n: i64) -> String {
    format!("{{\"n\":{n},\"word\":\"word-{n}\"}}")
}

fn array(numbers: &[i64]) -> String {
    format!("[{}]", numbers.iter().map(|n| row(*n)).collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn committed_batches_are_sent_under_keys_and_staged_ones_are_not() {
    let (desk, url) = desk().await;
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "sesame\n").unwrap();
    let options = [("url", url.as_str()), ("max_rows", "2"), ("token_file", token.to_str().unwrap())];
    let open = async || {
        let (sink, _) = sink(&options, &dir.path().join("aside"));
        sink.open(rows([]).schema()).await.unwrap();
        sink
    };
    let first = open().await;
    let parts = [
        stage(&first, 7, 0, vec![rows([1]), rows([2, 3])]).await.unwrap(),
        stage(&first, 7, 1, vec![rows([4])]).await.unwrap(),
    ];
    assert_eq!(stage(&first, 7, 2, vec![rows([])]).await, None);
    assert!(desk.asked().is_empty(), "what is staged is not sent");
    first.commit(BatchId(7), &parts).await.unwrap();
    let bearer = Some("Bearer sesame".to_string());
    let want = |rows, body| (format!("p/out-7-1000-{rows}"), "7".to_string(), bearer.clone(), body);
    assert_eq!(desk.asked(), [want("0+2", array(&[1, 2])), want("2+2", array(&[3, 4]))]);
    // A repeated commit finds nothing left, in this life and in the next.
    first.commit(BatchId(7), &parts).await.unwrap();
    let second = open().await;
    second.commit(BatchId(7), &parts).await.unwrap();
    assert_eq!(desk.asked().len(), 2);
    // Staged, and never committed.
    stage(&second, 8, 0, vec![rows([5])]).await.unwrap();
    let third = open().await;
    third.recover(Some(BatchId(7))).await.unwrap();
    third.commit(BatchId(9), &[]).await.unwrap();
    assert_eq!(desk.asked().len(), 2);
    assert_eq!(std::fs::read_dir(dir.path().join("aside")).unwrap().count(), 0, "nothing is left aside");
}

#[tokio::test]
async fn what_passes_is_tried_again_with_the_same_key_and_not_before_the_server_wants_it() {
    let (desk, url) = desk().await;
    let dir = tempfile::tempdir().unwrap();
    let (sink, clock) = sink(&[("url", &url), ("body", "row"), ("retry_for", "5m")], dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    desk.answer(&[(503, None), (500, None), (429, Some("Retry-After: 100")), (200, None), (408, None)]);
    let part = stage(&sink, 1, 0, vec![rows([1, 2])]).await.unwrap();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    let keys = |numbers: &[u8]| numbers.iter().map(|n| format!("p/out-1-1000-{n}+1")).collect::<Vec<_>>();
    assert_eq!(desk.keys(), keys(&[0, 0, 0, 0, 1, 1]));
    assert_eq!(desk.asked()[3].3, row(1));
    let waits = clock.0.lock().unwrap().clone();
    assert_eq!(waits.len(), 4);
    assert!(waits[0] <= FIRST && waits[1] <= 2 * FIRST, "{waits:?}");
    assert!(waits[2] > Duration::from_secs(80) && waits[2] <= Duration::from_secs(100), "{waits:?}");
}

#[tokio::test]
async fn a_server_that_stays_away_is_an_error_that_may_heal_and_the_commit_goes_on_where_it_was() {
    let (desk, url) = desk().await;
    let dir = tempfile::tempdir().unwrap();
    let (sink, clock) = sink(&[("url", &url), ("body", "row"), ("retry_for", "10s")], dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    desk.answer(&[(200, None)]);
    desk.answer(&[(502, None); 30]);
    let part = stage(&sink, 1, 0, vec![rows([1, 2, 3])]).await.unwrap();
    let error = sink.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("502 Bad Gateway"), "{}", error.chain());
    let tries = desk.keys().len();
    assert!((5..30).contains(&tries), "{tries}");
    let waited: Duration = clock.0.lock().unwrap().iter().sum();
    assert!(waited <= Duration::from_secs(10), "{waited:?}");
    desk.answers.lock().unwrap().clear();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    let after = desk.keys().split_off(tries);
    assert_eq!(after, ["p/out-1-1000-1+1", "p/out-1-1000-2+1"], "the first was answered well and is not sent again");
}

#[tokio::test]
async fn rows_are_sent_again_in_the_next_life_with_the_same_keys_and_bytes() {
    let (desk, url) = desk().await;
    let dir = tempfile::tempdir().unwrap();
    let options = [("url", url.as_str()), ("max_rows", "1"), ("retry_for", "0s")];
    let (first, _) = sink(&options, dir.path());
    first.open(rows([]).schema()).await.unwrap();
    let part = stage(&first, 3, 0, vec![rows([1, 2])]).await.unwrap();
    desk.answer(&[(200, None), (500, None)]);
    first.commit(BatchId(3), std::slice::from_ref(&part)).await.unwrap_err();
    drop(first);
    let (second, _) = sink(&options, dir.path());
    second.open(rows([]).schema()).await.unwrap();
    second.commit(BatchId(3), &[part]).await.unwrap();
    let asked = desk.asked();
    assert_eq!(desk.keys(), [0, 1, 0, 1].map(|n| format!("p/out-3-1000-{n}+1")));
    assert_eq!((&asked[0], &asked[1]), (&asked[2], &asked[3]));
}

/// Rows that are cut otherwise, since an option has changed, are other requests for a receiver that remembers keys.
#[tokio::test]
async fn one_key_never_stands_for_other_rows() {
    let (desk, url) = desk().await;
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = sink(&[("url", url.as_str()), ("max_rows", "1"), ("retry_for", "0s")], dir.path());
    first.open(rows([]).schema()).await.unwrap();
    let part = stage(&first, 3, 0, vec![rows([1, 2, 3])]).await.unwrap();
    desk.answer(&[(200, None), (500, None)]);
    first.commit(BatchId(3), std::slice::from_ref(&part)).await.unwrap_err();
    drop(first);
    let (second, _) = sink(&[("url", url.as_str()), ("max_rows", "2")], dir.path());
    second.open(rows([]).schema()).await.unwrap();
    second.commit(BatchId(3), &[part]).await.unwrap();
    let mut bodies = std::collections::BTreeMap::new();
    for (key, _, _, body) in desk.asked() {
        assert_eq!(*bodies.entry(key).or_insert_with(|| body.clone()), body);
    }
    assert_eq!(bodies.len(), 4, "{bodies:?}");
    // Two outputs without a place, and two lives of one, are told apart.
    let mut keys = Vec::new();
    for _ in 0..2 {
        let sink = Webhook::new(&url).unwrap();
        sink.open(rows([]).schema()).await.unwrap();
        let part = stage(&sink, 1, 0, vec![rows([1])]).await.unwrap();
        sink.commit(BatchId(1), &[part]).await.unwrap();
        keys.extend(desk.keys().pop());
    }
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test]
async fn no_address_is_shown_that_may_be_a_secret() {
    let error = Webhook::new("https://u:hunter2@a.example/").unwrap_err().to_string();
    assert!(error.contains("no user and no password") && !error.contains("hunter2"), "{error}");
    let (desk, url) = desk().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("url");
    std::fs::write(&file, format!("{url}\n")).unwrap();
    let (sink, _) = sink(&[("url_file", file.to_str().unwrap())], &dir.path().join("aside"));
    sink.open(rows([]).schema()).await.unwrap();
    desk.answer(&[(308, Some("Location: https://b.example/hunter2"))]);
    let part = stage(&sink, 1, 0, vec![rows([1])]).await.unwrap();
    let error = sink.commit(BatchId(1), &[part]).await.unwrap_err();
    assert!(error.to_string().contains("a POST is not sent on") && !error.chain().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn answers_that_stay_the_same_stop_the_program_and_say_what_to_change() {
    let (desk, url) = desk().await;
    let dir = tempfile::tempdir().unwrap();
    let (sink, clock) = sink(&[("url", &url)], dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    for (code, extra, want) in [
        (401, None, "token_env"),
        (403, None, "token_env"),
        (404, None, "check option `url`"),
        (413, None, "max_bytes"),
        (415, None, "application/json"),
        (422, None, "422 Unprocessable Entity: no word"),
        (409, None, "409 Conflict"),
        (308, Some("Location: https://b.example/x"), "set option `url` to https://b.example/x"),
    ] {
        desk.answer(&[(code, extra)]);
        let part = stage(&sink, code.into(), 0, vec![rows([1])]).await.unwrap();
        let error = sink.commit(BatchId(code.into()), &[part]).await.unwrap_err();
        assert_eq!((error.blame(), error.is_retryable()), (Blame::User, false), "{}", error.chain());
        assert!(error.to_string().contains(want), "{code}: {error}");
    }
    assert!(clock.0.lock().unwrap().is_empty(), "none was tried again");
}

#[tokio::test]
async fn a_program_without_a_data_directory_keeps_rows_in_memory() {
    let (desk, url) = desk().await;
    let sink = Webhook::new(&url).unwrap().row_by_row().token(Place::from("sesame"));
    sink.open(rows([]).schema()).await.unwrap();
    let part = stage(&sink, 1, 0, vec![rows([1])]).await.unwrap();
    sink.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    let asked = desk.asked();
    let [(key, batch, bearer, body)] = &asked[..] else { panic!("{asked:?}") };
    assert!(key.starts_with("tidemill-") && key.ends_with("-1-1000-0+1"), "{key}");
    assert_eq!((batch.as_str(), bearer.as_deref(), body), ("1", Some("Bearer sesame"), &row(1)));
}

#[test]
fn slips_in_options_are_told() {
    let told = |options: &[(&str, &str)]| {
        let options = Options::new("sink \"out\"", options.iter().copied());
        Webhook::from_options(&options).map(drop).and_then(|()| options.finish()).unwrap_err().to_string()
    };
    for (options, want) in [
        (&[][..], "option `url` is missing: it names where to send rows"),
        (&[("url", "http://a.example/x")], "http:// is for servers on this machine"),
        (&[("url", "ftp://a.example/x")], "begins with https://"),
        (&[("url", "https://a.example"), ("url_env", "X")], "give one of them"),
        (&[("url", "https://a.example"), ("body", "rows")], "must be `array`"),
        (&[("url", "https://a.example"), ("max_rows", "0")], "at least 1"),
        (&[("url", "https://a.example"), ("token", "hunter2")], "`token_file`"),
        (&[("url", "https://a.example"), ("retries", "3")], "unknown option `retries`"),
    ] {
        let told = told(options);
        assert!(told.contains(want) && !told.contains("hunter2"), "{told}");
    }
    // A path may be a secret: it is not shown.
    let (sink, _) = sink(&[("url", "https://hooks.example.org/services/T0/hunter2")], Path::new("x"));
    assert_eq!(sink.describe(), "webhook hooks.example.org (array)");
    let (sink, _) = self::sink(&[("url_env", "TIDEMILL_NEVER_SET")], Path::new("x"));
    assert!(sink.target().map(drop).unwrap_err().to_string().contains("TIDEMILL_NEVER_SET"));
}
