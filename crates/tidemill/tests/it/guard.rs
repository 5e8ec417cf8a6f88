//! Who may ask a program's page, as its operators set it up: files of tokens, certificates, refusals; and that no
//! token is told anywhere.

use crate::run::{Running, run, start, start_by};
use rustix::process::Signal;
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
};

const CANARY: &str = "canary";
const VIEWER: &str = "canary-viewer-0123456789";
const ADMIN: &str = "canary-admin-0123456789";
const CERTIFICATE: &str = include_str!("../../../web/tests/it/tls/cert.pem");
const KEY: &str = include_str!("../../../web/tests/it/tls/key.pem");

fn write(at: &Path, name: &str, text: &str, mode: u32) {
    fs::write(at.join(name), text).unwrap();
    fs::set_permissions(at.join(name), fs::Permissions::from_mode(mode)).unwrap();
}

/// A folder with a program, tokens, and a certificate.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let program = "CREATE STREAM n WITH (connector = 'generator', rows_per_plan = '100');\n\
                   CREATE VIEW total AS SELECT count(*) AS c FROM n;\n";
    write(at, "p.sql", program, 0o644);
    write(at, "tokens", &format!("# who\nviewer {VIEWER} looks\nadmin {ADMIN} does\n"), 0o600);
    write(at, "viewer", &format!("{VIEWER}\n"), 0o600);
    write(at, "wrong", "canary-wrong-0123456789", 0o600);
    write(at, "cert.pem", CERTIFICATE, 0o644);
    write(at, "key.pem", KEY, 0o600);
    dir
}

fn words(more: &[&'static str]) -> Vec<&'static str> {
    [&["run", "p.sql", "--headless", "--data", "d", "--interval", "50ms"], more].concat()
}

/// Waits for the page; its address.
fn page(running: &mut Running, scheme: &str) -> String {
    let address = running.wait_for(&format!("page: {scheme}://")).replace(&format!("page: {scheme}://"), "");
    running.wait_for("total: ");
    address
}

fn end(running: Running) -> crate::run::Ended {
    running.signal(Signal::INT);
    running.end()
}

#[test]
fn another_address_than_loopback_needs_tokens_and_tls() {
    let dir = folder();
    let refused = |more: &[&'static str]| run(dir.path(), &words(more), "");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:4040"] {
        let told = ["--web-tokens", "--web-tls-cert", "--web-tls-key", "--web 127.0.0.1:", "ssh -L"];
        refused(&["--web", address]).code(2).says(&told);
        refused(&["--web", address, "--web-tokens", "tokens"]).code(2).says(&["TLS is missing"]);
        let tls = ["--web", address, "--web-tls-cert", "cert.pem", "--web-tls-key", "key.pem"];
        refused(&tls).code(2).says(&["tokens are missing"]);
        run(dir.path(), &["demo", "--headless", "--web", address], "").code(2).says(&told);
    }
    refused(&["--web-tls-cert", "cert.pem"]).code(2).says(&["--web-tls-key"]);
    refused(&["--web-host", "mill.example"]).code(2).says(&["--web-tokens"]);
    let named = ["--web-tokens", "tokens", "--web-host", "http://mill.example"];
    refused(&named).code(2).says(&["is no name of a server"]);
    assert!(!dir.path().join("d").exists(), "nothing was begun");
}

#[test]
fn a_file_of_tokens_that_is_open_or_wrong_is_refused() {
    let dir = folder();
    let at = dir.path();
    let refused = || {
        let ended = run(at, &words(&["--web", "127.0.0.1:0", "--web-tokens", "tokens"]), "");
        assert!(!format!("{}{}", ended.out, ended.err).contains(CANARY), "{ended:?}");
        ended
    };
    for mode in [0o644, 0o640, 0o660, 0o604] {
        write(at, "tokens", &format!("admin {ADMIN} me\n"), mode);
        refused().code(2).says(&["chmod 600", "tokens"]);
    }
    for (text, told) in [
        ("", "no token in tokens"),
        ("admin canary me\n", "tokens, line 1"),
        ("\nroot canary-0123456789abcdef me\n", "tokens, line 2"),
        ("admin canary-0123456789abcdef\n", "three words"),
    ] {
        write(at, "tokens", text, 0o600);
        refused().code(2).says(&[told]);
    }
    fs::remove_file(at.join("tokens")).unwrap();
    refused().code(2).says(&["can't read the tokens", "No such file"]);
    let tls = |more: &[&'static str]| {
        run(at, &words(&[&["--web-tls-cert", "cert.pem", "--web-tls-key", "key.pem"], more].concat()), "")
    };
    write(at, "key.pem", KEY, 0o644);
    tls(&[]).code(2).says(&["chmod 600", "key.pem"]);
    write(at, "key.pem", CERTIFICATE, 0o600);
    tls(&[]).code(2).says(&["key.pem holds no private key"]);
    // Without a page nobody asks for all that.
    run(at, &words(&["--no-web", "--web-tokens", "tokens", "--for", "200ms"]), "").code(0);
}

/// Asks as it is said and takes all that comes.
fn ask(address: &str, method: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    // A refusal may come before all was read.
    let _gone = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn tokens_are_asked_for_and_told_nowhere() {
    let dir = folder();
    let at = dir.path();
    let more = ["--web", "127.0.0.1:0", "--web-tokens", "tokens", "-vvv"];
    let mut running = start_by(at, &["env", "TIDEMILL_WEB_TOKEN=canary-environment-0123"], &words(&more), "");
    let address = page(&mut running, "http");

    let status = |more: &[&str]| run(at, &[&["status", "--web", &address], more].concat(), "");
    status(&[]).code(1).says(&["asks for a token", "--token-file", "TIDEMILL_TOKEN"]);
    status(&["--token-file", "wrong"]).code(1).says(&["refuses", "none that the program knows"]);
    status(&["--token-file", "viewer"]).code(0).prints(&["program p: running"]);
    write(at, "open", VIEWER, 0o644);
    status(&["--token-file", "open"]).code(1).says(&["chmod 600"]);
    let by_variable = |token: &str| {
        start_by(at, &["env", &format!("TIDEMILL_TOKEN={token}")], &["status", "--web", &address, "--json"], "").end()
    };
    by_variable(ADMIN).code(0).prints(&["\"phase\":\"running\""]);
    by_variable("canary-environment-0123").code(0);
    by_variable("two words").code(1).says(&["holds no token"]);
    // In clear a token goes nowhere else.
    let elsewhere = run(at, &["status", "--web", "192.0.2.1:4040", "--token-file", "viewer"], "");
    elsewhere.code(1).says(&["not sent to 192.0.2.1:4040 in clear", "https://"]);

    let mut answers = Vec::new();
    for token in [VIEWER, ADMIN, "canary-wrong-0123456789"] {
        let bearer = format!("Authorization: Bearer {token}\r\n");
        for path in [
            "/",
            "/metrics",
            "/readyz",
            "/livez",
            "/nothing",
            "/api/v1/program",
            "/api/v1/caller",
            "/api/v1/inputs",
            "/api/v1/graph",
            "/api/v1/batches",
            "/api/v1/views",
            "/api/v1/views/nothing",
            "/api/v1/openapi.json",
            "/api/v1/grafana.json",
            "/api/v1/feed",
        ] {
            for method in ["GET", "POST", "OPTIONS"] {
                answers.push(ask(&address, method, path, &bearer));
            }
        }
        let upgrade =
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let mut socket = TcpStream::connect(&address).unwrap();
        let hello = format!(
            "GET /api/v1/feed HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n{upgrade}Sec-WebSocket-Protocol: tidemill, bearer.{token}\r\n\r\n"
        );
        socket.write_all(hello.as_bytes()).unwrap();
        let mut head = [0; 1024];
        let read = socket.read(&mut head).unwrap();
        answers.push(String::from_utf8_lossy(&head[..read]).into_owned());
        // A broken request is logged, too.
        answers.push(ask(&address, "GET", "/ bad", &bearer));
        answers.push(ask(&address, "GET", "/", &format!("{bearer}bad\r\n")));
    }
    assert!(answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 200")).count() > 20);
    let ended = end(running);
    ended.code(0).says(&["none of its own"]);
    for text in answers.iter().chain([&ended.out, &ended.err]) {
        assert!(!text.contains(CANARY), "{text}");
    }
    // Nor in anything that was written.
    let mut seen = 0;
    let mut folders = vec![at.join("d")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let bytes = fs::read(&entry).unwrap();
            assert!(!bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes()), "{}", entry.display());
            seen += 1;
        }
    }
    assert!(seen > 0, "there are files to look at");
}

#[test]
fn a_page_over_tls_is_asked_by_its_name() {
    let dir = folder();
    let at = dir.path();
    let mut running = start(
        at,
        &words(&[
            "--web",
            "127.0.0.1:0",
            "--http-tokens",
            "tokens",
            "--http-tls-cert",
            "cert.pem",
            "--http-tls-key",
            "key.pem",
        ]),
        "",
    );
    let address = page(&mut running, "https");
    let port = address.rsplit(':').next().unwrap();
    let url = format!("https://localhost:{port}");
    let status = |more: &[&str]| run(at, &[&["status", "--web", &url, "--token-file", "viewer"], more].concat(), "");
    status(&["--web-ca", "cert.pem"]).code(0).prints(&["program p: running"]);
    // A certificate that nobody vouches for is none.
    status(&[]).code(1).says(&["no program answers at https://localhost", "certificate"]);
    let without = run(at, &["status", "--web", &url, "--web-ca", "cert.pem"], "");
    without.code(1).says(&["asks for a token"]);
    assert!(!ask(&address, "GET", "/livez", "").starts_with("HTTP/1.1 200"), "nothing is told in clear");
    end(running).code(0);
}
