//! `demo --live bluesky` against a local server that speaks the Jetstream protocol.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{net::TcpListener, thread};
use tokio_tungstenite::tungstenite::{Message, accept};

/// A post at `time_us`, as Jetstream frames it.
fn post(n: i64, text: &str, time_us: i64) -> String {
    format!(
        r#"{{"did":"did:plc:w{n}","time_us":{time_us},"kind":"commit","commit":{{"rev":"r{n}","operation":"create","collection":"app.bsky.feed.post","rkey":"k{n}","record":{{"$type":"app.bsky.feed.post","langs":["en"],"text":"{text}"}}}}}}"#
    )
}

#[test]
fn posts_of_a_live_server_trend() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/subscribe", listener.local_addr().unwrap());
    thread::spawn(move || {
        let mut socket = accept(listener.accept().unwrap().0).unwrap();
        let begin = 1_779_719_009_000_000;
        for n in 0..5 {
            let text = if n < 3 { "the mill #Tide" } else { "the sea #Ebb" };
            socket.send(Message::text(post(n, text, begin + n))).unwrap();
        }
        // An hour on: the windows of the posts above are complete.
        socket.send(Message::text(post(9, "later", begin + 3_600_000_000))).unwrap();
        // Open until the client goes.
        while socket.read().is_ok() {}
    });
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["demo", "--live", "bluesky", "--live-endpoint", &url, "--headless", "--web", "127.0.0.1:0"];
    let mut demo = start(dir.path(), &arguments, "");
    demo.wait_for("hashtags: #tide 3, #ebb 2 |");
    demo.signal(Signal::INT);
    assert!(demo.end().code(0).out.contains("Kept in tidemill-data/demo-bluesky"));
}

#[test]
fn a_service_out_of_reach_is_told() {
    // Bound and closed again: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("ws://{address}/subscribe");
    let dir = tempfile::tempdir().unwrap();
    let arguments =
        ["demo", "--live", "bluesky", "--live-endpoint", &url, "--headless", "--web", "127.0.0.1:0", "--for", "2s"];
    run(dir.path(), &arguments, "").code(1).says(&["error: ", "can't be reached", "Without --live"]);
}
