//! The engine's side of each job.
//!
//! Each function hands back the side that [`crate::measure::interleave`] runs
//! beside the loop. A side wraps its work in [`crate::measure::timed`]: from
//! building the program until its answer can be read, all inside. Every program
//! has a data directory: ledger, log and state are kept as in real use.

mod agent;
mod batch;
mod keys;
mod latency;
mod push;
mod replay;
mod spill;
mod states;
mod trends;
mod windows;
mod words;

pub(crate) use agent::agent;
pub(crate) use batch::batch;
pub(crate) use keys::keys;
pub(crate) use latency::w4;
pub(crate) use push::push;
pub(crate) use replay::replay;
pub(crate) use spill::spill;
pub(crate) use states::{killed_program, w3};
pub(crate) use trends::w2;
pub(crate) use windows::windows;
pub(crate) use words::{Spelling, w1_file, w1_tcp};
