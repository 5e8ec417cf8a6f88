//! Requests whose answers are lost, that break off, fall silent or are none, through a proxy.
//!
//! Invariant: a request that was not answered with 200 and comes again under its key is in the log once. Tokio's clock
//! stands still where a test waits for a time. Run by `cargo test`.

use super::*;
use crate::faults::{Fault, FaultProxy, Hands, When, nonsense};

/// A request as it goes over the line.
fn raw(key: &str, body: &str) -> String {
    format!(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\nidempotency-key: {key}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Says something through a proxy; what came back, if the line did not break.
async fn said(proxy: &FaultProxy, bytes: &[u8]) -> Option<String> {
    let mut line = TcpStream::connect(proxy.address()).await.unwrap();
    line.write_all(bytes).await.ok()?;
    let mut answer = Vec::new();
    line.read_to_end(&mut answer).await.ok()?;
    Some(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_comes_again_and_is_taken_once_also_in_the_next_life() {
    let first = start(listen(), None).await;
    let proxy = FaultProxy::to(first.address);
    for (fault, key) in [(Fault::Close, "a"), (Fault::Reset, "b"), (Fault::Garbage(b"~".repeat(100)), "c")] {
        proxy.arm(When::Answered(0), fault);
        let asked = raw(key, key);
        let mut line = TcpStream::connect(proxy.address()).await.unwrap();
        line.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let heard = line.read_exact(&mut answer).await;
        assert!(heard.is_err() || answer == [b'~'; 12], "the answer is lost");
        let again = said(&proxy, asked.as_bytes()).await.unwrap();
        assert!(again.starts_with("HTTP/1.1 200") && again.contains("\"repeated\":true"), "{again}");
    }
    // The last one is asked again of the next life.
    proxy.arm(When::Answered(0), Fault::Close);
    assert_eq!(said(&proxy, raw("d", "d").as_bytes()).await.unwrap_or_default(), "");
    assert_eq!(first.records(), ["a", "b", "c", "d"]);
    let token = first.heard().resume;
    first.stop.stop();
    first.task.await.unwrap().unwrap();
    let second = start(listen(), token).await;
    let proxy = FaultProxy::to(second.address);
    let again = said(&proxy, raw("d", "d").as_bytes()).await.unwrap();
    assert!(again.starts_with("HTTP/1.1 200") && again.contains("\"repeated\":true"), "{again}");
    assert!(second.records().is_empty());
}

#[tokio::test]
async fn a_request_that_breaks_off_or_is_none_leaves_nothing_and_holds_nobody_up() {
    let running = start(listen(), None).await;
    let proxy = FaultProxy::to(running.address);
    let asked = raw("a", "one\ntwo");
    for at in [3, 40, asked.len() as u64 - 7, asked.len() as u64 - 1] {
        for fault in [Fault::Close, Fault::Reset] {
            proxy.arm(When::AskedBytes(at), fault);
            assert!(!said(&proxy, asked.as_bytes()).await.unwrap_or_default().contains(" 200 "));
        }
    }
    assert_eq!(proxy.disarm(), 0, "each came");
    let answer = said(&proxy, &nonsense()).await.unwrap_or_default();
    assert!(!answer.contains(" 200 "), "{answer}");
    assert!(running.records().is_empty());
    proxy.arm(When::Asked(0), Fault::Crumbs(1));
    assert!(said(&proxy, asked.as_bytes()).await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(running.records(), ["one", "two"]);
    running.stop.stop();
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_vanished_is_let_go_in_its_head_in_its_body_and_after_its_request() {
    let hands = Hands::on_tokio();
    let running = start(listen(), None).await;
    let proxy = FaultProxy::to(running.address);
    let asked = raw("a", "one\ntwo");
    let mut lines = Vec::new();
    for at in [3, asked.len() as u64 - 3] {
        proxy.arm(When::AskedBytes(at), Fault::Lost);
        let mut line = TcpStream::connect(proxy.address()).await.unwrap();
        line.write_all(asked.as_bytes()).await.unwrap();
        lines.push(line);
        let snapped = lines.len() as u64;
        hands.until(Duration::ZERO, "the line is dead", || proxy.landed().faults == snapped).await;
    }
    // The third is idle after a request that was answered.
    let mut line = TcpStream::connect(proxy.address()).await.unwrap();
    line.write_all(raw("b", "three").replace("connection: close\r\n", "").as_bytes()).await.unwrap();
    hands.until(Duration::ZERO, "it is answered", || running.records() == ["three"]).await;
    proxy.all(Fault::Lost);
    lines.push(line);
    let left = || running.heard().states.last().is_some_and(|state| state.ends_with(", 0 connected"));
    assert!(!left());
    hands.until(Duration::from_secs(5), "all are let go", left).await;
    assert!(said(&proxy, raw("c", "four").as_bytes()).await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(running.records(), ["three", "four"]);
    // A stop beside a request that does not come to its end.
    proxy.arm(When::AskedBytes(asked.len() as u64 - 3), Fault::Lost);
    let mut line = TcpStream::connect(proxy.address()).await.unwrap();
    line.write_all(asked.as_bytes()).await.unwrap();
    hands.until(Duration::ZERO, "the line is dead", || proxy.landed().faults == 3).await;
    running.stop.stop();
    let mut task = running.task;
    let ended = hands.during("a stop", || Duration::from_secs(1), &mut task).await;
    ended.unwrap().unwrap();
}
