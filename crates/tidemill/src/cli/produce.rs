//! `tidemill produce`: lines from standard input into a topic.
//!
//! Invariant: lines keep their order, and when the command says that a line is
//! kept it is durable. A line over the bound is refused by its number, the ones
//! before it are kept.

use super::{
    data::{DataArg, is_raw, raw_schema},
    kafka::KafkaArg,
    out::outln,
};
use arrow_array::{RecordBatch, builder::BinaryBuilder};
use clap::Args;
use std::{
    io::{self, BufRead, Read},
    sync::Arc,
};
use tidemill::{Error, Result, connectors::lines::MAX_LINE, core::Clock, engine::SystemClock, store::Topic};

/// Lines appended together at most.
const LINES: usize = 4096;
/// Bytes appended together at most, a line over it excepted.
const BYTES: usize = 1 << 20;

/// Append lines from standard input to a topic.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill topic create words
  printf 'to be\\nor not to be\\n' | tidemill produce words
  tidemill produce words --kafka localhost:9092 <words.txt      to an Apache Kafka")]
pub(crate) struct Produce {
    /// The topic; it holds raw records.
    topic: String,

    /// The partition to append to [default: 0; of a Kafka topic any].
    #[arg(long, value_name = "N")]
    partition: Option<u32>,

    #[command(flatten)]
    data: DataArg,

    #[command(flatten)]
    kafka: KafkaArg,
}

impl Produce {
    pub(crate) fn run(self) -> Result<()> {
        if self.kafka.is_given() {
            return self.on_kafka();
        }
        let partition = self.partition.unwrap_or(0);
        let open = self.data.open_existing()?;
        let topic = open.topic(&self.topic)?;
        if !is_raw(&topic) {
            return Err(Error::user(format!(
                "topic `{}` has columns of its own and takes no lines; `tidemill topic describe {}` shows them",
                self.topic, self.topic
            )));
        }
        if partition >= topic.config().partitions {
            return Err(Error::user(format!(
                "topic `{}` has no partition {}: it has {} of them, counted from 0",
                self.topic,
                partition,
                topic.config().partitions
            )));
        }
        let first = topic.end(partition);
        let read = append_all(&topic, partition, &mut io::stdin().lock());
        // What was appended before a fault is kept.
        topic.sync_to(partition, topic.end(partition))?;
        if let Err(error) = topic.apply_retention(SystemClock.now()) {
            tracing::warn!(topic = topic.name(), error = error.chain(), "old records could not be removed");
        }
        let next = topic.end(partition);
        outln!("kept {} lines in {} partition {}, offsets [{first}, {next})", next.0 - first.0, self.topic, partition);
        read
    }

    #[cfg(not(feature = "kafka"))]
    fn on_kafka(self) -> Result<()> {
        Err(self.kafka.missing())
    }

    #[cfg(feature = "kafka")]
    fn on_kafka(self) -> Result<()> {
        super::kafka::produce(&self.kafka.open()?, &self.topic, self.partition)
    }
}

fn append_all(topic: &Topic, partition: u32, input: &mut dyn BufRead) -> Result<()> {
    let (mut builder, mut lines, mut bytes, mut number) = (BinaryBuilder::new(), 0, 0, 0_u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        number += 1;
        let read = input
            .take(MAX_LINE as u64 + 2)
            .read_until(b'\n', &mut line)
            .map_err(|e| Error::external("can't read standard input").because(e))?;
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        }
        let long = line.len() > MAX_LINE;
        if read > 0 && !long {
            builder.append_value(&line);
            lines += 1;
            bytes += line.len();
        }
        if lines > 0 && (read == 0 || long || lines >= LINES || bytes >= BYTES) {
            let rows = RecordBatch::try_new(raw_schema(), vec![Arc::new(builder.finish())])
                .map_err(|e| Error::internal("lines as rows").because(e))?;
            topic.append(partition, &rows, None)?;
            (lines, bytes) = (0, 0);
        }
        if long {
            return Err(Error::user(format!(
                "line {number} is longer than {MAX_LINE} bytes; the lines before it are kept"
            )));
        }
        if read == 0 {
            return Ok(());
        }
    }
}
