//! Visits to a shop: what each visitor did, told when the visitor has left.
//!
//! ```text
//! cargo run --example sessions
//! ```
//!
//! Ends by itself. A visit is a state under the visitor's name. It times out
//! when the visitor has been quiet for five batches; buying something ends it
//! at once. With a data directory, visits would go on after a restart.

use tidemill::prelude::*;

#[derive(Debug, Clone, Default, PartialEq, Record)]
struct Visit {
    pages: Vec<String>,
    spent: f64,
}

/// A visitor, the page, and what was paid there.
pub(crate) type Click = (String, (String, f64));

/// Clicks, batch by batch.
pub(crate) fn input() -> [Vec<Click>; 4] {
    let click = |who: &str, page: &str, paid: f64| (who.to_string(), (page.to_string(), paid));
    [
        vec![click("ada", "tea", 0.0), click("lin", "pots", 0.0)],
        vec![click("ada", "cups", 0.0), click("kim", "tea", 0.0)],
        vec![click("ada", "checkout", 12.5)],
        vec![click("lin", "tea", 0.0)],
    ]
}

/// What is told of each visit at its end, and how many visitors are in the shop.
pub(crate) fn visits(clicks: &DStream<Click>, interval: Duration) -> (DStream<String>, DStream<i64>) {
    let visits = clicks.with_name("visits").map_with_state(|_time, who, click, visit: &mut State<Visit>| {
        let mut so_far = visit.get().cloned().unwrap_or_default();
        let Some((page, paid)) = click else {
            // The last call: nothing has come for the timeout, and the state goes.
            return Some(format!("{who} left after {}", so_far.pages.join(", ")));
        };
        so_far.pages.push(page.to_string());
        so_far.spent += paid;
        if paid > 0.0 {
            visit.remove();
            return Some(format!("{who} bought for {} after {}", so_far.spent, so_far.pages.join(", ")));
        }
        visit.update(so_far);
        None
    });
    let visits = visits.timeout(interval * 5);
    (visits.mapped(), visits.snapshots().count())
}

fn main() -> Result<()> {
    let interval = Duration::from_millis(100);
    let context = tidemill::context("shop").interval(interval).build();
    let (told, here) = visits(&context.queue_stream(input())?, interval);
    told.foreach_batch(|_, told| {
        told.iter().for_each(|line| println!("{line}"));
        Ok(())
    });
    here.foreach_batch(|batch, here| {
        println!("batch {}: {here:?} in the shop", batch.id);
        Ok(())
    });

    Assembly::new(context).show(Show::Nothing).run_for(Some(Duration::from_secs(2))).run()?;
    Ok(())
}
