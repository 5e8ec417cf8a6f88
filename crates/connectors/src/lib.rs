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

pub mod backoff;
pub mod console;
#[doc(hidden)]
pub mod contract;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod database;
pub mod files;
pub mod format;
#[cfg(test)]
mod fuzz;
pub mod generator;
pub mod jetstream;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod lines;
#[cfg(test)]
#[path = "../../store/src/tests/mutations.rs"]
mod mutations;
mod place;
pub mod replay;
pub mod social;
pub mod stdin;
pub mod tail;
pub mod tcp;
#[cfg(test)]
#[path = "../../store/src/tests/tries.rs"]
mod tries;

use std::sync::Arc;
use tidemill_core::{Input, Registry};

/// Which build has the connectors of databases.
#[cfg(not(all(feature = "sqlite", feature = "postgres")))]
const WITH_DATABASES: &str = "the one with all connectors has it (cargo build --release --features full)";

/// Which build has Kafka.
#[cfg(not(feature = "kafka"))]
const WITH_KAFKA: &str = "the one with Kafka has it (cargo build --release --features kafka)";

/// A registry of everything here.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    register(&mut registry);
    registry
}

/// Registers everything here. A new connector or format is one line.
pub fn register(registry: &mut Registry) {
    registry.add_format("text", |o, columns| Ok(Arc::new(format::TextFormat::from_options(o, columns)?)));
    registry.add_format("json", |o, columns| Ok(Arc::new(format::JsonFormat::from_options(o, columns)?)));
    registry.add_format("csv", |o, columns| Ok(Arc::new(format::CsvFormat::from_options(o, columns)?)));

    registry.add_input("files", |o| Ok(Input::Source(Arc::new(files::FilesSource::from_options(o)?))));
    registry.add_input("generator", |o| Ok(Input::Source(Arc::new(generator::Generator::from_options(o)?))));
    registry.add_input("bluesky", jetstream::Jetstream::input);
    registry.add_input("stdin", stdin::Stdin::input);
    registry.add_input("tail", tail::Tail::input);
    registry.add_input("tcp", tcp::TcpClient::input);
    registry.add_input("tcp-listen", tcp::TcpListen::input);
    social::register(registry);

    #[cfg(not(feature = "kafka"))]
    registry.note_input_elsewhere("kafka", WITH_KAFKA);
    #[cfg(not(feature = "kafka"))]
    registry.note_elsewhere("kafka", WITH_KAFKA);
    #[cfg(feature = "kafka")]
    registry.add_input("kafka", |o| Ok(Input::Source(Arc::new(kafka::KafkaSource::from_options(o)?))));
    #[cfg(feature = "kafka")]
    registry.add_sink("kafka", |o| Ok(Arc::new(kafka::KafkaSink::from_options(o)?)));

    registry.add_sink("console", |o| Ok(Arc::new(console::Console::from_options(o)?)));
    registry.add_sink("files", |o| Ok(Arc::new(files::FilesSink::from_options(o)?)));
    #[cfg(not(feature = "sqlite"))]
    registry.note_elsewhere("sqlite", WITH_DATABASES);
    #[cfg(not(feature = "postgres"))]
    registry.note_elsewhere("postgres", WITH_DATABASES);
    #[cfg(feature = "sqlite")]
    registry.add_sink("sqlite", |o| Ok(Arc::new(database::SqliteSink::from_options(o)?)));
    #[cfg(feature = "sqlite")]
    registry.add_lookup("sqlite", |o, c, k| Ok(Arc::new(database::SqliteLookup::from_options(o, c, k)?)));
    #[cfg(feature = "postgres")]
    registry.add_sink("postgres", |o| Ok(Arc::new(database::PostgresSink::from_options(o)?)));
    #[cfg(feature = "postgres")]
    registry.add_lookup("postgres", |o, c, k| Ok(Arc::new(database::PostgresLookup::from_options(o, c, k)?)));
}
