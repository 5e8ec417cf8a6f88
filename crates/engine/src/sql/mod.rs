//! SQL over streams.
//!
//! ```sql
//! CREATE STREAM posts (id BIGINT, text TEXT, lang TEXT, created TIMESTAMP,
//!                      WATERMARK FOR created AS created - INTERVAL '5' SECOND)
//!   WITH (connector = 'tcp', address = '127.0.0.1:9999', format = 'json');
//! CREATE VIEW top AS
//!   SELECT window_end, tag, count(*) AS n
//!   FROM (SELECT window_start, window_end, unnest(hashtags(lower(text))) AS tag
//!         FROM HOP(TABLE posts, DESCRIPTOR(created), INTERVAL '10' SECOND, INTERVAL '60' SECOND))
//!   GROUP BY window_start, window_end, tag ORDER BY n DESC LIMIT 10;
//! CREATE SINK tops WITH (connector = 'files', path = 'out', format = 'json');
//! INSERT INTO tops SELECT * FROM top;
//! ```
//!
//! What a query gives in a batch:
//!
//! | Query | Rows of a batch |
//! |---|---|
//! | without an aggregate | of the batch's records; ORDER BY and LIMIT work within the batch |
//! | join of two streams, DISTINCT | new rows, which stay |
//! | GROUP BY, the first rows of each key | the whole result so far |
//! | over such a result | the whole result, computed anew |
//! | GROUP BY a window | of each window that closed, the oldest first; ORDER BY, LIMIT, HAVING work within each window |
//! | GROUP BY a session or count window | of those that closed, all together; ORDER BY and LIMIT work over them |
//!
//! Windows are `TUMBLE`, `HOP`, `SESSION` and `COUNT_WINDOW`. One by time closes
//! when the watermark passes its end; its result is given once and is final,
//! unless the view says otherwise: `WITH (emit = 'update')` or `'complete'`,
//! `allowed_lateness` ([`times`]). A row all of whose windows have closed is late:
//! it is counted, left out, and kept as a dead letter, or in a view of its own.
//!
//! Where things are: [`parse`] reads statements, [`catalog`] declares what they
//! name, [`shape`] says which queries mean something, [`parts`] cuts a statement
//! into nodes, [`lower`] plans them, [`mistakes`] words errors. [`window`] reads
//! window functions, [`panes`] assigns rows to them, [`times`] has the options of
//! event time, [`progress`] follows times through a plan, [`late`] sets late rows
//! aside. [`state`] keeps aggregates, [`keyed`] windows of each key, [`mod@join`] the sides
//! of a join, [`lookup`] answers of tables that are asked by key, [`distinct`] what was seen, [`top`] first rows. [`tables`] and
//! [`reload`] are what is read ([`session`] and [`provider`] for the planner, [`stored`] files, [`leaves`] nodes), [`rows`] last
//! steps, [`held`] and [`tops`] hold plain groups and first rows ready ([`table`]) and give them in turn ([`turns`]), those that were [`touched`] last stay in memory; [`running`] and [`slide`] hold hopping windows ready ([`groups`], [`sums`]; [`first`] finds top n), [`functions`] has the
//! functions for social text, [`alert`] watches views, [`query`] answers questions beside the program ([`answers`]
//! those of its page, with [`parameters`]) by plans that are [`stoppable`], [`past`] those about state.

mod alert;
mod answers;
mod blocks;
mod catalog;
mod checks;
mod cut;
mod distinct;
mod first;
mod functions;
mod groups;
mod held;
mod join;
mod keyed;
mod late;
mod leaves;
mod lookup;
mod lower;
mod mistakes;
mod number;
mod ordered;
mod panes;
mod parameters;
mod parse;
mod parts;
mod past;
mod progress;
mod provider;
mod query;
mod refused;
mod reload;
mod rows;
mod running;
mod session;
mod shape;
mod side;
mod slide;
mod state;
mod stoppable;
mod stored;
mod sums;
mod table;
mod tables;
#[cfg(test)]
mod tests;
mod times;
mod top;
mod topics;
mod tops;
mod touched;
mod turns;
mod window;

pub(crate) use catalog::Sql;
pub(crate) use late::{KEPT as LATE_KEPT, json as rows_as_json, letters as late_letters};
pub use query::Shell;
