//! The planner's sessions, and the thread that they run on.
//!
//! Invariant: all sessions know the same functions and repartition nothing, so
//! that a query beside the program means what it means within. Made by
//! [`super::catalog`] for a program and by [`super::query`] for a question.

use datafusion::{
    execution::{SessionStateBuilder, runtime_env::RuntimeEnv},
    prelude::{SessionConfig, SessionContext},
};
use std::sync::Arc;
use tidemill_core::{Error, Result};

/// Stack of the thread that reads and plans: parsers and planners recurse.
const STACK: usize = 64 << 20;

/// A planner's settings: a batch is small, so nothing is shuffled that was not asked for.
pub(super) fn config(partitions: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(partitions)
        .with_round_robin_repartition(false)
        .with_repartition_joins(false)
        .with_repartition_aggregations(false)
        .with_repartition_windows(false)
        .with_repartition_sorts(false)
        .with_repartition_file_scans(false);
    let options = config.options_mut();
    // A dynamic filter belongs to one run, and a kept plan has many.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.schema_force_view_types = false;
    config
}

/// A session with the functions for social text.
pub(super) fn session(config: SessionConfig, runtime: Option<Arc<RuntimeEnv>>) -> SessionContext {
    let mut builder = SessionStateBuilder::new().with_config(config).with_default_features();
    if let Some(runtime) = runtime {
        builder = builder.with_runtime_env(runtime);
    }
    let state = builder.build();
    let functions = super::functions::all(&state);
    let session = SessionContext::new_with_state(state);
    for function in functions {
        session.register_udf(function);
    }
    session
}

/// Runs `act` on a thread with room to recurse, within a small runtime.
///
/// # Errors
/// What `act` gives, or that it panicked.
pub(super) fn with_room<T: Send, F: Future<Output = Result<T>>>(act: impl FnOnce() -> F + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("tidemill-sql".into()).stack_size(STACK).spawn_scoped(scope, || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|e| Error::external("can't start the planner").because(e))?;
                runtime.block_on(act())
            });
        thread
            .map_err(|e| Error::external("can't start the planner's thread").because(e))?
            .join()
            .unwrap_or_else(|_| Err(Error::internal("the planner panicked")))
    })
}
