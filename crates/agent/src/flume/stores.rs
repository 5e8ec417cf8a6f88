//! Parts of Flume's whose equal is a connector of the registry: Kafka, syslog, HBase.
//!
//! Invariant: as in [`super::parts`], which calls this for the types that it does not know: a key is taken only by what
//! writes it, or by a note.

use super::{
    parts::{As, Writer, quoted},
    properties::Value,
};

/// Where nothing is said: Flume's own.
const KAFKA_TOPIC: &str = "default-flume-topic";

impl Writer<'_> {
    /// Writes a source of this type, if a connector is its equal.
    pub(super) fn connector_source(&mut self, at: &str, short: &str, kind: &Value) -> bool {
        match short {
            "kafkasource" => self.kafka_source(at, kind),
            "syslogtcp" | "syslogtcpsource" => self.syslog(at, kind, "tcp"),
            "syslogudp" | "syslogudpsource" => self.syslog(at, kind, "udp"),
            _ => return false,
        }
        true
    }

    /// Writes a sink of this type, if a connector is its equal.
    pub(super) fn connector_sink(&mut self, at: &str, short: &str, kind: &Value) -> bool {
        match short {
            "kafkasink" => self.kafka_sink(at, kind),
            "hbase" | "hbase2" | "asynchbase" | "hbasesink" | "hbase2sink" | "asynchbasesink" => self.hbase(at, kind),
            _ => return false,
        }
        true
    }

    fn kafka_source(&mut self, at: &str, kind: &Value) {
        self.line("type = \"kafka\"");
        self.copy(at, "kafka.bootstrap.servers", "brokers", As::Text);
        if let Some(pattern) = self.take(at, "kafka.topics.regex") {
            self.note(
                pattern.line,
                true,
                format!(
                    "`kafka.topics.regex = {}` has no equal as it is: `topic` takes patterns such as `orders-*`",
                    pattern.text
                ),
            );
        } else {
            self.copy(at, "kafka.topics", "topic", As::Text);
        }
        self.copy(at, "kafka.consumer.group.id", "group", As::Text);
        // Without a word Flume begins at the end, as Kafka's clients do; `none` is an error there.
        let start = match self.take(at, "kafka.consumer.auto.offset.reset") {
            Some(value) if value.text.trim() == "earliest" => "earliest",
            _ => "latest",
        };
        self.line(format!("start = {}", quoted(start)));
        self.note(
            kind.line,
            true,
            "where it goes on is kept here and not taken from the group, which is told of it: it begins at `start`",
        );
        self.note(kind.line, true, "the headers `topic`, `partition`, `offset`, `key` and `timestamp` are not set");
        self.not_needed(at, &["batchDurationMillis"], "a source puts what there is together");
        self.not_needed(at, &["migrateZookeeperOffsets"], "ZooKeeper is not asked");
    }

    fn syslog(&mut self, at: &str, kind: &Value, transport: &str) {
        self.line("type = \"syslog\"");
        self.line(format!("transport = {}", quoted(transport)));
        self.address(at, "host", "0.0.0.0");
        self.copy(at, "eventSize", "max_line", As::Number);
        let kept = self.take(at, "keepFields");
        let all = kept.as_ref().is_some_and(|value| matches!(value.text.trim(), "all" | "true"));
        if !all {
            self.note(
                kept.map_or(kind.line, |value| value.line),
                true,
                "the body is the whole message, as with `keepFields = all`, and the headers `Facility`, `Severity`, \
                 `timestamp` and `hostname` are not set: an interceptor `regex_extractor` takes what is needed",
            );
        }
    }

    fn kafka_sink(&mut self, at: &str, kind: &Value) {
        self.line("type = \"store\"\nconnector = \"kafka\"");
        self.copy(at, "kafka.bootstrap.servers", "brokers", As::Text);
        if !self.copy(at, "kafka.topic", "topic", As::Text) {
            self.line(format!("topic = {}", quoted(KAFKA_TOPIC)));
        }
        self.line("format = \"text\"\ncolumns = [\"key\", \"body\"]\nkey_column = \"key\"");
        self.copy(at, "flumeBatchSize", "batch_size", As::Number);
        self.copy(at, "kafka.producer.compression.type", "compression", As::Text);
        self.not_needed(at, &["kafka.producer.acks"], "all replicas that are in sync must have an event");
        self.not_needed(at, &["kafka.producer.linger.ms"], "a transaction is sent at once");
        if let Some(value) = self.take(at, "useFlumeEventFormat").filter(|value| value.text.trim() == "true") {
            self.note(value.line, true, "`useFlumeEventFormat = true` has no equal: bodies are written, as text");
        }
        match self.take(at, "allowTopicOverride") {
            Some(value) if value.text.trim() == "false" => {}
            asked => {
                let line = asked.map_or(kind.line, |value| value.line);
                self.note(
                    line,
                    true,
                    "a header `topic` does not choose the topic: let a selector choose a sink of each",
                );
            }
        }
    }

    fn hbase(&mut self, at: &str, kind: &Value) {
        self.line("type = \"store\"\nconnector = \"hbase\"");
        self.line("url = \"http://127.0.0.1:8080\"  # of HBase's REST gateway");
        self.copy(at, "table", "table", As::Text);
        self.copy(at, "columnFamily", "family", As::Text);
        self.line("columns = [\"id\", \"timestamp\", \"body\"]\nkey = \"id\"");
        self.note(
            kind.line,
            true,
            "rows go through HBase's REST gateway: set its `url`. Their key is the header `id`, which an interceptor \
             `uuid` of the source sets, and they are upserted by it",
        );
        for key in ["serializer", "serializer.payloadColumn", "serializer.rowPrefix", "serializer.suffix"] {
            if let Some(value) = self.take(at, key) {
                self.note(
                    value.line,
                    true,
                    format!("`{key} = {}` has no equal: `columns` says what is written", value.text),
                );
            }
        }
        self.not_needed(at, &["zookeeperQuorum", "znodeParent"], "the gateway knows its cluster");
    }
}
