//! Servers that are away for a while, that are none, and that do not let us in.
//!
//! The server of the tests is reached through a way that can be cut: it is one node, and a driver keeps to the
//! address under which it found that.

use super::*;
use tidemill_core::{Blame, Error};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// The way to the server.
struct Way(JoinHandle<()>);

impl Way {
    /// At an address, or at any; gives that too.
    async fn open(server: &str, at: Option<&str>) -> (Self, String) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(at.unwrap_or("127.0.0.1:0").parse().unwrap()).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = server.to_string();
        let task = tokio::spawn(async move {
            let mut ways = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let server = server.clone();
                ways.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        // However it ends: the client sees a connection that is gone.
                        let _ended = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        (Self(task), address)
    }

    /// Nobody comes through any more, and whoever was connected is not.
    async fn cut(self) {
        self.0.abort();
        let _aborted = self.0.await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_gone_on_with() {
    let Some(server) = server().await else { return };
    let (way, through) = Way::open(&server, None).await;
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&through, "away", &[("key", "n")], dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    sink.recover(None).await.unwrap();
    let one = stage(&*sink, 1, 0, vec![rows([1])]).await.unwrap();
    sink.commit(BatchId(1), &[one]).await.unwrap();
    let two = stage(&*sink, 2, 0, vec![rows([2, 3])]).await.unwrap();
    way.cut().await;
    let error = sink.commit(BatchId(2), std::slice::from_ref(&two)).await.unwrap_err();
    assert!(error.is_retryable() && error.blame() == Blame::External, "{}", error.chain());
    assert!(error.to_string().contains(&through), "{error}");
    let (way, _) = Way::open(&server, Some(&through)).await;
    // As the engine does, which waits between; the driver looks for nodes that are back by itself.
    let back = async {
        while let Err(error) = sink.commit(BatchId(2), std::slice::from_ref(&two)).await {
            assert!(error.is_retryable(), "{}", error.chain());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), back).await.expect("it heals");
    let seen = probe::rows(&server, &format!("SELECT word FROM {}.away", keyspace())).await;
    assert_eq!(seen, ["word-1", "word-2", "word-3"]);
    way.cut().await;
}

/// What `open` says of a server.
async fn refused(server: &str, table: &str, options: &[(&str, &str)]) -> Error {
    let dir = tempfile::tempdir().unwrap();
    sink(server, table, options, dir.path()).open(rows([]).schema()).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_taken_or_refused_in_words() {
    let Some(server) = server().await else { return };
    // Any variable that holds something else.
    let secret = std::env::var("HOME").unwrap();
    let wrong = refused(&server, "t", &[("password_env", "HOME")]).await;
    assert!(wrong.to_string().contains("check option `user` and the password"), "{}", wrong.chain());
    assert!(!wrong.is_retryable() && !wrong.chain().contains(&secret), "{}", wrong.chain());
    let unset = refused(&server, "t", &[("password_env", "TIDEMILL_NEVER_SET")]).await;
    assert!(unset.to_string().contains("TIDEMILL_NEVER_SET") && !unset.is_retryable(), "{}", unset.chain());
    // A role that may come in, and do nothing.
    let (ks, role) = (keyspace(), format!("guest_{}", keyspace()));
    let password = std::env::var(probe::PASSWORD).unwrap();
    let made = [
        format!("CREATE ROLE {role} WITH PASSWORD = '{password}' AND LOGIN = true"),
        format!("CREATE TABLE {ks}.closed (n bigint PRIMARY KEY, word text)"),
    ];
    probe::run(&server, &made.each_ref().map(String::as_str)).await;
    let closed = refused(&server, "closed", &[("user", &role)]).await;
    assert!(closed.to_string().contains("the role of option `user` may not"), "{}", closed.chain());
    assert!(!closed.is_retryable());
}

#[tokio::test]
async fn a_server_that_asks_for_a_role_is_told() {
    let Some(server) = server().await else { return };
    let options = Options::new("sink", [("hosts", server.as_str()), ("keyspace", keyspace()), ("table", "t")]);
    let sink = CassandraSink::from_options(&options).unwrap();
    let error = sink.open(rows([]).schema()).await.unwrap_err();
    assert!(error.to_string().contains("name it in option `user`") && !error.is_retryable(), "{}", error.chain());
}

/// A server that answers each connection's first bytes with these, and then nothing or the end.
async fn saying(answer: &'static [u8], ends: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            // What it hears does not matter.
            let _heard = stream.read(&mut [0; 512]).await;
            let _said = stream.write_all(answer).await;
            if !ends {
                held.push(stream);
            }
        }
    });
    address
}

#[tokio::test]
async fn a_server_that_is_none_is_an_error_and_nothing_hangs() {
    let options = [("user", "u"), ("password_env", "HOME")];
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let away = refused(&free, "t", &options).await;
    assert!(away.is_retryable() && away.to_string().contains("can't reach the cluster"), "{}", away.chain());
    for (answer, ends) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], true),
        // A frame of version 4 with an answer that is none.
        (&b"\x84\x00\x00\x00\x06\x00\x00\x00\x04\xff\xff\xff\xff"[..], false),
        // One that says it has two gigabytes.
        (&b"\x84\x00\x00\x00\x06\x7f\xff\xff\xff"[..], true),
        (&b""[..], true),
    ] {
        let nonsense = refused(&saying(answer, ends).await, "t", &options).await;
        assert!(nonsense.is_retryable() && nonsense.to_string().contains("can't reach"), "{}", nonsense.chain());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_is_given_up() {
    let silent = saying(b"", false).await;
    let error = refused(&silent, "t", &[("user", "u"), ("password_env", "HOME")]).await;
    assert!(error.is_retryable() && error.to_string().contains("can't reach the cluster"), "{}", error.chain());
}
