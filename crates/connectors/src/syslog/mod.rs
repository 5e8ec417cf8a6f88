//! Connector `syslog`, and format `syslog`: messages of systems and devices.
//!
//! The receiver listens for RFC 5424 and RFC 3164 over UDP (RFC 5426) and TCP
//! (RFC 6587: counted in octets, or a line each). The log keeps a message as it
//! came; the format reads it as columns ([`SyslogFormat`]).
//!
//! | Option | Meaning |
//! |---|---|
//! | `address` | where to listen, `127.0.0.1:5514`; port 0 takes free ones, which the states tell |
//! | `transport` | `both` (unless said), `udp` or `tcp`; each has a partition of its own |
//! | `max_line` | bytes of a message at most (1 MiB); a longer one is refused |
//! | `max_connections` | connections at the same time (1024) |
//! | `idle_timeout` | a connection that said nothing for this long is closed (never by default) |
//! | `receive_buffer` | bytes that the system is asked to hold of datagrams that were not read yet (4 MiB) |
//!
//! Syslog has no answers: who sends is not told what is durable. Over TCP a
//! program that is behind slows its senders; over UDP the system drops what
//! finds no room, and nobody is told. What must not be lost goes over TCP.
//!
//! Invariant: every message that was read is a record or a dead letter.

mod columns;
mod frames;
mod parse;
mod receive;
#[cfg(test)]
mod tests;

pub use columns::SyslogFormat;
pub use parse::{Element, Message, parse};
pub use receive::{SyslogTcp, SyslogUdp, input};
