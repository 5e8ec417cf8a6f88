//! Every route, by every method, for every caller: asked of a real server, and
//! compared to what the table of routes says.
//!
//! Invariant: the wanted answer is worked out from the row's method and role
//! alone, so a row that was added is tested without a further word.

use crate::{
    Access, Server, Tokens,
    http::{Reply, open},
    role::Role,
    routes::{PARTS, ROUTES, Route, Verb},
};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tidemill_core::{Board, StopHandle};

const METHODS: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"];
const WRONG: &str = "matrix-wrong-0123456789";

fn token(role: Role) -> String {
    format!("matrix-{role}-0123456789")
}

/// A server that knows a token of each role.
async fn with_server<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr) -> F) {
    let lines: String = Role::ALL.iter().map(|role| format!("{role} {} of-{role}\n", token(*role))).collect();
    let access = Access::default().tokens(Tokens::parse(&lines, "the test").unwrap());
    let board = Arc::new(Board::default());
    let server = Server::bind_for("127.0.0.1:0".parse().unwrap(), board, access).await.unwrap();
    let address = server.address();
    let (handle, stop) = StopHandle::new();
    let running = tokio::spawn(server.run(stop));
    test(address).await;
    handle.stop();
    running.await.unwrap().unwrap();
}

/// The rows by path, those of before with them.
fn paths() -> BTreeMap<&'static str, Vec<&'static Route>> {
    let mut paths: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for route in PARTS.iter().chain(ROUTES) {
        for path in [Some(route.path), route.before].into_iter().flatten() {
            paths.entry(path).or_default().push(route);
        }
    }
    paths
}

/// A path as a client writes it: its places filled.
fn target(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "1" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

fn method(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "GET",
        Verb::Post => "POST",
    }
}

/// The head of the answer, and what it says is wrong.
async fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> (Reply, String) {
    let body = if method == "GET" || method == "HEAD" { "" } else { "{}" };
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}{length}\r\n{body}");
    let opened = open(address, &request).await;
    if method == "HEAD" || opened.head.header("content-length").is_none() {
        return (opened.head, String::new());
    }
    let reply = opened.rest().await;
    let why = serde_json::from_slice(&reply.body).ok().and_then(|body: serde_json::Value| {
        let why = body.get("error")?.as_str()?;
        Some(why.to_string())
    });
    (reply, why.unwrap_or_default())
}

#[tokio::test]
async fn every_route_answers_by_its_method_and_role() {
    with_server(async |address| {
        let callers: Vec<(Option<Role>, String)> = [(None, String::new()), (None, WRONG.to_string())]
            .into_iter()
            .chain(Role::ALL.map(|role| (Some(role), token(role))))
            .collect();
        let (mut asked, mut served) = (0, 0);
        for (path, rows) in paths() {
            let allow: Vec<&str> =
                ["GET", "POST"].into_iter().filter(|m| rows.iter().any(|r| method(r.verb) == *m)).collect();
            for way in METHODS {
                for (role, token) in &callers {
                    let mut headers = "Content-Type: application/json\r\n".to_string();
                    if !token.is_empty() {
                        headers += &format!("Authorization: Bearer {token}\r\n");
                    }
                    let (reply, why) = ask(address, way, &target(path), &headers).await;
                    let case = format!("{way} {path} as {role:?} with {:?}: {} {why}", !token.is_empty(), reply.status);
                    asked += 1;
                    let Some(row) = rows.iter().find(|row| method(row.verb) == way) else {
                        assert_eq!(
                            (reply.status, reply.header("allow")),
                            (405, Some(allow.join(", ").as_str())),
                            "{case}"
                        );
                        continue;
                    };
                    match (row.role, role) {
                        (_, None) if !token.is_empty() => {
                            assert_eq!(reply.status, 401, "{case}");
                            assert_eq!(
                                reply.header("www-authenticate"),
                                Some("Bearer error=\"invalid_token\""),
                                "{case}"
                            );
                        }
                        (Some(_), None) => {
                            assert_eq!(
                                (reply.status, reply.header("www-authenticate")),
                                (401, Some("Bearer")),
                                "{case}"
                            );
                        }
                        (Some(needed), Some(role)) if *role < needed => {
                            assert!(reply.status == 403 && why.contains(&format!("the role {needed}")), "{case}");
                        }
                        _ => {
                            assert!(![401, 403, 405, 415, 421, 429].contains(&reply.status), "{case}");
                            served += 1;
                        }
                    }
                }
            }
        }
        println!("{asked} requests, {served} let through");
        assert!(asked >= 1000 && served >= 80, "{asked} {served}");
    })
    .await;
}

#[tokio::test]
async fn what_a_foreign_page_could_send_is_refused_on_every_route() {
    with_server(async |address| {
        let admin = format!("Authorization: Bearer {}\r\n", token(Role::Admin));
        let port = address.port();
        for (path, rows) in paths() {
            let path = target(path);
            for row in rows {
                let way = method(row.verb);
                let with = async |more: &str| ask(address, way, &path, &format!("{admin}{more}")).await.0.status;
                let json = "Content-Type: application/json\r\n";
                for origin in ["http://evil.example", "null", &format!("https://{address}"), "http://127.0.0.1:1"] {
                    for media in ["application/json", "text/plain", "application/x-www-form-urlencoded"] {
                        let more = format!("Origin: {origin}\r\nContent-Type: {media}\r\n");
                        assert_eq!(with(&more).await, 403, "{way} {path} from {origin} with {media}");
                    }
                    let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                    assert_eq!(with(&format!("Origin: {origin}\r\n{socket}")).await, 403, "{way} {path} from {origin}");
                }
                for mode in ["cors", "no-cors", "websocket"] {
                    let more = format!("{json}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: {mode}\r\n");
                    assert_eq!(with(&more).await, 403, "{way} {path} {mode}");
                }
                if row.verb == Verb::Post {
                    // Not even by a form that the user sends off.
                    for site in ["cross-site", "same-site", "strange"] {
                        let more = format!("{json}Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: navigate\r\n");
                        assert_eq!(with(&more).await, 403, "{path} {site}");
                    }
                    for media in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
                    {
                        assert_eq!(with(&format!("Content-Type: {media}\r\n")).await, 415, "{path} {media}");
                    }
                    assert_eq!(with("").await, 415, "{path} without a media type");
                    let ours = format!("{json}Origin: http://localhost:{port}\r\nSec-Fetch-Site: same-origin\r\n");
                    assert!(![401, 403, 415].contains(&with(&ours).await), "{path} from our own page");
                }
            }
        }
    })
    .await;
}

#[test]
fn what_is_open_is_a_short_list() {
    let all = || PARTS.iter().chain(ROUTES);
    let open: Vec<&str> = all().filter(|route| route.role.is_none()).map(|route| route.path).collect();
    assert_eq!(open, ["/", "/assets/pages.js", "/assets/{folder}/{file}", "/livez", "/readyz"]);
    for route in all() {
        let of_api = route.path.starts_with("/api/v1/");
        assert!(route.verb == Verb::Get || (of_api && route.before.is_none()), "{}: POST is for /api/v1", route.path);
        assert!(route.verb == Verb::Get || route.bytes <= 16 << 20, "{}: a body has a bound", route.path);
        assert!(PARTS.iter().any(|part| part.path == route.path) || route.summary.len() > 10, "{}", route.path);
        // The same method twice at one path would not start.
        assert_eq!(
            all().filter(|other| (other.path, other.verb) == (route.path, route.verb)).count(),
            1,
            "{}",
            route.path
        );
    }
}
