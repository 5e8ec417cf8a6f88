//! The demo's program, typed: the top hashtags and words of the last minute.
//!
//! Invariant: counts of a batch leave the window 60 seconds after they came.
//! Called by the demo.

use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tidemill::{
    Duration, Options, Result, Str, StreamingContext, Timestamp,
    core::{Board, Input, ViewSnapshot},
    engine::batch_of,
    prelude::*,
};

const WINDOW: Duration = Duration::from_secs(60);

type Post = (i64, Str, Str);

pub(crate) fn declare(context: &StreamingContext, address: &str, receivers: u16) -> Result<()> {
    let registry = tidemill::connectors::registry();
    let options = Options::new(
        "stream \"posts\"",
        [("connector", "tcp"), ("format", "json"), ("address", address), ("receivers", &receivers.to_string())],
    );
    let Input::Receivers(receivers) = registry.input(&options)? else {
        return Err(Error::internal("tcp is a receiver"));
    };
    let columns = tidemill::engine::schema_of::<Post>();
    let names = ["id", "text", "created_at"];
    let fields: Vec<_> = columns.fields().iter().zip(names).map(|(f, n)| f.as_ref().clone().with_name(n)).collect();
    let format = registry.format(&options, Some(Arc::new(arrow_schema::Schema::new(fields))))?;
    let posts = context.receiver_stream::<Post>("posts", receivers, format)?;
    let tags = posts.flat_map::<Str, _>(|(_, text, _), out| {
        let tags = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '#')).filter(|w| w.len() > 1);
        out.extend(tags.filter(|w| w.starts_with('#')).map(str::to_lowercase));
    });
    top(context, "hashtags", tags.count_by_value());
    let words = posts.flat_map::<Str, _>(|(_, text, _), out| {
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| w.chars().count() > 3);
        out.extend(words.map(str::to_lowercase));
    });
    top(context, "words", words.count_by_value());
    Ok(())
}

/// Shows the ten largest sums of the last minute.
fn top(context: &StreamingContext, name: &'static str, counts: DStream<(Str, i64)>) {
    let board: Arc<Board> = context.board();
    let window: Mutex<VecDeque<(Timestamp, Vec<(Str, i64)>)>> = Mutex::default();
    counts.foreach_batch(move |batch, counts| {
        let mut window = window.lock();
        window.push_back((batch.time, counts));
        while window.front().is_some_and(|(time, _)| batch.time.since(*time) >= WINDOW) {
            window.pop_front();
        }
        let mut sums: HashMap<Str, i64> = HashMap::new();
        for (key, count) in window.iter().flat_map(|(_, counts)| counts) {
            *sums.entry(key.clone()).or_default() += count;
        }
        let mut top: Vec<_> = sums.into_iter().collect();
        top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        top.truncate(10);
        let rows = batch_of(top)?;
        board.publish_view(ViewSnapshot { name: name.to_string(), batch: batch.id, time: batch.time, rows });
        Ok(())
    });
}
