//! Where records come from and go to: connectors and formats.
//!
//! A connector is a [`Source`](tidemill_core::Source) (replayable, read by
//! offset), a [`Receiver`](tidemill_core::Receiver) (pushed, made replayable by
//! the log) or a [`Sink`](tidemill_core::Sink). All byte streams are cut by
//! [`lines`]; a [`mod@format`] turns records into columns. [`register`] is the one
//! list of their names; a new connector is a module here, a line there and a
//! call of its contract suite ([`contract`]).
//!
//! Invariant: nothing is lost in silence. What can't be taken in is a dead
//! letter with its reason, a peer that is gone is waited for and reported, and
//! every buffer has a bound.
//!
//! ```
//! use tidemill_core::{Input, Options};
//! let options = Options::new("stream \"events\"", [("connector", "generator"), ("rows", "1000"), ("keys", "10")]);
//! let Input::Source(source) = tidemill_connectors::registry().input(&options)? else { panic!("a generator is a source") };
//! assert_eq!(source.describe(), "generator of 1000 rows");
//! # Ok::<(), tidemill_core::Error>(())
//! ```

mod aside;
#[cfg(any(feature = "kinesis", feature = "s3"))]
mod aws;
pub mod backoff;
#[cfg(feature = "cassandra")]
pub mod cassandra;
pub mod console;
#[doc(hidden)]
pub mod contract;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod database;
#[doc(hidden)]
pub mod faults;
pub mod files;
pub mod format;
#[cfg(test)]
mod fuzz;
pub mod generator;
#[cfg(feature = "hbase")]
pub mod hbase;
#[cfg(feature = "hdfs")]
pub mod hdfs;
pub mod http;
pub mod jetstream;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "kinesis")]
pub mod kinesis;
pub mod lines;
pub mod mail;
#[cfg(feature = "mongodb")]
pub mod mongo;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(test)]
#[path = "../../store/src/tests/mutations.rs"]
mod mutations;
#[cfg(feature = "objects")]
pub mod objects;
pub mod otlp;
#[cfg(any(feature = "kinesis", feature = "mqtt", feature = "zeromq"))]
mod payload;
mod place;
pub mod push;
mod ranges;
pub mod replay;
#[cfg(feature = "s3")]
pub mod s3;
pub mod social;
pub mod sse;
#[cfg(any(feature = "cassandra", feature = "hbase"))]
mod stamp;
pub mod stdin;
pub mod syslog;
pub mod tail;
pub mod tcp;
#[cfg(test)]
#[path = "../../store/src/tests/tries.rs"]
mod tries;
pub mod webhook;
pub mod websocket;
#[cfg(feature = "zeromq")]
pub mod zeromq;

use std::sync::Arc;
use tidemill_core::{Input, Registry};

/// Which build has the connectors of databases.
#[cfg(not(all(feature = "sqlite", feature = "postgres")))]
const WITH_DATABASES: &str = "the one with all connectors has it (cargo build --release --features full)";

/// Which build has Cassandra.
#[cfg(not(feature = "cassandra"))]
const WITH_CASSANDRA: &str = "the one with Cassandra has it (cargo build --release --features cassandra)";

/// Which build has HBase.
#[cfg(not(feature = "hbase"))]
const WITH_HBASE: &str = "the one with HBase has it (cargo build --release --features hbase)";

/// Which build has MongoDB.
#[cfg(not(feature = "mongodb"))]
const WITH_MONGODB: &str = "the one with MongoDB has it (cargo build --release --features mongodb)";

/// Which build has S3.
#[cfg(not(feature = "s3"))]
const WITH_S3: &str = "the one with S3 has it (cargo build --release --features s3)";

/// Which build has HDFS.
#[cfg(not(feature = "hdfs"))]
const WITH_HDFS: &str = "the one with HDFS has it (cargo build --release --features hdfs)";

/// Which build has Kafka.
#[cfg(not(feature = "kafka"))]
const WITH_KAFKA: &str = "the one with Kafka has it (cargo build --release --features kafka)";

/// Which build has Kinesis.
#[cfg(not(feature = "kinesis"))]
const WITH_KINESIS: &str = "the one with Kinesis has it (cargo build --release --features kinesis)";

/// Which build has Protobuf.
#[cfg(not(feature = "protobuf"))]
const WITH_PROTOBUF: &str = "the one with Protobuf has it (cargo build --release --features protobuf)";

/// Which build has MQTT.
#[cfg(not(feature = "mqtt"))]
const WITH_MQTT: &str = "the one with MQTT has it (cargo build --release --features mqtt)";

#[cfg(not(feature = "protobuf"))]
pub(crate) fn without_protobuf(options: &tidemill_core::Options) -> tidemill_core::Error {
    let owner = options.owner();
    tidemill_core::Error::user(format!("{owner}: this build has no format `protobuf`: {WITH_PROTOBUF}"))
}

/// Which build has ZeroMQ.
#[cfg(not(feature = "zeromq"))]
const WITH_ZEROMQ: &str = "the one with ZeroMQ has it (cargo build --release --features zeromq)";

/// A registry of everything here.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    register(&mut registry);
    registry
}

/// Registers everything here. A new connector or format is one line.
pub fn register(registry: &mut Registry) {
    registry.add_format("text", |o, columns| Ok(Arc::new(format::TextFormat::from_options(o, columns)?)));
    registry.add_format("avro", |o, columns| Ok(Arc::new(format::AvroFormat::from_options(o, columns)?)));
    registry.add_format("json", format::json_from_options);
    #[cfg(not(feature = "protobuf"))]
    registry.add_format("protobuf", |o, _| Err(without_protobuf(o)));
    #[cfg(feature = "protobuf")]
    registry.add_format("protobuf", |o, columns| Ok(Arc::new(format::ProtobufFormat::from_options(o, columns)?)));
    registry.add_format("csv", |o, columns| Ok(Arc::new(format::CsvFormat::from_options(o, columns)?)));

    registry.add_input("files", |o| Ok(Input::Source(Arc::new(files::FilesSource::from_options(o)?))));
    registry.add_input("generator", |o| Ok(Input::Source(Arc::new(generator::Generator::from_options(o)?))));
    registry.add_input("bluesky", jetstream::Jetstream::input);
    registry.add_input("http", push::HttpListen::input);
    registry.add_input("sse", sse::Sse::input);
    registry.add_input("stdin", stdin::Stdin::input);
    registry.add_format("syslog", |o, columns| Ok(Arc::new(syslog::SyslogFormat::from_options(o, columns)?)));
    registry.add_input("syslog", syslog::input);
    registry.add_input("tail", tail::Tail::input);
    registry.add_input("tcp", tcp::TcpClient::input);
    registry.add_input("tcp-listen", tcp::TcpListen::input);
    registry.add_input("websocket", websocket::WebSocket::input);
    social::register(registry);

    #[cfg(not(feature = "hdfs"))]
    registry.note_input_elsewhere("hdfs", WITH_HDFS);
    #[cfg(feature = "hdfs")]
    registry.add_input("hdfs", |o| Ok(Input::Source(Arc::new(hdfs::source(o)?))));

    #[cfg(not(feature = "kafka"))]
    registry.note_input_elsewhere("kafka", WITH_KAFKA);
    #[cfg(not(feature = "kafka"))]
    registry.note_elsewhere("kafka", WITH_KAFKA);
    #[cfg(feature = "kafka")]
    registry.add_input("kafka", |o| Ok(Input::Source(Arc::new(kafka::KafkaSource::from_options(o)?))));
    #[cfg(feature = "kafka")]
    registry.add_sink("kafka", |o| Ok(Arc::new(kafka::KafkaSink::from_options(o)?)));

    #[cfg(not(feature = "kinesis"))]
    registry.note_input_elsewhere("kinesis", WITH_KINESIS);
    #[cfg(feature = "kinesis")]
    registry.add_input("kinesis", kinesis::Kinesis::input);
    #[cfg(not(feature = "s3"))]
    registry.note_input_elsewhere("s3", WITH_S3);
    #[cfg(feature = "s3")]
    registry.add_input("s3", |o| Ok(Input::Source(Arc::new(s3::source(o)?))));

    #[cfg(not(feature = "mqtt"))]
    registry.note_input_elsewhere("mqtt", WITH_MQTT);
    #[cfg(feature = "mqtt")]
    registry.add_input("mqtt", mqtt::Mqtt::input);

    #[cfg(not(feature = "zeromq"))]
    registry.note_input_elsewhere("zeromq", WITH_ZEROMQ);
    #[cfg(feature = "zeromq")]
    registry.add_input("zeromq", zeromq::ZeroMq::input);

    #[cfg(not(feature = "cassandra"))]
    registry.note_elsewhere("cassandra", WITH_CASSANDRA);
    #[cfg(feature = "cassandra")]
    registry.add_sink("cassandra", |o| Ok(Arc::new(cassandra::CassandraSink::from_options(o)?)));
    #[cfg(not(feature = "hbase"))]
    registry.note_elsewhere("hbase", WITH_HBASE);
    #[cfg(feature = "hbase")]
    registry.add_sink("hbase", |o| Ok(Arc::new(hbase::HbaseSink::from_options(o)?)));
    registry.add_sink("console", |o| Ok(Arc::new(console::Console::from_options(o)?)));
    registry.add_sink("mail", |o| Ok(Arc::new(mail::Mail::from_options(o)?)));
    registry.add_sink("webhook", |o| Ok(Arc::new(webhook::Webhook::from_options(o)?)));
    registry.add_sink("files", |o| Ok(Arc::new(files::FilesSink::from_options(o)?)));
    #[cfg(not(feature = "hdfs"))]
    registry.note_elsewhere("hdfs", WITH_HDFS);
    #[cfg(feature = "hdfs")]
    registry.add_sink("hdfs", |o| Ok(Arc::new(hdfs::sink(o)?)));
    #[cfg(not(feature = "mongodb"))]
    registry.note_elsewhere("mongodb", WITH_MONGODB);
    #[cfg(not(feature = "mongodb"))]
    registry.note_input_elsewhere("mongodb", WITH_MONGODB);
    #[cfg(feature = "mongodb")]
    registry.add_input("mongodb", mongo::MongoTail::input);
    #[cfg(feature = "mongodb")]
    registry.add_sink("mongodb", |o| Ok(Arc::new(mongo::MongoSink::from_options(o)?)));
    #[cfg(not(feature = "s3"))]
    registry.note_elsewhere("s3", WITH_S3);
    #[cfg(feature = "s3")]
    registry.add_sink("s3", |o| Ok(Arc::new(s3::sink(o)?)));
    #[cfg(not(feature = "sqlite"))]
    registry.note_elsewhere("sqlite", WITH_DATABASES);
    #[cfg(not(feature = "postgres"))]
    registry.note_elsewhere("postgres", WITH_DATABASES);
    #[cfg(feature = "sqlite")]
    registry.add_sink("sqlite", |o| Ok(Arc::new(database::SqliteSink::from_options(o)?)));
    #[cfg(feature = "sqlite")]
    registry.add_lookup("sqlite", |o, c, k| Ok(Arc::new(database::SqliteLookup::from_options(o, c, k)?)));
    #[cfg(not(feature = "postgres"))]
    registry.note_input_elsewhere("postgres", WITH_DATABASES);
    #[cfg(feature = "postgres")]
    registry.add_input("postgres", database::PostgresRows::input);
    #[cfg(feature = "postgres")]
    registry.add_sink("postgres", |o| Ok(Arc::new(database::PostgresSink::from_options(o)?)));
    #[cfg(feature = "postgres")]
    registry.add_lookup("postgres", |o, c, k| Ok(Arc::new(database::PostgresLookup::from_options(o, c, k)?)));
}
