//! Faults between a connector and its peer: a proxy that makes them, and what every networked connector must stand.
//!
//! ```text
//!  connector ──► FaultProxy ──► server          one that connects: `check_receiver_faults`, `check_source_faults`,
//!                                               `check_sink_faults`
//!  peer ───────► FaultProxy ──► connector       one that listens: `check_listener_faults`
//! ```
//!
//! A connector tells how it is made for an address, and how to read what arrived; the suites try each
//! fault and panic with what is wrong. Time is in the test's [`Hands`]: an outage of half a minute lasts as
//! long as the clock is moved.
//!
//! Invariant: a fault happens where the script says, by calls and by what has passed, never by wall time; the
//! suites know only the traits. Called by tests, here and of connectors elsewhere.

mod carry;
mod hands;
mod listener;
mod proxy;
mod receiver;
mod sink;
mod source;
#[cfg(test)]
mod tests;

pub use hands::Hands;
pub use listener::{Caller, check_listener_faults};
pub use proxy::{Fault, FaultProxy, Landed, When};
pub use receiver::{Feed, Promise, check_receiver_faults};
pub use sink::{Shelf, check_sink_faults};
pub use source::{Spring, check_source_faults};

/// Bytes that no protocol says: no line ends, no length is small, no text is UTF-8.
pub fn nonsense() -> Vec<u8> {
    (0..512_u64).map(|n| crate::backoff::splitmix64(n).to_be_bytes()[0] | 0x80).collect()
}
