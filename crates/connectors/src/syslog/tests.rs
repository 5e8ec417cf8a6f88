//! Real sockets on the loopback, and columns.

use super::*;
use crate::contract::Recorder;
use arrow_array::cast::AsArray;
use std::{net::SocketAddr, sync::Arc};
use tidemill_core::{Block, Format, Input, Intake, Options, Receiver, Result, StopHandle, Timestamp};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UdpSocket},
    task::JoinHandle,
};

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
    address: SocketAddr,
}

async fn start(receiver: Arc<dyn Receiver>) -> Running {
    let (stop, stopped) = StopHandle::new();
    let intake = Arc::new(Recorder::default());
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let task = tokio::spawn(async move { receiver.run(given, stopped).await });
    let heard = intake.until(|h| h.states.iter().any(|s| s.starts_with("listening on "))).await;
    let state = heard.states.iter().find_map(|s| s.strip_prefix("listening on ")).unwrap();
    let address = state.split(',').next().unwrap().parse().unwrap();
    Running { intake, stop, task, address }
}

/// The receivers of a stream at a free port.
fn receivers(pairs: &[(&str, &str)]) -> Vec<Arc<dyn Receiver>> {
    let options = Options::new("s", [("address", "127.0.0.1:0")].iter().chain(pairs).copied());
    match input(&options).unwrap() {
        Input::Receivers(all) => all,
        Input::Source(_) => panic!("receivers"),
    }
}

#[tokio::test]
async fn datagrams_are_messages() {
    let [udp] = &receivers(&[("transport", "udp"), ("max_line", "2000B")])[..] else { panic!("one") };
    let running = start(Arc::clone(udp)).await;
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let long = "x".repeat(60_000);
    for message in ["<1>one\n", "", "<2>two\nlines", &long, "<3>three\0 \r\n"] {
        peer.send_to(message.as_bytes(), running.address).await.unwrap();
    }
    let heard = running.intake.until(|h| h.records.len() == 3 && h.refused.len() == 1).await;
    assert_eq!(heard.records, [&b"<1>one"[..], b"<2>two\nlines", b"<3>three\0"]);
    assert!(heard.refused[0].0.contains("60000 bytes") && heard.refused[0].1.len() == crate::lines::HEAD);
    // What came before a stop is read, whether the receiver has seen it or not.
    for n in 0..200 {
        peer.send_to(format!("<1>{n}").as_bytes(), running.address).await.unwrap();
    }
    running.stop.stop();
    running.task.await.unwrap().unwrap();
    assert_eq!(running.intake.heard().records.len(), 203);
}

#[tokio::test]
async fn connections_bring_both_framings() {
    let [tcp] = &receivers(&[("transport", "tcp")])[..] else { panic!("one") };
    let running = start(Arc::clone(tcp)).await;
    let mut counted = TcpStream::connect(running.address).await.unwrap();
    counted.write_all(b"6 <1>a\nb7 <1>").await.unwrap();
    running.intake.until(|h| h.records.len() == 1).await;
    counted.write_all(b"cutt9 <1>").await.unwrap();
    running.intake.until(|h| h.records.len() == 2).await;
    drop(counted);
    running.intake.until(|h| h.refused.len() == 1).await;
    let mut lines = TcpStream::connect(running.address).await.unwrap();
    lines.write_all(b"<2>c\r\n<2>d\n<2>last").await.unwrap();
    drop(lines);
    let heard = running.intake.until(|h| h.records.len() == 5).await;
    assert_eq!(heard.records, [&b"<1>a\nb"[..], b"<1>cutt", b"<2>c", b"<2>d", b"<2>last"]);
    let reason = "the connection was closed in the middle of this line".to_string();
    assert_eq!(heard.refused, [(reason, b"9 <1>".to_vec())]);
    running.stop.stop();
    running.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_an_error_for_a_human() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (_stop, stopped) = StopHandle::new();
    let error = SyslogUdp::new(&address).run(Recorder::resuming(None), stopped).await.unwrap_err();
    assert!(!error.is_retryable() && error.chain().contains(&address), "{}", error.chain());
}

#[test]
fn options_are_checked() {
    let describe: Vec<String> = receivers(&[]).iter().map(|r| r.describe()).collect();
    assert_eq!(describe, ["syslog udp 127.0.0.1:0", "syslog tcp 127.0.0.1:0"]);
    for (pairs, wanted) in [
        (vec![], "option `address` is missing"),
        (vec![("address", "a:1"), ("transport", "sctp")], "`both`, `udp` or `tcp`, not `sctp`"),
        (vec![("address", "a:1"), ("receive_buffer", "2GiB")], "`receive_buffer`"),
    ] {
        let error = input(&Options::new("s", pairs.iter().copied())).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let zone = |zone: &str| SyslogFormat::from_options(&Options::new("s", [("zone", zone)]), None);
    assert!(zone("+02:00").is_ok() && zone("-0730").is_ok() && zone("Z").is_ok());
    for wrong in ["", "CET", "+2", "+25:00"] {
        assert!(zone(wrong).unwrap_err().to_string().contains("option `zone`"), "{wrong}");
    }
}

#[test]
fn messages_are_columns() {
    let records = [
        "<34>Oct 11 22:14:15 mill su[77]: no",
        "not syslog",
        "<165>1 2003-10-11T22:14:15.003Z h a - m [o ip=\"1\" ip=\"2\"][p k=\"\\\"\"][p] text",
        "<13>just words",
    ];
    let mut block = Block::from_records(records);
    block.times = vec![(3, Timestamp(1_791_849_600_000_000)), (1, Timestamp(0))];
    let format = SyslogFormat::default();
    let mut refused = Vec::new();
    let rows = format.decoder(&(0..10).collect::<Vec<_>>()).decode(&block, &mut refused).unwrap();
    assert_eq!((refused.len(), refused[0].row), (1, 1));
    assert!(refused[0].reason.starts_with("byte 0: expected `<`"), "{}", refused[0].reason);
    let text = |name: &str| {
        let column = rows.column_by_name(name).unwrap().as_string::<i32>().iter();
        column.map(|v| v.map(str::to_string)).collect::<Vec<_>>()
    };
    let some = |all: [Option<&str>; 3]| all.map(|v| v.map(str::to_string)).to_vec();
    assert_eq!(text("facility"), some([Some("auth"), Some("local4"), Some("user")]));
    assert_eq!(text("severity"), some([Some("crit"), Some("notice"), Some("notice")]));
    assert_eq!(text("host"), some([Some("mill"), Some("h"), None]));
    assert_eq!(text("procid"), some([Some("77"), None, None]));
    assert_eq!(text("message"), some([Some("no"), Some("text"), Some("just words")]));
    let data = r#"{"o":{"ip":["1","2"]},"p":[{"k":"\""},{}]}"#;
    assert_eq!(text("structured_data"), some([None, Some(data), None]));
    let times = rows.column_by_name("timestamp").unwrap();
    let times = times.as_primitive::<arrow_array::types::TimestampMicrosecondType>();
    let at: Vec<_> = times.iter().map(|at| at.map(|at| Timestamp(at).to_string())).collect();
    assert_eq!(at, some([Some("2026-10-11T22:14:15.000Z"), Some("2003-10-11T22:14:15.003Z"), None]));
    // A part of the columns, and what is declared.
    let one = format.decoder(&[9]).decode(&block, &mut Vec::new()).unwrap();
    assert_eq!((one.num_columns(), one.num_rows()), (1, 3));
    assert_eq!(format.decoder(&[]).decode(&block, &mut Vec::new()).unwrap().num_rows(), 3);
    use arrow_schema::{DataType, Field, Schema};
    let declared = |field: Field| {
        SyslogFormat::from_options(&Options::new("s", [("a", "b")]), Some(Arc::new(Schema::new(vec![field]))))
    };
    let format =
        declared(Field::new("timestamp", DataType::Timestamp(arrow_schema::TimeUnit::Millisecond, None), false));
    let mut refused = Vec::new();
    let rows = format.unwrap().decoder(&[0]).decode(&block, &mut refused).unwrap();
    assert_eq!((rows.num_rows(), refused.len()), (2, 2));
    assert!(refused[1].reason.contains("NOT NULL"), "{}", refused[1].reason);
    let error = declared(Field::new("hostt", DataType::Utf8, true)).unwrap_err().to_string();
    assert!(error.contains("did you mean `host`?"), "{error}");
    assert!(declared(Field::new("priority", DataType::Utf8, true)).is_err());
    assert!(declared(Field::new("priority", DataType::Int64, true)).is_ok());
}
