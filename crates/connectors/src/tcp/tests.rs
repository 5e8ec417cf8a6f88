//! Real sockets on the loopback.

use super::*;
use crate::{backoff::Backoff, contract::Recorder};
use std::net::SocketAddr;
use tidemill_core::{Input, Options, Receiver, StopHandle};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
}

fn start(receiver: impl Receiver + 'static) -> Running {
    let (stop, stopped) = StopHandle::new();
    let intake = Arc::new(Recorder::default());
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let task = tokio::spawn(async move { receiver.run(given, stopped).await });
    Running { intake, stop, task }
}

impl Running {
    async fn end(self) -> Result<()> {
        self.stop.stop();
        self.task.await.unwrap()
    }

    /// Where a listener listens.
    async fn address(&self) -> SocketAddr {
        let heard = self.intake.until(|h| h.states.iter().any(|s| s.starts_with("listening on "))).await;
        let state = heard.states.iter().find_map(|s| s.strip_prefix("listening on ")).unwrap();
        state.split(',').next().unwrap().parse().unwrap()
    }
}

fn client(address: SocketAddr) -> TcpClient {
    let quick = Backoff::between(Duration::from_millis(1), Duration::from_millis(5), 1);
    TcpClient::new(address.to_string(), 1).backoff(quick)
}

#[tokio::test]
async fn a_client_reads_lines_and_reconnects() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = start(client(server.local_addr().unwrap()));
    let (mut peer, _) = server.accept().await.unwrap();
    peer.write_all(b"one\r\ntw").await.unwrap();
    running.intake.until(|h| h.records.len() == 1).await;
    peer.write_all(b"o\nlast without end").await.unwrap();
    drop(peer);
    let (mut peer, _) = server.accept().await.unwrap();
    peer.write_all(b"three\n").await.unwrap();
    let heard = running.intake.until(|h| h.records.len() == 4).await;
    assert_eq!(heard.records, [b"one".as_slice(), b"two", b"last without end", b"three"]);
    let reconnects = heard.states.iter().filter(|s| s.starts_with("reconnecting in ")).count();
    assert!(reconnects >= 1, "{:?}", heard.states);
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_client_keeps_trying_until_there_is_a_server() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    drop(server);
    let running = start(client(address));
    let refused = |s: &String| s.contains("refused");
    running.intake.until(|h| h.states.iter().filter(|s| refused(s)).count() >= 3).await;
    let server = TcpListener::bind(address).await.unwrap();
    let (mut peer, _) = server.accept().await.unwrap();
    peer.write_all(b"at last\n").await.unwrap();
    running.intake.until(|h| h.records == [b"at last"]).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn what_a_reset_breaks_off_is_a_dead_letter() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = start(client(server.local_addr().unwrap()));
    let (mut peer, _) = server.accept().await.unwrap();
    peer.write_all(b"whole\nhal").await.unwrap();
    running.intake.until(|h| h.records.len() == 1).await;
    // Closing at once, with zero linger, resets the connection.
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    let heard = running.intake.until(|h| !h.refused.is_empty()).await;
    assert_eq!(heard.refused, [("the connection broke in the middle of this line".to_string(), b"hal".to_vec())]);
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_client_may_end_with_its_server() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = start(client(server.local_addr().unwrap()).on_close(OnClose::End));
    let (mut peer, _) = server.accept().await.unwrap();
    peer.write_all(b"a\nb").await.unwrap();
    drop(peer);
    running.task.await.unwrap().unwrap();
    assert_eq!(running.intake.heard().records, [b"a", b"b"]);
}

#[tokio::test]
async fn a_line_over_the_bound_is_refused_and_the_next_is_delivered() {
    let running = start(TcpListen::new("127.0.0.1:0"));
    let mut peer = TcpStream::connect(running.address().await).await.unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..8 {
        peer.write_all(&piece).await.unwrap();
    }
    peer.write_all(b"\ngood\n").await.unwrap();
    let heard = running.intake.until(|h| !h.records.is_empty()).await;
    assert_eq!(heard.records, [b"good"]);
    let heard = running.intake.until(|h| !h.refused.is_empty()).await;
    assert!(heard.refused[0].0.contains("a line of 8388608 bytes"), "{}", heard.refused[0].0);
    assert_eq!(heard.refused[0].1.len(), crate::lines::HEAD);
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_listener_serves_many_and_keeps_each_ones_order() {
    let running = start(TcpListen::new("127.0.0.1:0"));
    let address = running.address().await;
    let senders = (0..20).map(|sender| async move {
        let mut peer = TcpStream::connect(address).await.unwrap();
        for i in 0..500 {
            peer.write_all(format!("{sender} {i}\n").as_bytes()).await.unwrap();
        }
    });
    futures::future::join_all(senders).await;
    let heard = running.intake.until(|h| h.records.len() == 10_000).await;
    let mut next = [0; 20];
    for record in &heard.records {
        let (sender, i) = std::str::from_utf8(record).unwrap().split_once(' ').unwrap();
        let sender: usize = sender.parse().unwrap();
        assert_eq!(i.parse::<i32>().unwrap(), next[sender]);
        next[sender] += 1;
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn more_than_the_most_connections_wait_for_a_place() {
    let running = start(TcpListen::new("127.0.0.1:0").max_connections(1));
    let address = running.address().await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"first\n").await.unwrap();
    running.intake.until(|h| h.records.len() == 1).await;
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(b"second\n").await.unwrap();
    // The first is served still, and was not overtaken.
    first.write_all(b"first again\n").await.unwrap();
    running.intake.until(|h| h.records.len() == 2).await;
    drop(first);
    let heard = running.intake.until(|h| h.records.len() == 3).await;
    assert_eq!(heard.records, [b"first".as_slice(), b"first again", b"second"]);
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_an_error_for_a_human() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = start(TcpListen::new(&address)).task.await.unwrap().unwrap_err();
    assert!(!error.is_retryable() && error.chain().contains(&address), "{}", error.chain());
    assert!(error.chain().contains("in use"), "{}", error.chain());
}

#[tokio::test]
async fn stopping_says_what_was_cut_off() {
    let running = start(TcpListen::new("127.0.0.1:0"));
    let mut peer = TcpStream::connect(running.address().await).await.unwrap();
    peer.write_all(b"whole\nbegun").await.unwrap();
    let intake = Arc::clone(&running.intake);
    intake.until(|h| h.records.len() == 1).await;
    running.end().await.unwrap();
    assert_eq!(intake.heard().refused[0].1, b"begun");
}

#[test]
fn options_give_one_receiver_for_each_connection() {
    let open = |pairs: &[(&str, &str)]| TcpClient::input(&Options::new("stream \"s\"", pairs.iter().copied()));
    let describe = |input: Input| match input {
        Input::Receivers(all) => all.iter().map(|r| r.describe()).collect::<Vec<_>>(),
        Input::Source(_) => panic!("receivers"),
    };
    assert_eq!(describe(open(&[("address", "a:1, b:2")]).unwrap()), ["tcp a:1", "tcp b:2"]);
    let three = describe(open(&[("address", "a:1,b:2"), ("receivers", "3")]).unwrap());
    assert_eq!(three, ["tcp a:1", "tcp b:2", "tcp a:1"]);
    for bad in [
        vec![],
        vec![("address", "nowhere")],
        vec![("address", "a:1,b:2"), ("receivers", "1")],
        vec![("address", "a:1"), ("on_close", "cry")],
    ] {
        assert!(open(&bad).is_err(), "{bad:?}");
    }
}
