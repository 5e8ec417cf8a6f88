//! Avro RPC as Flume speaks it: between agents, ours and Flume's, in both directions.
//!
//! A TCP connection carries frames (serial number, list of buffers); a frame is a call or its answer. The first call
//! begins with a handshake, in which both sides name their protocol by a hash. `append` brings one event, `appendBatch`
//! several; the answer says that all of them are in the channels.
//!
//! Sources of these rules: Apache Avro's specification (protocol declaration, wire format, handshake), its
//! `NettyTransportCodec`, and Flume's `AvroSourceProtocol`.
//!
//! Invariant: lengths are checked before anything is allocated for them, and what the events of a call take of memory is
//! bounded, however small they are on the wire; what is not such a message is an error and never a panic. Called by the source and the sink `avro`.

pub(crate) mod line;
pub(crate) mod message;
mod wire;

pub(crate) use wire::{Reader, Writer};

use tidemill_core::Error;

/// Bytes of a frame at most.
pub(crate) const MAX_FRAME: usize = 64 << 20;

/// What is not such a message.
pub(crate) fn bad(why: &str) -> Error {
    Error::external(format!("this is no Avro call as Flume makes it: {why}"))
}
