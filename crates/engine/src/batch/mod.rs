//! A batch's life: tick, ranges, run, commit.
//!
//! [`run`] tells it top to bottom. [`next`] says what a batch reads, [`clock`]
//! when it is due, [`rate`] how much it may be, [`keep`] what is durable,
//! [`retain`] what the log gives up; [`pipeline`] puts the parts of a program
//! together and owns the loop.

mod clock;
#[cfg(test)]
mod idle_tests;
mod keep;
mod next;
mod pipeline;
mod rate;
mod retain;
mod run;
#[cfg(test)]
mod tests;

pub use clock::Trigger;
pub(crate) use keep::{Keep, StateEntry};
pub(crate) use pipeline::{OutputPlan, Pipeline, lower};
pub use rate::{Pid, RateControl};
pub(crate) use run::of_plan;
