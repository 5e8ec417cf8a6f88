//! Sink `topic`: events as rows of a topic of the embedded log, in the agent's own data directory.
//!
//! The columns are a channel's (timestamp, headers, body), or with `raw` the bodies alone, as a receiver's topic has
//! them, for programs that decode them.
//!
//! Invariant: over a durable channel, exactly once. Rows go with the token `agent/sink first next`; rows that a crash
//! left behind the last commit are ours if the token says so, and are cut off at the next start. Rows of others are
//! never cut.

use super::Outlet;
use crate::{
    channel::{blocking, rows},
    event::Event,
};
use arrow_array::{RecordBatch, builder::BinaryBuilder};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use std::sync::Arc;
use tidemill_core::{Error, Guarantee, Offset, Result};
use tidemill_store::log::{Log, Topic, TopicConfig};

/// Appends events to a topic.
pub(crate) struct TopicSink {
    log: Arc<Log>,
    name: String,
    raw: bool,
    /// `agent/sink`.
    owner: String,
    topic: Option<Arc<Topic>>,
}

fn raw_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("value", DataType::Binary, false)]))
}

impl TopicSink {
    pub(crate) fn new(log: Arc<Log>, name: &str, raw: bool, owner: &str) -> Self {
        Self { log, name: name.to_owned(), raw, owner: owner.to_owned(), topic: None }
    }

    fn schema(&self) -> SchemaRef {
        if self.raw { raw_schema() } else { rows::schema() }
    }

    fn begin(&self, left: Option<&str>) -> Result<Arc<Topic>> {
        let topic = match self.log.topic(&self.name) {
            Some(topic) => topic,
            None => self.log.create_topic(&self.name, &TopicConfig::new(self.schema()))?,
        };
        if topic.config().schema != self.schema() {
            return Err(Error::user(format!(
                "topic \"{}\" has other columns than this sink gives: set `raw = {}`, or name another topic",
                self.name, !self.raw
            )));
        }
        let Some(committed) = left.and_then(|left| left.parse::<u64>().ok()) else { return Ok(topic) };
        let end = topic.end(0).0;
        let token = topic.resume(0).unwrap_or_default();
        let ours = token.strip_prefix(&self.owner).and_then(|rest| {
            let (first, next) = rest.trim_start().split_once(' ')?;
            Some((first.parse::<u64>().ok()?, next.parse::<u64>().ok()?))
        });
        match ours {
            Some((first, next)) if first == committed && next > first && next == end => {
                topic.cut(0, Offset(committed), &format!("{} {committed} {committed}", self.owner))?;
            }
            Some((first, next)) if first == committed && next > first => {
                return Err(Error::user(format!(
                    "topic \"{}\" has rows [{first}, {next}) of this sink that were not committed, and rows of others \
                     behind them: cut none of them, and name another topic",
                    self.name
                )));
            }
            _ if end < committed => {
                return Err(Error::user(format!(
                    "topic \"{}\" ends at {end}, and rows up to {committed} were committed: restore the data directory as a whole",
                    self.name
                )));
            }
            _ => {}
        }
        Ok(topic)
    }
}

fn append(topic: &Topic, owner: &str, rows: &RecordBatch) -> Result<u64> {
    let first = topic.end(0).0;
    let token = format!("{owner} {first} {}", first + rows.num_rows() as u64);
    let appended = topic.append(0, rows, Some(&token))?;
    topic.sync_to(0, appended.next)?;
    Ok(appended.next.0)
}

#[async_trait]
impl Outlet for TopicSink {
    fn describe(&self) -> String {
        format!("topic {}", self.name)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&mut self, left: Option<String>, durable: bool) -> Result<Option<String>> {
        let left = left.filter(|_| durable);
        let topic = self.begin(left.as_deref())?;
        let end = topic.end(0);
        self.topic = Some(topic);
        Ok((durable && left.is_none()).then(|| end.to_string()))
    }

    async fn deliver(&mut self, events: &[Event]) -> Result<Option<String>> {
        let rows = if self.raw {
            let mut values = BinaryBuilder::new();
            for event in events {
                values.append_value(&event.body);
            }
            RecordBatch::try_new(raw_schema(), vec![Arc::new(values.finish())])
                .map_err(|e| Error::internal("rows of bodies").because(e))?
        } else {
            rows::rows_of(events)?
        };
        let Some(topic) = self.topic.clone() else { return Err(Error::internal("a sink that is not open")) };
        let owner = self.owner.clone();
        blocking(move || append(&topic, &owner, &rows)).await.map(|next| Some(next.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tidemill_core::{ManualClock, Timestamp};
    use tidemill_store::{SimDisk, disk::Disk};

    fn events(names: &[&str]) -> Vec<Event> {
        names.iter().map(|name| Event::new((*name).to_owned(), Timestamp(3))).collect()
    }

    fn log(disk: &SimDisk) -> Arc<Log> {
        let disk = Arc::new(disk.clone()) as Arc<dyn Disk>;
        Arc::new(Log::open(disk, Path::new("/log"), Arc::new(ManualClock::default())).unwrap())
    }

    fn bodies(log: &Log) -> Vec<String> {
        let topic = log.topic("out").unwrap();
        let mut all = Vec::new();
        for rows in topic.read(0, topic.start(0), topic.end(0)) {
            rows::events_in(&rows.unwrap().rows, &mut all).unwrap();
        }
        all.iter().map(|event| String::from_utf8_lossy(&event.body).into_owned()).collect()
    }

    #[tokio::test]
    async fn rows_behind_the_last_commit_are_cut_off() {
        let disk = SimDisk::new();
        let first = log(&disk);
        let mut sink = TopicSink::new(Arc::clone(&first), "out", false, "a1/k1");
        assert_eq!(sink.open(None, true).await.unwrap().as_deref(), Some("0"));
        let left = sink.deliver(&events(&["a", "b"])).await.unwrap();
        assert_eq!(left.as_deref(), Some("2"));
        sink.deliver(&events(&["c"])).await.unwrap();
        drop((sink, first));
        let second = log(&disk);
        let mut sink = TopicSink::new(Arc::clone(&second), "out", false, "a1/k1");
        assert_eq!(sink.open(left.clone(), true).await.unwrap(), None);
        assert_eq!(bodies(&second), ["a", "b"]);
        // Once more without a delivery between: nothing is cut.
        sink.open(left.clone(), true).await.unwrap();
        sink.deliver(&events(&["c"])).await.unwrap();
        assert_eq!(bodies(&second), ["a", "b", "c"]);
    }

    #[tokio::test]
    async fn rows_of_others_stay() {
        let disk = SimDisk::new();
        let log = log(&disk);
        let mut sink = TopicSink::new(Arc::clone(&log), "out", false, "a1/k1");
        sink.open(None, true).await.unwrap();
        let left = sink.deliver(&events(&["a"])).await.unwrap();
        let topic = log.topic("out").unwrap();
        topic.append(0, &rows::rows_of(&events(&["other"])).unwrap(), None).unwrap();
        sink.open(left, true).await.unwrap();
        assert_eq!(bodies(&log), ["a", "other"]);
        sink.deliver(&events(&["b"])).await.unwrap();
        topic.append(0, &rows::rows_of(&events(&["more"])).unwrap(), None).unwrap();
        let error = sink.open(Some("2".to_owned()), true).await.unwrap_err().to_string();
        assert!(error.contains("[2, 3)"), "{error}");
        let mut raw = TopicSink::new(Arc::clone(&log), "out", true, "a1/k2");
        assert!(raw.open(None, true).await.unwrap_err().to_string().contains("raw = false"));
    }
}
