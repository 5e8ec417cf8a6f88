//! The live feed over real sockets.

use crate::{
    Site,
    http::{self, Live},
    report,
};
use serde_json::json;
use tidemill_core::Phase;

#[tokio::test]
async fn a_viewer_gets_the_picture_and_then_each_change() {
    let site = Site::open().await;
    site.show("words", 1, &[("sea", 1)]);
    site.board.publish_batch(report(1));
    let mut live = Live::open(site.address).await;
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(live.next().await.unwrap());
    }
    let names: Vec<_> = first.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["phase", "inputs", "batch", "view"]);
    assert_eq!(first[2].1["fresh"], true);
    assert_eq!(first[3].1["rows"], json!([["sea", 1]]));

    site.show("words", 2, &[("tide", 9), ("sea", 2)]);
    let view = live.until("view", |_| true).await;
    assert_eq!((view["batch"].as_u64(), &view["rows"]), (Some(2), &json!([["tide", 9], ["sea", 2]])));
    site.board.publish_batch(report(2));
    let batch = live.until("batch", |_| true).await;
    assert_eq!((&batch["fresh"], &batch["reports"][0]["batch"]), (&json!(false), &json!(2)));
    site.board.update_program(|p| p.phase = Phase::Running);
    live.until("phase", |p| p["phase"] == "running").await;
    site.board.update_input("lines", 0, |i| i.state = "reconnecting".to_string());
    assert_eq!(live.until("inputs", |_| true).await[0]["state"], "reconnecting");
    site.close().await;
}

#[tokio::test]
async fn a_viewer_that_lags_is_shown_the_newest_afresh() {
    let site = Site::open().await;
    let mut live = Live::open(site.address).await;
    live.until("batch", |b| b["fresh"] == true).await;
    // This thread runs the server too, so that it can't keep up with any of these.
    for batch in 0..1000 {
        let count = i64::try_from(batch).unwrap();
        site.show("a", batch, &[("sea", count)]);
        site.show("b", batch, &[("tide", count)]);
        site.board.publish_batch(report(batch));
    }
    let fresh = live.until("batch", |_| true).await;
    assert_eq!(fresh["fresh"], true);
    let reports = fresh["reports"].as_array().unwrap();
    assert_eq!(reports.last().unwrap()["batch"], 999);
    let (a, b) = (live.until("view", |_| true).await, live.until("view", |_| true).await);
    assert_eq!((&a["name"], &a["rows"][0][1]), (&json!("a"), &json!(999)));
    assert_eq!((&b["name"], &b["rows"][0][1]), (&json!("b"), &json!(999)));
    // And it follows again.
    site.show("a", 1000, &[("sea", 1000)]);
    assert_eq!(live.until("view", |_| true).await["rows"][0][1], 1000);
    site.close().await;
}

#[tokio::test]
async fn a_viewer_that_does_not_read_holds_up_nobody() {
    let site = Site::open().await;
    let stuck = Live::open(site.address).await;
    let mut live = Live::open(site.address).await;
    let wide = "x".repeat(1000);
    let rows: Vec<(&str, i64)> = (0..1000).map(|i| (wide.as_str(), i)).collect();
    for batch in 0..16 {
        // In all 16 MB, far beyond what the sockets hold.
        site.show("wide", batch, &rows);
        live.until("view", |view| view["batch"] == batch).await;
    }
    assert_eq!(http::get(site.address, "/livez").await.status, 200);
    drop(live);
    // The stuck viewer also doesn't hold up the end.
    site.close().await;
    drop(stuck);
}

#[tokio::test]
async fn viewers_are_counted_and_leave_their_seat() {
    let site = Site::open().await;
    let mut seats = Vec::new();
    for _ in 0..256 {
        seats.push(Live::open(site.address).await);
    }
    let request = format!("GET /api/live HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", site.address);
    let reply = http::send(site.address, &request).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("10")));
    assert!(reply.json()["error"].as_str().unwrap().contains("256 viewers"));
    seats.pop();
    while http::open(site.address, &request).await.head.status != 200 {}
    site.close().await;
}

#[tokio::test]
async fn a_stop_tells_how_the_program_ended_and_ends_the_feed() {
    let site = Site::open().await;
    let mut live = Live::open(site.address).await;
    live.until("batch", |_| true).await;
    let idle = tokio::net::TcpStream::connect(site.address).await.unwrap();
    site.board.update_program(|p| p.phase = Phase::Stopped);
    site.stop.stop();
    live.until("phase", |p| p["phase"] == "stopped").await;
    assert!(live.next().await.is_none());
    site.running.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(site.address).await.is_err());
    drop(idle);
}
