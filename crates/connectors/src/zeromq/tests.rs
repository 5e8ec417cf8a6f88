//! Messages of peers that the test plays byte by byte, and of libzmq (`TIDEMILL_ZEROMQ`).

use super::*;
use crate::contract::{Behind, Heard, Recorder};
use std::sync::atomic::{AtomicUsize, Ordering};
use tidemill_core::StopHandle;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

fn socket(address: &str, options: &[(&str, &str)]) -> ZeroMq {
    let address = format!("tcp://{address}");
    let mut all = vec![("address", address.as_str())];
    all.extend(options);
    let options = Options::new("stream \"s\"", all);
    let mut socket = ZeroMq::from_options(&options).unwrap();
    options.finish().unwrap();
    socket.backoff = Backoff::between(Duration::from_millis(1), Duration::from_millis(5), 7);
    socket
}

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
}

fn start(socket: ZeroMq) -> Running {
    let intake = Recorder::resuming(None);
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { socket.run(given, stopped).await });
    Running { intake, stop, task }
}

impl Running {
    async fn end(self) -> Heard {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
        self.intake.heard()
    }
}

fn words(heard: &Heard) -> Vec<String> {
    heard.records.iter().map(|record| String::from_utf8_lossy(record).into_owned()).collect()
}

fn says<'a>(what: &'a str) -> impl Fn(&Heard) -> bool + 'a {
    move |heard| heard.states.iter().any(|state| state.contains(what))
}

/// A message, as a peer sends it.
fn frames(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let more = u8::from(at + 1 < parts.len());
        if let Ok(short) = u8::try_from(part.len()) {
            out.extend([more, short]);
        } else {
            out.push(2 | more);
            out.extend((part.len() as u64).to_be_bytes());
        }
        out.extend(*part);
    }
    out
}

/// Greets as a peer of this kind; what was subscribed to, of so many topics.
async fn peer(stream: &mut TcpStream, kind: &str, topics: usize) -> Vec<Vec<u8>> {
    let mut greeting = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1];
    greeting.extend(b"NULL");
    greeting.resize(64, 0);
    stream.write_all(&greeting).await.unwrap();
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!((greeting[0], greeting[10], &greeting[12..16]), (0xff, 3, &b"NULL"[..]));
    let mut ready = b"\x05READY\x08Identity\0\0\0\0\x0bSocket-Type\0\0\0".to_vec();
    ready.push(u8::try_from(kind.len()).unwrap());
    ready.extend(kind.as_bytes());
    stream.write_all(&[4, u8::try_from(ready.len()).unwrap()]).await.unwrap();
    stream.write_all(&ready).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 4);
    let mut theirs = vec![0; usize::from(stream.read_u8().await.unwrap())];
    stream.read_exact(&mut theirs).await.unwrap();
    assert!(theirs.starts_with(b"\x05READY\x0bSocket-Type"));
    let mut asked = Vec::new();
    for _ in 0..topics {
        assert_eq!(stream.read_u8().await.unwrap(), 2);
        let mut topic = vec![0; usize::try_from(stream.read_u64().await.unwrap()).unwrap()];
        stream.read_exact(&mut topic).await.unwrap();
        assert_eq!(topic.remove(0), 1);
        asked.push(topic);
    }
    asked
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn messages_of_any_frames_are_taken_and_long_ones_refused() {
    let (listener, address) = listen().await;
    let large = vec![b'x'; 300];
    for (shape, wanted) in [
        ("last", ["one", "", "b", "{\"n\":1}"].map(str::to_string)),
        (
            "message",
            [
                "{\"frames\":[],\"payload\":\"one\"}",
                "{\"frames\":[],\"payload\":\"\"}",
                "{\"frames\":[\"a\"],\"payload\":\"b\"}",
                "{\"frames\":[\"a\",\"\"],\"payload\":{\"n\":1}}",
            ]
            .map(str::to_string),
        ),
    ] {
        let running = start(socket(&address, &[("socket", "pull"), ("record", shape), ("max_line", "280")]));
        let (mut stream, _) = listener.accept().await.unwrap();
        peer(&mut stream, "PUSH", 0).await;
        let mut bytes = frames(&[b"one"]);
        bytes.extend(frames(&[b""]));
        bytes.extend(frames(&[b"a", b"b"]));
        bytes.extend(frames(&[&large]));
        // A command of a later version.
        bytes.extend(b"\x04\x07\x04PING\x00\x00");
        bytes.extend(frames(&[b"a", b"", b"{\"n\":1}"]));
        stream.write_all(&bytes).await.unwrap();
        let heard = running.intake.until(|heard| heard.records.len() == 4 && heard.refused.len() == 1).await;
        assert_eq!(words(&heard), wanted);
        assert!(heard.refused[0].0.contains("300 bytes, over the bound of 280"), "{:?}", heard.refused);
        assert_eq!(heard.refused[0].1, large);
        running.end().await;
    }
    // With `last` the frames before it do not count, with `message` they do.
    let running = start(socket(&address, &[("socket", "pull"), ("max_line", "280")]));
    let (mut stream, _) = listener.accept().await.unwrap();
    peer(&mut stream, "PUSH", 0).await;
    stream.write_all(&frames(&[&large, &large, b"end"])).await.unwrap();
    stream.write_all(&frames(&[&large[..200], &large[..200]])).await.unwrap();
    let heard = running.intake.until(|heard| heard.records.len() + heard.refused.len() == 2).await;
    assert!(words(&heard)[0] == "end" && heard.records[1] == large[..200] && heard.refused.is_empty());
    running.end().await;
    let running = start(socket(&address, &[("socket", "pull"), ("max_line", "280"), ("record", "message")]));
    let (mut stream, _) = listener.accept().await.unwrap();
    peer(&mut stream, "PUSH", 0).await;
    stream.write_all(&frames(&[&large[..200], &large[..200], b"end"])).await.unwrap();
    let heard = running.intake.until(|heard| heard.refused.len() == 1).await;
    assert!(heard.refused[0].0.contains("403 bytes"), "{:?}", heard.refused);
    assert_eq!(heard.refused[0].1, [&large[..], &large[..100], b"end"].concat());
    running.end().await;
}

#[tokio::test]
async fn a_peer_that_comes_back_is_asked_for_the_topics_again() {
    let (listener, address) = listen().await;
    let running = start(socket(&address, &[("socket", "sub"), ("topics", "a, bc")]));
    for life in 0..3 {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(peer(&mut stream, if life == 1 { "XPUB" } else { "PUB" }, 2).await, [&b"a"[..], b"bc"]);
        stream.write_all(&frames(&[b"a", b"whole"])).await.unwrap();
        // The beginning of another, which is lost with the connection.
        stream.write_all(&frames(&[b"a", b"cut off"])[..6]).await.unwrap();
        running.intake.until(|heard| heard.records.len() == life + 1).await;
    }
    let heard = running.intake.until(says("reconnecting in")).await;
    assert_eq!(words(&heard), ["whole"; 3]);
    // Gone, and back.
    drop(listener);
    running.intake.until(says("refused")).await;
    let listener = TcpListener::bind(&address).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    peer(&mut stream, "PUB", 2).await;
    stream.write_all(&frames(&[b"again"])).await.unwrap();
    running.intake.until(|heard| heard.records.len() == 4).await;
    running.end().await;
    let all = start(socket(&address, &[("socket", "sub")]));
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(peer(&mut stream, "PUB", 1).await, [b""], "all messages");
    all.end().await;
}

#[tokio::test]
async fn nonsense_is_told_and_reserves_nothing() {
    let (listener, address) = listen().await;
    let running = start(socket(&address, &[("socket", "pull"), ("record", "message")]));
    let huge = |flags: u8, length: u64| [&[flags][..], &length.to_be_bytes()].concat();
    let mut many = [1, 0].repeat(1025);
    let mut ends = Vec::new();
    many.extend([0, 0]);
    for (said, wanted) in [
        (huge(2, 1 << 62), "closed the connection in the middle"),
        (huge(2, u64::MAX), "what is no frame"),
        (huge(6, 1 << 40), "a command of 1099511627776 bytes"),
        (vec![8, 0], "what is no frame"),
        (vec![5, 0], "what is no frame"),
        (vec![1, 0, 4, 0], "a command within a message"),
        (many, "over 1024 frames"),
    ] {
        let (mut stream, _) = listener.accept().await.unwrap();
        peer(&mut stream, "PUSH", 0).await;
        stream.write_all(&said).await.unwrap();
        stream.shutdown().await.unwrap();
        ends.push(wanted);
        let told =
            |heard: &Heard| heard.states.iter().filter(|s| s.starts_with("reconnecting")).cloned().collect::<Vec<_>>();
        let heard = running.intake.until(|heard| told(heard).len() == ends.len()).await;
        assert!(told(&heard)[ends.len() - 1].contains(wanted), "{wanted}: {:?}", told(&heard));
    }
    for (said, wanted) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "does not speak ZeroMQ's protocol"),
        ([&b"\xff\0\0\0\0\0\0\0\0\x7f\x01\0"[..], &[0; 52]].concat(), "speaks version 1"),
        ([&b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0CURVE"[..], &[0; 47]].concat(), "asks for the mechanism CURVE"),
        (
            [&b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL"[..], &[0; 48], b"\x04\x09\x05READY\x09So"].concat(),
            "READY is damaged",
        ),
        (
            [&b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL"[..], &[0; 48], b"\x04\x09\x05ERROR\x02no"].concat(),
            "the peer refuses: no",
        ),
        ([&b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL"[..], &[0; 48], b"\0\x01x"].concat(), "before its READY"),
    ] {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&said).await.unwrap();
        stream.shutdown().await.unwrap();
        ends.push(wanted);
        let told =
            |heard: &Heard| heard.states.iter().filter(|s| s.starts_with("reconnecting")).cloned().collect::<Vec<_>>();
        let heard = running.intake.until(|heard| told(heard).len() == ends.len()).await;
        assert!(told(&heard)[ends.len() - 1].contains(wanted), "{wanted}: {:?}", told(&heard));
    }
    let (mut stream, _) = listener.accept().await.unwrap();
    peer(&mut stream, "PUB", 0).await;
    running.intake.until(says("the peer is a PUB socket, and a PULL is for PUSH")).await;
    assert!(running.end().await.records.is_empty());
}

#[tokio::test]
async fn while_the_log_is_behind_a_peer_waits() {
    const ALL: usize = 64 << 20;
    let (listener, address) = listen().await;
    let behind = Behind::new();
    let given: Arc<dyn Intake> = Arc::<Behind>::clone(&behind);
    let (stop, stopped) = StopHandle::new();
    let receiver = socket(&address, &[("socket", "pull")]);
    let task = tokio::spawn(async move { receiver.run(given, stopped).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    peer(&mut stream, "PUSH", 0).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        let message = frames(&[&vec![b'x'; 64 << 10]]);
        while counted.load(Ordering::Relaxed) < ALL {
            stream.write_all(&message).await.unwrap();
            counted.fetch_add(64 << 10, Ordering::Relaxed);
        }
        stream
    });
    behind.entered(1).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!sending.is_finished() && sent.load(Ordering::Relaxed) < ALL / 2, "{sent:?}");
    behind.let_through(usize::MAX >> 8);
    behind.heard.until(|heard| heard.records.len() == ALL / (64 << 10)).await;
    drop(sending.await.unwrap());
    stop.stop();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn peers_that_connect_are_taken_side_by_side() {
    let (listener, address) = listen().await;
    drop(listener);
    let running = start(socket(&address, &[("socket", "pull"), ("bind", "true")]));
    running.intake.until(says("listening on")).await;
    let mut first = TcpStream::connect(&address).await.unwrap();
    peer(&mut first, "PUSH", 0).await;
    let mut second = TcpStream::connect(&address).await.unwrap();
    peer(&mut second, "PUSH", 0).await;
    second.write_all(&frames(&[b"b"])).await.unwrap();
    running.intake.until(|heard| heard.records == [b"b"]).await;
    first.write_all(&frames(&[b"a"])).await.unwrap();
    running.intake.until(|heard| heard.records.len() == 2).await;
    let mut third = TcpStream::connect(&address).await.unwrap();
    peer(&mut third, "PUB", 0).await;
    running.intake.until(says("the peer is a PUB socket")).await;
    running.end().await;
}

/// Messages of libzmq: the server of tests publishes and pushes what its third port is told, line by line.
#[tokio::test]
async fn libzmq_is_understood() {
    let Ok(address) = std::env::var("TIDEMILL_ZEROMQ") else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_ZEROMQ is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_ZEROMQ is not set; ci/services up starts a server");
        return;
    };
    let (host, port) = address.rsplit_once(':').unwrap();
    let port: u16 = port.parse().unwrap();
    let tell = async |line: String| {
        let mut stream = TcpStream::connect(format!("{host}:{}", port + 2)).await.unwrap();
        stream.write_all(line.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "done\n");
    };
    let running = start(socket(&address, &[("socket", "sub"), ("topics", "x, yes"), ("record", "message")]));
    // A PUB knows of a subscription some time after it was sent: until then it drops.
    while running.intake.heard().records.is_empty() {
        tell("pub yes begin\n".to_string()).await;
    }
    let all: String = (0..1000).map(|n| format!("pub {} {n}\n", ["x", "no", "yes", "y"][n % 4])).collect();
    tell(all).await;
    let is_last = |heard: &Heard| heard.records.last().is_some_and(|record| record.ends_with(b"\"payload\":998}"));
    let heard = running.intake.until(is_last).await;
    let of = |n: usize| format!("{{\"frames\":[\"{}\"],\"payload\":{n}}}", ["x", "no", "yes", "y"][n % 4]);
    let wanted: Vec<String> = (0..1000).filter(|n| n % 2 == 0).map(of).collect();
    let begun = words(&heard).len() - wanted.len();
    assert_eq!(words(&heard)[begun..], wanted);
    running.end().await;

    let pull = format!("{host}:{}", port + 1);
    let running = start(socket(&pull, &[("socket", "pull")]));
    let large = "z".repeat(100_000);
    tell((0..500).map(|n| format!("push t {n}\n")).collect()).await;
    tell(format!("push t {large}\n")).await;
    let heard = running.intake.until(|heard| heard.records.len() == 501).await;
    assert_eq!((&words(&heard)[..3], &words(&heard)[500]), (&["0", "1", "2"].map(str::to_string)[..], &large));
    running.end().await;
}

#[test]
fn options_are_checked() {
    let open = |pairs: &[(&str, &str)]| {
        let options = Options::new("stream \"s\"", pairs.iter().copied());
        let opened = ZeroMq::from_options(&options)?;
        options.finish().map(|()| opened)
    };
    let at = ("address", "tcp://127.0.0.1:5556");
    let sub = open(&[at, ("socket", "sub")]).unwrap();
    assert_eq!((sub.describe().as_str(), sub.claim()), ("zeromq SUB of tcp://127.0.0.1:5556", None));
    assert!(open(&[at, ("socket", "pull"), ("bind", "true")]).unwrap().claim().is_some());
    for (pairs, wanted) in [
        (vec![], "option `address` is missing"),
        (vec![("address", "ipc:///tmp/a"), ("socket", "sub")], "is tcp://host:port"),
        (vec![("address", "tcp://*"), ("socket", "sub")], "is tcp://host:port"),
        (vec![at], "option `socket` is missing"),
        (vec![at, ("socket", "req")], "`sub` or `pull`, not `req`"),
        (vec![at, ("socket", "pull"), ("topics", "a")], "is for `socket = 'sub'`"),
        (vec![at, ("socket", "pull"), ("record", "all")], "`last` or `message`"),
        (vec![at, ("socket", "pull"), ("max_connections", "0")], "1 at least"),
        (vec![at, ("socket", "pull"), ("topic", "a")], "did you mean"),
    ] {
        let error = open(&pairs).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
