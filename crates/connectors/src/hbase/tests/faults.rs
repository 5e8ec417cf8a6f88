//! Gateways with faults on the way to them, that are away for a while, that are none, and that let nobody in.
//!
//! Invariant: where a wait is tried, tokio's clock stands still but for the suite. Run by `cargo test`.

use super::*;
use crate::faults::{FaultProxy, Hands, Shelf, check_sink_faults, nonsense};
use async_trait::async_trait;
use std::{net::SocketAddr, sync::Mutex};
use tidemill_core::{Blame, Error};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

fn address(server: &str) -> SocketAddr {
    server.trim_start_matches("http://").parse().unwrap()
}

struct Numbers {
    server: String,
    table: String,
    dir: tempfile::TempDir,
    hands: Hands,
}

#[async_trait]
impl Shelf for Numbers {
    fn address(&self) -> SocketAddr {
        address(&self.server)
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        // Two requests of rows a batch.
        sink(
            &format!("http://{at}"),
            &self.table,
            &[("key", "n"), ("max_rows", "2"), ("requests", "1")],
            self.dir.path(),
        )
    }
    async fn seen(&self) -> Vec<i64> {
        let cells = probe::cells(&self.server, &self.table).await;
        cells.into_iter().map(|cell| String::from_utf8(cell.key).unwrap().parse().unwrap()).collect()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn a_table_has_each_row_once_whatever_is_lost_on_the_way() {
    let Some(server) = probe::server() else { return };
    let table = table("faulty");
    probe::make(&server, &table, &["d"]).await;
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::on_tokio());
    check_sink_faults(&Numbers { server, table, dir, hands }).await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_gone_on_with() {
    let Some(server) = probe::server() else { return };
    let (dir, table) = (tempfile::tempdir().unwrap(), table("away"));
    let proxy = FaultProxy::to(address(&server));
    let through = format!("http://{}", proxy.address());
    let sink = sink(&through, &table, &[], dir.path());
    sink.open(pairs(&[]).schema()).await.unwrap();
    write(&*sink, 1, 1000, pairs(&[("a", Some(1)), ("b", Some(1))])).await;
    let two = stream::iter([Ok(pairs(&[("a", None), ("c", Some(2))]))]).boxed();
    let two = sink.stage(BatchId(2), Timestamp::from_millis(2000), 0, two).await.unwrap().unwrap();
    proxy.go_away().await;
    let error = sink.commit(BatchId(2), std::slice::from_ref(&two)).await.unwrap_err();
    assert!(error.is_retryable() && error.blame() == Blame::External, "{}", error.chain());
    assert!(error.to_string().contains(&through), "{error}");
    proxy.come_back();
    sink.commit(BatchId(2), &[two]).await.unwrap();
    assert_eq!(probe::lines(&server, &table).await, ["b d:n=1@1000", "c d:n=2@2000"]);
}

/// What requests are answered by, by their first line and headers.
type Say = fn(&str) -> Vec<u8>;

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A server that answers so, and keeps what it heard.
async fn saying(say: Say) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut head, mut piece) = (Vec::new(), [0; 4096]);
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut piece).await {
                    Ok(count) if count > 0 => head.extend_from_slice(&piece[..count]),
                    _ => break,
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let _said = stream.write_all(&say(&head)).await;
            asked.lock().unwrap().push(head);
        }
    });
    (url, heard)
}

/// What `open` says of a server.
async fn refused(url: &str, options: &[(&str, &str)]) -> Error {
    let dir = tempfile::tempdir().unwrap();
    sink(url, "t", options, dir.path()).open(pairs(&[]).schema()).await.unwrap_err()
}

#[tokio::test]
async fn a_server_that_is_none_is_an_error_and_nothing_hangs() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = refused(&format!("http://{free}"), &[]).await;
    assert!(away.is_retryable() && away.to_string().contains("can't look at table `t`"), "{}", away.chain());
    let passing: [Say; 4] = [
        |_| nonsense(),
        |_| Vec::new(),
        |_| {
            answer(
                "503 Service Unavailable",
                "Unavailable\r\norg.apache.hadoop.hbase.RegionTooBusyException: x\n\tat y",
            )
        },
        |_| b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"name\"".to_vec(),
    ];
    for say in passing {
        let error = refused(&saying(say).await.0, &[]).await;
        assert!(error.is_retryable() && error.blame() == Blame::External, "{}", error.chain());
        assert!(!error.to_string().contains("\tat y"), "{error}");
    }
    let lasting: [(Say, &str); 6] = [
        (|_| answer("200 OK", "<html>Welcome</html>"), "no REST gateway of HBase"),
        (|_| answer("200 OK", r#"{"ColumnSchema":7}"#), "no REST gateway of HBase"),
        (|_| answer("404 Not Found", "<html>nothing here</html>"), "Check option `url`"),
        (|_| answer("302 Found", ""), "set option `url`"),
        (|_| answer("401 Unauthorized", ""), "see options `user`"),
        (|_| answer("403 Forbidden", ""), "`-ro`"),
    ];
    for (say, want) in lasting {
        let error = refused(&saying(say).await.0, &[]).await;
        assert!(error.to_string().contains(want) && !error.is_retryable(), "{}", error.chain());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = refused(&format!("http://{}", listener.local_addr().unwrap()), &[]).await;
    assert!(error.is_retryable() && error.to_string().contains("no answer within"), "{}", error.chain());
}

#[tokio::test]
async fn a_password_is_sent_and_not_shown() {
    let (url, heard) = saying(|_| answer("401 Unauthorized", "who are you?")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\n").unwrap();
    let path = file.path().display().to_string();
    let error = refused(&url, &[("user", "tide"), ("password_file", &path)]).await;
    assert!(!error.is_retryable() && !error.chain().contains("hunter2"), "{}", error.chain());
    let heard = heard.lock().unwrap().concat();
    // tide:hunter2
    assert!(heard.contains("authorization: Basic dGlkZTpodW50ZXIy\r\n"), "{heard}");
    let unset = refused(&url, &[("user", "tide"), ("password_env", "TIDEMILL_NEVER_SET")]).await;
    assert!(unset.to_string().contains("TIDEMILL_NEVER_SET") && !unset.is_retryable(), "{}", unset.chain());
}

/// A gateway of HBase before 2.6, as far as this goes: a row's key is what stands in the path.
fn old(head: &str) -> Vec<u8> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    match path {
        "/t/schema" => answer("200 OK", r#"{"name":"t","ColumnSchema":[{"name":"d"}]}"#),
        "/tidemill_batches/schema" => answer("200 OK", r#"{"name":"tidemill_batches","ColumnSchema":[{"name":"b"}]}"#),
        path if path.starts_with("/tidemill_batches/*?startrow=t:d") => answer("200 OK", r#"{"Row":[]}"#),
        _ => answer("404 Not Found", "Not found\r\n"),
    }
}

#[tokio::test]
async fn a_gateway_that_would_erase_other_rows_is_refused_at_the_start() {
    let (url, _) = saying(old).await;
    let error = refused(&url, &[]).await;
    assert!(error.to_string().contains("set option `nulls` to leave") && !error.is_retryable(), "{}", error.chain());
    // Where nothing is to be erased, it is as good as another.
    let dir = tempfile::tempdir().unwrap();
    sink(&url, "t", &[("nulls", "leave")], dir.path()).open(pairs(&[]).schema()).await.unwrap();
    sink(&url, "t", &[], dir.path()).open(rows([]).schema()).await.unwrap();
}
