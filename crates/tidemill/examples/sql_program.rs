//! A program in SQL, and a query on its view.
//!
//! ```text
//! cargo run --example sql_program
//! ```
//!
//! Ends by itself: the generator gives a fixed number of rows.

use tidemill::prelude::*;

/// The program.
pub(crate) const PROGRAM: &str = "
CREATE STREAM numbers WITH (connector = 'generator', rows = '10000', keys = '7');
CREATE VIEW by_key AS SELECT key, count(*) AS n FROM numbers GROUP BY key ORDER BY key;
";

fn main() -> Result<()> {
    let context = tidemill::context("sql_program").trigger(Trigger::Drain).build();
    context.declare_sql(PROGRAM)?;
    let board = context.board();
    Assembly::new(context).show(Show::Nothing).run()?;
    let view = board.view("by_key").ok_or_else(|| Error::internal("the view has no rows"))?;
    println!(
        "{}",
        arrow_cast::pretty::pretty_format_batches(std::slice::from_ref(&view.rows))
            .map_err(|e| Error::internal("table").because(e))?
    );
    Ok(())
}
