//! The pages of a running program, served from a [`Board`] alone.
//!
//! The engine publishes views, batch reports and inputs to the board; this
//! room shows them at `http://127.0.0.1:4040` to browsers, scripts and
//! monitors. It names no engine, so a test or an example can stand in for one.
//!
//! ```text
//! /                           the pages       /livez /readyz   health, with the reason
//! /assets/*                   their parts     /metrics         Prometheus text
//! /api/v1/program, health, graph, inputs      /api/v1/live     Server-Sent Events
//! /api/v1/views[/{name}[/history]]            /api/v1/feed     the same as a WebSocket
//! /api/v1/batches[/{batch}[/run]], states/{name}   /api/v1/openapi.json, grafana.json, caller
//! /api/v1/query[/{id}[/cancel]], names        /api/v1/notebooks[/{name}]
//! /api/v1/alerts[/{name}/silence, /test]
//! ```
//!
//! Invariants: a viewer never slows the board, however slow or stuck it is,
//! and costs a bounded amount of memory. Only loopback is served unless there
//! are tokens and TLS ([`Access`]), and only to requests whose `Host` names this
//! server, because any web page may send requests to `127.0.0.1`. Text from the stream reaches the page as text and
//! never as markup.
//!
//! ```
//! # async fn example() -> tidemill_core::Result<()> {
//! use std::sync::Arc;
//! use tidemill_core::{Board, StopHandle};
//! use tidemill_web::Server;
//!
//! let board = Arc::new(Board::default());
//! let server = Server::bind("127.0.0.1:0".parse().expect("an address"), Arc::clone(&board)).await?;
//! println!("open http://{}", server.address());
//! let (handle, stop) = StopHandle::new();
//! handle.stop();
//! server.run(stop).await
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
//! ```
//!
//! [`Board`]: tidemill_core::Board

mod access;
mod alerts;
mod api;
mod assets;
mod callers;
mod feed;
mod gate;
mod grafana;
mod guard;
mod health;
#[cfg(test)]
#[allow(dead_code, reason = "the tests of the whole server use the rest")]
#[path = "../tests/it/http.rs"]
mod http;
mod inspect;
mod live;
#[cfg(test)]
mod matrix;
mod metrics;
mod notebooks;
mod openapi;
mod past;
mod query;
mod role;
mod rounds;
mod routes;
mod rows;
mod server;
mod tls;
mod tokens;
mod watch;

pub use access::Access;
pub use role::Role;
pub use server::Server;
pub use tls::Tls;
pub use tokens::Tokens;
