//! Agents: events from sources through channels to sinks, without code. The model is Apache Flume's.
//!
//! ```text
//! source ─► interceptors ─► selector ─┬─► channel ─► sink
//!                                     └─► channel ─► group of sinks
//! ```
//!
//! A file says what there is ([`Plan::read`]); an [`Agent`] runs it. An event is headers, a body and a time
//! ([`event`]). A channel of type `file` is a topic of the embedded log, with its sinks' position kept beside it; one of
//! type `memory` goes with the process. Sources and sinks of the registry that it is handed are at hand by their names.
//!
//! Invariants: a source's events are acked when all required channels have them; they leave a channel when a sink has
//! them. Between the two they are lost by nothing (`file`), or by the end of the process alone (`memory`), which is told.
//! Every queue is bounded. No program is started, and no shell.
//!
//! ```
//! use tidemill_agent::{Plan, World};
//!
//! let world = World { registry: tidemill_core::Registry::default(), host: "mill".to_owned(), proxied: false };
//! let file = "
//! [sources.numbers]
//! type = 'seq'
//! total = 10
//! channels = ['c1']
//! [channels.c1]
//! type = 'memory'
//! [sinks.out]
//! type = 'loger'
//! channel = 'c1'";
//! let error = Plan::read(file, "a1", &world).unwrap_err().to_string();
//! assert_eq!(error, "line 9, column 9: sink \"out\": there is no sink `loger`; did you mean `logger`?");
//! assert!(Plan::read(&file.replace("loger", "logger"), "a1", &world).is_ok());
//! ```

mod avro;
mod backoff;
mod channel;
mod config;
pub mod event;
pub mod flume;
mod inlet;
mod interceptor;
mod probe;
mod reach;
mod run;
mod selector;
mod sink;
mod source;
mod status;
#[cfg(test)]
mod tests;

pub use config::{Plan, World};
pub use event::Event;
pub use probe::Probe;
pub use run::{Agent, Setting};
pub use sink::{Outlet, logger::Out};
pub use status::{Counts, Held, Status};
