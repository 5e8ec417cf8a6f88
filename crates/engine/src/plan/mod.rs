//! From the user's graph to one kept physical plan an output.
//!
//! [`Lineage`] is a node of the graph that the user declares: an
//! [`Operator`] over inputs. [`Lowering`] turns it into a DataFusion
//! `ExecutionPlan`, once; the plan is kept and run once a batch, and what
//! differs from batch to batch is reached through [`BatchRun`], an extension of
//! the task's configuration.
//!
//! Invariant: a plan depends only on lineage; ranges, time and state version
//! come in with the batch.

mod exchange;
mod lineage;
mod lowering;
mod node;
mod run;
mod shared;
mod source;
mod stages;
mod work;

pub(crate) use exchange::{exchange, mark, scattered};
pub(crate) use lineage::{Lineage, Operator};
pub(crate) use lowering::Lowering;
pub(crate) use node::{Inputs as NodeInputs, Kernel, NodeExec, Rows, external, rows_from, rows_once};
pub(crate) use run::BatchRun;
pub(crate) use shared::SharedKernel;
pub(crate) use source::{FAR, META, SourceExec, StreamInput, TimeColumn, largest_time, partition_of_rows};
pub(crate) use stages::{Going, Stages, words_of};
pub(crate) use work::{Step, Work, counted};
