//! Push: records that are posted over HTTP, from the first request to the last answer.
//!
//! Each answer says that its records are durable, so a sender waits for the
//! log's sync before it posts again; what goes on meanwhile is the work of the
//! other connections. The program counts the records while they come, and the
//! job ends when it has counted all of them.

use crate::{Result, measure::median};
use serde::Serialize;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use tidemill_connectors::{format::TextFormat, push::HttpListen};
use tidemill_core::Receiver;
use tidemill_engine::{StreamingContext, Trigger};

/// Records of a request.
const BATCH: u64 = 1000;
/// Connections.
const SENDERS: u64 = 4;

/// The last line of the job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Pushed {
    job: &'static str,
    /// Records a second until all were answered, median of the runs.
    records_per_s: f64,
    /// The same until all were counted.
    counted_per_s: f64,
    /// Bytes of a record.
    bytes: usize,
    /// Whether each run counted every record once.
    exact: bool,
}

/// Posts `items` records, `runs` times.
pub(crate) fn push(items: u64, runs: usize, threads: usize) -> Result<Pushed> {
    let requests = (items / BATCH / SENDERS).max(1);
    let (mut answered, mut counted, mut exact) = (Vec::new(), Vec::new(), true);
    for run in 0..runs {
        let (first, last, right) = once(requests, threads)?;
        eprintln!("push: run {run}: {first:.0} records/s answered, {last:.0} counted");
        answered.push(first);
        counted.push(last);
        exact &= right;
    }
    Ok(Pushed {
        job: "push",
        records_per_s: median(&answered).unwrap_or(0.0),
        counted_per_s: median(&counted).unwrap_or(0.0),
        bytes: record(0).len() - 1,
        exact,
    })
}

fn record(n: u64) -> String {
    format!(
        "{{\"id\":{n:012},\"lang\":\"en\",\"text\":\"the mill turns with the tide, number {}, and turns on\"}}\n",
        n % 10
    )
}

fn once(requests: u64, threads: usize) -> Result<(f64, f64, bool)> {
    let data = tempfile::tempdir()?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let context = StreamingContext::builder("push")
        .data_dir(data.path())
        .trigger(Trigger::Asap)
        .batch_bytes(128 << 20)
        .partitions(threads)
        .build();
    let receiver: Arc<dyn Receiver> = Arc::new(HttpListen::new(format!("127.0.0.1:{port}")));
    let lines = context.receiver_stream::<String>("lines", vec![receiver], Arc::new(TextFormat::default()))?;
    let total = Arc::new(AtomicU64::new(0));
    let sum = Arc::clone(&total);
    lines.count().foreach_batch(move |_, counts: Vec<i64>| {
        sum.fetch_add(counts.into_iter().map(i64::cast_unsigned).sum(), Relaxed);
        Ok(())
    });
    context.start()?;
    let patience = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if Instant::now() > patience {
            return Err("the receiver does not listen".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let begun = Instant::now();
    let senders: Vec<_> =
        (0..SENDERS).map(|sender| thread::spawn(move || send(port, sender * requests, requests))).collect();
    for sender in senders {
        sender.join().map_err(|_| "a sender panicked")??;
    }
    let answered = begun.elapsed();
    let items = requests * SENDERS * BATCH;
    while total.load(Relaxed) < items {
        if context.await_for(Duration::from_millis(1))?.is_some() {
            return Err("the program ended before it had counted all records".into());
        }
    }
    let counted = begun.elapsed();
    context.stop(true)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = |span: Duration| items as f64 / span.as_secs_f64();
    Ok((rate(answered), rate(counted), total.load(Relaxed) == items))
}

/// Posts so many requests over one connection, each after the answer to the one before.
fn send(port: u16, first: u64, requests: u64) -> Result<()> {
    let mut stream = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?);
    stream.get_ref().set_nodelay(true)?;
    let (mut request, mut line, mut answer) = (Vec::new(), String::new(), Vec::new());
    for number in first..first + requests {
        let body: String = (number * BATCH..(number + 1) * BATCH).map(record).collect();
        request.clear();
        write!(
            request,
            "POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        stream.get_mut().write_all(&request)?;
        line.clear();
        stream.read_line(&mut line)?;
        if !line.starts_with("HTTP/1.1 200") {
            return Err(format!("the receiver answered {line}").into());
        }
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Err("the receiver hung up".into());
            }
            if let Some(told) = line.strip_prefix("content-length: ") {
                length = told.trim().parse()?;
            }
        }
        answer.resize(length, 0);
        stream.read_exact(&mut answer)?;
    }
    Ok(())
}
