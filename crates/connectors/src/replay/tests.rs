//! Clients over real sockets; the clock of those that are paced is tokio's and moved.

use super::*;
use std::collections::BTreeSet;
use tidemill_core::StopHandle;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};

fn lines(count: usize) -> Recording {
    recording((0..count).map(|i| Bytes::from(format!("{i}"))).collect())
}

async fn start(recording: Recording, replay: Replay) -> (SocketAddr, StopHandle, Arc<Sent>) {
    let server = ReplayServer::bind("127.0.0.1:0", recording, replay).await.unwrap();
    let (address, sent) = (server.address().unwrap(), server.sent());
    let (stop, stopped) = StopHandle::new();
    tokio::spawn(server.run(stopped));
    (address, stop, sent)
}

async fn connect(address: SocketAddr) -> Lines<BufReader<TcpStream>> {
    BufReader::new(TcpStream::connect(address).await.unwrap()).lines()
}

async fn all(mut client: Lines<BufReader<TcpStream>>) -> Vec<usize> {
    let mut got = Vec::new();
    while let Some(line) = client.next_line().await.unwrap() {
        got.push(line.parse().unwrap());
    }
    got
}

#[tokio::test]
async fn each_client_gets_all_lines_and_a_slow_one_slows_nobody() {
    let (address, _stop, sent) = start(lines(200_000), Replay::default()).await;
    // It connects and never reads; its buffers fill up.
    let slow = connect(address).await;
    let (a, b) = tokio::join!(all(connect(address).await), all(connect(address).await));
    assert_eq!(a, (0..200_000).collect::<Vec<_>>());
    assert_eq!(a, b);
    assert!(sent.lines.load(Ordering::Relaxed) >= 400_000);
    assert_eq!(all(slow).await.len(), 200_000);
}

#[tokio::test]
async fn a_split_stream_goes_to_one_client_each() {
    let replay = Replay { share: Share::Split { wait_for: 3 }, ..Replay::default() };
    let (address, _stop, _) = start(lines(100_000), replay).await;
    let clients = (0..3).map(|_| async { all(connect(address).await).await });
    let got = futures::future::join_all(clients).await;
    assert!(got.iter().all(|lines| !lines.is_empty() && lines.is_sorted()), "all take turns");
    let together: BTreeSet<usize> = got.iter().flatten().copied().collect();
    assert_eq!((together.len(), got.iter().map(Vec::len).sum::<usize>()), (100_000, 100_000));
}

#[tokio::test]
async fn a_split_stream_that_is_paced_goes_around() {
    let replay = Replay { share: Share::Split { wait_for: 2 }, pace: Pace::Rate(2000.0), ..Replay::default() };
    let (address, _stop, _) = start(lines(200), replay).await;
    let (a, b) = tokio::join!(async { all(connect(address).await).await }, async { all(connect(address).await).await });
    assert_eq!(a.len() + b.len(), 200);
    assert!(a.len() > 20 && b.len() > 20, "{} and {}", a.len(), b.len());
}

#[tokio::test]
async fn a_repeated_recording_begins_again() {
    let (address, _stop, _) = start(lines(3), Replay { repeat: true, ..Replay::default() }).await;
    let mut client = connect(address).await;
    for i in 0..10 {
        assert_eq!(client.next_line().await.unwrap().unwrap(), (i % 3).to_string());
    }
}

#[tokio::test]
async fn stopping_hangs_up() {
    let replay = Replay { pace: Pace::Rate(0.001), ..Replay::default() };
    let (address, stop, _) = start(lines(3), replay).await;
    let mut client = connect(address).await;
    assert_eq!(client.next_line().await.unwrap().unwrap(), "0");
    stop.stop();
    // The connection is closed, in order or not.
    assert!(!matches!(client.next_line().await, Ok(Some(_))));
}

#[tokio::test]
async fn an_empty_recording_ends_at_once_also_repeated() {
    for repeat in [false, true] {
        let (address, _stop, _) = start(lines(0), Replay { repeat, ..Replay::default() }).await;
        assert_eq!(all(connect(address).await).await, [0; 0]);
    }
}

/// When each line is due, in milliseconds.
fn due(lines: &[&'static str], pace: Pace, repeat: bool, count: usize) -> Vec<u128> {
    let recording = recording(lines.iter().map(|l| Bytes::from_static(l.as_bytes())).collect());
    let mut cursor = Cursor::new(&recording, &Replay { pace, repeat, ..Replay::default() });
    (0..count).map_while(|_| cursor.take().now_or_never().unwrap().unwrap()).map(|(_, due)| due.as_millis()).collect()
}

#[test]
fn paces_say_when_a_line_is_due() {
    assert_eq!(due(&["a", "b", "c"], Pace::Rate(100.0), true, 5), [0, 10, 20, 30, 40]);
    assert_eq!(due(&["a", "b"], Pace::Unbounded, false, 5), [0, 0]);
    let time_of: TimeOf = Arc::new(|line| {
        let text = std::str::from_utf8(line).ok()?;
        text.parse().ok().map(Timestamp::from_millis)
    });
    // Twice as fast; without a time: with the line before; back in time: at once; a new round goes on.
    let speed = Pace::Speed(2.0, time_of);
    assert_eq!(due(&["1000", "1100", "x", "1050", "1200"], speed, true, 7), [0, 50, 50, 50, 100, 100, 150]);
}

#[tokio::test(start_paused = true)]
async fn what_is_due_is_sent_together_and_what_is_not_waits() {
    let mut cursor = Cursor::new(&lines(1000), &Replay { pace: Pace::Rate(1000.0), ..Replay::default() });
    let mut buffer = Vec::new();
    let started = Instant::now();
    assert_eq!(cursor.fill(&mut buffer).await.unwrap(), 1);
    assert_eq!(cursor.fill(&mut buffer).await.unwrap(), 1);
    assert_eq!(started.elapsed(), Duration::from_millis(1));
    tokio::time::advance(Duration::from_millis(99)).await;
    assert_eq!(cursor.fill(&mut buffer).await.unwrap(), 99);
    assert_eq!(started.elapsed(), Duration::from_millis(100));
}

#[tokio::test]
async fn wrong_paces_and_taken_ports_are_errors() {
    for pace in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let replay = Replay { pace: Pace::Rate(pace), ..Replay::default() };
        assert!(ReplayServer::bind("127.0.0.1:0", lines(1), replay).await.is_err());
    }
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = ReplayServer::bind(&address, lines(1), Replay::default()).await.unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn a_recording_that_breaks_off_gives_what_is_before_and_ends_the_replay_with_its_error() {
    for share in [Share::Each, Share::Split { wait_for: 1 }] {
        let broken: Recording = Arc::new(|| {
            let line = |n: u64| {
                if n == 700 { Err(Error::user("line 700 is damaged")) } else { Ok(Bytes::from(format!("{n}")).into()) }
            };
            stream::iter((0..1000).map(line)).boxed()
        });
        let server = ReplayServer::bind("127.0.0.1:0", broken, Replay { share, ..Replay::default() }).await.unwrap();
        let (address, (_stop, stopped)) = (server.address().unwrap(), StopHandle::new());
        let (got, ended) = tokio::join!(async { all(connect(address).await).await }, server.run(stopped));
        assert_eq!(got, (0..700).collect::<Vec<_>>(), "{share:?}");
        assert_eq!(ended.unwrap_err().to_string(), "line 700 is damaged");
    }
}
