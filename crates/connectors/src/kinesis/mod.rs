//! Connector `kinesis`: records of an Amazon Kinesis data stream. In builds with the feature `kinesis`.
//!
//! | Option | Meaning |
//! |---|---|
//! | `stream` | its name, or its ARN |
//! | `region` | the region (`us-east-1`, or as `AWS_REGION` says) |
//! | `endpoint` | the server of another than Amazon: `https://kinesis.example.org`; `http://` only on this machine |
//! | `start` | where a first start begins: `earliest` (unless said), `latest` (the second of that start), or a time such as `2026-05-25T14:00:00Z` |
//! | `record` | `data` (unless said), or `message`: an object of `shard`, `sequence_number`, `partition_key`, `arrived` and `data` |
//! | `on_gap` | `stop` (unless said) when records were trimmed before they were read, or `skip`: goes on behind them, and tells it |
//! | `every` | how often a shard that is read to its end is asked again (1s) |
//! | `limit` | records that an answer may have (10000, which is the most) |
//! | `max_line` | bytes of a record at most (1 MiB); a longer one is a dead letter |
//!
//! Credentials are those of the environment, as for the sink `s3`.
//!
//! **Why a receiver, and no source.** A source's ranges are of numbers without holes, counted from the beginning, and
//! can be read again for years. A sequence number has up to 186 bits and says nothing of how many records lie before
//! it; the service keeps records for a day unless told otherwise; and how many there are up to the newest can't be
//! asked. Offsets would have to be counted here and kept with the sequence numbers that they stand for, and a range
//! would still be gone after a day. So records go into the log, and with each block the places of all shards.
//!
//! **Nothing lost, nothing twice.** A shard is read behind the last record that is in the log. A restart, and an
//! iterator that is begun anew, ask for that record again and take what comes behind it: that it is there shows that
//! nothing between was trimmed. Where it is not, and the shard was last read longer ago than the stream keeps records,
//! what lies between may be gone, and the stream ends with an error that names it. Producers may put a record twice;
//! that is theirs to tell.
//!
//! **Shards.** Those that were split or merged are read out before those that came of them, so records of a
//! partition key keep their order in the log. Shards are read four at once.
//!
//! Records that the Kinesis Producer Library put together into one are not taken apart. Enhanced fan-out is not used.
//!
//! Invariant: at most four answers, of up to 10 MiB each as the service has it, are held beside the log; while the
//! log is behind, none is asked for.

mod answer;
mod client;
mod session;
mod shards;
#[cfg(test)]
mod tests;

use crate::{
    aws::Caller,
    http::{self, Link},
    lines,
    social::collect,
};
use async_trait::async_trait;
use client::Client;
use serde_json::{Value, json};
use session::Session;
use shards::Shards;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop, Timestamp};

/// Records of an answer, which is the most that the service gives.
const LIMIT: usize = 10_000;
/// A shard is not asked more often than this by one reader.
const EVERY: Duration = Duration::from_millis(200);

/// Where a first start begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Earliest,
    Latest,
    Time(Timestamp),
}

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Data,
    Message,
}

/// What a gap does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnGap {
    Stop,
    Skip,
}

/// How a stream is called.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Name(String),
    Arn(String),
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if text.starts_with("arn:") {
            let fine = text.len() <= 2048 && text.contains(":stream/") && text.bytes().all(|b| b.is_ascii_graphic());
            return fine.then(|| Self::Arn(text.to_string()));
        }
        let fine = (1..=128).contains(&text.len()) && text.bytes().all(plain);
        fine.then(|| Self::Name(text.to_string()))
    }

    fn shown(&self) -> &str {
        match self {
            Self::Name(text) | Self::Arn(text) => text,
        }
    }

    /// The beginning of a call that is about it.
    fn named(&self) -> Value {
        match self {
            Self::Name(name) => json!({ "StreamName": name }),
            Self::Arn(arn) => json!({ "StreamARN": arn }),
        }
    }
}

/// A Kinesis data stream.
#[derive(Debug, Clone)]
pub struct Kinesis {
    stream: Name,
    endpoint: String,
    caller: Caller,
    start: Start,
    shape: Shape,
    on_gap: OnGap,
    every: Duration,
    limit: usize,
    max_line: usize,
    link: Link,
    /// Of the waits.
    seed: u64,
}

impl Kinesis {
    /// The reader that a stream's options ask for.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn input(options: &Options) -> Result<Input> {
        Ok(Input::Receivers(vec![Arc::new(Self::from_options(options)?)]))
    }

    fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let wrong = |why: String| Error::user(format!("{owner}: {why}"));
        let text = options.require("stream", "it names the data stream, or has its ARN")?;
        let stream = Name::parse(text).ok_or_else(|| {
            wrong(format!(
                "option `stream`: `{text}` is no name of a stream (letters, digits, `_`, `.`, `-`), and no ARN"
            ))
        })?;
        let link = Link::default();
        let caller = Caller::from_environment(options.get("region"), &link)?;
        let region = caller.region();
        if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(wrong(format!("option `region`: `{region}` is no region")));
        }
        let end = if region.starts_with("cn-") { ".cn" } else { "" };
        let usual = format!("https://kinesis.{region}.amazonaws.com{end}");
        let endpoint = options.get("endpoint").map_or(usual, |text| text.trim_end_matches('/').to_string());
        let request = http::Request::to_server(&endpoint).map_err(|why| wrong(format!("option `endpoint`: {why}")))?;
        if endpoint.split_once("://").is_none_or(|(_, rest)| rest != request.server()) {
            return Err(wrong("option `endpoint` is https://host, or https://host:port, and no more".to_string()));
        }
        let start = match options.get("start").map(str::trim).unwrap_or("earliest") {
            "earliest" => Start::Earliest,
            "latest" => Start::Latest,
            text => {
                let time = text.starts_with(|c: char| c.is_ascii_digit()).then(|| crate::format::time::instant(text));
                let time = time.flatten().filter(|micros| *micros >= 0).ok_or_else(|| {
                    wrong(format!(
                        "option `start` must be 'earliest', 'latest' or a time such as 2026-05-25T14:00:00Z, not `{text}`"
                    ))
                })?;
                Start::Time(Timestamp(time))
            }
        };
        let shape = match options.get("record").unwrap_or("data") {
            "data" => Shape::Data,
            "message" => Shape::Message,
            other => return Err(wrong(format!("option `record` must be `data` or `message`, not `{other}`"))),
        };
        let on_gap = match options.get("on_gap").unwrap_or("stop") {
            "stop" => OnGap::Stop,
            "skip" => OnGap::Skip,
            other => return Err(wrong(format!("option `on_gap` must be `stop` or `skip`, not `{other}`"))),
        };
        let every = options.duration("every", Duration::from_secs(1))?;
        if every < EVERY {
            return Err(wrong(
                "option `every` must be 200ms at least: a shard answers five times a second".to_string(),
            ));
        }
        let limit = options.parse("limit", LIMIT)?;
        if !(1..=LIMIT).contains(&limit) {
            return Err(wrong(format!("option `limit` must be between 1 and {LIMIT}")));
        }
        let (max_line, seed) = (lines::max_line(options)?, u64::from(std::process::id()));
        Ok(Self { stream, endpoint, caller, start, shape, on_gap, every, limit, max_line, link, seed })
    }
}

#[async_trait]
impl Receiver for Kinesis {
    fn describe(&self) -> String {
        format!("kinesis {} at {}", self.stream.shown(), self.endpoint)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let token = intake.resume();
        let shards = token.as_deref().map(Shards::parse).transpose()?.unwrap_or_default();
        let client = Client {
            caller: self.caller.clone(),
            endpoint: self.endpoint.clone(),
            stream: self.stream.clone(),
            link: self.link.clone(),
        };
        let session = Session::new(self.clone(), client, shards, token);
        collect::run(session, &self.link, None, intake, stop).await
    }
}
