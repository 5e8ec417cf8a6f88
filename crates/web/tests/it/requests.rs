//! Who is answered, with what headers, and what the answers say.

use crate::{
    Site,
    http::{self, Live},
    report,
};
use serde_json::json;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tidemill_core::{Blame, Board, Phase, Timestamp};
use tidemill_web::Server;

const ROUTES: [&str; 26] = [
    "/",
    "/assets/pages.js",
    "/assets/frame/main.js",
    "/assets/frame/frame.css",
    "/assets/frame/icon.svg",
    "/assets/vendor/NOTICE.txt",
    "/assets/overview/page.js",
    "/assets/overview/nothing",
    "/assets/nothing",
    "/api/program",
    "/api/views",
    "/api/views/words",
    "/api/views/nothing",
    "/api/batches",
    "/api/inputs",
    "/api/v1/program",
    "/api/v1/health",
    "/api/v1/views",
    "/api/v1/views/words",
    "/api/v1/batches",
    "/api/v1/inputs",
    "/api/v1/graph",
    "/api/v1/openapi.json",
    "/livez",
    "/readyz",
    "/metrics",
];

async fn with_host(address: SocketAddr, target: &str, host_lines: &str) -> http::Reply {
    http::send(address, &format!("GET {target} HTTP/1.1\r\n{host_lines}Connection: close\r\n\r\n")).await
}

#[tokio::test]
async fn only_hosts_that_name_loopback_and_the_port_are_answered() {
    let site = Site::open().await;
    let port = site.address.port();
    for host in ["127.0.0.1", "localhost", "LocalHost", "[::1]"] {
        let reply = with_host(site.address, "/livez", &format!("Host: {host}:{port}\r\n")).await;
        assert_eq!(reply.status, 200, "{host}");
    }
    let refused = [
        String::new(),
        "Host:\r\n".to_string(),
        "Host: localhost\r\n".to_string(),
        "Host: 127.0.0.1\r\n".to_string(),
        "Host: [::1]\r\n".to_string(),
        "Host: evil.example\r\n".to_string(),
        format!("Host: evil.example:{port}\r\n"),
        format!("Host: localhost:{}\r\n", port ^ 1),
        format!("Host: localhost:0{port}\r\n"),
        format!("Host: localhost.:{port}\r\n"),
        format!("Host: localhost.evil.example:{port}\r\n"),
        format!("Host: 127.0.0.1.nip.io:{port}\r\n"),
        format!("Host: 127.1:{port}\r\n"),
        format!("Host: 2130706433:{port}\r\n"),
        format!("Host: 0x7f000001:{port}\r\n"),
        format!("Host: 127.0.0.2:{port}\r\n"),
        format!("Host: 0.0.0.0:{port}\r\n"),
        format!("Host: [::]:{port}\r\n"),
        format!("Host: [::ffff:127.0.0.1]:{port}\r\n"),
        format!("Host: user@localhost:{port}\r\n"),
        format!("Host: localhost:{port}@evil.example\r\n"),
        format!("Host: localhost:{port}, evil.example\r\n"),
        format!("Host: localhost:{port}\\.evil.example\r\n"),
        format!("Host: localhost:{port}\r\nHost: evil.example\r\n"),
        format!("Host: localhost:{port}\r\nHost: localhost:{port}\r\n"),
        "Host: lo\u{441}alhost\r\n".to_string(),
    ];
    for lines in &refused {
        // Refused before routing: a path that doesn't exist gives the same answer.
        for path in ["/", "/api/live", "/api/v1/feed", "/nowhere"] {
            let reply = with_host(site.address, path, lines).await;
            assert_eq!(reply.status, 421, "{lines:?}");
            assert!(reply.header("content-security-policy").is_some());
        }
    }
    let forwarded = format!("Host: evil.example:{port}\r\nX-Forwarded-Host: localhost:{port}\r\n");
    assert_eq!(with_host(site.address, "/", &forwarded).await.status, 421);
    let ours = format!("Host: localhost:{port}\r\n");
    assert_eq!(with_host(site.address, "http://evil.example/livez", &ours).await.status, 421);
    assert_eq!(with_host(site.address, &format!("http://localhost:{port}/livez"), &ours).await.status, 200);
    site.close().await;
}

#[tokio::test]
async fn other_sites_are_refused_and_links_from_them_are_not() {
    let site = Site::open().await;
    let address = site.address;
    let ask =
        async |extra: &str| with_host(address, "/api/program", &format!("Host: {address}\r\n{extra}")).await.status;
    for origin in
        ["http://evil.example", "null", "https://localhost", "http://127.0.0.1:1", &format!("https://{address}")]
    {
        assert_eq!(ask(&format!("Origin: {origin}\r\n")).await, 403, "{origin}");
    }
    assert_eq!(ask(&format!("Origin: http://{address}\r\n")).await, 200);
    assert_eq!(ask("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n").await, 403);
    assert_eq!(ask("Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n").await, 403);
    assert_eq!(ask("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n").await, 200);
    assert_eq!(ask("Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n").await, 200);
    site.close().await;
}

#[tokio::test]
async fn only_get_is_served() {
    let site = Site::open().await;
    let address = site.address;
    for method in ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "SEARCH"] {
        for path in ["/", "/api/live", "/api/views/words", "/api/v1/feed", "/api/v1/program", "/nowhere"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            let reply = http::send(address, &request).await;
            assert_eq!((reply.status, reply.header("allow")), (405, Some("GET")), "{method} {path}");
        }
    }
    site.close().await;
}

#[tokio::test]
async fn every_answer_carries_the_headers_that_keep_it_harmless() {
    let site = Site::open().await;
    site.show("words", 1, &[("sea", 1)]);
    assert_eq!(http::get(site.address, "/assets/vendor/echarts.js").await.status, 406, "it is kept compressed");
    let live = http::open(site.address, &format!("GET /api/live HTTP/1.1\r\nHost: {}\r\n\r\n", site.address)).await;
    let mut replies = vec![live.head];
    for route in ROUTES {
        let reply = http::get(site.address, route).await;
        let missing = route.ends_with("nothing");
        assert_eq!(
            reply.status,
            if missing {
                404
            } else if route == "/readyz" {
                503
            } else {
                200
            },
            "{route}"
        );
        replies.push(reply);
    }
    for reply in replies {
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("require-trusted-types-for 'script'"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert!(reply.header("content-type").is_some());
        assert!(!reply.headers.iter().any(|(name, _)| name.starts_with("access-control-")));
    }
    site.close().await;
}

#[tokio::test]
async fn an_address_that_can_not_be_served_is_explained() {
    let board = Arc::new(Board::default());
    let refusal = async |address: &str| Server::bind(address.parse().unwrap(), Arc::clone(&board)).await.unwrap_err();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:4040"] {
        let error = refusal(address).await;
        assert_eq!(error.blame(), Blame::User);
        assert!(error.to_string().contains("--web 127.0.0.1:"), "{error}");
    }
    let site = Site::open().await;
    let error = refusal(&site.address.to_string()).await;
    assert_eq!(error.blame(), Blame::User);
    let text = error.chain();
    assert!(text.contains(&format!("port {}", site.address.port())) && text.contains("--web 127.0.0.1:0"), "{text}");
    site.close().await;
}

#[tokio::test]
async fn a_header_without_end_is_cut_off() {
    let site = Site::open().await;
    let long = "x".repeat(100_000);
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nCookie: {long}\r\n\r\n", site.address);
    let reply = http::open(site.address, &request).await.head;
    assert_eq!(reply.status, 431);
    assert_eq!(http::get(site.address, "/livez").await.status, 200);
    site.close().await;
}

#[tokio::test]
async fn the_api_tells_what_the_board_holds() {
    let site = Site::open().await;
    let name = "<b>\"../é %\n";
    site.show(name, 7, &[("</script>\u{2028}", 3), ("\"\\", i64::MAX)]);
    site.board.publish_batch(report(7));
    site.board.update_program(|p| {
        p.name = "trending".to_string();
        p.started = Timestamp(5);
        p.phase = Phase::Failed;
        p.error = Some("no \"disk\"".to_string());
    });
    site.board.update_input("lines", 1, |i| i.state = "connected".to_string());

    let program = http::get(site.address, "/api/program").await.json();
    assert_eq!(program["phase"], "failed");
    assert_eq!((program["records_in"].as_u64(), program["late"].as_u64()), (Some(10), Some(2)));
    assert_eq!((&program["error"], &program["views"]), (&json!("no \"disk\""), &json!([name])));

    let views = http::get(site.address, "/api/views").await.json();
    assert_eq!(views, json!([{ "name": name, "batch": 7, "time": 7_000_000, "rows": 2 }]));
    let view = http::get(site.address, "/api/views/%3Cb%3E%22..%2F%C3%A9%20%25%0A").await;
    assert_eq!(view.header("content-type"), Some("application/json"));
    assert_eq!(view.json()["name"], name);
    assert_eq!(view.json()["rows"], json!([["</script>\u{2028}", 3], ["\"\\", "9223372036854775807"]]));
    assert_eq!(http::get(site.address, "/api/views/%ff").await.status, 400);

    assert_eq!(http::get(site.address, "/api/batches").await.json()[0]["processing_us"], 30_000);
    let inputs = http::get(site.address, "/api/inputs").await.json();
    assert_eq!((&inputs[0]["stream"], &inputs[0]["state"]), (&json!("lines"), &json!("connected")));
    let ready = http::get(site.address, "/readyz").await;
    assert_eq!((ready.status, ready.json()["ready"].as_bool()), (503, Some(false)));
    assert_eq!(ready.json()["reason"], "the program has failed: no \"disk\"");
    site.board.update_program(|p| p.phase = Phase::Running);
    let waits = http::get(site.address, "/readyz").await;
    assert_eq!(waits.status, 503, "it runs and can't go on");
    assert_eq!(waits.json()["reason"], "the program waits for something outside and tries again: no \"disk\"");
    site.board.update_program(|p| p.error = None);
    assert_eq!(http::get(site.address, "/readyz").await.status, 200);
    site.close().await;
}

#[tokio::test]
async fn metrics_are_well_formed_and_count_each_batch_once() {
    let site = Site::open().await;
    site.board.update_input("a\"\\\n\rb", 2, |i| i.records = 5);
    // The feed's last batch says that the follower, subscribed earlier, has had its turn.
    let mut live = Live::open(site.address).await;
    // More than the follower's lag, so that it has to read the board's history.
    (0..500).for_each(|batch| site.board.publish_batch(report(batch)));
    live.until("batch", |data| data["reports"].as_array().is_some_and(|r| r.len() >= 500)).await;
    let without = http::get(site.address, "/metrics").await;
    assert!(!without.text().contains("tidemill_spans"), "only of a program that exports traces");
    site.board.update_traces(|traces| (traces.sent, traces.dropped) = (70, 3));
    let reply = http::get(site.address, "/metrics").await;
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let mut values = BTreeMap::new();
    for line in reply.text().lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
        assert!(values.insert(name.to_string(), value).is_none(), "twice: {name}");
    }
    for (name, value) in [
        ("tidemill_records_received_total{stream=\"a\\\"\\\\\\n\\\\u000db\",receiver=\"2\"}", 5.0),
        ("tidemill_records_processed_total", 5000.0),
        ("tidemill_records_dead_lettered_total{reason=\"bad_value\"}", 500.0),
        ("tidemill_records_late_total", 1000.0),
        ("tidemill_batches_queued", 4.0),
        ("tidemill_watermark_lag_seconds", 2.5),
        ("tidemill_ready", 0.0),
        ("tidemill_batch_duration_seconds_count", 500.0),
        ("tidemill_batch_duration_seconds_sum", 15.0),
        ("tidemill_batch_duration_seconds_bucket{le=\"0.025\"}", 0.0),
        ("tidemill_batch_duration_seconds_bucket{le=\"0.05\"}", 500.0),
        ("tidemill_batch_duration_seconds_bucket{le=\"+Inf\"}", 500.0),
        ("tidemill_scheduling_delay_seconds_bucket{le=\"0.0025\"}", 500.0),
        ("tidemill_phase{phase=\"starting\"}", 1.0),
        ("tidemill_spans_exported_total", 70.0),
        ("tidemill_spans_dropped_total", 3.0),
    ] {
        assert_eq!(values.get(name), Some(&value), "{name} in {values:#?}");
    }
    site.close().await;
}
