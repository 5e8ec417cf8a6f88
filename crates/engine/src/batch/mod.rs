//! A batch's life: tick, ranges, run, commit.
//!
//! [`run`] tells it top to bottom. [`next`] says what a batch reads, [`clock`]
//! when it is due, [`rate`] how much it may be, [`keep`] what is durable and [`states`] of states
//! ([`in_turn`] of large ones), [`retain`] what the log gives up, [`patience`] how long something
//! outside is waited for, [`committing`] what waits for its commit, [`told`] what people are told, [`lower`] the outputs' plans; [`pipeline`] puts the parts of a program together and owns the loop.

mod clock;
mod committing;
#[cfg(test)]
mod committing_tests;
#[cfg(test)]
mod idle_tests;
mod in_turn;
mod keep;
mod life;
mod lower;
mod next;
mod patience;
#[cfg(test)]
mod patience_tests;
mod pipeline;
mod rate;
mod retain;
mod run;
mod states;
#[cfg(test)]
mod tests;
mod told;
#[cfg(test)]
mod told_tests;

pub use clock::Trigger;
pub(crate) use keep::Keep;
pub(crate) use lower::lower;
pub(crate) use pipeline::{OutputPlan, Pipeline, no_output};
pub use rate::{Pid, RateControl};
pub(crate) use run::of_plan;
pub(crate) use states::StateEntry;
