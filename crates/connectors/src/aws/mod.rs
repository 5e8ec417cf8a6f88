//! What connectors to Amazon's services share: the way to servers, and who asks.
//!
//! `link.rs` takes the requests of the client of S3 over the connections that
//! all connectors have; `caller.rs` has credentials for services beside S3, from
//! where that client finds its own, and signs with them.
//!
//! Invariant: credentials come from the environment or the machine's role, and
//! are never shown. Called by [`crate::s3`] and [`crate::kinesis`].

#[cfg(feature = "kinesis")]
mod caller;
mod link;

#[cfg(feature = "kinesis")]
pub(crate) use caller::Caller;
pub(crate) use link::Over;
