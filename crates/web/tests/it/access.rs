//! Who is let in: by token, by name, and over TLS.

use crate::{
    Site,
    api::{filled, message},
    http::{self, Reply},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{net::SocketAddr, sync::Arc};
use tidemill_core::{Blame, Board, Phase};
use tidemill_web::{Access, Role, Server, Tls, Tokens};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// A certificate for `localhost`, `mill.example` and `127.0.0.1`, and its key, which guard nothing.
const CERTIFICATE: &[u8] = include_bytes!("tls/cert.pem");
const KEY: &[u8] = include_bytes!("tls/key.pem");

/// Tokens are told apart from all else by this.
const CANARY: &str = "canary";

pub(crate) fn token(role: Role) -> String {
    format!("{CANARY}-{role}-0123456789abcdef")
}

/// A token of each role.
pub(crate) fn tokens() -> Access {
    let lines: String = Role::ALL.iter().map(|role| format!("{role} {} of-{role}\n", token(*role))).collect();
    Access::default().tokens(Tokens::parse(&lines, "the test").unwrap())
}

fn tls() -> Tls {
    Tls::from_pem(("cert.pem", CERTIFICATE), ("key.pem", KEY)).unwrap()
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> Reply {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    http::send(address, &request).await
}

fn bearer(role: Role) -> String {
    format!("Authorization: Bearer {}\r\n", token(role))
}

#[tokio::test]
async fn a_token_opens_what_its_role_may_see_and_is_told_to_nobody() {
    let site = filled(Site::open_for(tokens()).await);
    let address = site.address;
    for role in Role::ALL {
        let caller = get(address, "/api/v1/caller", &bearer(role)).await.json();
        assert_eq!(caller, serde_json::json!({ "name": format!("of-{role}"), "role": role.name() }));
    }
    // Nothing but the header is looked at.
    let token = token(Role::Admin);
    for headers in [
        String::new(),
        format!("Cookie: token={token}; Authorization=Bearer {token}\r\n"),
        format!("X-Token: {token}\r\nProxy-Authorization: Bearer {token}\r\n"),
        format!("Authorization: Basic {token}\r\n"),
        format!("Sec-WebSocket-Protocol: tidemill, bearer.{token}\r\n"),
    ] {
        let reply = get(address, &format!("/api/v1/program?token={token}&access_token={token}"), &headers).await;
        assert_eq!(reply.status, 401, "{headers:?}");
    }
    // No answer holds a token, whatever is asked and as whom; and no cookie is set.
    let described = get(address, "/api/v1/openapi.json", &bearer(Role::Viewer)).await.json();
    let mut asked = 0;
    for (path, of) in described["paths"].as_object().unwrap() {
        if !of["get"].is_object() || of["get"]["responses"]["200"]["content"].get("text/event-stream").is_some() {
            continue;
        }
        let path = path.replace("{name}", "words").replace("{batch}", "7");
        for headers in [bearer(Role::Admin), bearer(Role::Viewer), format!("Authorization: Bearer {token}x\r\n")] {
            let reply = get(address, &format!("{path}?{token}"), &headers).await;
            let all = format!("{:?}{}", reply.headers, reply.text());
            assert!(!all.contains(CANARY) && reply.header("set-cookie").is_none(), "{path}: {all}");
            asked += 1;
        }
    }
    assert!(asked >= 40, "{asked}");
    site.close().await;
}

#[tokio::test]
async fn probes_need_no_token_and_are_told_no_reason() {
    let site = Site::open_for(tokens()).await;
    site.board.update_program(|p| {
        p.phase = Phase::Failed;
        p.error = Some("can't write to /srv/private".to_string());
    });
    assert_eq!(get(site.address, "/livez", "").await.status, 200);
    let open = get(site.address, "/readyz", "").await;
    assert_eq!((open.status, &open.json()["state"]), (503, &serde_json::json!("failed")));
    assert!(!open.text().contains("private"), "{}", open.text());
    let known = get(site.address, "/readyz", &bearer(Role::Viewer)).await;
    assert!(known.status == 503 && known.text().contains("/srv/private"), "{}", known.text());
    for path in ["/metrics", "/api/v1/health", "/api/v1/openapi.json"] {
        assert_eq!(get(site.address, path, "").await.status, 401, "{path}");
        assert_eq!(get(site.address, path, &bearer(Role::Viewer)).await.status, 200, "{path}");
    }
    site.close().await;
}

#[tokio::test]
async fn an_address_that_guesses_is_held_back() {
    let site = Site::open_for(tokens()).await;
    for guess in 0..10 {
        let guess = format!("Authorization: Bearer guess-{guess}\r\n");
        assert_eq!(get(site.address, "/api/v1/program", &guess).await.status, 401);
    }
    let held = get(site.address, "/api/v1/program", &bearer(Role::Admin)).await;
    assert_eq!(held.status, 429);
    assert!(held.header("retry-after").unwrap().parse::<u64>().unwrap() <= 61);
    assert_eq!(get(site.address, "/livez", "").await.status, 200);
    site.close().await;
}

#[tokio::test]
async fn a_web_socket_may_bring_its_token_as_a_subprotocol() {
    let site = filled(Site::open_for(tokens()).await);
    let address = site.address;
    let hello = |more: &str| {
        format!(
            "GET /api/v1/feed HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
        )
    };
    let protocol = format!("Sec-WebSocket-Protocol: tidemill, bearer.{}\r\n", token(Role::Viewer));
    for (more, status) in [
        (String::new(), 401),
        ("Sec-WebSocket-Protocol: tidemill, bearer.wrong\r\n".to_string(), 401),
        ("Sec-WebSocket-Protocol: tidemill\r\n".to_string(), 401),
        (format!("{protocol}Origin: http://evil.example\r\n"), 403),
        (format!("{protocol}Origin: null\r\n"), 403),
        (protocol.clone(), 101),
        (bearer(Role::Viewer), 101),
        (format!("{protocol}Origin: http://{address}\r\n"), 101),
    ] {
        let head = http::open(address, &hello(&more)).await.head;
        assert_eq!(head.status, status, "{more}");
        let told = (status == 101 && more.contains("tidemill")).then_some("tidemill");
        assert_eq!(head.header("sec-websocket-protocol"), told, "{more}");
        assert!(!format!("{:?}", head.headers).contains(CANARY));
    }
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(hello(&protocol).as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    assert_eq!(message(&mut socket).await.unwrap()["event"], "phase");
    site.close().await;
}

/// Asks over TLS; the error is that of the connection.
async fn ask_tls(address: SocketAddr, name: &str, host: &str, more: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_string()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let request = format!("GET /api/v1/caller HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn with_a_certificate_only_tls_is_spoken() {
    let access = tokens().tls(tls()).host("mill.example").unwrap().host("front.example:443").unwrap();
    let site = Site::open_for(access).await;
    let (address, port) = (site.address, site.address.port());
    let token = bearer(Role::Operator);
    let status = async |host: &str, more: &str| {
        let answer = ask_tls(address, "mill.example", host, &format!("{token}{more}")).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    for host in ["front.example", "front.example:443", &format!("mill.example:{port}"), &format!("localhost:{port}")] {
        assert_eq!(status(host, "").await, 200, "{host}");
        assert_eq!(status(host, &format!("Origin: https://{host}\r\n")).await, 200, "{host}");
        // A page that came in clear may have been changed on its way.
        assert_eq!(status(host, &format!("Origin: http://{host}\r\n")).await, 403, "{host}");
    }
    for host in ["mill.example", &format!("front.example:{port}"), "evil.example", &format!("evil.example:{port}")] {
        assert_eq!(status(host, "").await, 421, "{host}");
    }
    let named = ask_tls(address, "localhost", &format!("localhost:{port}"), "").await.unwrap();
    assert!(named.starts_with("HTTP/1.1 401"), "{named}");
    assert!(ask_tls(address, "other.example", &format!("localhost:{port}"), "").await.is_err(), "not its certificate");
    // In clear nothing is answered, and the next is served all the same.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The server may have closed before all was read.
    let _gone = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(status(&format!("localhost:{port}"), "").await, 200);
    site.close().await;
}

#[tokio::test]
async fn a_name_that_was_given_is_answered_and_others_are_not() {
    let site = Site::open_for(tokens().host("mill.example").unwrap().host("Front.example:443").unwrap()).await;
    let (address, port) = (site.address, site.address.port());
    let ask = async |host: &str, origin: &str| {
        let origin = if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
        let more = format!("Host: {host}\r\nConnection: close\r\n{origin}{}", bearer(Role::Viewer));
        http::send(address, &format!("GET /api/v1/caller HTTP/1.1\r\n{more}\r\n")).await.status
    };
    assert_eq!(ask(&format!("mill.example:{port}"), "").await, 200);
    assert_eq!(ask("front.example", "https://front.example").await, 200, "a proxy in front speaks TLS");
    assert_eq!(ask("front.example:443", "").await, 200);
    assert_eq!(ask(&format!("localhost:{port}"), &format!("http://mill.example:{port}")).await, 200);
    for host in ["mill.example", "a.mill.example", "evil.example", &format!("front.example:{port}"), ""] {
        assert_eq!(ask(host, "").await, 421, "{host}");
    }
    assert_eq!(ask("front.example", "https://evil.example").await, 403);
    assert_eq!(ask("front.example", &format!("https://localhost:{port}")).await, 403);
    site.close().await;
}

#[tokio::test]
async fn what_is_missing_for_other_addresses_is_told_before_anything_is_bound() {
    let refusal = async |access: Access| {
        let board = Arc::new(Board::default());
        Server::bind_for("0.0.0.0:0".parse().unwrap(), board, access).await.unwrap_err()
    };
    for (access, told) in [
        (Access::default(), "tokens and TLS are missing"),
        (tokens(), "TLS is missing"),
        (Access::default().tls(tls()), "tokens are missing"),
    ] {
        let error = refusal(access).await;
        assert!(error.blame() == Blame::User && error.to_string().contains(told), "{error}");
    }
}

#[test]
fn a_certificate_that_can_not_be_served_is_explained_without_its_key() {
    let wrong = |certificate: &[u8], key: &[u8]| {
        Tls::from_pem(("cert.pem", certificate), ("key.pem", key)).unwrap_err().chain()
    };
    assert!(wrong(b"", KEY).contains("cert.pem holds no certificate"));
    assert!(wrong(KEY, KEY).contains("cert.pem holds no certificate"));
    assert!(wrong(CERTIFICATE, CERTIFICATE).contains("key.pem holds no private key"));
    let broken = String::from_utf8(KEY.to_vec()).unwrap().replace("\nM", "\n!");
    let told = wrong(CERTIFICATE, broken.as_bytes());
    let secret = broken.lines().nth(1).unwrap();
    assert!(told.contains("key.pem holds no private key") && !told.contains(&secret[1..20]), "{told}");
    let shown = format!("{:?} {:?}", tls(), tokens());
    assert!(!shown.contains(CANARY) && shown.contains("3 tokens"), "{shown}");
}
