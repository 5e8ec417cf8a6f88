//! Generated input: the same bytes for the same seed, on every machine.
//!
//! Each job's two sides read what is made here: [`words`] for W1 and W4,
//! [`tweets`] for W2, [`events`] for W3. [`files`] writes them once and finds
//! them again; [`serve`] sends files, or a steady trickle of lines, over TCP.
//!
//! Invariant: a record depends on the seed and its index only, never on the
//! number of threads that generate or on the clock.

pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod random;
pub(crate) mod serve;
pub(crate) mod tweets;
pub(crate) mod words;
