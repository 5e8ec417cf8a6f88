//! The proxy itself; and in [`mod@receivers`], [`mod@listeners`] and [`mod@sources`] connectors that are checked with it.
//!
//! The others have their tests beside them. Which fault each connector meets, and
//! in which test, is told in `docs/connector-faults.md`.

mod listeners;
mod receivers;
mod servers;
mod sources;

use super::*;
use std::{io::ErrorKind, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A way to a server of this test, and the next connection on both its ends.
struct Pair {
    proxy: FaultProxy,
    server: TcpListener,
}

impl Pair {
    async fn new() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { proxy: FaultProxy::to(server.local_addr().unwrap()), server }
    }

    async fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.proxy.address()).await.unwrap();
        (client, self.server.accept().await.unwrap().0)
    }
}

async fn says(from: &mut TcpStream, text: &[u8], to: &mut TcpStream) {
    from.write_all(text).await.unwrap();
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).await.unwrap();
    assert_eq!(got, text);
}

async fn rest(of: &mut TcpStream) -> Result<Vec<u8>, ErrorKind> {
    let mut rest = Vec::new();
    of.read_to_end(&mut rest).await.map(|_| rest).map_err(|error| error.kind())
}

#[tokio::test]
async fn bytes_pass_both_ways_and_so_does_an_end() {
    let pair = Pair::new().await;
    let (mut client, mut server) = pair.connect().await;
    says(&mut client, b"question", &mut server).await;
    says(&mut server, b"answer", &mut client).await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await.unwrap(), b"");
    // Half of it is closed, and the other half is not.
    says(&mut server, b"late", &mut client).await;
    let landed = pair.proxy.landed();
    assert_eq!((landed.connections, landed.open, landed.asked, landed.answered), (1, 1, 8, 10));
}

#[tokio::test]
async fn traps_snap_one_after_another_where_they_were_set() {
    let pair = Pair::new().await;
    pair.proxy.arm(When::AskedBytes(3), Fault::Close);
    pair.proxy.arm(When::Answered(1), Fault::Reset);
    pair.proxy.arm(When::Asked(1), Fault::Garbage(b"????".to_vec()));
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"question").await.unwrap();
    assert_eq!(rest(&mut server).await.unwrap(), b"que");
    // It is counted anew: the first answer passes, the second does not, in how many pieces it ever comes.
    let (mut client, mut server) = pair.connect().await;
    for piece in [b"a", b"b"] {
        says(&mut client, piece, &mut server).await;
    }
    says(&mut server, b"first", &mut client).await;
    says(&mut server, b" still", &mut client).await;
    says(&mut client, b"c", &mut server).await;
    server.write_all(b"second").await.unwrap();
    assert_eq!(rest(&mut client).await, Err(ErrorKind::ConnectionReset));
    let (mut client, mut server) = pair.connect().await;
    says(&mut client, b"d", &mut server).await;
    says(&mut server, b"well", &mut client).await;
    client.write_all(b"e").await.unwrap();
    let mut got = [0; 4];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"????");
    assert_eq!((pair.proxy.landed().faults, pair.proxy.disarm()), (3, 0));
}

#[tokio::test]
async fn a_half_open_connection_swallows_and_one_that_is_lost_does_not_end() {
    let hands = Hands::on_tokio();
    let pair = Pair::new().await;
    let (mut mute, mut of_mute) = pair.connect().await;
    says(&mut mute, b"a", &mut of_mute).await;
    pair.proxy.all(Fault::Mute);
    // An order is heard before what comes later.
    hands.pass(Duration::ZERO).await;
    of_mute.write_all(b"unheard").await.unwrap();
    says(&mut mute, b"heard", &mut of_mute).await;
    hands.until(Duration::ZERO, "it is swallowed", || pair.proxy.landed().swallowed == 7).await;
    drop(mute);
    assert_eq!(rest(&mut of_mute).await.unwrap(), b"");
    let (mut client, mut server) = pair.connect().await;
    says(&mut client, b"a", &mut server).await;
    pair.proxy.all(Fault::Lost);
    hands.pass(Duration::ZERO).await;
    drop(client);
    let gone = tokio::time::timeout(Duration::from_secs(3600), rest(&mut server));
    hands.during("an hour", || Duration::from_secs(600), gone).await.expect_err("it does not learn that");
}

#[tokio::test]
async fn who_is_away_refuses_at_a_port_that_stays_its_own() {
    let pair = Pair::new().await;
    let (mut client, _server) = pair.connect().await;
    for _ in 0..3 {
        pair.proxy.go_away().await;
        assert!(matches!(rest(&mut client).await.as_deref(), Ok([]) | Err(ErrorKind::ConnectionReset)));
        let refused = TcpStream::connect(pair.proxy.address()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() != pair.proxy.address());
        pair.proxy.come_back();
        let mut server;
        (client, server) = pair.connect().await;
        says(&mut client, b"back", &mut server).await;
    }
    assert_eq!(pair.proxy.landed().open, 1);
}

#[tokio::test]
async fn a_side_that_does_not_read_slows_the_other_down() {
    let hands = Hands::on_tokio();
    let pair = Pair::new().await;
    let (mut client, mut server) = pair.connect().await;
    pair.proxy.all(Fault::Crumbs(1000));
    let sending = tokio::spawn(async move {
        let block = vec![7; 1 << 20];
        for _ in 0..64 {
            client.write_all(&block).await.unwrap();
        }
        client
    });
    // Buffers fill up, and then nothing moves.
    let mut before = 0;
    hands
        .until(Duration::ZERO, "nothing moves", || {
            let now = pair.proxy.landed().asked;
            now > 0 && std::mem::replace(&mut before, now) == now
        })
        .await;
    assert!(!sending.is_finished() && pair.proxy.landed().asked < 48 << 20);
    let mut left = vec![0; 64 << 20];
    server.read_exact(&mut left).await.unwrap();
    sending.await.unwrap();
}
