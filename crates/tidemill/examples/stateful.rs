//! A running count by key, kept over restarts.
//!
//! ```text
//! cargo run --example stateful
//! ```
//!
//! Ends by itself. Each visitor's count lives in a named state; with a data
//! directory it would be there again at the next start.

use tidemill::prelude::*;

/// Who came, batch by batch.
pub(crate) fn input() -> [Vec<String>; 3] {
    [
        vec!["ada".to_string(), "lin".into(), "ada".into()],
        vec!["lin".to_string()],
        vec!["ada".to_string(), "kim".into()],
    ]
}

/// How often each has come so far.
pub(crate) fn visits(came: &DStream<String>) -> DStream<(Str, i64)> {
    came.map(|who| (Str::from(who), 1_i64))
        .with_name("visits_by_visitor")
        .update_state_by_key(|new: &[i64], count: Option<i64>| Some(count.unwrap_or(0) + new.iter().sum::<i64>()))
        .snapshot()
}

fn main() -> Result<()> {
    let context = tidemill::context("visits").trigger(Trigger::Drain).build();
    visits(&context.queue_stream(input())?).foreach_batch(|batch, mut counts| {
        counts.sort();
        println!("after batch {}: {counts:?}", batch.id);
        Ok(())
    });

    context.start()?;
    context.await_termination()
}
